"""A folder that ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` loads.

One of the writers (``matrix → open_clip | … → verify → card``).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cloc.data.tokenizer import without_code
from cloc.data.transforms import PAD_VALUE
from cloc.encoder import Encoder
from cloc.export.cloc_files import clamped_scale, plain, view_stats
from cloc.export.verify import (
    Probe,
    Row,
    compare_reloaded,
    compare_tokens,
    compare_views,
    trunk_tokens,
)
from cloc.files import write_json, write_tensors
from cloc.models import taps
from cloc.models.protocols import declared
from cloc.models.trust.values import OPEN_CLIP_CONFIG
from cloc.models.weights.exported import OPEN_CLIP_WEIGHTS
from cloc.models.weights.layouts import QUICK


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
    vision, weights = declared(model.image).open_clip_vision()
    state = {f"visual.{name}": value for name, value in weights.items()}
    config = {
        "model_cfg": {
            "embed_dim": model.image.joint_dim,
            "quick_gelu": declared(model.text).activation == QUICK,
            "custom_text": True,
            "vision_cfg": vision | {"image_size": model.image.image_size},
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
    state |= {f"text.{name}": value for name, value in declared(model.text).tower.state_dict().items()}
    state["logit_scale"] = clamped_scale(model)
    if model.biases:
        config["model_cfg"]["init_logit_bias"] = node["logit_bias"]
        state["logit_bias"] = model.biases["global"].reshape(())
    write_json(folder / OPEN_CLIP_CONFIG, config)
    write_tensors(folder / OPEN_CLIP_WEIGHTS, plain(state))


@torch.no_grad()
def read(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """States of the exported model, by open_clip alone."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()
    trunk = getattr(model.visual, "trunk", None)
    states: dict[str, Tensor] = {}
    if hasattr(model.visual, "attnpool"):  # CLIP's ResNet
        found = model.visual.forward_intermediates(probe.pixels, indices=1)
        pooled, tokens = found["image_features"], found["image_intermediates"][0].flatten(2).transpose(1, 2)
    elif trunk is None:
        model.visual.output_tokens = True
        with taps.around_last(model.visual) as states:
            pooled, tokens = model.visual(probe.pixels)
    else:
        with taps.around_last(trunk) as states:
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
