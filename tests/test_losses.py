"""The losses against ten-line naive versions, in float64: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from toy import gradients, make_batch, make_features, make_leaves

from cloc.contracts import Batch, Features
from cloc.losses.contrastive import alike_texts, global_loss
from cloc.losses.gather import gather
from cloc.losses.grounding import grounding_loss
from cloc.losses.objective import ClocLoss
from cloc.losses.region import region_loss

# softplus drops what is below e^-20 of its argument, in float64 too.
CLOSE = {"rtol": 1e-8, "atol": 1e-8}
M = 3
# Phrase 1 comes four times (twice in one picture), 4 and 5 are alike, one picture has none.
PHRASES = [[1, 2, None], [None, 1, 1], [None, None, None], [4, 5, 3], [1, None, 5]]
CAPTIONS = [6, 7, 8, 9, 10]


def naive_contrast(rows: Tensor, texts: Tensor, scale: Tensor, drop: Tensor) -> Tensor:
    logits = (scale * rows @ texts.T).masked_fill(drop & ~torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    answers = torch.arange(len(rows))
    return (cross_entropy(logits, answers) + cross_entropy(logits.T, answers)) / 2


def naive_region(features: Features, batch: Batch, conflicts: str, threshold: float = 0.9) -> Tensor:
    """The raw (MB × MB) matrix: every valid region's text is a column of its own."""
    valid = batch.region_valid
    regions, texts = features.region[valid], features.phrase[batch.region_phrase[valid]]
    ids = batch.phrase_id[batch.region_phrase[valid]]
    drop = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    if conflicts != "none":
        drop |= ids[:, None] == ids[None]
    if conflicts == "cosine":
        drop |= texts.detach() @ texts.detach().T > threshold
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
    loss, filtered = global_loss(features.image, features.text, batch.caption_id, features.scales["global"])
    naive = naive_contrast(features.image, features.text, features.scales["global"], torch.zeros(5, 5).bool())
    assert filtered == 0
    assert_same(loss, naive, leaves, {"image", "table", "scale_global"})


def test_equal_captions_leave_both_denominators_but_never_the_positive() -> None:
    leaves, batch = make_leaves(5, M), make_batch([6, 7, 6, 6, 9], PHRASES, M)
    features = make_features(leaves, batch)
    loss, filtered = global_loss(features.image, features.text, batch.caption_id, features.scales["global"])
    drop = batch.captions == batch.captions.T
    naive = naive_contrast(features.image, features.text, features.scales["global"], drop)
    assert filtered == pytest.approx(6 / 25)
    assert_same(loss, naive, leaves, {"image", "table", "scale_global"})


def test_a_batch_of_one_caption_has_nothing_to_contrast() -> None:
    leaves, batch = make_leaves(3, M), make_batch([6, 6, 6], [[None] * M] * 3, M)
    features = make_features(leaves, batch)
    loss, _ = global_loss(features.image, features.text, batch.caption_id, features.scales["global"])
    assert loss == 0
    for name in ("image", "table", "scale_global"):
        assert (gradients(loss, leaves)[name] == 0).all()


# --- region and phrase ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conflicts", ["none", "exact", "cosine"])
@pytest.mark.parametrize("seed", [0, 1])
def test_deduplicated_phrases_give_the_loss_of_the_raw_matrix(conflicts: str, seed: int) -> None:
    leaves, batch = make_leaves(5, M, seed=seed), make_batch(CAPTIONS, PHRASES, M)
    features = make_features(leaves, batch)
    loss, stats = region_loss(features, batch, conflicts)
    assert stats["regions"] == 9
    assert len(batch.phrases) == 5
    assert_same(loss, naive_region(features, batch, conflicts), leaves, {"region", "table", "scale_region"})


def test_the_conflict_rules_differ_on_this_batch() -> None:
    """Or the three comparisons above would prove one thing only."""
    batch = make_batch(CAPTIONS, PHRASES, M)
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


def test_a_phrase_that_no_region_has_changes_nothing() -> None:
    """The text that stands in on a rank without regions, for instance."""
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    before, stats = region_loss(make_features(leaves, batch), batch)
    batch.phrases = torch.cat([batch.phrases, torch.tensor([[11]])])
    batch.phrase_id = torch.cat([batch.phrase_id, torch.tensor([1])])
    after, stats_after = region_loss(make_features(leaves, batch), batch)
    torch.testing.assert_close(before, after, **CLOSE)
    torch.testing.assert_close(stats["mean_cosine"], stats_after["mean_cosine"])
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
    assert loss == 0
    assert all(value is None or (value == 0).all() for value in gradients(loss, leaves).values())


def test_the_cosine_rule_is_off_while_all_texts_are_alike() -> None:
    """At the start of training it would silence every negative."""
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    with torch.no_grad():
        leaves["table"] += 30.0
    features = make_features(leaves, batch)
    alike, stats = region_loss(features, batch, "cosine")
    exact, _ = region_loss(features, batch, "exact")
    assert stats["mean_cosine"] > 0.9
    assert stats["filtered"] == 0
    torch.testing.assert_close(alike, exact, **CLOSE)


def test_the_mean_cosine_is_that_of_distinct_pairs() -> None:
    texts = normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    _, mean = alike_texts(texts, texts, 0.9)
    off_diagonal = (texts @ texts.T)[~torch.eye(6, dtype=torch.bool)]
    torch.testing.assert_close(mean, off_diagonal.mean())


@pytest.mark.parametrize(("cosine", "on"), [(0.49, True), (0.51, False)])
def test_the_cosine_rule_switches_at_one_half(cosine: float, on: bool) -> None:
    # Vectors with one cosine between all of them: a common part beside orthogonal ones.
    rows = torch.cat([torch.full((6, 1), (cosine / (1 - cosine)) ** 0.5), torch.eye(6)], 1)
    alike, mean = alike_texts(rows, rows, threshold=0.45)
    assert mean == pytest.approx(cosine, abs=1e-5)
    assert bool(alike.all()) is on
    assert bool(alike.any()) is on


def test_the_filtered_share_counts_pairs_that_the_cosine_alone_removed() -> None:
    batch = make_batch([1, 2], [[4, 5, None], [7, None, None]], M)
    _, stats = region_loss(make_features(make_leaves(2, M), batch), batch, "cosine")
    assert stats["filtered"] == pytest.approx(2 / 9)  # (4, 5) and (5, 4) of 3 regions × 3 phrases


def test_conflicts_are_found_without_gradient_to_the_texts() -> None:
    texts = torch.randn(4, 8, requires_grad=True)
    alike, mean = alike_texts(texts, texts, 0.9)
    assert not alike.requires_grad and not mean.requires_grad


# --- grounding --------------------------------------------------------------------------------------------------------


def test_l2_is_equation_3() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    loss, stats = grounding_loss(make_features(leaves, batch), batch, "l2", "nearest")
    batch.phrase_is_shared[:] = False
    one_each, _ = grounding_loss(make_features(leaves, batch), batch, "l2", "skip")
    valid = batch.region_valid
    naive = (leaves["grounded"] - batch.boxes)[valid].square().sum() / (4 * valid.sum())
    assert stats["grounded"] == 9
    assert_same(one_each, naive, leaves, {"grounded"})
    assert loss <= naive  # the nearer of two boxes is never farther


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
    clip, _ = global_loss(features.image, features.text, batch.caption_id, features.scales["global"])
    assert set(terms.terms) == {"global"}
    assert "lambda" not in terms.stats
    torch.testing.assert_close(terms.total, clip)
    assert all(value is not None for value in gradients(terms.total, leaves).values())


def test_a_clip_model_needs_no_region_features() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    features = make_features(leaves, batch)
    features.region = features.phrase = features.grounded = None
    del features.scales["region"]
    assert ClocLoss(region=0.0, grounding=0.0)(features, batch).total.isfinite()


def test_the_two_temperatures_are_separate() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M)
    features = make_features(leaves, batch)
    clip, _ = global_loss(features.image, features.text, batch.caption_id, features.scales["global"])
    region, _ = region_loss(features, batch)
    assert gradients(clip, leaves)["scale_region"] is None
    assert gradients(region, leaves)["scale_global"] is None
    terms = ClocLoss()(features, batch)
    assert terms.stats["scale_global"] == pytest.approx(float(leaves["scale_global"].detach().exp()))
    assert terms.stats["scale_region"] == pytest.approx(float(leaves["scale_region"].detach().exp()))


def test_gather_on_one_process_is_the_identity() -> None:
    rows = torch.randn(3, 2)
    gathered, first = gather(rows)
    assert gathered is rows and first == 0


@pytest.mark.parametrize(("name", "value"), [("conflicts", "cosin"), ("box", "giou"), ("shared_phrase", "first")])
def test_an_unknown_option_is_named_with_what_is_known(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"loss\.{name}='{value}': give one of .*,"):
        ClocLoss(**{name: value})


def test_grounding_refuses_unknown_options() -> None:
    batch = make_batch(CAPTIONS, PHRASES, M)
    features = make_features(make_leaves(5, M), batch)
    with pytest.raises(ValueError, match="l2 or l1_giou"):
        grounding_loss(features, batch, "l3")
    with pytest.raises(ValueError, match="skip, nearest or union"):
        grounding_loss(features, batch, "l2", "all")
