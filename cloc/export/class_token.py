"""CLIP's class-token ViT, from whichever library its module is, as one description that every format can be written of.

Second step of an export (``matrix → class_token → hf | open_clip | timm | … → verify → card``). timm and open_clip
compute the same with other names where nothing out of the ordinary is switched on; what is, is a reason to refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from cloc.models.image import ConvStem, OpenClipTower, TimmTower
from cloc.models.weights.layouts import TANH, from_timm

NAMES = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": TANH}


@dataclass(frozen=True)
class ClassTokenViT:
    """A ViT that pools at its class token, behind a last norm, and projects linearly.

    Attributes:
        width: C.
        layers: blocks.
        heads: of the attention.
        mlp_width: hidden width of the perceptrons.
        patch_size: side of a patch in pixels.
        image_size: side of the view.
        activation: transformers' name of it.
        eps: of the norms.
        pre_norm: whether a norm stands before the blocks.
        state: weights under the names of open_clip's ``VisionTransformer``.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch_size: int
    image_size: int
    activation: str
    eps: float
    pre_norm: bool
    state: dict[str, Tensor]


def activation(module: nn.Module) -> str:
    """Name of an activation in transformers' words, read from the module that runs."""
    name = type(module).__name__
    return TANH if getattr(module, "approximate", "none") == "tanh" else NAMES.get(name, name)


def obstacles(tower: nn.Module) -> list[str]:
    """Why a tower is not a plain class-token ViT; empty where it is one."""
    if isinstance(tower, OpenClipTower):
        return _obstacles_of_open_clip(tower.visual)
    if not isinstance(tower, TimmTower):
        return [f"the image tower is a {type(tower).__name__}"]
    return _obstacles_of_timm(tower)


def _obstacles_of_open_clip(visual: Any) -> list[str]:
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


def _obstacles_of_timm(tower: TimmTower) -> list[str]:
    trunk = tower.trunk
    if tower.adapter is not None:
        return ["an adapter of cloc's own stands upon the backbone"]
    if type(trunk) is not VisionTransformer:
        return [f"the backbone is timm's {type(trunk).__name__}"]
    if isinstance(trunk.patch_embed, ConvStem):
        return ["the patches pass a convolution stem of cloc's own"]
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


def describe(tower: nn.Module) -> ClassTokenViT:
    """Describe a tower without obstacles."""
    if isinstance(tower, OpenClipTower):
        visual: Any = tower.visual  # open_clip has no types
        block = visual.transformer.resblocks[0]
        return ClassTokenViT(
            width=visual.transformer.width,
            layers=visual.transformer.layers,
            heads=block.attn.num_heads,
            mlp_width=block.mlp.c_fc.out_features,
            patch_size=visual.patch_size[0],
            image_size=tower.image_size,
            activation=activation(block.mlp.gelu),
            eps=visual.ln_post.eps,
            pre_norm=not isinstance(visual.ln_pre, nn.Identity),
            state=dict(visual.state_dict()),
        )
    assert isinstance(tower, TimmTower)  # others are obstacles
    trunk: Any = tower.trunk  # timm types the parts of its modules as nn.Module at most
    block = trunk.blocks[0]
    pre_norm, layers = not isinstance(trunk.norm_pre, nn.Identity), len(trunk.blocks)
    return ClassTokenViT(
        width=trunk.embed_dim,
        layers=layers,
        heads=block.attn.num_heads,
        mlp_width=block.mlp.fc1.out_features,
        patch_size=trunk.patch_embed.patch_size[0],
        image_size=tower.image_size,
        activation=activation(block.mlp.act),
        eps=trunk.norm.eps,
        pre_norm=pre_norm,
        state=from_timm(trunk.state_dict(), layers, pre_norm) | {"proj": tower.proj.weight.T},
    )
