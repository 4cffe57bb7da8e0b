"""A Hugging Face ``CLIPModel`` folder, with a ``CLIPVisionModel`` in ``vision/`` for LLaVA-style models.

One of the writers (``matrix → hf | … → verify → card``). Everything is written offline: the tokenizer
from the byte-pair vocabulary that open_clip ships.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cloc.data.tokenizer import open_tokenizer
from cloc.data.transforms import PAD_VALUE
from cloc.encoder import Encoder
from cloc.export import remote_code
from cloc.export.capabilities import ExportError
from cloc.export.cloc_files import LEAST_TRANSFORMERS, PADDING_PROCESSOR, clamped_scale, plain, view_stats
from cloc.export.verify import Probe, Row, compare, compare_reloaded, compare_tokens, compare_views
from cloc.files import into_folder, read_file, write_file, write_json, write_tensors
from cloc.models.model import Cloc
from cloc.models.protocols import ClassTokenViT, declared
from cloc.models.weights.exported import HF_WEIGHTS
from cloc.models.weights.layouts import CLIP_VOCABULARY, to_hf

VISION, TOKENIZER_CONFIG = "vision", "tokenizer_config.json"


def write(encoder: Encoder, folder: Path) -> None:
    """Write model, vision tower, image processor, tokenizer, and the Prompter beside them.

    Raises:
        ExportError: transformers is missing or too old for the image processor.
    """
    from transformers import CLIPModel, CLIPVisionModel

    _check_version()
    vit, text = declared(encoder.model.image).class_token_vit(), declared(encoder.model.text).tower
    processor, tokenizer = _processor(encoder), _tokenizer(encoder)
    config = _config(encoder.model, vit, tokenizer)
    config.auto_map, config.cloc_view = remote_code.AUTO_MAP, remote_code.view(encoder)
    model = CLIPModel(config).eval()
    state = to_hf(vit.state, "image", vit.layers) | to_hf(text.state_dict(), "text", text.transformer.layers)
    model.load_state_dict(plain(state) | {"logit_scale": clamped_scale(encoder.model).cpu()})
    with _silent(), into_folder(folder) as whole, into_folder(folder, VISION) as vision:
        model.save_pretrained(whole)
        tower = CLIPVisionModel(model.config.vision_config)
        tower.load_state_dict(model.vision_model.state_dict())
        tower.save_pretrained(vision)
        processor.save_pretrained(whole)
        processor.save_pretrained(vision)
        tokenizer.save_pretrained(whole)
    # Releases before 5 know these weights by this prefix only; later ones by both names.
    weights = {f"vision_model.{name}": value.contiguous() for name, value in tower.state_dict().items()}
    write_tensors(folder / VISION / HF_WEIGHTS, weights, {"format": "pt"})
    if encoder.tokenizer.name == "open_clip":
        _write_vocabulary(folder)
    else:
        _name_tokenizer(folder)
    remote_code.write(encoder, folder)


def _check_version() -> None:
    """Other releases read what is written here, but have not all that writes it."""
    import transformers

    if not hasattr(transformers, "DeepseekOcr2ImageProcessor"):
        raise ExportError(
            f"export hf writes by transformers {PADDING_PROCESSOR} or newer, this is {transformers.__version__}: "
            f"pip install 'transformers>={PADDING_PROCESSOR}'; transformers {LEAST_TRANSFORMERS} reads the models in it"
        )


@contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _config(model: Cloc, vit: ClassTokenViT, tokenizer: Any) -> Any:
    from transformers import CLIPConfig

    image: Any = model.image  # nn.Module knows none of a tower's attributes
    text = declared(model.text).tower
    block = text.transformer.resblocks[0]
    vision = {
        "hidden_size": vit.width,
        "intermediate_size": vit.mlp_width,
        "num_hidden_layers": vit.layers,
        "num_attention_heads": vit.heads,
        "hidden_act": vit.activation,
        "layer_norm_eps": vit.eps,
        "projection_dim": image.joint_dim,
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
    }
    language = {
        "hidden_size": text.transformer.width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": text.transformer.layers,
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": declared(model.text).activation,
        "layer_norm_eps": text.ln_final.eps,
        "projection_dim": image.joint_dim,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": _end(text),
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPConfig(vision_config=vision, text_config=language, projection_dim=image.joint_dim)


def _end(text: Any) -> int:
    """Where transformers pools: at the first token of this id, but at the highest id where it is 2."""
    if text.pool_type == "eos":
        end: int = text.eos_id
        return end
    return CLIP_VOCABULARY - 1 if text.vocab_size == CLIP_VOCABULARY else 2


def _processor(encoder: Encoder) -> Any:
    """An image processor of transformers that makes our view.

    For padding that is the only one that resizes the long side, then pads around with a color of our choice. It returns
    ``num_local_patches`` besides (zeros: the picture is not cut into tiles).
    """
    size = encoder.image_size
    square = {"height": size, "width": size}
    stats = view_stats(encoder)
    if encoder.preprocess.mode == "squash":
        from transformers import CLIPImageProcessor

        return CLIPImageProcessor(
            size=square, do_center_crop=False, resample=3, image_mean=stats["mean"], image_std=stats["std"]
        )
    from transformers import DeepseekOcr2ImageProcessor

    return DeepseekOcr2ImageProcessor(
        size=square,
        tile_size=size,
        crop_to_patches=False,
        background_color=[PAD_VALUE] * 3,
        image_mean=stats["mean"],
        image_std=stats["std"],
    )


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges of the byte-pair encoding that open_clip ships, under transformers' names."""
    from open_clip.tokenizer import SimpleTokenizer

    backend = SimpleTokenizer()
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    return {renamed.get(token, token): i for token, i in backend.encoder.items()}, list(backend.bpe_ranks)


def _tokenizer(encoder: Encoder) -> Any:
    """open_clip's as transformers has it, or the model's own."""
    from transformers import CLIPTokenizer

    length = encoder.model.text.context_length
    if encoder.tokenizer.name != "open_clip":
        return encoder.tokenizer.open(model_max_length=length)
    vocabulary, merges = _vocabulary()
    pairs: Any = merges  # as the tokenizer takes them; its annotation knows lines of a file alone
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=length)


def _name_tokenizer(folder: Path) -> None:
    """Releases before 5 know a tokenizer that is a ``tokenizer.json`` by this class only; later ones by both names."""
    file = folder / TOKENIZER_CONFIG
    stored = json.loads(read_file(file))
    if stored.get("tokenizer_class") == "TokenizersBackend":
        write_json(file, stored | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _write_vocabulary(folder: Path) -> None:
    """``vocab.json`` and ``merges.txt``, which releases before 5 read instead of ``tokenizer.json``."""
    vocabulary, merges = _vocabulary()
    write_json(folder / "vocab.json", vocabulary, None)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_file(folder / "merges.txt", "\n".join(lines) + "\n")


@torch.no_grad()
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


@torch.no_grad()
def more_rows(encoder: Encoder, probe: Probe, folder: Path, tolerance: float) -> list[Row]:
    """Rows of the vision folder, image processor, tokenizer, and ``cloc.load``."""
    from transformers import AutoImageProcessor, CLIPVisionModel

    ours = read(folder, probe)
    seen = CLIPVisionModel.from_pretrained(folder / VISION).eval()(probe.pixels, output_hidden_states=True)
    states = {"last": seen.last_hidden_state, "penultimate": seen.hidden_states[-2]}
    rows = compare(ours, states, tolerance, prefix="vision/: ")
    pixels = AutoImageProcessor.from_pretrained(folder)(probe.pictures, return_tensors="pt").pixel_values
    rows += compare_views(encoder, probe, pixels, tolerance)
    tokenizer, length = open_tokenizer(str(folder)), encoder.model.text.context_length
    theirs = tokenizer(list(probe.texts), truncation=True, max_length=length)["input_ids"]
    own = [list(encoder.tokenizer.encode(text)[0]) for text in probe.texts]
    rows.append(compare_tokens(own, [list(ids) for ids in theirs]))
    rows += remote_code.rows(encoder, probe, folder, tolerance)
    return rows + compare_reloaded(encoder, probe, folder, tolerance)


def usage(encoder: Encoder) -> tuple[str, str]:
    """Example for the card, and what to know."""
    example = """from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel, CLIPVisionModel

model = CLIPModel.from_pretrained("FOLDER")
processor = AutoImageProcessor.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
pixels = processor(pictures, return_tensors="pt").pixel_values
images = model.get_image_features(pixels)
tower = CLIPVisionModel.from_pretrained("FOLDER/vision")  # a vision tower for LLaVA: vision_feature_layer=-2

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)  # pictures of any size, by code of this folder
images, texts = model.encode_image(pictures), model.encode_text(["a brown dog"])"""
    if remote_code.has_regions(encoder):
        example += "\nregions = model.encode_regions(pictures[0], boxes)  # [K,4] in 0..1 of the picture"
        if encoder.can_ground:
            example += '\nboxes = model.ground(pictures[0], ["a brown dog", "a red cup"])'
    notes = (
        f"{_versions(encoder)}The image processor makes the view: {encoder.preprocess.describe(encoder.image_size)}. "
    )
    if encoder.preprocess.mode == "pad":
        notes += (
            "It is transformers' `DeepseekOcr2ImageProcessor` without tiles, and returns `num_local_patches` besides "
            "`pixel_values`: pass on `pixel_values` alone. "
        )
    if encoder.tokenizer.name == "open_clip":
        notes += (
            "The tokenizer lacks open_clip's repair of broken Unicode (ftfy) and HTML entities; on clean text it is "
            "the same. "
        )
    if encoder.model.biases:
        notes += "CLIPModel has no bias of the logits; `prompter.safetensors` keeps it. "
    return example, notes.strip()


def _versions(encoder: Encoder) -> str:
    """Which transformers reads what."""
    models = (
        f"`CLIPModel`, `CLIPVisionModel`, the tokenizer and `AutoModel` need transformers {LEAST_TRANSFORMERS} or newer"
    )
    if encoder.preprocess.mode != "pad":
        return f"**Versions:** {models}, the image processor too.\n\n"
    return (
        f"**Versions:** {models}; the image processor needs transformers {PADDING_PROCESSOR} or newer (5). Under "
        "transformers 4 use `AutoModel` with pictures, which makes the view itself: `AutoImageProcessor` fails there, "
        "and `CLIPImageProcessor` or `AutoProcessor` make another view without a word. `export hf --resize squash` "
        "writes a folder whose processor transformers 4 has, and says what that costs.\n\n"
    )
