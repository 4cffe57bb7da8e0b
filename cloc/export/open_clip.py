"""A folder that ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` loads.

One of the writers (``matrix → class_token → open_clip | … → verify → card``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cloc.data.tokenizer import without_code
from cloc.data.views import PAD_VALUE
from cloc.encoder import Encoder
from cloc.export.capabilities import is_native, text_activation
from cloc.export.class_token import describe
from cloc.export.cloc_files import clamped_scale, plain, view_stats
from cloc.export.verify import (
    Probe,
    Row,
    compare_reloaded,
    compare_tokens,
    compare_views,
    is_vit,
    trunk_tokens,
    watch,
)
from cloc.files import write_json, write_tensors
from cloc.models.image import OpenClipTower, TimmTower
from cloc.models.text import ClipText
from cloc.models.trust.values import OPEN_CLIP_CONFIG
from cloc.models.weights.exported import OPEN_CLIP_WEIGHTS
from cloc.models.weights.layouts import QUICK, TANH


def write(encoder: Encoder, folder: Path) -> None:
    """Write configuration, weights, and a tokenizer other than open_clip's own."""
    import open_clip

    model, node = encoder.model, encoder.info["config"]["model"]
    arch = open_clip.get_model_config(node["text"].get("name", "ViT-B-16"))
    text = arch["text_cfg"] | dict(node["text"].get("options") or {})
    text |= {"context_length": model.text.context_length}
    cleaning = {"clean": encoder.tokenizer.clean} if encoder.tokenizer.clean else {}
    if encoder.tokenizer.name == "open_clip":
        text.pop("hf_tokenizer_name", None)
        text.pop("tokenizer_kwargs", None)
        text |= {"tokenizer_kwargs": cleaning} if cleaning else {}
    else:  # beside the weights; open_clip asks for any name here and then looks into the folder
        text |= {"hf_tokenizer_name": "this folder", "tokenizer_kwargs": cleaning}
        encoder.tokenizer.save(folder)
    vision, state = _vision(encoder)
    assert isinstance(model.text, ClipText)  # others are refused
    quick = text_activation(model.text) == QUICK
    config = {
        "model_cfg": {
            "embed_dim": model.image.joint_dim,
            "quick_gelu": quick,
            "custom_text": True,
            "vision_cfg": vision,
            "text_cfg": text,
        },
        "preprocess_cfg": {
            "size": model.image.image_size,
            **view_stats(encoder),
            "interpolation": "bicubic",
            "resize_mode": {"pad": "longest", "squash": "squash"}[encoder.preprocess.mode],
            "fill_color": PAD_VALUE,
        },
    }
    state |= {f"text.{name}": value for name, value in model.text.tower.state_dict().items()}
    state["logit_scale"] = clamped_scale(model)
    if model.biases:
        config["model_cfg"]["init_logit_bias"] = node["logit_bias"]
        state["logit_bias"] = model.biases["global"].reshape(())
    write_json(folder / OPEN_CLIP_CONFIG, config)
    write_tensors(folder / OPEN_CLIP_WEIGHTS, plain(state))


def _vision(encoder: Encoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``vision_cfg`` and the weights of ``visual``: open_clip's own ViT where that computes the tower, else timm's."""
    import open_clip

    tower, node = encoder.model.image, encoder.info["config"]["model"]["image"]
    size = {"image_size": tower.image_size}
    if isinstance(tower, OpenClipTower):
        arch = open_clip.get_model_config(node.get("name", "ViT-B-16"))["vision_cfg"]
        state = tower.visual.state_dict()
        vision = arch | dict(node.get("options") or {}) | size
    elif is_native(tower):
        vit = describe(tower)
        state = vit.state
        vision = size | {
            "layers": vit.layers,
            "width": vit.width,
            "head_width": vit.width // vit.heads,
            "patch_size": vit.patch_size,
            "mlp_ratio": vit.mlp_width / vit.width,
            "no_ln_pre": not vit.pre_norm,
            "norm_kwargs": {"eps": vit.eps},
        }
        vision |= {"act_kwargs": {"approximate": "tanh"}} if vit.activation == TANH else {}
    else:
        assert isinstance(tower, TimmTower)  # others are refused
        state = {f"trunk.{name}": value for name, value in tower.trunk.state_dict().items()}
        state["head.proj.weight"] = tower.proj.weight
        name = node["name"].partition(".")[0]
        vision = size | {
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
        }
    return vision, {f"visual.{name}": value for name, value in state.items()}


@torch.inference_mode()
def read(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """States of the exported model, by open_clip alone."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()
    trunk = getattr(model.visual, "trunk", None)
    if trunk is None:
        model.visual.output_tokens = True
        with watch(model.visual.transformer.resblocks[-1]) as states:
            pooled, tokens = model.visual(probe.pixels)
    else:
        with watch(trunk.blocks[-1] if is_vit(trunk) else None) as states:
            pooled = model.visual(probe.pixels)
            tokens = trunk_tokens(trunk, trunk.forward_features(probe.pixels))
    text = model.encode_text(probe.whole_tokens, normalize=True)
    return {"pooled": normalize(pooled, dim=-1), "tokens": tokens, **states, "text": text}


def more_rows(encoder: Encoder, probe: Probe, folder: Path, tolerance: float) -> list[Row]:
    """Rows of the exported preprocessing (Pillow's bicubic, ours is torchvision's), tokenizer, and ``cloc.load``."""
    import open_clip

    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    rows = compare_views(encoder, probe, torch.stack([preprocess(picture) for picture in probe.pictures]), None)
    own = {} if encoder.tokenizer.name == "open_clip" else without_code(folder)
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}", **own)(list(probe.texts))
    rows.append(compare_tokens(probe.whole_tokens.tolist(), theirs.tolist()))
    return rows + compare_reloaded(encoder, probe, folder, tolerance)


def usage(encoder: Encoder) -> tuple[str, str]:
    """Example for the card, and what to know."""
    example = """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")"""
    notes = (
        f"`preprocess` makes the view of the training: {encoder.preprocess.describe(encoder.image_size)}, "
        "by Pillow's bicubic filter; training used torchvision's, which differs by rounding (see the table)."
    )
    return example, notes
