"""One process = several processes: every loss and every gradient, in float64, over Gloo.

Each rank's loss is its part of the global mean, scaled so that averaging over ranks (what DDP does to gradients) gives
the global value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from toy import Leaves, gradients, make_batch, make_features, make_leaves

from cloc.contracts import Batch, Features
from cloc.losses.contrastive import global_loss
from cloc.losses.gather import gather, total
from cloc.losses.grounding import grounding_loss
from cloc.losses.objective import ClocLoss
from cloc.losses.region import region_loss

pytestmark = pytest.mark.distributed

M, B = 3, 2  # regions an image, images a rank
EMPTY = [None] * M
# (captions, phrases) of three ranks: phrases and captions that come again on other ranks, ragged regions, a rank with
# no region (its stand-in text is row 0), and another number of distinct phrases on each.
MIXED = ([6, 7, 8, 6, 7, 10], [[1, 2, None], [None, 1, 1], EMPTY, EMPTY, [4, 5, 3], [1, None, 2]])
FULL = ([6, 7, 8, 9, 10, 11], [[1, 2, 3], [4, 1, 2], [5, 6, 7], [8, 1, 9], [2, 5, 4], [3, 7, 1]])
NONE = ([6, 7, 8, 6, 7, 10], [EMPTY] * 6)
LAST = ([6, 6, 6, 6, 6, 10], [EMPTY, EMPTY, EMPTY, [4, 4, None], [4, None, None], [5, 4, 1]])
BATCHES = {"mixed": MIXED, "full": FULL, "none": NONE, "last": LAST}
LOSSES = ["global", "region-none", "region-exact", "region-cosine", "grounding-l2", "grounding-l1_giou", "total"]


def compute(name: str, features: Features, batch: Batch) -> Tensor:
    kind, _, option = name.partition("-")
    if kind == "global":
        return global_loss(features.image, features.text, batch.caption_id, features.scales["global"])[0]
    if kind == "region":
        return region_loss(features, batch, option)[0]
    if kind == "grounding":
        return grounding_loss(features, batch, option, "nearest")[0]
    return ClocLoss(shared_phrase="union")(features, batch).total


def part_of(name: str, ranks: int, rank: int | None = None) -> tuple[Leaves, Batch, slice]:
    """Leaves of all ranks, and the batch of one rank (of all for None)."""
    captions, phrases = (list(rows[: B * ranks]) for rows in BATCHES[name])
    leaves, whole = make_leaves(B * ranks, M), make_batch(captions, phrases, M)
    if rank is None:
        return leaves, whole, slice(None)
    rows = slice(rank * B, rank * B + B)
    batch = make_batch(captions[rows], phrases[rows], M)
    batch.boxes, batch.target_boxes = whole.boxes[rows], whole.target_boxes[rows]
    return leaves, batch, rows


def results(name: str, ranks: int, rank: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    leaves, batch, rows = part_of(name, ranks, rank)
    for loss_name in LOSSES:
        loss = compute(loss_name, make_features(leaves, batch, rows), batch)
        found[loss_name] = {"loss": loss.detach(), "gradients": gradients(loss, leaves)}
    stats = ClocLoss()(make_features(leaves, batch, rows), batch).stats
    found["stats"] = {key: stats[key] for key in ("lambda", "regions", "grounded", "mean_cosine")}
    return found


def gather_case(rank: int, ranks: int) -> dict[str, Any]:
    """Rank r owns r rows (the first none); rank r's loss weighs everything by r + 1."""
    rows = (torch.arange(rank * 2, dtype=torch.float64).reshape(rank, 2) + 10 * rank).requires_grad_()
    every, first = gather(rows)
    weight = torch.arange(every.numel(), dtype=torch.float64).reshape(every.shape)
    (gradient,) = torch.autograd.grad((every * weight * (rank + 1)).sum(), rows)
    ids, _ = gather(torch.full((rank,), rank))
    flags, _ = gather(torch.full((rank,), True))
    summed = total(torch.tensor([rank, 1]))
    return {"every": every.detach(), "first": first, "gradient": gradient, "ids": ids, "flags": flags, "sum": summed}


def work(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    try:
        found = {name: results(name, ranks, rank) for name in BATCHES} | {"gather": gather_case(rank, ranks)}
        torch.save(found, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def ranks_found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the ranks computed."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    torch.multiprocessing.spawn(work, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(request.param)]


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp(min=1e-12))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("loss", LOSSES)
def test_ranks_together_make_the_loss_and_gradients_of_one_process(
    ranks_found: list[dict[str, Any]], loss: str, batch: str
) -> None:
    one = results(batch, len(ranks_found))[loss]
    parts = [found[batch][loss] for found in ranks_found]
    assert relative(torch.stack([part["loss"] for part in parts]).mean(), one["loss"]) <= 1e-9
    for name, want in one["gradients"].items():
        have = [part["gradients"][name] for part in parts]
        if want is None:
            assert all(value is None or not value.any() for value in have), name
            continue
        # A rank's gradient reaches its own rows alone of what belongs to pictures; DDP averages what is shared.
        assert relative(torch.stack(have).mean(0), want) <= 1e-9, name


@pytest.mark.parametrize("batch", BATCHES)
def test_every_rank_logs_the_statistics_of_one_process(ranks_found: list[dict[str, Any]], batch: str) -> None:
    one = results(batch, len(ranks_found))["stats"]
    for found in ranks_found:
        for name, want in one.items():
            torch.testing.assert_close(found[batch]["stats"][name], want, rtol=1e-6, atol=1e-7, msg=f"{batch} {name}")


def test_gather_of_ragged_rows_keeps_order_and_gradients(ranks_found: list[dict[str, Any]]) -> None:
    ranks = len(ranks_found)
    found = [rank["gather"] for rank in ranks_found]
    every = torch.cat([torch.arange(r * 2, dtype=torch.float64).reshape(r, 2) + 10 * r for r in range(ranks)])
    weight = torch.arange(every.numel(), dtype=torch.float64).reshape(every.shape) * sum(range(1, ranks + 1))
    for rank, own in enumerate(found):
        first = sum(range(rank))
        assert own["first"] == first
        torch.testing.assert_close(own["every"], every)
        torch.testing.assert_close(own["gradient"], weight[first : first + rank])
        assert own["ids"].tolist() == [r for r in range(ranks) for _ in range(r)]
        assert own["flags"].all() and own["flags"].dtype == torch.bool
        assert own["sum"].tolist() == [sum(range(ranks)), ranks]
