"""Image towers of open_clip, asked alike: its ViT, CoCa's, the ResNet, and whatever backbone of timm it wraps.

Serves ``OpenClipTower`` (``image.py``): pooled embedding and patch tokens in one pass, how a token comes into the joint
space, and which formats of export hold the tower. Which of them an architecture has is known by its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel as OpenClipTimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear

from cloc.config.domains import ConfigError
from cloc.models.positions.resizing import resize_positions
from cloc.models.protocols import ClassTokenViT, TimmModel, blocks
from cloc.models.timm_backbone import (
    REFUSALS,
    as_maps,
    depth_of_parameters,
    is_channels_last,
    other_sizes,
    prefix_of,
    probe,
    tokens_of,
    trunk_stride,
)
from cloc.models.weights.class_token import activation, describe_open_clip, obstacles_of_open_clip, timm_model
from cloc.models.weights.other_formats import reasons_of_open_clip

TIMM_TOWER = "cloc.models.image.TimmTower"
STRIDE = 32  # of CLIP's ResNets


class Visual:
    """A visual tower of open_clip.

    Args:
        module: ``visual`` of open_clip, at the size of the view.
        name: of the architecture, for messages.
        size: side of the view in pixels.
        config: its ``vision_cfg``.

    Attributes:
        grid: rows and columns of patch tokens.
        width: C.
        stride: pixels from a token to the next; 0 where it is not known.
        prefix: class and register tokens before the patches.
        kind: what it is, in words.
        activation: of its perceptrons, in the words of transformers; None where open_clip's one word does not rule it.
    """

    grid: tuple[int, int]
    width: int
    stride: int
    prefix = 0
    kind = ""
    activation: str | None = None

    def __init__(self, module: Any, name: str, size: int, config: Mapping[str, Any]) -> None:
        self.module, self.name, self.size, self.config = module, name, size, config

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B,3,S,S]`` → pooled embedding ``[B,D]`` and patch tokens ``[B,N,C]``."""
        raise NotImplementedError

    def project(self, tokens: Tensor) -> Tensor:
        """Patch tokens ``[...,C]`` → joint space ``[...,D]``: what a picture of that one token would be pooled to."""
        raise NotImplementedError

    def blocks(self) -> Sequence[nn.Module]:
        """Blocks in forward order, as the names of the modules inside tell."""
        return blocks(self.module)

    def recompute(self, enable: bool) -> None:
        """Recompute activations in backward, as the library does it.

        Raises:
            AssertionError: it has no way to.
        """
        self.module.set_grad_checkpointing(enable)

    def parameter_layers(self) -> dict[str, int]:
        """Layer of each parameter of the module; empty where its blocks tell."""
        return {}

    def refuses(self, format: str) -> list[str]:
        """Why a format of export cannot hold it."""
        why = {"hf": "is no class-token ViT, which CLIPModel has", "timm": "is no model of timm"}
        return [f"the image tower ({self.kind}) {why[format]}"] if format in why else []

    def class_token_vit(self) -> ClassTokenViT:
        """As CLIP's class-token ViT, where it is one."""
        raise NotImplementedError(f"{self.name} is no class-token ViT")

    def timm_model(self) -> TimmModel:
        """As a model of timm, where it is one."""
        raise NotImplementedError(f"{self.name} is no model of timm")


class ViT(Visual):
    """open_clip's own ViT, without attention pooling."""

    prefix = 1

    def __init__(self, module: Any, name: str, size: int, config: Mapping[str, Any]) -> None:
        super().__init__(module, name, size, config)
        module.output_tokens = True
        self.grid, self.stride = tuple(module.grid_size), module.patch_size[0]
        self.width = module.transformer.width
        self.kind = "ViT of open_clip" if obstacles_of_open_clip(module) else "class-token ViT of open_clip"
        self.activation = activation(module.transformer.resblocks[0].mlp.gelu)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`Visual.encode`."""
        seen: tuple[Tensor, Tensor] = self.module(images)
        return seen

    def project(self, tokens: Tensor) -> Tensor:
        """As :meth:`Visual.project`."""
        if self.module.final_ln_after_pool:
            tokens = self.module.ln_post(tokens)
        projected: Tensor = tokens @ self.module.proj
        return projected

    def refuses(self, format: str) -> list[str]:
        """As :meth:`Visual.refuses`."""
        return reasons_of_open_clip(self.module, format)

    def class_token_vit(self) -> ClassTokenViT:
        """As :meth:`Visual.class_token_vit`."""
        return describe_open_clip(self.module, self.size)

    def timm_model(self) -> TimmModel:
        """As :meth:`Visual.timm_model`."""
        return timm_model(self.class_token_vit())


class PooledViT(ViT):
    """The ViT of a CoCa: queries pool its tokens by attention, and the first of them is the picture.

    Its patch tokens are what the pooler sees, behind the norm of its keys.
    """

    def __init__(self, module: Any, name: str, size: int, config: Mapping[str, Any]) -> None:
        super().__init__(module, name, size, config)
        self.kind = "ViT of open_clip with attention pooling"
        if module.attn_pool_contrastive is not None or module.pool_type not in ("tok", "avg"):
            raise ConfigError(
                f"model.image.name={name!r}: a ViT that pools twice, or by {module.pool_type!r}, is not known; give "
                "ViT-B-16, or another architecture"
            )

    def refuses(self, format: str) -> list[str]:
        """As :meth:`Visual.refuses`."""
        if format == "open_clip":
            return ["open_clip gives the queries of an attention pooling for patch tokens, so no proof could be made"]
        return super().refuses(format)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`Visual.encode`."""
        module = self.module
        states = module.transformer(module._embeds(images))
        pooled, _ = module._pool(states)
        return pooled @ module.proj, module.attn_pool.ln_k(states[:, 1:])

    def project(self, tokens: Tensor) -> Tensor:
        """As :meth:`Visual.project`: whatever a query asks of a single key, it gets the value of that key."""
        attention = self.module.attn_pool.attn
        width = attention.embed_dim
        own = attention._qkv_same_embed_dim
        weight = attention.in_proj_weight[2 * width :] if own else attention.v_proj_weight
        pooled = attention.out_proj(linear(tokens, weight, attention.in_proj_bias[2 * width :]))
        projected: Tensor = self.module.ln_post(pooled) @ self.module.proj
        return projected


class ResNet(Visual):
    """CLIP's ResNet, whose last map is pooled by attention."""

    kind = "ResNet of open_clip"

    def __init__(self, module: Any, name: str, size: int, config: Mapping[str, Any]) -> None:
        super().__init__(module, name, size, config)
        cells = size // STRIDE
        self.grid, self.stride, self.width = (cells, cells), STRIDE, module.attnpool.v_proj.in_features

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`Visual.encode`."""
        maps = self.module.stem(images)
        for stage in self._stages():
            maps = stage(maps)
        return self.module.attnpool(maps), maps.flatten(2).transpose(1, 2)

    def project(self, tokens: Tensor) -> Tensor:
        """As :meth:`Visual.project`, without the position that the pooling adds (MaskCLIP, arXiv 2112.01071)."""
        pool = self.module.attnpool
        projected: Tensor = pool.c_proj(pool.v_proj(tokens))
        return projected

    def recompute(self, enable: bool) -> None:
        """As :meth:`Visual.recompute`; open_clip's own order does nothing."""
        raise AssertionError("open_clip's ResNet has none")

    def blocks(self) -> Sequence[nn.Module]:
        """As :meth:`Visual.blocks`: the bottlenecks."""
        return [block for stage in self._stages() for block in stage]

    def parameter_layers(self) -> dict[str, int]:
        """As :meth:`Visual.parameter_layers`: the stem, each bottleneck, the pooling."""
        stack = self.blocks()
        depths = {id(value): depth for depth, block in enumerate(stack, 1) for value in block.parameters()}
        depths |= {id(value): len(stack) + 1 for value in self.module.attnpool.parameters()}
        return {name: depths.get(id(value), 0) for name, value in self.module.named_parameters()}

    def _stages(self) -> list[Any]:
        return [self.module.layer1, self.module.layer2, self.module.layer3, self.module.layer4]


class Timm(Visual):
    """A backbone of timm with the pooling and the projection that an architecture of open_clip gives it."""

    def __init__(self, module: Any, name: str, size: int, config: Mapping[str, Any]) -> None:
        super().__init__(module, name, size, config)
        self.trunk: Any = module.trunk
        if hasattr(module.head, "pool"):
            raise ConfigError(
                f"model.image.name={name!r}: open_clip's {config.get('timm_pool')} pooling upon a backbone of timm is "
                f"not known; set model.image._target_={TIMM_TOWER} and model.image.name={config['timm_model_name']}"
            )
        self.grid, self.width, _, maps = probe(self.trunk, f"{name} ({config['timm_model_name']})", size, pools=False)
        self.sequence = maps.ndim == 3
        self.last = not self.sequence and is_channels_last(self.trunk, maps)
        norm = getattr(self.trunk, "fc_norm", None) if self.sequence else None
        self.norm: Any = None if isinstance(norm, nn.Identity) else norm  # of a ViT, behind its pooling
        self.stride, self.prefix = trunk_stride(self.trunk), prefix_of(self.trunk)
        self.kind = f"timm's {type(self.trunk).__name__} in open_clip"

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`Visual.encode`."""
        maps = self.trunk.forward_features(images)
        pooled: Tensor = self.module.head(self.trunk.forward_head(maps))
        tokens = tokens_of(self.trunk, maps)
        return pooled, tokens if self.norm is None else self.norm(tokens)

    def project(self, tokens: Tensor) -> Tensor:
        """As :meth:`Visual.project`."""
        if self.norm is not None:  # they are behind it already, and one token needs no pooling
            normed: Tensor = self.module.head(self.trunk.head(tokens))
            return normed
        rows = as_maps(tokens.flatten(0, -2), self.sequence, self.prefix, self.last)
        projected: Tensor = self.module.head(self.trunk.forward_head(rows)).unflatten(0, tokens.shape[:-1])
        return projected

    def recompute(self, enable: bool) -> None:
        """As :meth:`Visual.recompute`; open_clip's own order passes over a backbone that cannot."""
        self.trunk.set_grad_checkpointing(enable)

    def parameter_layers(self) -> dict[str, int]:
        """As :meth:`Visual.parameter_layers`, where no stack of blocks tells."""
        depths = {} if blocks(self.trunk) else depth_of_parameters(self.trunk)
        return {f"trunk.{name}": depth for name, depth in depths.items()}

    def refuses(self, format: str) -> list[str]:
        """As :meth:`Visual.refuses`."""
        native = self.trunk.pretrained_cfg["input_size"][-1]
        if format == "open_clip" and self.size != native and hasattr(self.trunk, "set_input_size"):
            return [f"open_clip builds {self.name} for {native} px alone, the tower is for {self.size}"]
        if format != "timm":
            return super().refuses(format)
        if list(self.module.head.children()) and not isinstance(getattr(self.module.head, "proj", None), nn.Linear):
            return ["the projection to the joint space is a perceptron of open_clip's, not a matrix"]
        biased = [layer for layer in (getattr(self.module.head, "proj", None), self._classifier()) if _has_bias(layer)]
        return (
            ["the projection to the joint space has a bias, which no matrix beside a timm model holds"]
            if biased
            else []
        )

    def timm_model(self) -> TimmModel:
        """As :meth:`Visual.timm_model`: the projection is open_clip's, the backbone's classifier, or none."""
        own, classifier = self.trunk.pretrained_cfg, self._classifier()
        arguments = {"global_pool": pool} if (pool := self.config.get("timm_pool", "avg")) else {}
        arguments |= {"img_size": self.size} if hasattr(self.trunk, "set_input_size") else {}
        state = dict(self.trunk.state_dict())
        projection = getattr(self.module.head, "proj", classifier)
        if classifier is not None:
            mine = {name for name, module in self.trunk.named_modules() if module is classifier}
            state = {name: value for name, value in state.items() if name.rpartition(".")[0] not in mine}
        matrix = torch.eye(self.width) if projection is None else projection.weight
        return TimmModel(self.config["timm_model_name"], arguments, state, own, matrix)

    def _classifier(self) -> Any:
        """The backbone's own last matrix, where it projects to the joint space."""
        layer = self.trunk.get_classifier()
        return layer if isinstance(layer, nn.Linear) else None


def _has_bias(layer: Any) -> bool:
    return layer is not None and layer.bias is not None


def open_visual(module: Any, name: str, size: int, config: Mapping[str, Any]) -> Visual:
    """What a visual tower of open_clip is.

    Raises:
        ConfigError: nothing that boxes could be read from; names what is.
    """
    if isinstance(module, OpenClipTimmModel):
        return Timm(module, name, size, config)
    if isinstance(module, ModifiedResNet):
        return ResNet(module, name, size, config)
    if isinstance(module, VisionTransformer) and module.attn_pool is not None:
        return PooledViT(module, name, size, config)
    if isinstance(module, VisionTransformer) and module.pool_type in ("tok", "avg"):
        return ViT(module, name, size, config)
    raise ConfigError(
        f"model.image.name={name!r}: open_clip's {type(module).__name__} gives no pooled picture with patch tokens; "
        f"give another architecture, or a backbone of timm with model.image._target_={TIMM_TOWER}"
    )


@torch.no_grad()
def bring_to(module: Any, name: str, size: int) -> None:
    """Bring a visual tower of open_clip that is built for another size of views to this one, where it stands.

    The ViT is built for its size, and a backbone of convolutions takes any.

    Raises:
        ConfigError: a size that it cannot have; names those beside it.
    """
    if isinstance(module, ModifiedResNet):
        if size < STRIDE:
            raise ConfigError(f"model.image.image_size={size}: {name} sees nothing below {STRIDE} px; give {STRIDE}")
        pool, cells = module.attnpool, size // STRIDE
        wanted = pool.positional_embedding.new_empty(cells * cells + 1, pool.positional_embedding.shape[1])
        pool.positional_embedding = nn.Parameter(resize_positions(pool.positional_embedding.data, wanted).clone())
        module.image_size = size
    elif isinstance(module, OpenClipTimmModel) and hasattr(module.trunk, "set_input_size"):
        try:
            module.set_input_size(size)
        except REFUSALS as error:
            raise ConfigError(
                f"model.image.image_size={size}: {name} is not built for it ({' '.join(str(error).split())}); "
                f"{other_sizes(module.trunk, type(module.trunk).__name__, size)}"
            ) from error
