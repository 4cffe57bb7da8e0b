"""What an image tower, a text tower, a Prompter and a grounding head are, and what each declares of itself.

The first four classes are what the model calls. A part is any ``nn.Module`` that has these attributes; it inherits
nothing of ours. What engine and export want to know besides is asked by the functions below: a part that declares it
(:class:`Declares`) is believed, for one that does not there is a default. So a tower that a user names as ``_target_``
is optimized, compiled, sharded, recomputed and exported without another file being touched.

Stands below all parts and knows none of them. Shape letters are those of ``contracts.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
STACKS = ("blocks", "resblocks", "layer", "layers", "block")  # how timm, open_clip and transformers name their blocks
TABLES = ("pos_embed", "positional_embedding", "class_embedding", "cls_token", "reg_token")
BLOCK = re.compile(r"(.+?\.(?:blocks|resblocks|layers?|block))\.(\d+)\.")
INPUT = re.compile(r"embed|cls_token|reg_token|\.(conv1|conv_stem|bn1|ln_pre|norm_pre|norm_in)\.|adapter\.proj\.")
Place = tuple[str, str]  # a stack of blocks and the index in it
GRAPHS = ("onnx", "torch")  # formats that trace whatever computes; the proof of the export says whether it is the model


class ImageTower(Protocol):
    """Normalized pixels → pooled embedding and un-pooled patch tokens, in one pass.

    Attributes:
        image_size: side S of its view in pixels.
        joint_dim: D.
        width: C.
        grid: rows and columns of patch tokens; N is their product.

    May have besides: ``mean``, ``std``, ``resize`` (:func:`view`), ``prefix_tokens`` (:func:`prefix_tokens`), and
    ``covered``, the share of the view's side under patch tokens (1).
    """

    image_size: int
    joint_dim: int
    width: int
    grid: tuple[int, int]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B,3,S,S]`` → embedding ``[B,D]``, not of unit norm, and patch tokens ``[B,N,C]`` after the last norm.

        Tokens come in reading order, without class and register tokens.
        """

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """``[...,C]`` → ``[...,D]``, as the pooled embedding is projected."""


class TextTower(Protocol):
    """Trimmed token ids → joint-space embedding; trimming and other texts of the batch change nothing.

    Attributes:
        tokenizer: ``open_clip``, or a folder or hub name of transformers.
        context_length: L of the longest text.
        joint_dim: D.
        vocab_size: rows of its table.

    May have besides: ``clean`` and ``tokenizer_files`` (``files``), see :class:`cloc.data.tokenizer.Tokenizer`, and
    ``architecture`` (:func:`architecture`).
    """

    tokenizer: str
    context_length: int
    joint_dim: int
    vocab_size: int

    def __call__(self, *groups: Tensor) -> Tensor:
        """Groups of ``[T,L]`` token ids → ``[T,D]`` of all in their order, not of unit norm."""


class Prompter(Protocol):
    """Patch tokens and a box or a phrase → an embedding. Built with ``width``, ``joint_dim`` and ``grid``.

    Attributes:
        supports_phrases: whether it has ``phrases`` and ``local``, which grounding needs.

    May have besides: ``phrase_prompt``, the module that phrases alone pass; it is not trained without a grounding head.
    """

    supports_phrases: bool

    def memory(self, tokens: Tensor) -> Any:
        """What every prompt of an image reads, from its tokens ``[B,N,C]``; made once an image."""

    def boxes(self, memory: Any, boxes: Tensor) -> Tensor:
        """Region embeddings ``[B,M,D]`` of boxes ``[B,M,4]`` in 0..1 of what the tokens cover."""

    def phrases(self, memory: Any, text: Tensor) -> Tensor:
        """States ``[B,M,C]`` of phrase embeddings ``[B,M,D]``, for the grounding head."""

    def local(self, memory: Any) -> Tensor:
        """Joint-space embedding ``[B,N,D]`` of each patch token."""


class GroundingHead(Protocol):
    """A phrase's state → a box. Built with ``width``, ``joint_dim`` and ``grid``."""

    def __call__(self, states: Tensor, text: Tensor, local: Tensor, tokens: Tensor) -> Tensor:
        """States ``[B,M,C]``, phrases ``[B,M,D]``, :meth:`Prompter.local` and tokens → ``[B,M,4]`` xyxy in 0..1."""


class Declares(Protocol):
    """What a part may say of itself; all of it is optional. The functions of this module give the defaults.

    Attributes:
        prefix_tokens: class and register tokens before the patch tokens, inside of an image tower.
        describes: what a tower's ``pretrained`` may name whose description the configuration takes over: ``folder``,
            ``tag``, both or (by default) none; a tower without it reads what it is given by itself.
        open_length: of a text tower, the context length where the configuration leaves it open; by default it must not.
        kind: what a tower is, in words, for the card of an export.
        activation: of a tower's perceptrons, in the words of transformers, where one word of open_clip's configuration
            rules both towers; by default None.
    """

    prefix_tokens: int
    describes: Collection[str]
    open_length: int
    kind: str
    activation: str | None

    def no_weight_decay(self) -> Collection[str]:
        """Names of own parameters without weight decay, besides vectors and tables of embeddings (timm's method)."""

    def parameter_layers(self) -> Mapping[str, int]:
        """Layer of own parameters by name, 0 before the first block, others in the last; empty: as blocks say."""

    def block_modules(self) -> Sequence[nn.Module]:
        """Blocks in forward order, each called once a pass: compiled, sharded and recomputed one at a time."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in backward (timm's and open_clip's method); AssertionError: block by block, then."""

    def refuses(self, format: str) -> list[str]:
        """Why a format of export cannot hold the part, one reason each; empty where it can.

        An image tower that ``hf`` can hold has ``class_token_vit``, one for ``timm`` has ``timm_model``, one for
        ``open_clip`` has ``open_clip_vision``. Formats that trace (``onnx``, ``torch``) need nothing.
        """

    def class_token_vit(self) -> ClassTokenViT:
        """The tower as CLIP's class-token ViT."""

    def timm_model(self) -> TimmModel:
        """The tower as a model of timm."""

    def open_clip_vision(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """open_clip's ``vision_cfg`` but for the size, and the weights of its ``visual``."""


@dataclass(frozen=True)
class View:
    """How an image tower wants its pictures.

    Attributes:
        size: side in pixels.
        mean: of the pixels, per channel, in 0..1.
        std: as ``mean``.
        resize: ``pad`` or ``squash``, see :class:`cloc.data.preprocess.Preprocess`.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    resize: str


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


@dataclass(frozen=True)
class TimmModel:
    """An image tower as timm builds it.

    Attributes:
        name: of ``timm.create_model``.
        arguments: for the same.
        state: weights under timm's names.
        config: timm's own ``pretrained_cfg`` of the name.
        projection: ``[D,C]``, from what it pools to the joint space.
    """

    name: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    config: Mapping[str, Any]
    projection: Tensor


# What the functions below are asked about. Python has no type for a module with the attributes of a protocol.
Part = nn.Module | ImageTower | TextTower | Prompter | GroundingHead


def as_module(part: Part) -> nn.Module:
    """A part as the module that it is, for what PyTorch knows of it.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(part, nn.Module):
        raise TypeError(f"{type(part).__name__} is no part of a model: give an nn.Module")
    return part


def declared(part: Part) -> Any:
    """A part as what it says of itself: attributes that are optional, of which ``nn.Module`` has no types."""
    return part


def view(tower: Part) -> View:
    """Pre-processing of an image tower; CLIP's statistics and padding where it says nothing."""
    mean, std = getattr(tower, "mean", CLIP_MEAN), getattr(tower, "std", CLIP_STD)
    return View(declared(tower).image_size, mean, std, getattr(tower, "resize", "pad"))


def prefix_tokens(tower: Part) -> int:
    """Class and register tokens before the patch tokens inside of an image tower; by default 0."""
    count: int = getattr(tower, "prefix_tokens", 0)
    return count


def architecture(text: Part) -> Any:
    """Configuration of transformers that a text tower needs beside its weights; by default None."""
    return getattr(text, "architecture", None)


def kind(tower: Part) -> str:
    """What a tower is, in words; by default its class."""
    words: str = getattr(tower, "kind", type(tower).__name__)
    return words


def refusals(part: Part, format: str) -> list[str]:
    """Why a format of export cannot hold a part; by default it is traced or refused."""
    if hasattr(part, "refuses"):
        return list(declared(part).refuses(format))
    return [] if format in GRAPHS else [f"{type(part).__name__} does not declare that {format} can hold it"]


def undecayed(part: Part) -> set[str]:
    """Names of a part's parameters that do not decay, whatever their shape; by default tables of positions."""
    if hasattr(part, "no_weight_decay"):
        return set(declared(part).no_weight_decay())
    return {name for name, _ in as_module(part).named_parameters() if name.endswith(TABLES)}


def blocks(part: Part) -> list[nn.Module]:
    """Blocks in forward order; by default those of the stacks inside, by the names of timm, open_clip, transformers."""
    if hasattr(part, "block_modules"):
        return list(declared(part).block_modules())
    found: list[nn.Module] = []
    for name, child in as_module(part).named_children():
        if name in STACKS and isinstance(child, nn.ModuleList | nn.Sequential):
            for one in child.children():  # Twins' are lists, which nothing calls
                found += one.children() if isinstance(one, nn.ModuleList) else [one]
        else:
            found += blocks(child)
    return found


def hidden(tower: Part) -> set[str]:
    """Names of the parameters inside of a tower's blocks, whose matrices Muon moves; by default told by their name."""
    names = [name for name, _ in as_module(tower).named_parameters()]
    if not hasattr(tower, "block_modules"):
        return {name for name in names if "blocks." in name}
    return {name for name, place in _declared_places(as_module(tower), names).items() if place is not None}


def layers(tower: Part, ask: bool = True) -> tuple[dict[str, int], int]:
    """Layer of each parameter, for rates that decay with depth: as the tower says, if it is asked.

    Else the blocks are numbered in forward order, through a backbone and an adapter upon it. What feeds a stack of
    blocks (embeddings, stem) counts as the layer below its first block, what follows (norms, projections) as the layer
    above its last.

    Returns:
        By name, 0 for what feeds the first block; and the number of the last layer.

    Raises:
        ValueError: the tower declares a layer or a block that it does not have.
    """
    module = as_module(tower)
    names = [name for name, _ in module.named_parameters()]
    own: Mapping[str, int] = declared(tower).parameter_layers() if ask and hasattr(tower, "parameter_layers") else {}
    if own:
        last = max(own.values())
        if unknown := sorted(own.keys() - names):
            raise ValueError(f"{type(tower).__name__}.parameter_layers() names {unknown[0]!r}, no parameter of it")
        return {name: own.get(name, last) for name in names}, last
    places = _declared_places(module, names) if hasattr(tower, "block_modules") else _named_places(names)
    numbers = {place: number for number, place in enumerate(dict.fromkeys(filter(None, places.values())), start=1)}
    return {name: _layer(f"tower.{name}", places[name], numbers) for name in names}, len(numbers) + 1


def _named_places(names: Sequence[str]) -> dict[str, Place | None]:
    found = {name: BLOCK.match(f"tower.{name}") for name in names}
    return {name: None if match is None else (match[1], match[2]) for name, match in found.items()}


def _declared_places(tower: nn.Module, names: Sequence[str]) -> dict[str, Place | None]:
    """As :func:`_named_places`, in the order of the blocks."""
    paths = {module: path for path, module in tower.named_modules()}
    places: dict[str, Place | None] = {}
    for block in blocks(tower):
        if block not in paths:
            raise ValueError(f"{type(tower).__name__}.block_modules() gives a {type(block).__name__} that is not in it")
        path = paths[block]
        stack, _, index = f"tower.{path}".rpartition(".")
        places |= {name: (stack, index) for name in names if name.startswith(f"{path}.")}
    return places | {name: None for name in names if name not in places}


def _layer(name: str, place: Place | None, numbers: Mapping[Place, int]) -> int:
    if place is not None:
        return numbers[place]
    near = [number for (stack, _), number in numbers.items() if name.startswith(stack.rpartition(".")[0] + ".")]
    near = near or list(numbers.values()) or [0]
    return max(0, min(near) - 1) if INPUT.search(name) else max(near) + 1


def recompute(tower: Part) -> list[str]:
    """Make a tower recompute its activations in backward; numbers stay the same.

    A tower or child that can is told to; else each of its blocks is recomputed, and one without blocks as a whole.

    Returns:
        What recomputes, in words; empty for a tower of which nothing is trained.
    """
    name, module = type(tower).__name__, as_module(tower)
    if not _trained(module):
        return []
    asked = hasattr(tower, "set_grad_checkpointing")
    if asked and _told(module):
        return [name]
    children = () if asked else module.named_children()
    done = [f"{name}.{child}" for child, part in children if _trained(part) and _told(part)]
    if done:
        return done
    parts = [block for block in blocks(module) if _trained(block)] or [module]
    for part in parts:
        part.forward = MethodType(_recomputed, part)  # bound: a copy of the module recomputes itself
    return [f"{name} as a whole" if parts == [module] else f"{len(parts)} blocks of {name}"]


def _recomputed(part: nn.Module, *inputs: Any, **named: Any) -> Any:
    """``forward`` of a module that keeps its inputs alone. A frame of ours: torch.compile passes by PyTorch's."""
    return checkpoint(type(part).forward, part, *inputs, use_reentrant=False, **named)


def _trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _told(part: nn.Module) -> bool:
    """Whether a module of timm, open_clip or transformers took the order; timm asserts that a class knows it."""
    if hasattr(part, "set_grad_checkpointing"):
        try:
            declared(part).set_grad_checkpointing(True)
        except AssertionError:
            return False
    elif hasattr(part, "gradient_checkpointing_enable"):
        declared(part).gradient_checkpointing_enable({"use_reentrant": False})
    else:
        return False
    return True
