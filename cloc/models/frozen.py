"""Where the frozen part of a tower ends: what it makes never changes, so it can be kept (``cloc.engine.frozen``).

A tower that is trained behind a frozen backbone declares it by a method ``frozen_part``, which needs nothing of this
module but :class:`FrozenPart`; one without it is frozen whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cloc.models.protocols import Part, as_module, declared


@dataclass(frozen=True)
class FrozenPart:
    """A tower in two, of which the first part stays as it is: ``tower(inputs)`` equals ``rest(first(inputs))``.

    Attributes:
        module: whose weights, none of them trained, decide what ``first`` makes.
        first: normalized pixels ``[B,3,S,S]``, or token ids ``[T,L]`` of one group of texts → one tensor with a row
            each, in evaluation mode whatever the tower's mode, without gradient.
        rest: those rows → what the tower returns.
        facts: what else decides what ``first`` makes (architecture, arguments), in words: kept rows are found by it.
    """

    module: nn.Module
    first: Callable[[Tensor], Tensor]
    rest: Callable[[Tensor], Any]
    facts: str = ""


def frozen_part(tower: Part) -> FrozenPart | None:
    """The part of a tower that is frozen while the rest is trained; None where it declares none."""
    if not hasattr(tower, "frozen_part"):
        return None
    found: FrozenPart | None = declared(tower).frozen_part()
    return found


def is_frozen(tower: Part) -> bool:
    """Whether nothing of a tower is trained: no parameter, and no part of it is in training mode meanwhile."""
    module = as_module(tower)
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    modes = [(part, part.training) for part in module.modules()]
    module.train()
    asleep = not any(part.training for part, _ in modes)
    for part, mode in modes:
        part.training = mode
    return asleep
