"""Chunked = full: the streamed sums against the whole matrix, whatever the tile, and without ever holding it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus
from torch.utils._python_dispatch import TorchDispatchMode

from cloc.losses import tiles as stream
from cloc.losses.tiles import Conflicts, log_sum_exp, sum_softplus, tiles

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
ROWS, COLUMNS = 13, 9


@pytest.fixture(params=[1, 6, 20, 1 << 18])
def pairs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Pairs in a tile: from one alone to all at once."""
    monkeypatch.setitem(stream.PAIRS, "cpu", request.param)
    return request.param


@pytest.fixture(params=["none", "own", "alike", "all"])
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Tensor], Conflicts | None, Tensor, Tensor]:
    """Leaves, counts, the conflicts, and the same as a whole matrix."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    leaves = {"rows": normal(ROWS, 4) * 3, "columns": normal(COLUMNS, 4), "bias": normal(1)}
    count = torch.randint(1, 5, (COLUMNS,), generator=generator).double()
    own = torch.randint(COLUMNS, (ROWS,), generator=generator)
    text = normalize(normal(COLUMNS, 3), dim=1).float()
    conflict = own.unsqueeze(1) == torch.arange(COLUMNS)
    conflicts: Conflicts | None = Conflicts(own)
    if request.param == "none":
        conflicts, conflict = None, torch.zeros_like(conflict)
    elif request.param != "own":
        limit = 0.5 if request.param == "alike" else -2.0
        conflicts, alike = Conflicts(own, text, torch.tensor(limit)), text[own] @ text.T > limit
        assert (alike & ~conflict).sum() > 10
        conflict = conflict | alike
    return {name: value.requires_grad_() for name, value in leaves.items()}, conflicts, conflict, count


def left_out(conflicts: Conflicts | None, conflict: Tensor) -> int:
    return int(conflict.sum()) - ROWS if conflicts is not None else 0


def assert_same(found: list[Tensor], expected: list[Tensor], leaves: list[Tensor]) -> None:
    """Values, and gradients of a sum in which every element has its own weight; nothing where nothing is left."""
    for one, other in zip(found, expected, strict=True):
        empty = other == -torch.inf
        assert (one[empty] < -1e300).all()
        torch.testing.assert_close(one[~empty], other[~empty], **CLOSE)
    weights = [torch.linspace(-1, 2, len(value), dtype=torch.float64) for value in found]
    losses = [
        sum((value.clamp(min=-1e4) * weight).sum() for value, weight in zip(values, weights, strict=True))
        for values in (found, expected)
    ]
    for one, other in zip(*(torch.autograd.grad(loss, leaves) for loss in losses), strict=True):
        torch.testing.assert_close(one, other.nan_to_num(0.0), **CLOSE)


@pytest.mark.usefixtures("pairs")
def test_log_sum_exps_of_tiles_are_those_of_the_matrix(case: Any) -> None:
    leaves, conflicts, conflict, count = case
    rows, columns = leaves["rows"], leaves["columns"]
    *found, removed = log_sum_exp(rows, columns, count.log(), conflicts)
    logits = (rows @ columns.T).masked_fill(conflict, -torch.inf)
    assert removed == left_out(conflicts, conflict)
    assert_same(found, [(logits + count.log()).logsumexp(1), logits.logsumexp(0)], [rows, columns])


@pytest.mark.usefixtures("pairs")
def test_softplus_sums_of_tiles_are_those_of_the_matrix(case: Any) -> None:
    leaves, conflicts, conflict, count = case
    rows, columns, bias = leaves.values()
    found, removed = sum_softplus(rows, columns, bias, count, conflicts)
    terms = softplus(rows @ columns.T + bias, threshold=700).masked_fill(conflict, 0.0) * count
    assert removed == left_out(conflicts, conflict)
    assert_same([found], [terms.sum(1)], [rows, columns, bias])


def test_logits_of_any_size_keep_their_precision() -> None:
    """Two logits far from the others in each direction, in float32."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]]) * 100
    columns = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    over_columns, over_rows, _ = log_sum_exp(rows, columns, torch.zeros(3))
    torch.testing.assert_close(over_columns, torch.tensor([100.0, 0.6931472]))
    torch.testing.assert_close(over_rows, torch.tensor([100.0, 0.0, 0.0]))


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (1, 1), (7, 300), (300, 7), (40, 40)])
@pytest.mark.parametrize("pairs", [1, 16, 100])
def test_tiles_cover_every_pair_once(rows: int, columns: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stream.PAIRS, "cpu", pairs)
    seen = torch.zeros(rows, columns, dtype=torch.int64)
    for r, c in tiles(rows, columns, torch.device("cpu")):
        assert seen[r, c].numel() <= pairs
        seen[r, c] += 1
    assert (seen == 1).all()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return made


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_no_matrix_of_pairs_is_ever_held(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stream.PAIRS, "cpu", 64)
    size, width = 60, 2
    rows, columns = (torch.randn(size, width, requires_grad=True) for _ in range(2))
    conflicts = Conflicts(torch.arange(size), normalize(columns.detach(), dim=1), torch.tensor(0.9))
    with Largest() as largest:
        if kind == "softmax":
            found = log_sum_exp(rows, columns, torch.zeros(size), conflicts)[:2]
        else:
            found = sum_softplus(rows, columns, torch.zeros(1), torch.ones(size), conflicts)[:1]
        sum(value.sum() for value in found).backward()
    assert rows.grad is not None
    assert size * width == 120 <= largest.elements < size * size / 10
