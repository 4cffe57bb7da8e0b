"""Image towers: normalized pixels → pooled embedding and un-pooled patch tokens, in one pass.

First part of the model (``image, text → prompter → grounding``, composed in ``model.py``). A tower returns what CLOC
needs: the joint-space embedding of the picture and the tokens *before* pooling and projection (CLOC, Sec. 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from timm.layers import set_fused_attn
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cloc.config.domains import Amount, Decay, Depth, Finite, Interval, Length, OneOf, Rate, Side, Width
from cloc.models.frozen import FrozenPart
from cloc.models.open_clip_visual import open_visual
from cloc.models.positions.encodings import ENCODINGS, install
from cloc.models.positions.fourier import covered_share, grid_positions
from cloc.models.protocols import ClassTokenViT, TimmModel, blocks
from cloc.models.registration import registered
from cloc.models.timm_backbone import (
    ConvStem,
    as_channels_last,
    built_for_one_size,
    check_name,
    create_trunk,
    depth_of_parameters,
    load_trunk,
    prefix_of,
    probe,
    tokens_of,
    trunk_stride,
    without_part,
)
from cloc.models.view_memory import ViewMemory
from cloc.models.weights.class_token import describe_timm
from cloc.models.weights.other_formats import (
    reasons_of_timm,
    timm_activation,
    timm_in_open_clip,
    timm_itself,
    timm_kind,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Resize = Annotated[str, OneOf("pad", "squash")]
Encoded = Annotated[str, OneOf(*ENCODINGS)]
PixelMean = Annotated[Sequence[Finite], Length(3, "of red, green and blue")]
PixelStd = Annotated[Sequence[Rate], Length(3, "of red, green and blue")]


def prefer_plain_attention() -> None:
    """Use matmul-softmax-matmul on a machine without GPU, where the backward of fused attention is slower."""
    fused = torch.cuda.is_available()
    set_fused_attn(fused)
    torch.backends.cuda.enable_flash_sdp(fused)  # governs the CPU kernel too


def _check_resize(resize: str) -> str:
    if resize not in ("pad", "squash"):
        raise ValueError(f"model.image.resize={resize!r}: give pad or squash")
    return resize


@registered("image")
class TimmTower(nn.Module):
    """Any timm backbone with a dense feature map, CNN or ViT, and optionally a few transformer blocks upon it.

    Args:
        joint_dim: D.
        name: timm model name.
        image_size: side of the view in pixels.
        pretrained: False, True (timm's own download), a local file of weights under timm's names, or a folder (see
            :mod:`cloc.models.weights.pretrained`).
        options: further arguments of ``timm.create_model`` (``patch_size``, ``embed_dim``, ``depth``, …); weights are
            named by ``pretrained``, never here.
        conv_stem: replace the patch projection of a ViT by :class:`ConvStem`.
        positions: one of :data:`cloc.models.positions.encodings.ENCODINGS`.
        zero_init: start every residual branch of the blocks at zero.
        adapter_depth: transformer blocks upon the backbone's tokens; 0 for none.
        adapter_width: their width C.
        adapter_dropout: on the backbone's tokens and in the blocks, while training.
        tune_last: how many of the backbone's last stages or blocks are trained; -1 trains all, 0 freezes all.
        remember: keep a wholly frozen backbone's maps of so many distinct views. A data set that fits, seen through a
            view without randomness, then costs the backbone one pass.
        resize: how pictures become square: ``pad`` (long side, the rest filled) or ``squash`` (both sides; no token is
            spent on padding, which on a coarse map is worth more than true shapes).
        mean: of the pixels, per channel; None takes the backbone's own.
        std: as ``mean``.

    A frozen part runs without gradient and in evaluation mode, so that batch norm keeps its statistics.
    """

    def __init__(
        self,
        joint_dim: Width,
        name: str,
        image_size: Side = 224,
        pretrained: bool | str = False,
        options: Mapping[str, Any] | None = None,
        conv_stem: bool = False,
        positions: Encoded = "learned",
        zero_init: bool = False,
        adapter_depth: Depth = 0,
        adapter_width: Width = 384,
        adapter_dropout: Decay = 0.0,
        tune_last: Annotated[int, Interval(-1)] = -1,
        remember: Amount = 0,
        resize: Resize = "pad",
        mean: PixelMean | None = None,
        std: PixelStd | None = None,
    ) -> None:
        super().__init__()
        prefer_plain_attention()
        kwargs: dict[str, Any] = dict(options or {})
        if "checkpoint_path" in kwargs:  # timm before 1.0.31 unpickles it
            raise ValueError("model.image.options.checkpoint_path: give the file as model.image.pretrained")
        check_name(name)
        if conv_stem:
            kwargs["embed_layer"] = ConvStem
        if "img_size" not in kwargs and built_for_one_size(name):
            kwargs["img_size"] = image_size
        self.name, self.options, self.arguments, self.conv_stem = name, dict(options or {}), kwargs, conv_stem
        self.trunk: Any = create_trunk(name, pretrained is True, kwargs, image_size)
        projection = load_trunk(self.trunk, Path(pretrained).expanduser()) if isinstance(pretrained, str) else None
        self.image_size, self.joint_dim = image_size, joint_dim
        self.tune_last, self.resize = tune_last, _check_resize(resize)
        if remember and tune_last != 0:
            raise ValueError(f"model.image.remember={remember} needs a frozen backbone; set model.image.tune_last=0")
        self.memory = ViewMemory(remember) if remember else None
        as_channels_last(self.trunk)
        self.is_vit = hasattr(self.trunk, "blocks") and hasattr(self.trunk, "num_prefix_tokens")
        self.grid, trunk_width, pooled_width, _ = probe(self.trunk, name, image_size, pools=not adapter_depth)
        # A head that widens (EfficientViT's) is none to pool with: one matrix takes both to the joint space.
        self.pools = pooled_width == trunk_width
        self.covered = covered_share(self.grid[0], trunk_stride(self.trunk), image_size)
        own = self.trunk.pretrained_cfg
        self.mean, self.std = mean or own.get("mean", IMAGENET_MEAN), std or own.get("std", IMAGENET_STD)
        self.positions = positions
        install(positions, self.trunk)
        if self.is_vit and zero_init:
            _zero_branches(self.trunk.blocks)
        self.width = adapter_width if adapter_depth else trunk_width
        self.adapter: Adapter | None = None
        if adapter_depth:
            self.adapter = Adapter(trunk_width, adapter_width, adapter_depth, self.grid, adapter_dropout)
        self.proj = nn.Linear(self.width, joint_dim, bias=False)
        nn.init.normal_(self.proj.weight, std=self.width**-0.5)
        if projection is not None and projection.shape == self.proj.weight.shape:
            self.proj.weight.data.copy_(projection)
        unasked = [] if self.pools else without_part(self.trunk, image_size)  # DDP would wait for their gradients
        self._freeze()
        self.formerly_trained = self._trained_of(unasked) if adapter_depth else ()
        for parameter in unasked:
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pictures.

        Args:
            images: ``[B,3,H,W]`` normalized float.

        Returns:
            joint-space embedding ``[B,D]`` (not yet of unit norm) and patch tokens ``[B,N,C]`` after the last norm.
        """
        if self.memory is not None and self.training:
            return self._rest(self.memory(images, self.trunk.forward_features))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.tune_last != 0):
            maps = self.trunk.forward_features(images)
        return self._rest(maps)

    def _rest(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tokens_of(self.trunk, maps)
        if self.adapter is not None:
            tokens = self.adapter(tokens)
        if not self.pools:
            return self.proj(tokens.mean(1)), tokens
        pooled = self.trunk.forward_head(maps, pre_logits=True)
        if self.fc_norm is not None:
            tokens = self.fc_norm(tokens)
        return self.proj(pooled), tokens

    def frozen_part(self) -> FrozenPart | None:
        """The backbone's map, where all of the backbone is frozen."""
        facts = f"{self.name} {self.arguments} {self.positions}"
        return FrozenPart(self.trunk, self.trunk.forward_features, self._rest, facts) if self.tune_last == 0 else None

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """Patch tokens ``[...,C]`` → joint space ``[...,D]``, as the pooled embedding is projected."""
        projected: Tensor = self.proj(tokens)
        return projected

    def train(self, mode: bool = True) -> TimmTower:
        """As usual, but frozen parts stay in evaluation mode (batch-norm statistics, dropout)."""
        super().train(mode)
        if self.tune_last >= 0:
            self.trunk.eval()
        return self

    # What it declares of itself, see cloc.models.protocols.Declares.
    describes = ("folder",)
    kind = property(timm_kind)
    activation = property(timm_activation)
    refuses = reasons_of_timm
    timm_model = timm_itself
    open_clip_vision = timm_in_open_clip

    @property
    def fc_norm(self) -> nn.Module | None:
        """The norm of a ViT behind its pooling, which its tokens need too."""
        norm: nn.Module | None = getattr(self.trunk, "fc_norm", None) if self.is_vit else None
        return None if isinstance(norm, nn.Identity) else norm

    @property
    def prefix_tokens(self) -> int:
        """Class and register tokens of the backbone."""
        return prefix_of(self.trunk)

    def parameter_layers(self) -> dict[str, int]:
        """As timm groups them, where no stack of blocks tells; see :class:`cloc.models.protocols.Declares`."""
        if self.adapter is not None or blocks(self.trunk):
            return {}
        depths = {f"trunk.{name}": depth for name, depth in depth_of_parameters(self.trunk).items()}
        return depths | {"proj.weight": max(depths.values(), default=0) + 1} if depths else {}

    # Optimizers of earlier versions had the parameters of ``formerly_trained`` too, and layers as names tell; see
    # cloc.engine.optim.rearranged.
    formerly_asked_layers = False

    def _trained_of(self, unasked: Sequence[nn.Parameter]) -> tuple[str, ...]:
        """Names of what earlier versions left to train of a head that nothing asks for: all but the norm of a ViT."""
        norm = [] if self.fc_norm is None else list(self.fc_norm.parameters())
        left = {id(parameter) for parameter in unasked} - {id(parameter) for parameter in norm}
        return tuple(name for name, one in self.named_parameters() if id(one) in left and one.requires_grad)

    def class_token_vit(self) -> ClassTokenViT:
        """See :class:`cloc.models.protocols.Declares`."""
        return describe_timm(self.trunk, self.proj.weight, self.image_size)

    def _freeze(self) -> None:
        if self.tune_last < 0:
            return
        self.trunk.requires_grad_(False)
        self.trunk.eval()  # at once: trainers that respect each module's mode never call train() themselves
        stages = list(self.trunk.blocks) if hasattr(self.trunk, "blocks") else list(self.trunk.children())
        stages = [stage for stage in stages if next(stage.parameters(), None) is not None]  # no pooling, no empty head
        for stage in stages[len(stages) - self.tune_last :] if self.tune_last else []:
            stage.requires_grad_(True)


class Adapter(nn.Module):
    """A few pre-norm transformer blocks with positions upon a backbone's tokens.

    Args:
        inputs: width of the backbone's tokens.
        width: C.
        depth: number of blocks.
        grid: rows and columns of tokens.
        dropout: on the inputs and behind every branch.
    """

    def __init__(self, inputs: int, width: int, depth: int, grid: tuple[int, int], dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(inputs)
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(inputs, width)
        self.pos_embed = nn.Parameter(grid_positions(grid, width)[None] * 0.5)
        self.blocks = nn.ModuleList(
            Block(width, max(1, width // 64), qkv_bias=True, proj_drop=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        _zero_branches(self.blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B,N,inputs]`` → ``[B,N,C]``."""
        tokens = self.proj(self.dropout(self.norm_in(tokens))) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        normalized: Tensor = self.norm(tokens)
        return normalized


def _zero_branches(blocks: Any) -> None:
    for block in blocks:
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.mlp.fc2.weight)


@registered("image")
class OpenClipTower(nn.Module):
    """An image tower of open_clip: CLIP's class-token ViT (B/16, L/14, H/14, …), its ResNet, CoCa's ViT, timm's.

    Architectures upon a backbone of timm (SigLIP, EVA-02, MobileCLIP, ConvNeXt, …) keep the pooling and projection that
    open_clip gives them; :class:`TimmTower` is the same backbone with a projection of ours.

    Args:
        joint_dim: D; must equal the architecture's own.
        name: open_clip architecture (``ViT-B-16``) whose vision configuration is taken.
        image_size: side of the view in pixels; position embeddings are resized when it differs from the weights' own.
        pretrained: None, an open_clip tag (downloads), a local file of weights, or a folder of open_clip or of a
            Hugging Face CLIP (see :mod:`cloc.models.weights.pretrained`).
        quick_gelu: take CLIP's approximate GELU; tags and folders say by themselves whether they need it, files do not.
        options: overrides of open_clip's vision configuration (``width``, ``layers``, ``patch_size``, …).
        resize: ``pad`` or ``squash``, as :class:`TimmTower` has it.
        mean: of the pixels, per channel; None takes that of the architecture's published weights, or CLIP's.
        std: as ``mean``.
        frozen: keep the whole tower as it is, projection included.
        positions: as :class:`TimmTower` has it.
    """

    def __init__(
        self,
        joint_dim: Width,
        name: str = "ViT-B-16",
        image_size: Side = 224,
        pretrained: Literal[False] | str | None = None,
        quick_gelu: bool = False,
        options: Mapping[str, Any] | None = None,
        resize: Resize = "pad",
        mean: PixelMean | None = None,
        std: PixelStd | None = None,
        frozen: bool = False,
        positions: Encoded = "learned",
    ) -> None:
        super().__init__()
        prefer_plain_attention()
        from cloc.models.weights.open_clip_towers import open_clip_tower, pixel_statistics, vision_config

        self.name, self.options = name, dict(options or {})
        weights = pretrained or None
        self.visual: Any = open_clip_tower("visual", name, joint_dim, weights, quick_gelu, image_size, self.options)
        self.inside = open_visual(self.visual, name, image_size, vision_config(name, self.options))
        install(positions, getattr(self.visual, "trunk", self.visual))
        self.image_size, self.joint_dim, self.resize = image_size, joint_dim, _check_resize(resize)
        self.grid, self.width, self.prefix_tokens = self.inside.grid, self.inside.width, self.inside.prefix
        self.covered = covered_share(self.grid[0], self.inside.stride, image_size)
        own_mean, own_std = pixel_statistics(name)
        self.mean, self.std = tuple(mean or own_mean), tuple(std or own_std)
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> OpenClipTower:
        """As usual, but a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`TimmTower.forward`."""
        return self.inside.encode(images)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """As :meth:`TimmTower.project_tokens`."""
        return self.inside.project(tokens)

    # What it declares of itself, see cloc.models.protocols.Declares.
    describes = ("folder", "tag")

    @property
    def kind(self) -> str:
        """What the tower is, in words."""
        return self.inside.kind

    @property
    def activation(self) -> str | None:
        """Of its perceptrons, in the words of transformers; None upon a backbone of timm."""
        return self.inside.activation

    def block_modules(self) -> Sequence[nn.Module]:
        """See :class:`cloc.models.protocols.Declares`, as all below."""
        return self.inside.blocks()

    def parameter_layers(self) -> dict[str, int]:
        """Depths by name where no stack of blocks tells."""
        return {f"visual.{name}": depth for name, depth in self.inside.parameter_layers().items()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As the library inside does it."""
        self.inside.recompute(enable)

    def refuses(self, format: str) -> list[str]:
        """Why a format cannot hold the tower."""
        return self.inside.refuses(format)

    def class_token_vit(self) -> ClassTokenViT:
        """The tower as CLIP's class-token ViT."""
        return self.inside.class_token_vit()

    def timm_model(self) -> TimmModel:
        """The tower as a model of timm."""
        return self.inside.timm_model()

    def open_clip_vision(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Its ``vision_cfg`` and weights in open_clip."""
        return dict(self.inside.config), self.visual.state_dict()
