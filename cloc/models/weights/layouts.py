"""One computation, many names: the weights of a ViT or text transformer as open_clip, transformers and timm call them.

``exported`` and ``pretrained`` read other libraries' files by these tables, ``export`` writes by them, so that one
description of the layouts serves both directions. Everything is stated against open_clip's names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

CLIP_VOCABULARY = 49408
QUICK = "quick_gelu"  # transformers' names of the activations are ours
TANH = "gelu_pytorch_tanh"
ACTIVATIONS = ("gelu", QUICK, TANH)

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_IMAGE = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
    "proj": "visual_projection.weight",
}
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
_SIGLIP_TEXT = {key: value for key, value in _TEXT.items() if key != "text_projection"} | {
    "text_projection.weight": "text_model.head.weight",
    "text_projection.bias": "text_model.head.bias",
}
_TABLES = {"image": _IMAGE, "text": _TEXT, "siglip_text": _SIGLIP_TEXT}
_TRANSPOSED = {"visual_projection.weight", "text_projection.weight"}

_TIMM = {
    "class_embedding": "cls_token",
    "conv1.weight": "patch_embed.proj.weight",
    "positional_embedding": "pos_embed",
    "ln_pre.weight": "norm_pre.weight",
    "ln_pre.bias": "norm_pre.bias",
    "ln_post.weight": "norm.weight",
    "ln_post.bias": "norm.bias",
}
_TIMM_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.in_proj_": "attn.qkv",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_SIGLIP_TIMM = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "post_layernorm": "norm",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
}


def hf_names(part: str, layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Pair the weights of an open_clip tower with those of a Hugging Face ``CLIPModel`` or SigLIP text model.

    Args:
        part: ``image``, ``text`` or ``siglip_text``.
        layers: number of transformer blocks.

    Yields:
        open_clip's name within the tower, and one name (or three, where query, key and value are apart).
    """
    prefix = "vision_model" if part == "image" else "text_model"
    for ours, theirs in _TABLES[part].items():
        yield ours, (theirs,)
    for i in range(layers):
        block, layer = f"transformer.resblocks.{i}", f"{prefix}.encoder.layers.{i}"
        for kind in ("weight", "bias"):
            yield f"{block}.attn.in_proj_{kind}", tuple(f"{layer}.self_attn.{x}_proj.{kind}" for x in "qkv")
            for ours, theirs in _BLOCK.items():
                yield f"{block}.{ours}.{kind}", (f"{layer}.{theirs}.{kind}",)


def to_hf(tower: Mapping[str, Tensor], part: str, layers: int) -> dict[str, Tensor]:
    """State dict of an open_clip tower → the same weights under ``CLIPModel``'s names."""
    state: dict[str, Tensor] = {}
    for ours, theirs in hf_names(part, layers):
        value = tower[ours].T if theirs[0] in _TRANSPOSED else tower[ours]
        state |= dict(zip(theirs, value.chunk(len(theirs)), strict=True))
    return {name: value.detach().float().contiguous().clone() for name, value in state.items()}


def from_hf(state: Mapping[str, Tensor], part: str, layers: int) -> dict[str, Tensor]:
    """The inverse of :func:`to_hf`.

    Raises:
        ValueError: a weight is missing; names it.
    """
    tower: dict[str, Tensor] = {}
    for ours, theirs in hf_names(part, layers):
        missing = [name for name in theirs if name not in state]
        if missing:
            raise ValueError(f"the {part} tower lacks the weight {missing[0]!r}; is the folder a whole model?")
        value = torch.cat([state[name] for name in theirs])
        tower[ours] = value.T.contiguous() if theirs[0] in _TRANSPOSED else value
    return tower


def timm_names(layers: int, pre_norm: bool) -> Iterator[tuple[str, str]]:
    """Pair the weights of open_clip's class-token ViT with those of timm's; the projection is not part of timm's."""
    for ours, theirs in _TIMM.items():
        if pre_norm or not ours.startswith("ln_pre"):
            yield ours, theirs
    for i in range(layers):
        for kind in ("weight", "bias"):
            for ours, theirs in _TIMM_BLOCK.items():
                dot = "" if ours.endswith("_") else "."
                yield f"transformer.resblocks.{i}.{ours}{dot}{kind}", f"blocks.{i}.{theirs}.{kind}"


def to_timm(visual: Mapping[str, Tensor], layers: int, pre_norm: bool) -> dict[str, Tensor]:
    """State dict of open_clip's class-token ViT → the same weights under timm's names."""
    state = {}
    for ours, theirs in timm_names(layers, pre_norm):
        value = visual[ours].detach().float().contiguous().clone()
        state[theirs] = value.view(1, -1, value.shape[-1]) if theirs in ("cls_token", "pos_embed") else value
    if not pre_norm:  # timm has a bias here wherever there is no norm behind the positions
        state["patch_embed.proj.bias"] = torch.zeros(len(state["patch_embed.proj.weight"]))
    return state


def from_timm(trunk: Mapping[str, Tensor], layers: int, pre_norm: bool) -> dict[str, Tensor]:
    """The inverse of :func:`to_timm`; a bias of the patch projection moves into the positions of the patches."""
    state = {}
    for ours, theirs in timm_names(layers, pre_norm):
        value = trunk[theirs]
        state[ours] = value.reshape(-1) if theirs == "cls_token" else value[0] if theirs == "pos_embed" else value
    bias = trunk.get("patch_embed.proj.bias")
    if bias is not None:
        positions = state["positional_embedding"].clone()
        positions[1:] += bias
        state["positional_embedding"] = positions
    return state


def siglip_to_timm(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Image tower of a Hugging Face SigLIP → the same weights under the names of timm's ``vit_*_siglip_*``.

    Raises:
        ValueError: a weight is missing; names it.
    """

    def take(name: str) -> Tensor:
        if f"vision_model.{name}" not in state:
            raise ValueError(
                f"the image tower lacks the weight 'vision_model.{name}'; is the folder a whole SiglipModel?"
            )
        return state[f"vision_model.{name}"]

    trunk = {"pos_embed": take("embeddings.position_embedding.weight")[None], "attn_pool.latent": take("head.probe")}
    for kind in ("weight", "bias"):
        trunk |= {f"{ours}.{kind}": take(f"{theirs}.{kind}") for theirs, ours in _SIGLIP_TIMM.items()}
        query, *key_value = take(f"head.attention.in_proj_{kind}").chunk(3)
        trunk |= {f"attn_pool.q.{kind}": query, f"attn_pool.kv.{kind}": torch.cat(key_value)}
        for i in range(layers):
            layer = f"encoder.layers.{i}"
            trunk[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(
                [take(f"{layer}.self_attn.{x}_proj.{kind}") for x in "qkv"]
            )
            for ours, theirs in _BLOCK.items():
                trunk[f"blocks.{i}.{_TIMM_BLOCK[ours]}.{kind}"] = take(f"{layer}.{theirs}.{kind}")
    return trunk
