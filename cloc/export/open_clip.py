"""A folder that ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` loads.

One of the four writers (``matrix → hf | open_clip | timm | onnx → verify → card``).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from cloc.data.views import PAD_VALUE
from cloc.encoder import Encoder
from cloc.export.extra import clamped_scale, write_extra
from cloc.export.matrix import activation
from cloc.export.verify import Probe, Row, compare_reloaded, compare_views, watch
from cloc.models.exported import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS


def write(encoder: Encoder, folder: Path) -> None:
    """Write configuration and weights, and the Prompter beside them."""
    import open_clip

    model, node = encoder.model, encoder.info["config"]["model"]
    arch = {part: open_clip.get_model_config(node[part].get("name", "ViT-B-16")) for part in ("image", "text")}
    vision = arch["image"]["vision_cfg"] | dict(node["image"].get("options") or {})
    text = arch["text"]["text_cfg"] | dict(node["text"].get("options") or {})
    config = {
        "model_cfg": {
            "embed_dim": model.image.joint_dim,
            "quick_gelu": activation(model.image.visual.transformer.resblocks[0]) == "quick_gelu",
            "custom_text": True,
            "vision_cfg": vision | {"image_size": model.image.image_size},
            "text_cfg": text | {"context_length": model.text.tower.context_length},
        },
        "preprocess_cfg": {
            "size": model.image.image_size,
            "mean": list(model.image.mean),
            "std": list(model.image.std),
            "interpolation": "bicubic",
            "resize_mode": "longest",
            "fill_color": PAD_VALUE,
        },
    }
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {f"visual.{name}": value for name, value in model.image.visual.state_dict().items()}
    state |= {f"text.{name}": value for name, value in model.text.tower.state_dict().items()}
    state["logit_scale"] = clamped_scale(model)
    save_file({k: v.detach().float().cpu().contiguous().clone() for k, v in state.items()}, folder / OPEN_CLIP_WEIGHTS)
    write_extra(encoder, folder)


@torch.inference_mode()
def read(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """States of the exported model, by open_clip alone."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    model.visual.output_tokens = True
    with watch(model.visual.transformer.resblocks[-1]) as states:
        pooled, tokens = model.visual(probe.pixels)
    text = model.encode_text(probe.whole_tokens, normalize=True)
    return {"pooled": normalize(pooled, dim=-1), "tokens": tokens, **states, "text": text}


def more_rows(encoder: Encoder, probe: Probe, folder: Path, tolerance: float) -> list[Row]:
    """Rows of the exported preprocessing (Pillow's bicubic, ours is torchvision's), tokenizer, and ``cloc.load``."""
    import open_clip

    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    rows = compare_views(encoder, probe, torch.stack([preprocess(picture) for picture in probe.pictures]), None)
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")(list(probe.texts))
    wrong = int((theirs != probe.whole_tokens).any(-1).sum())
    rows.append(Row("texts with other token ids", float(wrong), float(len(theirs)), 0.0))
    return rows + compare_reloaded(encoder, probe, folder, tolerance)


def usage(encoder: Encoder) -> tuple[str, str]:
    """Example for the card, and what to know."""
    example = """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")"""
    notes = (
        f"`preprocess` resizes the long side to {encoder.model.image.image_size} px and pads with {PAD_VALUE}, as in "
        "training, by Pillow's bicubic filter; training used torchvision's, which differs by rounding (see the table)."
    )
    return example, notes
