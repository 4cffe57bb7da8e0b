"""CLIP's class-token ViT, from whichever library its module is, as one description that every format can be written of.

timm and open_clip compute the same with other names where nothing out of the ordinary is switched on; what is, is an
obstacle. Serves the towers of ``image.py``, which say by it where they can go, and the writers of ``export``.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.layers import Attention, Mlp, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from cloc.models.protocols import ClassTokenViT, TimmModel
from cloc.models.weights.layouts import QUICK, TANH, from_timm, to_timm

TIMM_NAMES = {1e-5: "vit_base_patch16_clip_224", 1e-6: "vit_base_patch16_224"}  # by the eps of their norms
NAMES = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": TANH}


def activation(module: nn.Module) -> str:
    """Name of an activation in transformers' words, read from the module that runs."""
    name = type(module).__name__
    return TANH if getattr(module, "approximate", "none") == "tanh" else NAMES.get(name, name)


def obstacles_of_open_clip(visual: Any) -> list[str]:
    """Why open_clip's ViT is not a plain class-token ViT; empty where it is one."""
    block, found = visual.transformer.resblocks[0], []
    if visual.pool_type != "tok" or visual.attn_pool is not None or visual.final_ln_after_pool:
        found.append(f"the image tower pools by {visual.pool_type!r} and not by the normalized class token")
    return found + plain_block(block, "image")


def plain_block(block: Any, part: str) -> list[str]:
    """Why open_clip's blocks are not CLIP's."""
    if type(block).__name__ != "ResidualAttentionBlock" or not isinstance(block.ls_1, nn.Identity):
        return [f"the {part} tower's blocks are {type(block).__name__} or scale their branches"]
    name = activation(block.mlp.gelu)
    return [] if name in NAMES.values() else [f"the {part} tower's activation is {name}"]


def obstacles_of_timm(trunk: Any, own_stem: bool) -> list[str]:
    """Why a timm backbone is not a plain class-token ViT; empty where it is one.

    Args:
        trunk: the backbone.
        own_stem: whether its patches pass a convolution stem of ours.
    """
    if type(trunk) is not VisionTransformer:
        return [f"the backbone is timm's {type(trunk).__name__}"]
    if own_stem:
        return ["the patches pass a convolution stem of cloc's own"]
    if not isinstance(trunk.patch_embed, PatchEmbed):
        return [f"the patches pass timm's {type(trunk.patch_embed).__name__}"]
    if trunk.global_pool != "token" or trunk.attn_pool is not None:
        return [f"the backbone pools by {trunk.global_pool!r} and not by the class token"]
    block, found = trunk.blocks[0], []
    if trunk.num_reg_tokens:
        found.append(f"the backbone has {trunk.num_reg_tokens} register tokens")
    if trunk.no_embed_class or trunk.pos_embed is None:
        found.append("the class token has no position")
    if isinstance(trunk.norm, nn.Identity) or not isinstance(trunk.fc_norm, nn.Identity):
        found.append("the norm does not stand between the blocks and the pooling")
    if not isinstance(trunk.patch_embed.norm, nn.Identity):
        found.append("the patches are normalized")
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return [*found, f"the blocks are {type(block).__name__} of {type(block.attn).__name__}"]
    extra = (block.ls1, block.attn.q_norm, getattr(block.attn, "norm", nn.Identity()), block.mlp.norm)
    gate = getattr(block.attn, "gate", None)  # of later releases of timm, as the norm before it
    if not all(isinstance(module, nn.Identity) for module in extra) or gate is not None:
        found.append("the blocks scale their branches, normalize their queries or are gated")
    if block.attn.qkv.bias is None or block.attn.proj.bias is None:
        found.append("the attention has no bias")
    name = activation(block.mlp.act)
    return found if name in NAMES.values() else [*found, f"the activation is {name}"]


def describe_open_clip(visual: Any, image_size: int) -> ClassTokenViT:
    """Describe open_clip's ViT, which must have no obstacle."""
    block = visual.transformer.resblocks[0]
    return ClassTokenViT(
        width=visual.transformer.width,
        layers=visual.transformer.layers,
        heads=block.attn.num_heads,
        mlp_width=block.mlp.c_fc.out_features,
        patch_size=visual.patch_size[0],
        image_size=image_size,
        activation=activation(block.mlp.gelu),
        eps=visual.ln_post.eps,
        pre_norm=not isinstance(visual.ln_pre, nn.Identity),
        state=dict(visual.state_dict()),
    )


def describe_timm(trunk: Any, projection: Tensor, image_size: int) -> ClassTokenViT:
    """Describe a timm backbone, which must have no obstacle, and its projection ``[D,C]`` to the joint space."""
    block, layers = trunk.blocks[0], len(trunk.blocks)
    pre_norm = not isinstance(trunk.norm_pre, nn.Identity)
    return ClassTokenViT(
        width=trunk.embed_dim,
        layers=layers,
        heads=block.attn.num_heads,
        mlp_width=block.mlp.fc1.out_features,
        patch_size=trunk.patch_embed.patch_size[0],
        image_size=image_size,
        activation=activation(block.mlp.act),
        eps=trunk.norm.eps,
        pre_norm=pre_norm,
        state=from_timm(trunk.state_dict(), layers, pre_norm) | {"proj": projection.T},
    )


def open_clip_vision(vit: ClassTokenViT) -> dict[str, Any]:
    """``vision_cfg`` of open_clip for a class-token ViT, but for its ``image_size``."""
    vision = {
        "layers": vit.layers,
        "width": vit.width,
        "head_width": vit.width // vit.heads,
        "patch_size": vit.patch_size,
        "mlp_ratio": vit.mlp_width / vit.width,
        "no_ln_pre": not vit.pre_norm,
        "norm_kwargs": {"eps": vit.eps},
    }
    return vision | ({"act_kwargs": {"approximate": "tanh"}} if vit.activation == TANH else {})


def timm_model(vit: ClassTokenViT) -> TimmModel:
    """A class-token ViT as a model of timm, which has its computation too."""
    arguments: dict[str, Any] = {
        "img_size": vit.image_size,
        "patch_size": vit.patch_size,
        "embed_dim": vit.width,
        "depth": vit.layers,
        "num_heads": vit.heads,
        "mlp_ratio": vit.mlp_width / vit.width,
        "pre_norm": vit.pre_norm,
    }
    if vit.activation != "gelu":
        arguments["act_layer"] = {QUICK: "quick_gelu", TANH: "gelu_tanh"}[vit.activation]
    name = TIMM_NAMES[vit.eps]
    known: Any = timm.get_pretrained_cfg(name)  # its to_dict has no types
    own = known.to_dict()
    return TimmModel(name, arguments, to_timm(vit.state, vit.layers, vit.pre_norm), own, vit.state["proj"].T)
