"""Image towers: normalized pixels → pooled embedding and un-pooled patch tokens, in one pass.

First part of the model (``image, text → prompter → grounding``, composed in ``model.py``). A tower returns what CLOC
needs: the joint-space embedding of the picture and the tokens *before* pooling and projection (CLOC, Sec. 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from timm.layers import set_fused_attn
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cloc.config.domains import Amount, ConfigError, Count, Decay, Finite, Interval, Length, Rate
from cloc.models.positions.encodings import install
from cloc.models.positions.fourier import covered_share, grid_positions
from cloc.models.weights.files import fit_state, read_state

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
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


class ConvStem(nn.Module):
    """Patch embedding by three stride-2 3×3 convolutions and a projection, in place of one large-stride one.

    Trains faster than a plain patch projection on small data ("Early Convolutions Help Transformers See Better",
    arXiv 2106.14881), here without batch norm. Signature and attributes are those of timm's ``PatchEmbed``.
    """

    def __init__(
        self, img_size: int = 64, patch_size: int = 8, in_chans: int = 3, embed_dim: int = 128, **unused: Any
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise ConfigError(f"model.image.image_size={img_size}: a convolution stem needs a multiple of {patch_size}")
        strides = patch_size.bit_length() - 1
        if 2**strides != patch_size:
            raise ValueError(f"model.image.patch_size={patch_size}: a convolution stem needs a power of two")
        widths = [in_chans, *(max(16, embed_dim // 2**i) for i in reversed(range(1, strides + 1)))]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, images: Tensor) -> Tensor:
        """``[B,3,H,W]`` → ``[B,N,C]``."""
        return self.proj(images).flatten(2).transpose(1, 2)


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
        joint_dim: Count,
        name: str,
        image_size: Count = 224,
        pretrained: bool | str = False,
        options: Mapping[str, Any] | None = None,
        conv_stem: bool = False,
        positions: str = "learned",
        zero_init: bool = False,
        adapter_depth: Amount = 0,
        adapter_width: Count = 384,
        adapter_dropout: Decay = 0.0,
        tune_last: Annotated[int, Interval(-1)] = -1,
        remember: Amount = 0,
        resize: str = "pad",
        mean: PixelMean | None = None,
        std: PixelStd | None = None,
    ) -> None:
        super().__init__()
        prefer_plain_attention()
        kwargs: dict[str, Any] = dict(options or {})
        if "checkpoint_path" in kwargs:  # timm before 1.0.31 unpickles it
            raise ValueError("model.image.options.checkpoint_path: give the file as model.image.pretrained")
        if conv_stem:
            kwargs["embed_layer"] = ConvStem
        if "vit" in name or "img_size" in kwargs:
            kwargs.setdefault("img_size", image_size)
        self.trunk = _create(name, pretrained is True, kwargs)
        projection = _load_trunk(self.trunk, Path(pretrained).expanduser()) if isinstance(pretrained, str) else None
        self.image_size, self.joint_dim = image_size, joint_dim
        self.tune_last, self.resize = tune_last, _check_resize(resize)
        if remember and tune_last != 0:
            raise ValueError(f"model.image.remember={remember} needs a frozen backbone; set model.image.tune_last=0")
        self.memory = ViewMemory(remember) if remember else None
        self.trunk.to(memory_format=torch.channels_last)  # the faster layout of convolutions, on CPU and GPU
        self.is_vit = hasattr(self.trunk, "blocks") and hasattr(self.trunk, "num_prefix_tokens")
        self.grid, trunk_width = self._probe()
        self.covered = covered_share(self.grid[0], trunk_stride(self.trunk), image_size)
        own = self.trunk.pretrained_cfg
        self.mean, self.std = mean or own.get("mean", IMAGENET_MEAN), std or own.get("std", IMAGENET_STD)
        install(positions, self.trunk)
        if self.is_vit and zero_init:
            _zero_branches(self.trunk.blocks)
        self.width = adapter_width if adapter_depth else trunk_width
        self.adapter = None
        if adapter_depth:
            self.adapter = Adapter(trunk_width, adapter_width, adapter_depth, self.grid, adapter_dropout)
            if self.is_vit:  # it normalizes the trunk's own pooling, which nothing asks for; DDP would wait for it
                self.trunk.fc_norm.requires_grad_(False)
        self.proj = nn.Linear(self.width, joint_dim, bias=False)
        nn.init.normal_(self.proj.weight, std=self.width**-0.5)
        if projection is not None and projection.shape == self.proj.weight.shape:
            self.proj.weight.data.copy_(projection)
        self._freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pictures.

        Args:
            images: ``[B,3,H,W]`` normalized float.

        Returns:
            joint-space embedding ``[B,D]`` (not yet of unit norm) and patch tokens ``[B,N,C]`` after the last norm.
        """
        if self.memory is not None and self.training:
            maps = self.memory(images, self.trunk.forward_features)
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.tune_last != 0):
                maps = self.trunk.forward_features(images)
        tokens = self._tokens(maps)
        if self.adapter is not None:
            tokens = self.adapter(tokens)
            return self.proj(tokens.mean(1)), tokens
        pooled = self.trunk.forward_head(maps, pre_logits=True)
        if self.is_vit and not isinstance(self.trunk.fc_norm, nn.Identity):
            tokens = self.trunk.fc_norm(tokens)
        return self.proj(pooled), tokens

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """Patch tokens ``[...,C]`` → joint space ``[...,D]``, as the pooled embedding is projected."""
        return self.proj(tokens)

    def train(self, mode: bool = True) -> TimmTower:
        """As usual, but frozen parts stay in evaluation mode (batch-norm statistics, dropout)."""
        super().train(mode)
        if self.tune_last >= 0:
            self.trunk.eval()
        return self

    def _tokens(self, maps: Tensor) -> Tensor:
        if maps.ndim == 3:
            return maps[:, getattr(self.trunk, "num_prefix_tokens", 0) :]
        if maps.shape[1] != self.trunk.num_features:  # channels last, as Swin's
            return maps.flatten(1, 2)
        return maps.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def _probe(self) -> tuple[tuple[int, int], int]:
        mode = self.trunk.training
        try:
            maps = self.trunk.eval().forward_features(torch.zeros(1, 3, self.image_size, self.image_size))
        except AssertionError as error:  # so a backbone of windows or of fixed positions says it
            raise ConfigError(
                f"model.image.image_size={self.image_size}: {type(self.trunk).__name__} is built for one size: {error} "
                "Give that, set model.image.options.img_size, or take another model.image.name"
            ) from error
        self.trunk.train(mode)
        tokens = self._tokens(maps)
        side = round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise ValueError(f"{tokens.shape[1]} patch tokens are not a square grid: not a backbone with a dense map")
        return (side, side), tokens.shape[2]

    def _freeze(self) -> None:
        if self.tune_last < 0:
            return
        self.trunk.requires_grad_(False)
        self.trunk.eval()  # at once: trainers that respect each module's mode never call train() themselves
        stages = list(self.trunk.blocks) if hasattr(self.trunk, "blocks") else list(self.trunk.children())
        stages = [stage for stage in stages if next(stage.parameters(), None) is not None]  # no pooling, no empty head
        for stage in stages[len(stages) - self.tune_last :] if self.tune_last else []:
            stage.requires_grad_(True)


def _create(name: str, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    """A timm backbone; what it does not take, or not so, is one line and not a trace through the library."""
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (TypeError, AssertionError) as error:
        said = " ".join(str(error).split()) or "a value that it does not allow"
        raise ConfigError(f"model.image.options={dict(options)}: {name}: {said}; correct or remove it") from error


def trunk_stride(trunk: nn.Module) -> int:
    """Pixels from a token of a timm backbone to the next; 0 where it does not say."""
    info = getattr(trunk, "feature_info", None)
    return int(info[-1]["reduction"]) if info else 0


def _load_trunk(trunk: nn.Module, path: Path) -> Tensor | None:
    """Load a file or folder into a backbone without its classifier; returns the folder's projection, if it has one."""
    from cloc.models.weights.tower_folders import tower_state

    state = tower_state(path, "trunk") if path.is_dir() else read_state(path)
    projection = state.pop("proj.weight", None)
    heads = trunk.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ([heads] if isinstance(heads, str) else heads))
    fit_state(trunk, {name: value for name, value in state.items() if not name.startswith(heads)}, str(path))
    return projection


class ViewMemory:
    """Outputs of a frozen function of pictures, by the pictures' content.

    Args:
        limit: how many are kept; the oldest leave first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._slots: dict[int, int] = {}
        # One block rather than a tensor a picture: thousands of small ones between large temporaries scatter the heap.
        self._kept: Tensor | None = None
        self._weights = torch.zeros(0, dtype=torch.int64)

    @torch.no_grad()
    def __call__(self, images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``function(images)``, computed for the pictures alone that were not seen before."""
        keys = self._keys(images)
        needed = set(keys)
        new = {key: i for i, key in enumerate(keys) if key not in self._slots}
        if len(needed) > self.limit:
            raise ValueError(f"model.image.remember={self.limit} is less than a batch of {len(keys)} pictures")
        if new:
            rows = function(images[list(new.values())]).cpu()
            if self._kept is None:
                self._kept = rows.new_empty(self.limit, *rows.shape[1:])
            for key, row in zip(new, rows, strict=True):
                self._kept[self._place(key, needed)] = row
        return self._kept[[self._slots[key] for key in keys]].to(images.device)

    def _place(self, key: int, needed: Collection[int]) -> int:
        """A free row for a picture; where there is none, that of the oldest which this batch does not need."""
        if len(self._slots) < self.limit:
            self._slots[key] = len(self._slots)
        else:
            self._slots[key] = self._slots.pop(next(old for old in self._slots if old not in needed))
        return self._slots[key]

    def _keys(self, images: Tensor) -> list[int]:
        """A 64-bit hash of every picture's bits: a sum with random odd weights, modulo 2^64."""
        words = images.detach().contiguous().flatten(1).view(torch.int32).long()
        if len(self._weights) != words.shape[1]:
            generator = torch.Generator().manual_seed(0)
            self._weights = torch.randint(-(2**62), 2**62, (words.shape[1],), generator=generator) * 2 + 1
        return (words * self._weights.to(words.device)).sum(1).tolist()


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
        return self.norm(tokens)


def _zero_branches(blocks: nn.Module) -> None:
    for block in blocks:
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.mlp.fc2.weight)


class OpenClipTower(nn.Module):
    """The class-token ViT of CLIP as open_clip builds it (B/16, L/14, L/14@336, H/14, …).

    Args:
        joint_dim: D; must equal the architecture's own.
        name: open_clip architecture (``ViT-B-16``) whose vision configuration is taken.
        image_size: side of the view in pixels; position embeddings are resized when it differs from the weights' own.
        pretrained: None, an open_clip tag (downloads), a local file of weights, or a folder of open_clip or of a
            Hugging Face CLIP (see :mod:`cloc.models.weights.pretrained`).
        quick_gelu: take CLIP's approximate GELU; tags and folders say by themselves whether they need it, files do not.
        options: overrides of open_clip's vision configuration (``width``, ``layers``, ``patch_size``, …).
        resize: ``pad`` or ``squash``, as :class:`TimmTower` has it.
        mean: of the pixels, per channel; None takes CLIP's.
        std: as ``mean``.
        frozen: keep the whole tower as it is, projection included.
        positions: as :class:`TimmTower` has it.
    """

    def __init__(
        self,
        joint_dim: Count,
        name: str = "ViT-B-16",
        image_size: Count = 224,
        pretrained: str | None = None,
        quick_gelu: bool = False,
        options: Mapping[str, Any] | None = None,
        resize: str = "pad",
        mean: PixelMean | None = None,
        std: PixelStd | None = None,
        frozen: bool = False,
        positions: str = "learned",
    ) -> None:
        super().__init__()
        prefer_plain_attention()
        from cloc.models.weights.open_clip_towers import open_clip_tower

        self.visual = open_clip_tower(
            "visual", name, joint_dim, pretrained, quick_gelu, image_size, dict(options or {})
        )
        self.visual.output_tokens = True
        install(positions, self.visual)
        self.image_size, self.joint_dim, self.resize = image_size, joint_dim, _check_resize(resize)
        self.grid = tuple(self.visual.grid_size)
        self.covered = covered_share(self.grid[0], self.visual.patch_size[0], image_size)
        self.width = self.visual.transformer.width
        self.mean, self.std = tuple(mean or CLIP_MEAN), tuple(std or CLIP_STD)
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> OpenClipTower:
        """As usual, but a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`TimmTower.forward`."""
        return self.visual(images)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """As :meth:`TimmTower.project_tokens`."""
        return tokens @ self.visual.proj
