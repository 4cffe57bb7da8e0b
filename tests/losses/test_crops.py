"""The contrast of crops and their phrases: the raw matrix in float64, over processes and beside the region loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from cloc.config.terms import Need
from cloc.contracts import Batch, Features
from cloc.losses.crops import CropContrast
from cloc.losses.global_batch import gather_batch
from cloc.losses.objective import ClocLoss
from tests.kit.toy import Leaves, gradients, make_batch, make_features, make_leaves
from tests.losses.test_losses import CAPTIONS, NEGATIVES, WIDE, M, assert_same, naive_contrast, naive_sigmoid

K = 2
# In WIDE texts 1 and 5 are owned by crops and by regions behind them, 0 and 3 by such regions alone.
KINDS = [(kind, rule) for kind in ("softmax", "sigmoid") for rule in ("none", "exact", "cosine")]


def leaves_of(pictures: int, seed: int = 0) -> Leaves:
    generator = torch.Generator().manual_seed(seed + 50)
    own = {
        "crop": torch.randn(pictures, K, 32, dtype=torch.float64, generator=generator),
        "scale_crops": torch.tensor([2.2], dtype=torch.float64),
        "bias_crops": torch.tensor([-1.2], dtype=torch.float64),
    }
    return make_leaves(pictures, M, seed=seed) | {name: value.requires_grad_() for name, value in own.items()}


def with_crops(batch: Batch) -> Batch:
    return replace(batch, crops=torch.zeros(len(batch.images), K, 3, 1, 1, dtype=torch.uint8))


def features_of(leaves: Leaves, batch: Batch, rows: slice = slice(None), alone: bool = False) -> Features:
    """As a model makes them: no crop, no embedding. ``alone``: of a model without Prompter."""
    found = make_features(leaves, batch, rows)
    crop = normalize(leaves["crop"][rows], dim=-1) * batch.crop_valid.unsqueeze(-1)
    scales = found.scales | {"crops": leaves["scale_crops"].exp()}
    found = replace(found, crop=crop, scales=scales, biases=found.biases | {"crops": leaves["bias_crops"]})
    return replace(found, region=None, grounded=None) if alone else found


def naive(features: Features, batch: Batch, rule: str, kind: str, scale: str = "crops") -> Tensor:
    """The raw (KB × KB) matrix: every crop's text is a column of its own."""
    valid = batch.region_valid[:, :K]
    owned = batch.region_phrase[:, :K][valid]
    rows, texts, ids = features.crop[valid], features.phrase[owned], batch.phrase_id[owned]
    drop = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    if rule != "none":
        drop |= ids[:, None] == ids[None]
    if rule == "cosine":
        distinct = features.phrase.detach()[owned.unique()]
        pairs = (distinct @ distinct.T)[~torch.eye(len(distinct), dtype=torch.bool)]
        drop |= texts.detach() @ texts.detach().T > max(0.9, pairs.mean() + 3 * pairs.std(correction=0))
    if kind == "sigmoid":
        return naive_sigmoid(rows, texts, features.scales[scale], features.biases[scale], drop)
    return naive_contrast(rows, texts, features.scales[scale], drop)


def crop_loss(features: Features, batch: Batch, kind: str, rule: str) -> tuple[Tensor, dict[str, Tensor]]:
    return CropContrast(kind, rule)(features, batch, gather_batch(features, batch, phrases=False, crops=True))


@pytest.mark.parametrize(("kind", "rule"), KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_loss_of_the_raw_matrix(kind: str, rule: str, seed: int) -> None:
    """Phrases that regions behind the crops own are no columns, and count for nothing in those that both own."""
    leaves, batch = leaves_of(5, seed), with_crops(make_batch(CAPTIONS, WIDE, M))
    features = features_of(leaves, batch, alone=True)
    loss, stats = crop_loss(features, batch, kind, rule)
    assert stats["crops"] == 8
    moved = {"crop", "table", "scale_crops"} | ({"bias_crops"} if kind == "sigmoid" else set())
    assert_same(loss, naive(features, batch, rule, kind), leaves, moved)
    unused = gradients(loss, leaves)["table"][[0, 3]]
    assert not unused.any()


def test_without_a_temperature_of_its_own_it_takes_the_captions() -> None:
    leaves, batch = leaves_of(5), with_crops(make_batch(CAPTIONS, WIDE, M))
    features = features_of(leaves, batch)
    features.scales.pop("crops")
    loss, _ = crop_loss(features, batch, "softmax", "exact")
    assert_same(loss, naive(features, batch, "exact", "softmax", "global"), leaves, {"crop", "table", "scale_global"})


def test_hard_negatives_of_the_first_regions_join_their_crops() -> None:
    leaves = leaves_of(5)
    batch = with_crops(make_batch(CAPTIONS, WIDE, M, negatives=NEGATIVES))
    features = features_of(leaves, batch)
    loss, _ = crop_loss(features, batch, "softmax", "none")
    found, scale = [], features.scales["crops"]
    places = batch.crop_valid.nonzero().tolist()
    texts = torch.stack([features.phrase[batch.region_phrase[*place]] for place in places])
    crops = torch.stack([features.crop[*place] for place in places])
    for number, place in enumerate(places):
        own = batch.phrase_id[batch.region_phrase[*place]]
        hard = [i for i in batch.negatives[*place].tolist() if i >= 0 and batch.phrase_id[i] != own]
        to_text = torch.cat([texts, features.phrase[hard]]) @ crops[number] * scale
        to_crop = crops @ texts[number] * scale
        found.append((to_text.logsumexp(0) + to_crop.logsumexp(0)) / 2 - to_text[number])
    assert_same(loss, torch.stack(found).mean(), leaves, {"crop", "table", "scale_crops"})


def test_clip_with_crops_and_cloc_with_crops_are_sums_of_their_terms() -> None:
    """λ weighs it as it weighs the region loss, and neither changes the other."""
    leaves, batch = leaves_of(5), with_crops(make_batch(CAPTIONS, WIDE, M))
    both, alone = features_of(leaves, batch), features_of(leaves, batch, alone=True)
    clip = ClocLoss(region=0.0, grounding=0.0)(both, batch).total
    cloc = ClocLoss()(both, batch).total
    crops = 0.8 * 0.5 * naive(both, batch, "cosine", "softmax")  # four pictures of five have regions
    found = ClocLoss(region=0.0, grounding=0.0, crops=0.5)(alone, batch)
    torch.testing.assert_close(found.total, clip + crops)
    assert found.terms.keys() == {"global", "crops"} and {"crops", "filtered_crops", "lambda"} <= found.stats.keys()
    torch.testing.assert_close(ClocLoss(crops=0.5)(both, batch).total, cloc + crops)
    assert ClocLoss(crops=0.5).needs(Need.CROPS) and not ClocLoss().needs(Need.CROPS)


@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
def test_a_batch_without_regions_is_a_normal_case(contrast: str) -> None:
    leaves = leaves_of(3)
    batch = with_crops(make_batch([6, 7, 8], [[None] * M] * 3, M))
    terms = ClocLoss(region=0.0, grounding=0.0, crops=1.0, contrast=contrast)(features_of(leaves, batch), batch)
    assert terms.terms["crops"] == 0 and terms.total.isfinite()
    found = gradients(terms.total, leaves)
    assert all(found[name] is not None and found[name].isfinite().all() for name in ("image", "crop", "scale_crops"))


# --- several processes ------------------------------------------------------------------------------------------------

# Phrases that come again on the other process, as crops there and behind the crops here; then a process without any.
EMPTY = [None] * M
SPREAD = {
    "mixed": ([6, 7, 8, 9], [[1, 2, 0], [3, 1, 1], [4, 0, 3], [1, None, None]]),
    "one has none": ([6, 7, 8, 9], [EMPTY, EMPTY, [4, 5, 3], [1, 4, 5]]),
}


def part_of(name: str, rank: int | None = None) -> tuple[Leaves, Batch, slice]:
    captions, phrases = SPREAD[name]
    whole = with_crops(make_batch(captions, phrases, M))
    if rank is None:
        return leaves_of(4), whole, slice(None)
    rows = slice(2 * rank, 2 * rank + 2)
    batch = with_crops(make_batch(captions[rows], phrases[rows], M))
    batch.boxes, batch.target_boxes = whole.boxes[rows], whole.target_boxes[rows]
    return leaves_of(4), batch, rows


def results(rank: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in SPREAD:
        for kind, rule in KINDS:
            leaves, batch, rows = part_of(name, rank)
            loss = ClocLoss(crops=0.7, contrast=kind, conflicts=rule, shared_phrase="union")
            terms = loss(features_of(leaves, batch, rows), batch)
            found[f"{name}-{kind}-{rule}"] = {"loss": terms.total.detach(), "gradients": gradients(terms.total, leaves)}
            found[f"{name}-{kind}-{rule}"]["count"] = terms.stats["crops"]
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        torch.save(results(rank), Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_make_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name, want in results().items():
        parts = [found[name] for found in ranks]
        assert all(part["count"] == want["count"] for part in parts)
        torch.testing.assert_close(
            torch.stack([part["loss"] for part in parts]).mean(), want["loss"], rtol=1e-9, atol=0
        )
        for leaf, gradient in want["gradients"].items():
            if gradient is not None:
                have = torch.stack([part["gradients"][leaf] for part in parts]).mean(0)
                torch.testing.assert_close(have, gradient, rtol=1e-9, atol=1e-12, msg=f"{name} {leaf}")
