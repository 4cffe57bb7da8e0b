"""Whether a model can give numbers at all: pixel statistics, norms and weights that are finite. Below ``model``.

One NaN in a file makes every similarity NaN, and a ranking of NaN is still a ranking: nothing behind a model would
notice. So a model is refused where it is built or loaded (``model``, ``encoder``), and what it embeds is looked at
where it is measured or written (``evaluation``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MEAN, STD = (-10.0, 10.0), (1e-3, 10.0)  # per channel, of pixels in 0..1: 0.2..0.6 and 0.2..0.5 in what is published
EPS = ("eps", "variance_epsilon")  # where norms of PyTorch, timm, open_clip and transformers keep theirs


class SanityError(ValueError):
    """A model or its embeddings hold what is no number; says where, the value and the remedy."""


class NotFiniteError(SanityError, FloatingPointError):
    """Embeddings that are not finite; training ends on it as on any other number that is not."""


def check_pixels(mean: Any, std: Any) -> None:
    """Hold the statistics that pictures are normalized by to three finite numbers of a sensible size.

    Raises:
        SanityError: anything else, such as NaN, or a deviation of zero.
    """
    for name, values, (low, high) in (("mean", mean, MEAN), ("std", std, STD)):
        numbers = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
        known = [one for one in numbers if isinstance(one, int | float) and not isinstance(one, bool)]
        if len(known) != len(numbers) or len(known) != 3 or not all(low <= one <= high for one in known):
            raise SanityError(
                f"{name}={str(values)[:100]} of its pictures: three numbers within {low:g}..{high:g} are needed, of "
                f"pixels in 0..1; correct the model's image {name}"
            )


def check_weights(state: Mapping[str, Any]) -> None:
    """Refuse weights that are not finite. Costs one pass over them.

    Args:
        state: names and tensors; what is no tensor of floating point passes.

    Raises:
        SanityError: names the first tensor.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_meta:
            continue
        # A sum is finite only if all of it is; one that overflows is looked at again, number by number.
        if not math.isfinite(value.sum(dtype=torch.float32).item()) and not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise SanityError(
                f"{count} of {value.numel()} numbers of {name} are not finite; copy the file again, or take "
                "another checkpoint"
            )


def check_model(model: nn.Module) -> None:
    """Refuse a built model whose weights are not finite, or whose norms divide by what is no positive number.

    Raises:
        SanityError: names the tensor, or the norm and its ``eps``.
    """
    for name, module in model.named_modules():
        for key in EPS:
            eps = getattr(module, key, None)
            if isinstance(eps, int | float) and not (math.isfinite(eps) and eps > 0):
                raise SanityError(f"{name}.{key}={eps}: a norm needs a finite number above 0, such as 1e-5; correct it")
    check_weights(model.state_dict())


def check_embedded(name: str, rows: Mapping[str, Tensor]) -> None:
    """Refuse embeddings (or boxes, or scores) that are not finite, before they are measured or written.

    Args:
        name: of the model.
        rows: by what they are embeddings of.

    Raises:
        NotFiniteError: names the model and what it was.
    """
    for what, values in rows.items():
        broken = int((~values.flatten(1).isfinite().all(1) if values.ndim > 1 else ~values.isfinite()).sum())
        if broken:
            raise NotFiniteError(
                f"{name}: {broken} of {len(values)} rows for {what} are not finite, so nothing of them is measured or "
                "written; take another checkpoint, or look at the weights and the pictures' mean and std"
            )
