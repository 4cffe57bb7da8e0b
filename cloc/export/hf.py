"""A Hugging Face ``CLIPModel`` folder, with a ``CLIPVisionModel`` in ``vision/`` for LLaVA-style models.

One of the four writers (``matrix → hf | open_clip | timm | onnx → verify → card``). Everything is written offline: the
tokenizer from the byte-pair vocabulary that open_clip ships.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from cloc.data.views import PAD_VALUE
from cloc.encoder import Encoder
from cloc.export.extra import clamped_scale, write_extra
from cloc.export.matrix import ExportError, activation
from cloc.export.verify import Probe, Row, compare, compare_reloaded, compare_views
from cloc.models.exported import HF_WEIGHTS, to_hf
from cloc.models.model import Cloc

VISION = "vision"


def write(encoder: Encoder, folder: Path) -> None:
    """Write model, vision tower, image processor, tokenizer, and the Prompter beside them.

    Raises:
        ExportError: transformers is missing or too old for the image processor.
    """
    from transformers import CLIPModel, CLIPVisionModel

    processor = _processor(encoder.model)
    tokenizer = _tokenizer(encoder.model.text.tower.context_length)
    model = CLIPModel(_config(encoder.model, tokenizer)).eval()
    visual, text = encoder.model.image.visual, encoder.model.text.tower
    state = to_hf(visual.state_dict(), "image", visual.transformer.layers)
    state |= to_hf(text.state_dict(), "text", text.transformer.layers)
    model.load_state_dict({k: v.cpu() for k, v in state.items()} | {"logit_scale": clamped_scale(encoder.model).cpu()})
    model.save_pretrained(folder)
    tower = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.vision_model.state_dict())
    tower.save_pretrained(folder / VISION)
    # Releases before 5 know these weights by this prefix only; later ones by both names.
    weights = {f"vision_model.{name}": value.contiguous() for name, value in tower.state_dict().items()}
    save_file(weights, folder / VISION / HF_WEIGHTS, metadata={"format": "pt"})
    for place in (folder, folder / VISION):
        processor.save_pretrained(place)
    tokenizer.save_pretrained(folder)
    _write_vocabulary(folder)
    write_extra(encoder, folder)


def _config(model: Cloc, tokenizer: Any) -> Any:
    from transformers import CLIPConfig

    visual, text = model.image.visual, model.text.tower

    def shape(tower: Any, norm: Any) -> dict[str, Any]:
        """Width, depth and activation of one tower, under transformers' names."""
        block = tower.transformer.resblocks[0]
        return {
            "hidden_size": tower.transformer.width,
            "intermediate_size": block.mlp.c_fc.out_features,
            "num_hidden_layers": tower.transformer.layers,
            "num_attention_heads": block.attn.num_heads,
            "hidden_act": activation(block),
            "layer_norm_eps": norm.eps,
            "projection_dim": model.image.joint_dim,
        }

    vision = shape(visual, visual.ln_post) | {"image_size": visual.image_size[0], "patch_size": visual.patch_size[0]}
    language = shape(text, text.ln_final) | {
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "bos_token_id": tokenizer.bos_token_id,
        # Pooling by the first token of this id is CLIP's pooling by the highest id, which is the same token.
        "eos_token_id": text.eos_id if text.pool_type == "eos" else tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPConfig(vision_config=vision, text_config=language, projection_dim=model.image.joint_dim)


def _processor(model: Cloc) -> Any:
    """The only image processor of transformers that resizes the long side, then pads around with a color of our choice.

    It returns ``num_local_patches`` besides (zeros: the picture is not cut into tiles).
    """
    try:
        from transformers import DeepseekOcr2ImageProcessor
    except ImportError as error:
        import transformers

        raise ExportError(
            f"transformers {transformers.__version__} has no DeepseekOcr2ImageProcessor, which pads as cloc does: "
            "install a newer one (5.24 has it)"
        ) from error
    size = model.image.image_size
    return DeepseekOcr2ImageProcessor(
        size={"height": size, "width": size},
        tile_size=size,
        crop_to_patches=False,
        background_color=[PAD_VALUE] * 3,
        image_mean=list(model.image.mean),
        image_std=list(model.image.std),
    )


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges of the byte-pair encoding that open_clip ships, under transformers' names."""
    from open_clip.tokenizer import SimpleTokenizer

    backend = SimpleTokenizer()
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    return {renamed.get(token, token): i for token, i in backend.encoder.items()}, list(backend.bpe_ranks)


def _tokenizer(context_length: int) -> Any:
    from transformers import CLIPTokenizer

    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)


def _write_vocabulary(folder: Path) -> None:
    """``vocab.json`` and ``merges.txt``, which releases before 5 read instead of ``tokenizer.json``."""
    vocabulary, merges = _vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@torch.inference_mode()
def read(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """States of the exported model, by transformers alone."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    seen = model.vision_model(pixel_values=probe.pixels, output_hidden_states=True)
    pooled = model.visual_projection(seen.pooler_output)
    text = model.text_projection(model.text_model(input_ids=probe.tokens).pooler_output)
    return {
        "pooled": normalize(pooled, dim=-1),
        "tokens": model.vision_model.post_layernorm(seen.last_hidden_state)[:, 1:],
        "last": seen.last_hidden_state,
        "penultimate": seen.hidden_states[-2],
        "text": normalize(text, dim=-1),
    }


@torch.inference_mode()
def more_rows(encoder: Encoder, probe: Probe, folder: Path, tolerance: float) -> list[Row]:
    """Rows of the vision folder, image processor, tokenizer, and ``cloc.load``."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPVisionModel

    ours = read(folder, probe)
    seen = CLIPVisionModel.from_pretrained(folder / VISION).eval()(probe.pixels, output_hidden_states=True)
    states = {"last": seen.last_hidden_state, "penultimate": seen.hidden_states[-2]}
    rows = compare(ours, states, tolerance, prefix="vision/: ")
    pixels = AutoImageProcessor.from_pretrained(folder)(probe.pictures, return_tensors="pt").pixel_values
    rows += compare_views(encoder, probe, pixels, tolerance)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = encoder.model.text.tower.context_length
    theirs = tokenizer(list(probe.texts), truncation=True, max_length=length)["input_ids"]
    wrong = sum(tuple(ids) != encoder.tokenizer.encode(text)[0] for ids, text in zip(theirs, probe.texts, strict=True))
    rows.append(Row("texts with other token ids", float(wrong), float(len(theirs)), 0.0))
    return rows + compare_reloaded(encoder, probe, folder, tolerance)


def usage(encoder: Encoder) -> tuple[str, str]:
    """Example for the card, and what to know."""
    example = """from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPVisionModel

model = CLIPModel.from_pretrained("FOLDER")
processor = AutoImageProcessor.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
pixels = processor(pictures, return_tensors="pt").pixel_values
images = model.get_image_features(pixels)
tower = CLIPVisionModel.from_pretrained("FOLDER/vision")  # a vision tower for LLaVA: vision_feature_layer=-2"""
    notes = (
        f"The image processor resizes the long side to {encoder.model.image.image_size} px and pads with {PAD_VALUE}, "
        "as in training (transformers' `DeepseekOcr2ImageProcessor`, without tiles). It returns `num_local_patches` "
        "besides `pixel_values`: pass on `pixel_values` alone. The tokenizer lacks open_clip's repair of broken "
        "Unicode (ftfy) and HTML entities; on clean text it is the same."
    )
    return example, notes
