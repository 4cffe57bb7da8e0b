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

from cloc.contracts import Batch, Features
from cloc.losses.contrastive import GlobalContrast
from cloc.losses.distill import Distill
from cloc.losses.gather import exchange, gather, log_sum_exp_over_ranks
from cloc.losses.global_batch import gather_batch
from cloc.losses.grounding import Grounding
from cloc.losses.hard_negatives import HardNegativeContrast
from cloc.losses.objective import ClocLoss
from cloc.losses.region import RegionContrast
from tests.kit.toy import Leaves, gradients, make_batch, make_features, make_leaves, taught

pytestmark = pytest.mark.distributed

M, B = 3, 2  # regions an image, images a rank
EMPTY = [None] * M
# (captions, phrases) of three ranks: phrases and captions that come again on other ranks, ragged regions, a rank with
# no region (its stand-in text is row 0), and another number of distinct phrases on each.
MIXED = ([6, 7, 8, 6, 7, 10], [[1, 2, None], [None, 1, 1], EMPTY, EMPTY, [4, 5, 3], [1, None, 2]])
FULL = ([6, 7, 8, 9, 10, 11], [[1, 2, 3], [4, 1, 2], [5, 6, 7], [8, 1, 9], [2, 5, 4], [3, 7, 1]])
NONE = ([6, 7, 8, 6, 7, 10], [EMPTY] * 6)
LAST = ([6, 6, 6, 6, 6, 10], [EMPTY, EMPTY, EMPTY, [4, 4, None], [4, None, None], [5, 4, 1]])
# Hard negatives of the pictures of "full": others' phrases, a text of no region, a region's own phrase.
NEGATIVES = [[[7, 0], [], [3]], [[], [2], []], [[], [], [1]], [[0, 9], [], []], [[], [11], []], [[], [], [7, 2]]]
BATCHES = {"mixed": MIXED, "full": FULL, "none": NONE, "last": LAST}
LOSSES = [f"global-{kind}" for kind in ("softmax", "sigmoid")]
LOSSES += [f"region-{kind}-{rule}" for kind in ("softmax", "sigmoid") for rule in ("none", "exact", "cosine")]
LOSSES += ["grounding-l2", "grounding-l1_giou", "distill", "hard", "total"]


def compute(name: str, features: Features, batch: Batch) -> Tensor:
    loss, _, options = name.partition("-")
    if loss == "total":
        return ClocLoss(shared_phrase="union", distill=0.5)(features, batch).total
    gathered = gather_batch(features, batch)
    if loss == "global":
        return GlobalContrast(options)(features, batch, gathered)[0]
    if loss == "region":
        return RegionContrast(*options.split("-"))(features, batch, gathered)[0]
    if loss == "hard" and batch.negatives is None:
        return features.region.sum() * 0  # the other batches have none
    if loss == "hard":
        return HardNegativeContrast()(features, batch, gathered)[0]
    if loss == "distill":
        return Distill()(features, batch, gathered)[0]
    return Grounding(options, "nearest")(features, batch, gathered)[0]


def part_of(name: str, ranks: int, rank: int | None = None) -> tuple[Leaves, Batch, slice]:
    """Leaves of all ranks, and the batch of one rank (of all for None)."""
    captions, phrases = (list(rows[: B * ranks]) for rows in BATCHES[name])
    negatives = NEGATIVES[: B * ranks] if name == "full" else None
    leaves, whole = make_leaves(B * ranks, M), make_batch(captions, phrases, M, negatives=negatives)
    if rank is None:
        return leaves, taught(whole), slice(None)
    rows = slice(rank * B, rank * B + B)
    batch = make_batch(captions[rows], phrases[rows], M, negatives=negatives and negatives[rows])
    batch.boxes, batch.target_boxes = whole.boxes[rows], whole.target_boxes[rows]
    return leaves, taught(batch, rows), rows


def results(name: str, ranks: int, rank: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    leaves, batch, rows = part_of(name, ranks, rank)
    for loss_name in LOSSES:
        loss = compute(loss_name, make_features(leaves, batch, rows), batch)
        found[loss_name] = {"loss": loss.detach(), "gradients": gradients(loss, leaves)}
    stats = ClocLoss()(make_features(leaves, batch, rows), batch).stats
    found["stats"] = {key: stats[key] for key in ("lambda", "regions", "grounded", "cosine_limit")}
    return found


def gather_case(rank: int, ranks: int) -> dict[str, Any]:
    """Rank r owns r rows of one tensor (the first none) and one of another; its loss weighs everything by r + 1."""
    rows = (torch.arange(rank * 2, dtype=torch.float64).reshape(rank, 2) + 10 * rank).requires_grad_()
    sizes = [[r, 1] for r in range(ranks)]
    every, others = gather([rows, torch.full((1, 2), float(rank), dtype=torch.float64)], sizes)
    weight = torch.arange(every.numel(), dtype=torch.float64).reshape(every.shape)
    (gradient,) = torch.autograd.grad((every * weight * (rank + 1)).sum(), rows)
    (ids,) = gather([torch.full((rank,), rank)], [[r] for r in range(ranks)])
    partial = torch.tensor([float(rank), -1e30 * rank, 500.0 * rank], dtype=torch.float64, requires_grad=True)
    joined = log_sum_exp_over_ranks(partial)
    (slope,) = torch.autograd.grad(joined.sum(), partial)
    return {
        "every": every.detach(),
        "others": others[:, 0],
        "gradient": gradient,
        "ids": ids,
        "counts": exchange(torch.tensor([rank, 1])),
        "joined": joined.detach(),
        "slope": slope,
    }


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


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_rules_differ_on_the_full_batch(ranks: int) -> None:
    """Or the comparisons of the three above would prove one thing only."""
    one = results("full", ranks)
    values = [float(one[f"region-softmax-{rule}"]["loss"]) for rule in ("none", "exact", "cosine")]
    assert values[0] > values[1] + 1e-3 > values[2] + 2e-3


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
        torch.testing.assert_close(own["every"], every)
        torch.testing.assert_close(own["gradient"], weight[first : first + rank])
        assert own["others"].tolist() == list(range(ranks))
        assert own["ids"].tolist() == [r for r in range(ranks) for _ in range(r)]
        assert own["counts"].tolist() == [[r, 1] for r in range(ranks)]


def test_log_sum_exps_of_ranks_are_joined_with_their_gradients(ranks_found: list[dict[str, Any]]) -> None:
    ranks = len(ranks_found)
    partial = torch.tensor([[float(r), -1e30 * r, 500.0 * r] for r in range(ranks)], dtype=torch.float64)
    partial.requires_grad_()
    joined = partial.logsumexp(0)
    (slope,) = torch.autograd.grad(joined.sum() * ranks, partial)  # every rank asks for the same sum
    for rank, own in enumerate(found["gather"] for found in ranks_found):
        torch.testing.assert_close(own["joined"], joined.detach())
        torch.testing.assert_close(own["slope"], slope[rank])
