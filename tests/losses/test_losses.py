"""The losses against ten-line naive versions, in float64: values and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from cloc.contracts import Batch, Features
from cloc.losses.conflicts import alike_texts, cosine_moments
from cloc.losses.contrastive import GlobalContrast
from cloc.losses.gather import gather
from cloc.losses.global_batch import Texts, gather_batch
from cloc.losses.grounding import Grounding
from cloc.losses.objective import ClocLoss
from cloc.losses.region import RegionContrast
from tests.kit.toy import gradients, make_batch, make_features, make_leaves

CLOSE = {"rtol": 1e-10, "atol": 1e-11}
M = 3
# Phrase 1 comes four times (twice in one picture), 4 and 5 are alike, one picture has none.
PHRASES = [[1, 2, None], [None, 1, 1], [None, None, None], [4, 5, 3], [1, None, 5]]
# Enough distinct texts that one pair of them, 4 and 5, can stand out.
WIDE = [[1, 2, 0], [6, 1, 1], [None, None, None], [4, 5, 3], [7, 8, 5]]
CAPTIONS = [6, 7, 8, 9, 10]
# One region has two hard negatives, one of them another region's phrase; one has its own phrase, which does not count.
NEGATIVES = [[[7, 3], [], []], [[], [1, 8], []], [[], [], []], [[], [], [9]], [[], [], [4]]]


def global_loss(features: Features, batch: Batch, kind: str = "softmax") -> tuple[Tensor, Tensor]:
    loss, stats = GlobalContrast(kind)(features, batch, gather_batch(features, batch))
    return loss, stats["filtered_captions"]


def region_loss(
    features: Features, batch: Batch, conflicts: str = "cosine", kind: str = "softmax", threshold: float = 0.9
) -> tuple[Tensor, dict[str, Tensor]]:
    return RegionContrast(kind, conflicts, threshold)(features, batch, gather_batch(features, batch))


def grounding_loss(features: Features, batch: Batch, *options: str) -> tuple[Tensor, dict[str, Tensor]]:
    return Grounding(*options)(features, batch, gather_batch(features, batch))


def naive_sigmoid(rows: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, drop: Tensor) -> Tensor:
    same = torch.eye(len(rows), dtype=torch.bool)
    pairs = logsigmoid(torch.where(same, 1.0, -1.0) * (scale * rows @ texts.T + bias))
    return -pairs.masked_fill(drop & ~same, 0.0).sum() / len(rows)


def naive_contrast(rows: Tensor, texts: Tensor, scale: Tensor, drop: Tensor) -> Tensor:
    logits = (scale * rows @ texts.T).masked_fill(drop & ~torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    answers = torch.arange(len(rows))
    return (cross_entropy(logits, answers) + cross_entropy(logits.T, answers)) / 2


def naive_region(features: Features, batch: Batch, conflicts: str, kind: str = "softmax") -> Tensor:
    """The raw (MB × MB) matrix: every valid region's text is a column of its own."""
    valid = batch.region_valid
    regions, texts = features.region[valid], features.phrase[batch.region_phrase[valid]]
    ids = batch.phrase_id[batch.region_phrase[valid]]
    drop = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    if conflicts != "none":
        drop |= ids[:, None] == ids[None]
    if conflicts == "cosine":
        distinct = features.phrase.detach()[batch.region_phrase[valid].unique()]
        pairs = (distinct @ distinct.T)[~torch.eye(len(distinct), dtype=torch.bool)]
        limit = pairs.mean() + 3 * pairs.std(correction=0) if len(pairs) else 1.0
        drop |= texts.detach() @ texts.detach().T > max(0.9, limit)
    if kind == "sigmoid":
        return naive_sigmoid(regions, texts, features.scales["region"], features.biases["region"], drop)
    return naive_contrast(regions, texts, features.scales["region"], drop)


def assert_same(one: Tensor, other: Tensor, leaves: dict[str, Tensor], expected: set[str]) -> None:
    torch.testing.assert_close(one, other, **CLOSE)
    ours, naive = gradients(one, leaves), gradients(other, leaves)
    moved = set()
    for name, want in naive.items():
        if want is not None:
            torch.testing.assert_close(ours[name], want, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
            moved |= {name} if want.abs().max() > 1e-4 else set()
    assert moved == expected


# --- image and caption ------------------------------------------------------------------------------------------------


def test_global_loss_is_the_cross_entropy_when_captions_differ() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    features = make_features(leaves, batch)
    loss, filtered = global_loss(features, batch)
    naive = naive_contrast(features.image, features.text, features.scales["global"], torch.zeros(5, 5).bool())
    assert filtered == 0
    assert_same(loss, naive, leaves, {"image", "table", "scale_global"})


@pytest.mark.parametrize("captions", [CAPTIONS, [6, 7, 6, 6, 9]])
def test_the_sigmoid_loss_takes_every_pair_by_itself(captions: list[int]) -> None:
    leaves, batch = make_leaves(5, M), make_batch(captions, PHRASES, M)
    features = make_features(leaves, batch)
    loss, _ = global_loss(features, batch, "sigmoid")
    drop = batch.captions == batch.captions.T
    scale, bias = features.scales["global"], features.biases["global"]
    naive = naive_sigmoid(features.image, features.text, scale, bias, drop)
    assert_same(loss, naive, leaves, {"image", "table", "scale_global", "bias_global"})


def test_equal_captions_leave_both_denominators_but_never_the_positive() -> None:
    leaves, batch = make_leaves(5, M), make_batch([6, 7, 6, 6, 9], PHRASES, M)
    features = make_features(leaves, batch)
    loss, filtered = global_loss(features, batch)
    drop = batch.captions == batch.captions.T
    naive = naive_contrast(features.image, features.text, features.scales["global"], drop)
    assert filtered == pytest.approx(6 / 25)
    assert_same(loss, naive, leaves, {"image", "table", "scale_global"})


def test_a_batch_of_one_caption_has_nothing_to_contrast() -> None:
    leaves, batch = make_leaves(3, M), make_batch([6, 6, 6], [[None] * M] * 3, M)
    features = make_features(leaves, batch)
    loss, _ = global_loss(features, batch)
    assert loss == 0
    for name in ("image", "table", "scale_global"):
        assert (gradients(loss, leaves)[name] == 0).all()


# --- region and phrase ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conflicts", ["none", "exact", "cosine"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("seed", [0, 1])
def test_deduplicated_phrases_give_the_loss_of_the_raw_matrix(conflicts: str, kind: str, seed: int) -> None:
    leaves, batch = make_leaves(5, M, seed=seed), make_batch(CAPTIONS, WIDE, M)
    features = make_features(leaves, batch)
    loss, stats = region_loss(features, batch, conflicts, kind)
    assert stats["regions"] == 12
    assert len(batch.phrases) == 9
    moved = {"region", "table", "scale_region"} | ({"bias_region"} if kind == "sigmoid" else set())
    assert_same(loss, naive_region(features, batch, conflicts, kind), leaves, moved)


def naive_with_negatives(features: Features, batch: Batch, conflicts: str, kind: str) -> Tensor:
    """One region after the other, its own hard negatives beside everybody's texts."""
    scale, bias = features.scales["region"], features.biases["region"]
    ids = batch.phrase_id[batch.region_phrase]
    found = []
    for place in batch.region_valid.nonzero().tolist():
        row, text = features.region[*place], features.phrase[batch.region_phrase[*place]]
        others = [tuple(other) for other in batch.region_valid.nonzero().tolist() if other != place]
        if conflicts == "exact":
            others = [other for other in others if ids[other] != ids[*place]]
        own = [i for i in batch.negatives[*place].tolist() if i >= 0 and batch.phrase_id[i] != ids[*place]]
        texts = torch.stack([text, *(features.phrase[batch.region_phrase[i]] for i in others)])
        hard, regions = features.phrase[own], torch.stack([row, *(features.region[i] for i in others)])
        if kind == "sigmoid":
            pairs = torch.cat([texts, hard]) @ row * scale + bias
            found.append(-logsigmoid(pairs[0]) - logsigmoid(-pairs[1:]).sum())
        else:
            to_text, to_region = torch.cat([texts, hard]) @ row * scale, regions @ text * scale
            found.append((to_text.logsumexp(0) + to_region.logsumexp(0)) / 2 - to_text[0])
    return torch.stack(found).mean()


@pytest.mark.parametrize("conflicts", ["none", "exact"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_hard_negatives_join_the_denominator_of_their_own_region(conflicts: str, kind: str) -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M, negatives=NEGATIVES)
    features = make_features(leaves, batch)
    loss, _ = region_loss(features, batch, conflicts, kind)
    moved = {"region", "table", "scale_region"} | ({"bias_region"} if kind == "sigmoid" else set())
    assert_same(loss, naive_with_negatives(features, batch, conflicts, kind), leaves, moved)
    without, _ = region_loss(features, replace(batch, negatives=None), conflicts, kind)
    assert loss > without + 1e-3
    assert (gradients(loss, leaves)["table"][[7, 8, 9]] != 0).any(-1).all()


def test_a_region_whose_only_negatives_are_hard_ones_learns_from_them() -> None:
    leaves = make_leaves(1, M)
    batch = make_batch([6], [[1, None, None]], M, negatives=[[[7, 8], [], []]])
    loss, _ = region_loss(make_features(leaves, batch), batch, "exact")
    assert loss > 0
    found = gradients(loss, leaves)
    assert (found["table"][[1, 7, 8]] != 0).any(-1).all()
    assert all(value is None or value.isfinite().all() for value in found.values())


def test_the_conflict_rules_differ_on_this_batch() -> None:
    """Or the three comparisons above would prove one thing only."""
    batch = make_batch(CAPTIONS, WIDE, M)
    features = make_features(make_leaves(5, M), batch)
    values = {kind: float(region_loss(features, batch, kind)[0].detach()) for kind in ("none", "exact", "cosine")}
    assert values["none"] > values["exact"] + 1e-3 > values["cosine"] + 2e-3


def test_random_batches_equal_the_raw_matrix() -> None:
    generator = torch.Generator().manual_seed(3)
    for seed in range(20):
        drawn = torch.randint(-4, 8, (4, M), generator=generator).tolist()
        phrases = [[None if text < 0 else text for text in own] for own in drawn]
        if all(text is None for own in phrases for text in own):
            continue
        leaves, batch = make_leaves(4, M, seed=seed), make_batch([1, 2, 3, 4], phrases, M)
        features = make_features(leaves, batch)
        for conflicts in ("none", "exact", "cosine"):
            loss, naive = region_loss(features, batch, conflicts)[0], naive_region(features, batch, conflicts)
            torch.testing.assert_close(loss, naive, **CLOSE)
            sigmoid = region_loss(features, batch, conflicts, "sigmoid")[0]
            torch.testing.assert_close(sigmoid, naive_region(features, batch, conflicts, "sigmoid"), **CLOSE)


def test_a_phrase_that_no_region_has_changes_nothing() -> None:
    """The text that stands in on a rank without regions, for instance."""
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    before, stats = region_loss(make_features(leaves, batch), batch, threshold=-1.0)
    batch.phrases = torch.cat([batch.phrases, torch.tensor([[11]])])
    batch.phrase_id = torch.cat([batch.phrase_id, torch.tensor([1])])
    after, stats_after = region_loss(make_features(leaves, batch), batch, threshold=-1.0)
    torch.testing.assert_close(before, after, **CLOSE)
    torch.testing.assert_close(stats["cosine_limit"], stats_after["cosine_limit"])
    assert (gradients(after, leaves)["table"][11] == 0).all()


@pytest.mark.parametrize("conflicts", ["none", "exact", "cosine"])
def test_what_lies_in_empty_slots_changes_nothing(conflicts: str) -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    loss = ClocLoss(conflicts=conflicts)
    before = loss(make_features(leaves, batch), batch)
    empty = ~batch.region_valid
    with torch.no_grad():
        leaves["region"][empty] = 50.0
        leaves["grounded"][empty] = 50.0
    batch.boxes[empty], batch.target_boxes[empty] = 7.0, 9.0
    batch.region_phrase[empty] = 3
    after = loss(make_features(leaves, batch), batch)
    torch.testing.assert_close(before.total, after.total, **CLOSE)
    for name in ("region", "grounded"):
        assert (gradients(after.total, leaves)[name][empty] == 0).all()


@pytest.mark.parametrize("conflicts", ["none", "exact", "cosine"])
def test_a_batch_without_regions_trains_and_every_leaf_takes_part(conflicts: str) -> None:
    leaves, batch = make_leaves(3, M), make_batch([1, 2, 3], [[None] * M] * 3, M)
    terms = ClocLoss(conflicts=conflicts)(make_features(leaves, batch), batch)
    assert terms.stats["lambda"] == terms.stats["regions"] == terms.stats["grounded"] == 0
    assert terms.terms["region"] == terms.terms["grounding"] == 0
    torch.testing.assert_close(terms.total, terms.terms["global"])
    found = gradients(terms.total, leaves)
    for name in ("region", "grounded", "scale_region"):
        assert found[name] is not None and (found[name] == 0).all(), name
    assert all(value.isfinite().all() for value in found.values())


def test_a_single_region_has_no_negative_and_a_finite_loss() -> None:
    leaves, batch = make_leaves(2, M), make_batch([1, 2], [[4, None, None], [None] * M], M)
    loss, _ = region_loss(make_features(leaves, batch), batch, "none")
    assert abs(loss) < 1e-15
    assert all(value is None or value.abs().max() < 1e-15 for value in gradients(loss, leaves).values())


def test_the_cosine_rule_is_off_while_all_texts_are_alike() -> None:
    """At the start of training it would silence every negative."""
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, WIDE, M)
    with torch.no_grad():
        leaves["table"][5] = leaves["table"][9]  # no two of the batch's are alike more than the rest
        leaves["table"] += 30.0
    features = make_features(leaves, batch)
    alike, stats = region_loss(features, batch, "cosine")
    exact, _ = region_loss(features, batch, "exact")
    assert stats["cosine_limit"] > 0.99
    assert stats["filtered"] == 0
    torch.testing.assert_close(alike, exact, **CLOSE)


def texts_of(embedding: Tensor) -> Texts:
    place = torch.arange(len(embedding))
    return Texts(normalize(embedding, dim=-1), place, torch.ones_like(place), place)


def test_the_limit_is_three_deviations_above_the_mean_of_distinct_pairs() -> None:
    texts = texts_of(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    off_diagonal = (texts.embedding @ texts.embedding.T)[~torch.eye(6, dtype=torch.bool)]
    limit = off_diagonal.mean() + 3 * off_diagonal.std(correction=0)
    torch.testing.assert_close(alike_texts(texts, -1.0).limit, limit)
    nearly = normalize(texts.embedding.double() * 0.02 + 1, dim=1)
    cosines = (nearly @ nearly.T)[~torch.eye(6, dtype=torch.bool)]
    deviation = cosine_moments(nearly.float())[1]
    torch.testing.assert_close(deviation.double(), cosines.std(correction=0), rtol=0.02, atol=0)
    assert alike_texts(texts, 2.0).limit == 2.0


def silenced(embedding: Tensor, threshold: float = 0.9) -> Tensor:
    """Which pairs of distinct texts the rule leaves out."""
    count = len(embedding)
    logits = torch.zeros(count, count)
    alike_texts(texts_of(embedding), threshold).hide(logits, slice(0, count), slice(0, count))
    return (logits < 0) & ~torch.eye(count, dtype=torch.bool)


def test_texts_that_are_alike_by_the_encoders_habit_are_negatives_and_a_paraphrase_is_not() -> None:
    """Whatever all texts have in common: nothing, half of it, or nearly all."""
    for common in (0.0, 5.0, 30.0):
        embedding = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)) + common
        embedding[7] = embedding[3] + 0.05 * torch.randn(64, generator=torch.Generator().manual_seed(2))
        assert silenced(embedding).nonzero().tolist() == [[3, 7], [7, 3]], common


def test_clusters_of_unlike_texts_are_told_apart() -> None:
    """What a text tower starts out with: four bundles of ten texts, where a fixed threshold silences a quarter."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(4, 64, generator=generator).repeat(10, 1) + 0.2 * torch.randn(40, 64, generator=generator)
    texts = texts_of(embedding).embedding
    assert (texts @ texts.T > 0.9).float().mean() > 0.2
    assert not silenced(embedding).any()


def test_the_filtered_share_counts_pairs_that_the_cosine_alone_removed() -> None:
    batch = make_batch(CAPTIONS, WIDE, M)
    _, stats = region_loss(make_features(make_leaves(5, M), batch), batch, "cosine")
    assert stats["filtered"] == pytest.approx(3 / (12 * 9))  # 4 and 5, and 5 twice with 4, of 12 regions × 9 phrases


def test_conflicts_are_found_without_gradient_to_the_texts() -> None:
    texts = texts_of(torch.randn(4, 8, requires_grad=True))
    rule = alike_texts(texts, 0.9)
    assert texts.embedding.requires_grad and not rule.text.requires_grad and not rule.limit.requires_grad


# --- grounding --------------------------------------------------------------------------------------------------------


def test_l2_is_equation_3() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    batch.phrase_is_shared[:] = False
    one_each, stats = grounding_loss(make_features(leaves, batch), batch, "l2", "skip")
    valid = batch.region_valid
    naive = (leaves["grounded"] - batch.boxes)[valid].square().sum() / (4 * valid.sum())
    assert stats["grounded"] == 9
    assert_same(one_each, naive, leaves, {"grounded"})


def test_skip_leaves_shared_phrases_out_of_sum_and_count() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    loss, stats = grounding_loss(make_features(leaves, batch), batch, "l2", "skip")
    used = batch.region_valid & ~batch.phrase_is_shared
    assert stats["grounded"] == used.sum() == 7
    naive = (leaves["grounded"] - batch.boxes)[used].square().sum() / (4 * used.sum())
    assert_same(loss, naive, leaves, {"grounded"})
    assert (gradients(loss, leaves)["grounded"][~used] == 0).all()


def test_union_compares_with_the_union_of_the_phrases_boxes() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    loss, _ = grounding_loss(make_features(leaves, batch), batch, "l2", "union")
    goal = batch.boxes.clone()
    both = torch.cat([batch.boxes[1, 1:, :2].amin(0), batch.boxes[1, 1:, 2:].amax(0)])
    goal[1, 1:] = both
    valid = batch.region_valid
    naive = (leaves["grounded"] - goal)[valid].square().sum() / (4 * valid.sum())
    assert_same(loss, naive, leaves, {"grounded"})


def test_nearest_compares_with_the_closest_drawn_box_of_the_phrase() -> None:
    leaves, batch = make_leaves(1, M), make_batch([1], [[2, 2, 3]], M)
    batch.boxes[0] = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.8, 0.8, 1.0, 1.0], [0.41, 0.41, 0.61, 0.61]])
    with torch.no_grad():  # both sit by the second box of phrase 2; the third box is closer but another phrase's
        leaves["grounded"][0] = torch.tensor([[0.7, 0.7, 0.9, 0.9], [0.6, 0.6, 0.8, 0.8], [0.0, 0.0, 0.2, 0.2]])
    loss, _ = grounding_loss(make_features(leaves, batch), batch, "l2", "nearest")
    assert float(loss.detach()) == pytest.approx((0.1**2 + 0.2**2 + 0.41**2) / 3)


def test_nearest_never_takes_the_box_of_an_empty_slot() -> None:
    """Empty slots point at phrase 0, as its true regions do."""
    leaves, batch = make_leaves(1, 2), make_batch([1], [[2, None]], 2)
    batch.boxes[0, 1] = leaves["grounded"][0, 0].detach()
    loss, _ = grounding_loss(make_features(leaves, batch), batch, "l2", "nearest")
    alone, _ = grounding_loss(make_features(leaves, batch), batch, "l2", "skip")
    assert loss > 0
    torch.testing.assert_close(loss, alone)


@pytest.mark.parametrize("shared_phrase", ["skip", "nearest", "union"])
@pytest.mark.parametrize("kind", ["l2", "l1_giou"])
def test_grounding_of_slots_without_phrase_has_no_gradient_and_no_nan(kind: str, shared_phrase: str) -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    with torch.no_grad():
        leaves["grounded"][2] = 0.5  # boxes without area, in a picture without regions
    loss, _ = grounding_loss(make_features(leaves, batch), batch, kind, shared_phrase)
    found = gradients(loss, leaves)["grounded"]
    assert loss.isfinite() and found.isfinite().all()
    assert (found[~batch.region_valid] == 0).all()
    assert (found[batch.region_valid & ~batch.phrase_is_shared] != 0).any(-1).all()


def test_l1_giou_is_smooth_l1_plus_one_minus_giou() -> None:
    leaves, batch = make_leaves(1, 1), make_batch([1], [[2]], 1)
    batch.boxes[0, 0] = torch.tensor([0.5, 0.5, 1.0, 1.0])
    with torch.no_grad():
        leaves["grounded"][0, 0] = torch.tensor([0.0, 0.0, 0.5, 0.5])
    loss, _ = grounding_loss(make_features(leaves, batch), batch, "l1_giou")
    # Each coordinate is off by 0.5 (less half the knee of 0.02); the boxes touch in a corner of a hull of area 1.
    assert float(loss.detach()) == pytest.approx(4 * 0.49 + 1 - (0 - 0.5), abs=1e-4)


def test_a_perfect_box_costs_nothing() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    with torch.no_grad():
        leaves["grounded"].copy_(batch.boxes)
    for kind in ("l2", "l1_giou"):
        loss, _ = grounding_loss(make_features(leaves, batch), batch, kind)
        assert float(loss.detach()) == pytest.approx(0, abs=1e-4)


# --- the objective ----------------------------------------------------------------------------------------------------


def test_lambda_is_the_share_of_images_with_regions() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    terms = ClocLoss(global_=0.5, region=2.0, grounding=3.0)(make_features(leaves, batch), batch)
    assert terms.stats["lambda"] == pytest.approx(4 / 5)
    expected = 0.5 * terms.terms["global"] + 4 / 5 * (2 * terms.terms["region"] + 3 * terms.terms["grounding"])
    torch.testing.assert_close(terms.total.detach(), expected, rtol=1e-6, atol=0)


def test_terms_and_stats_carry_no_graph() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    terms = ClocLoss()(make_features(leaves, batch), batch)
    assert terms.total.requires_grad
    assert {"global", "region", "grounding"} == set(terms.terms)
    assert not any(value.requires_grad for value in (terms.terms | terms.stats).values())


def test_weights_of_zero_leave_the_clip_loss_and_still_touch_every_leaf() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    features = make_features(leaves, batch)
    terms = ClocLoss(region=0.0, grounding=0.0)(features, batch)
    clip, _ = global_loss(features, batch)
    assert set(terms.terms) == {"global"}
    assert "lambda" not in terms.stats
    torch.testing.assert_close(terms.total, clip)
    assert all(value is not None for value in gradients(terms.total, leaves).values())


def test_a_clip_model_needs_no_region_features() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    features = make_features(leaves, batch)
    features.region = features.phrase = features.grounded = None
    del features.scales["region"], features.biases["region"]
    assert ClocLoss(region=0.0, grounding=0.0)(features, batch).total.isfinite()


def test_the_two_temperatures_are_separate() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    features = make_features(leaves, batch)
    clip, _ = global_loss(features, batch)
    region, _ = region_loss(features, batch)
    assert gradients(clip, leaves)["scale_region"] is None
    assert gradients(region, leaves)["scale_global"] is None
    terms = ClocLoss()(features, batch)
    assert terms.stats["scale_global"] == pytest.approx(float(leaves["scale_global"].detach().exp()))
    assert terms.stats["scale_region"] == pytest.approx(float(leaves["scale_region"].detach().exp()))


def test_gather_on_one_process_is_the_identity() -> None:
    rows = torch.randn(3, 2)
    (gathered,) = gather([rows], [])
    assert gathered is rows


@pytest.mark.parametrize(
    ("name", "value"), [("contrast", "bce"), ("conflicts", "cosin"), ("box", "giou"), ("shared_phrase", "first")]
)
def test_an_unknown_option_is_named_with_what_is_known(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"loss\.{name}='{value}': give one of .*,"):
        ClocLoss(**{name: value})
