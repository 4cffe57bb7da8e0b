"""Every metric by hand, on numbers small enough to count."""

from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from cloc.config import ConfigError, DatasetConfig
from cloc.contracts import Region, Sample
from cloc.evaluation.metrics import retrieval
from cloc.evaluation.metrics.average_precision import precision_outcomes, weighted_precision
from cloc.evaluation.metrics.bootstrap import difference, draws, intervals, resample
from cloc.evaluation.metrics.classification import (
    box_sizes,
    class_texts,
    classification_outcomes,
    classify,
    split_outcomes,
)
from cloc.evaluation.metrics.grounding import grounding_outcomes, overlap
from cloc.evaluation.metrics.outcome import outcome, values
from cloc.evaluation.metrics.region_choice import comprehension_outcome, hard_negative_outcome
from cloc.evaluation.metrics.retrieval import owners, recall, retrieval_outcomes
from cloc.evaluation.sets.class_names import frequencies_of, read_lines, templates_of

# Four gallery items on a line; a query's similarity to them is its own row.
GALLERY = torch.eye(4)
QUERIES = torch.tensor([[0.9, 0.5, 0.1, 0.0], [0.9, 0.5, 0.1, 0.0], [0.0, 0.1, 0.2, 0.3], [0.4, 0.3, 0.2, 0.1]])


# --- retrieval --------------------------------------------------------------------------------------------------------


def test_recall_by_hand() -> None:
    # The right item stands at place 1, 3, 4 and 2.
    assert recall(QUERIES, GALLERY, [[0], [2], [0], [1]], [1, 2, 3, 4]) == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}


def test_any_of_several_correct_answers_is_a_hit() -> None:
    assert recall(QUERIES[:2], GALLERY, [[3, 1], [2, 3]], [1, 2, 3]) == {1: 0.0, 2: 0.5, 3: 1.0}


def test_a_query_without_answer_is_left_out() -> None:
    assert recall(QUERIES[:3], GALLERY, [[0], [], [0]], [1]) == {1: 0.5}
    assert math.isnan(recall(QUERIES[:1], GALLERY, [[]], [1])[1])


def test_more_places_than_gallery_items() -> None:
    assert recall(QUERIES, GALLERY, [[0], [2], [0], [1]], [1, 10]) == {1: 0.25, 10: 1.0}


def test_an_empty_gallery_or_no_query_has_no_recall() -> None:
    assert math.isnan(recall(QUERIES, GALLERY[:0], [[], [], [], []], [1])[1])
    assert math.isnan(recall(QUERIES[:0], GALLERY, [], [1])[1])


def random_task(queries: int = 50, gallery: int = 30) -> tuple[Tensor, Tensor, list[set[int]]]:
    generator = torch.Generator().manual_seed(0)
    rows, items = (torch.randn(count, 6, generator=generator) for count in (queries, gallery))
    counts = torch.randint(0, 4, (queries,), generator=generator).tolist()
    return rows, items, [set(torch.randint(gallery, (n,), generator=generator).tolist()) for n in counts]


def naive_recall(queries: Tensor, gallery: Tensor, correct: list[set[int]], k: int) -> float:
    hits = [
        bool(own & set(sorted(range(len(gallery)), key=lambda j: -float(query @ gallery[j]))[:k]))
        for query, own in zip(queries, correct, strict=True)
        if own
    ]
    return sum(hits) / len(hits)


def test_recall_equals_sorting_one_query_after_the_other() -> None:
    queries, gallery, correct = random_task()
    for k, value in recall(queries, gallery, correct, [1, 5, 10]).items():
        assert value == pytest.approx(naive_recall(queries, gallery, correct, k))


def test_recall_does_not_depend_on_the_order_of_queries_or_gallery() -> None:
    queries, gallery, correct = random_task()
    expected = recall(queries, gallery, correct, [1, 5])
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(1))
    assert recall(queries[order], gallery, [correct[i] for i in order.tolist()], [1, 5]) == expected
    places = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(2))
    moved = {old: new for new, old in enumerate(places.tolist())}
    assert recall(queries, gallery[places], [{moved[i] for i in own} for own in correct], [1, 5]) == expected


@pytest.mark.parametrize("chunk", [1, 3, 50, 51])
def test_recall_in_chunks_is_recall(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery, correct = random_task()
    expected = recall(queries, gallery, correct, [1, 5, 10])
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    assert recall(queries, gallery, correct, [1, 5, 10]) == expected


def test_owners_of_texts_and_texts_of_owners() -> None:
    texts, by_text, by_item = owners([["a cat", "a dog"], [], ["a dog", "a dog"], ["a cow"]])
    assert texts == ["a cat", "a dog", "a cow"]
    assert by_text == [{0}, {0, 2}, {3}]
    assert by_item == [{0, 1}, set(), {1}, {2}]


def test_retrieval_runs_both_directions_over_distinct_texts() -> None:
    # Two pictures share text 1; picture 2 has a text of its own.
    texts, by_text, by_item = owners([["t0", "t1"], ["t1"], ["t2"]])
    items = torch.tensor([[0.0, 1.0, 0.5], [0.2, 0.1, 0.9], [0.3, 0.9, 0.8]])
    found = retrieval_outcomes(items, torch.eye(3), by_text, by_item, [0, 1, 2], ("to_text", "to_item"), [1, 2])
    assert len(texts) == 3
    assert found["to_item_R@1"].group.tolist() == [0, 0, 2]  # a text goes with the first picture that owns it
    assert values(found) == {
        "to_text_R@1": pytest.approx(1 / 3),  # only picture 0's best text, t1, is its own
        "to_text_R@2": pytest.approx(2 / 3),  # picture 2's second best is t2; t1 is picture 1's last
        "to_item_R@1": pytest.approx(1 / 3),  # t0 ranks picture 2 first, t1 picture 0, t2 picture 1
        "to_item_R@2": pytest.approx(2 / 3),  # t2 has picture 2 second; t0 has picture 0 last
    }


def test_retrieval_without_any_text_has_no_metric() -> None:
    found = retrieval_outcomes(torch.eye(2), torch.zeros(0, 2), [], [set(), set()], [0, 1], ("a", "b"), [1])
    assert values(found) == {}


def recall_at_k(scores: Tensor, positive_pairs: Tensor, k: int) -> Tensor:
    """CLIP_benchmark's definition, naively: the share of the right items that are among the first k."""
    found = torch.zeros_like(positive_pairs)
    found.scatter_(1, scores.topk(k, 1).indices, True)
    return (found & positive_pairs).sum(1) / positive_pairs.sum(1)


@pytest.mark.parametrize("theirs", ["by hand", "CLIP_benchmark"])
def test_retrieval_equals_clip_benchmark(theirs: str) -> None:
    """Five captions a picture, as COCO has them; theirs counts a hit where its recall is above 0."""
    peer = recall_at_k
    if theirs == "CLIP_benchmark":
        module = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason="CLIP_benchmark is missing")
        peer = module.recall_at_k
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=-1)
    noise = torch.randn(200, 8, generator=generator)
    texts = torch.nn.functional.normalize(images.repeat_interleave(5, 0) + 0.8 * noise, dim=-1)
    scores, owner = texts @ images.T, torch.arange(200) // 5
    positive = owner[:, None] == torch.arange(40)
    _, by_text, by_item = owners([[str(5 * i + j) for j in range(5)] for i in range(40)])
    names = ("to_text", "to_image")
    ours = values(retrieval_outcomes(images, texts, by_text, by_item, range(40), names, [1, 5, 10]))
    for k in (1, 5, 10):
        assert ours[f"to_image_R@{k}"] == pytest.approx(float((peer(scores, positive, k) > 0).double().mean()), abs=0)
        reverse = float((peer(scores.T, positive.T, k) > 0).double().mean())
        assert ours[f"to_text_R@{k}"] == pytest.approx(reverse, abs=0)
        assert 0 < reverse < 1 or k == 10


@pytest.mark.slow
def test_retrieval_of_25_000_by_5_000_stays_below_one_gibibyte() -> None:
    """The peak of a whole process of its own, features and imports included."""
    code = """
import torch
from cloc.data.stream.batches import peak_memory
from cloc.evaluation.metrics.retrieval import owners, retrieval_outcomes
torch.set_num_threads(1)
images, texts = torch.randn(5000, 512), torch.randn(25000, 512)
_, by_text, by_item = owners([[str(5 * i + j) for j in range(5)] for i in range(5000)])
found = retrieval_outcomes(images, texts, by_text, by_item, range(5000), ("a", "b"), [1, 5, 10])
assert len(found["a_R@1"].values) == 5000 and len(found["b_R@1"].values) == 25000
print(peak_memory())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak = int(done.stdout)
    print(f"peak {peak / 2**20:.0f} MiB")
    assert peak < 2**30


# --- classification ---------------------------------------------------------------------------------------------------


def test_top1_counts_items_and_macc_counts_classes() -> None:
    items = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0]])
    truth = torch.tensor([0, 0, 0, 1])  # class 0: 2 of 3 right; class 1: none; class 2 does not occur
    ranked = classify(items, torch.eye(3))
    assert ranked[:, 0].tolist() == [0, 0, 1, 0]
    found = classification_outcomes(ranked, truth, torch.arange(4), "")
    assert values(found) == {"top1": 0.5, "mAcc": pytest.approx((2 / 3 + 0) / 2)}  # no top5 of three classes


def test_top5_counts_a_class_among_the_first_five() -> None:
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6]])
    found = classification_outcomes(classify(scores, torch.eye(6)), torch.tensor([4, 0]), torch.arange(2), "")
    assert values(found) == {"top1": 0.0, "mAcc": 0.0, "top5": 0.5}


def test_parts_by_size_and_by_frequency() -> None:
    # Of 100×100 pixels: 0.3² is 900 px (small, below 32²), 0.5² is 2,500 (medium), all is 10,000 (large, from 96²).
    boxes = [(0.0, 0.0, 0.3, 0.3), (0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.32, 1.0)]
    sample = Sample("x", b"", "jpg", regions=tuple(Region(box, ("it",)) for box in boxes), width=100, height=100)
    assert box_sizes([sample]) == ["small", "medium", "large", "medium"]
    ranked = torch.tensor([[0], [1], [0], [1]])
    truth = torch.tensor([0, 0, 0, 1])
    found = split_outcomes(ranked, truth, torch.arange(4), box_sizes([sample]), ["small", "medium", "large"], "p/")
    assert values(found) == {
        "p/top1_small": 1.0,
        "p/mAcc_small": 1.0,
        "p/top1_medium": 0.5,
        "p/mAcc_medium": 0.5,
        "p/top1_large": 1.0,
        "p/mAcc_large": 1.0,
    }
    assert split_outcomes(ranked, truth, torch.arange(4), [None] * 4, ["rare"], "") == {}  # a stated absence


def test_class_texts_are_the_mean_over_templates() -> None:
    table = {"a cat": [1.0, 0.0], "no cat": [0.0, 1.0], "a dog": [0.0, 1.0], "no dog": [0.0, 1.0]}
    found = class_texts(lambda texts: torch.tensor([table[text] for text in texts]), ["cat", "dog"], ["a {}", "no {}"])
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))


def test_names_templates_and_frequencies_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n\n dog \n")
    (tmp_path / "templates.json").write_text('["a {}", "many {}"]')
    lvis = {"categories": [{"name": "hot_dog", "frequency": "f"}, {"name": "owl", "frequency": "r"}]}
    (tmp_path / "lvis.json").write_text(json.dumps(lvis))
    assert read_lines(str(tmp_path / "names.txt"), "key") == ["cat", "dog"]
    assert templates_of(DatasetConfig(template_file=str(tmp_path / "templates.json")), "x") == ["a {}", "many {}"]
    found = frequencies_of(str(tmp_path / "lvis.json"), "key")
    assert found == {"hot_dog": "frequent", "hot dog": "frequent", "owl": "rare"}
    with pytest.raises(ConfigError, match=r"datasets.x.templates: \['a photo'\]"):
        templates_of(DatasetConfig(templates=["a photo"]), "x")
    with pytest.raises(ConfigError, match="key='nowhere': no such file"):
        read_lines("nowhere", "key")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigError, match="holds no text"):
        read_lines(str(tmp_path / "empty.txt"), "key")
    assert len(templates_of(DatasetConfig(template_file="openai"), "x")) == 80


# --- grounding --------------------------------------------------------------------------------------------------------

LEFT, RIGHT = [0.0, 0.0, 0.4, 1.0], [0.6, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("box", "any_", "union", "iou"),
    [
        (LEFT, 1.0, 0.0, 1.0),  # one of two boxes; of their union it covers 0.4
        ([0.0, 0.0, 1.0, 1.0], 0.0, 1.0, 0.4),
        ([0.0, 0.0, 0.6, 1.0], 1.0, 1.0, 2 / 3),  # 0.4 / 0.6 with the left one; 0.6 of the union
        ([0.4, 0.0, 0.6, 1.0], 0.0, 0.0, 0.0),
    ],
)
def test_grounding_of_a_phrase_with_two_boxes_by_hand(box: list[float], any_: float, union: float, iou: float) -> None:
    found = values(grounding_outcomes(torch.tensor([box]), [torch.tensor([LEFT, RIGHT])], torch.tensor([0])))
    assert found["grounding/any/acc@0.5"] == any_
    assert found["grounding/union/acc@0.5"] == union
    assert found["grounding/mIoU"] == pytest.approx(iou, abs=1e-6)


def test_grounding_averages_over_pairs_and_one_half_is_enough() -> None:
    predicted = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    owned = [[[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 0.5, 0.5]], [[0.4, 0.4, 0.8, 0.9], [0.0, 0.0, 0.1, 0.1]]]
    found = grounding_outcomes(predicted, [torch.tensor(boxes) for boxes in owned], torch.tensor([0, 0, 1]))
    assert values(found) == {
        "grounding/any/acc@0.5": pytest.approx(1 / 3),
        "grounding/union/acc@0.5": pytest.approx(2 / 3),  # the third pair: union 0.8 × 0.9
        "grounding/mIoU": pytest.approx((0.5 + 0.0 + 0.2) / 3),
        "grounding/pointing": pytest.approx(2 / 3),  # (0.25, 0.5), (0.75, 0.75), (0.5, 0.5)
    }


def test_overlap_is_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 50, 4, generator=generator)
    one, other = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:]], -1)
    torch.testing.assert_close(overlap(one, other), box_iou(one, other).diagonal())
    assert overlap(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [0.0]  # no area, no number out of nothing


def test_no_pair_has_no_grounding_metric() -> None:
    assert grounding_outcomes(torch.zeros(0, 4), [], torch.zeros(0, dtype=torch.int64)) == {}
    assert precision_outcomes(torch.zeros(0, 4), torch.zeros(0), [], torch.zeros(0, dtype=torch.int64)) == {}


def test_a_hard_negative_that_is_as_near_as_the_phrase_wins() -> None:
    regions, phrase = torch.eye(2)[[0, 0, 1]], torch.eye(2)[[0, 0, 1]]
    negatives = [torch.tensor([[0.9, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
    found = hard_negative_outcome(regions, phrase, negatives, torch.arange(3), "r/")
    assert found["r/hard_negatives"].values.tolist() == [1.0, 0.0, 0.0]
    assert hard_negative_outcome(torch.zeros(0, 2), torch.zeros(0, 2), [], torch.zeros(0), "r/") == {}


def test_comprehension_chooses_among_the_boxes_of_the_picture() -> None:
    regions = [torch.eye(2), torch.eye(2), torch.eye(2)[:1]]
    texts = [torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])]
    owned = [torch.tensor([[True, False], [True, False]]), torch.tensor([[True, True]]), torch.tensor([[True]])]
    found = comprehension_outcome(regions, texts, owned, "r/")  # only the first picture leaves something to choose
    assert found["r/comprehension"].values.tolist() == [1.0, 0.0]
    assert found["r/comprehension"].group.tolist() == [0, 0]
    assert comprehension_outcome(regions[1:], texts[1:], owned[1:], "r/") == {}


# --- average precision ------------------------------------------------------------------------------------------------


def random_boxes(pairs: int = 40) -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(pairs, 4, generator=generator) * 0.4
    truth = torch.cat([corners[:, :2], corners[:, :2] + 0.1 + corners[:, 2:]], 1)
    predicted = truth + 0.04 * torch.randn(pairs, 4, generator=generator)
    owned = [torch.stack([box, box + 0.05]) if i % 4 == 0 else box[None] for i, box in enumerate(truth)]
    return predicted, torch.rand(pairs, generator=generator), owned


def test_average_precision_by_hand() -> None:
    # Three pairs with a box each; by score: right, wrong, right. Precision 1 to recall 1/3, then 2/3 to recall 2/3.
    truth = [torch.tensor([[0.0, 0.0, 0.5, 0.5]])] * 3
    predicted = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]])
    found = precision_outcomes(predicted, torch.tensor([0.9, 0.8, 0.7]), truth, torch.arange(3))
    expected = (34 * 1.0 + 33 * 2 / 3) / 101  # recalls 0 to 0.33, then 0.34 to 0.66
    assert found["grounding/AP50"].value == pytest.approx(expected)
    assert found["grounding/AP"].value == pytest.approx(expected)  # the boxes are exact or nowhere


def test_average_precision_is_coco_evals_on_a_file_of_each(tmp_path: Path) -> None:
    """The same boxes through COCO's own way: an annotation file, a result file, COCOeval's summary."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    predicted, scores, owned = random_boxes()
    annotations, results = [], []
    for pair, boxes in enumerate(owned):
        for x0, y0, x1, y1 in boxes.double().tolist():
            shape = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": pair, "category_id": 1} | shape)
        x0, y0, x1, y1 = predicted[pair].double().tolist()
        box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(scores[pair].double())}
        results.append({"image_id": pair, "category_id": 1} | box)
    images = [{"id": pair} for pair in range(len(owned))]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "phrase"}]}
    (tmp_path / "truth.json").write_text(json.dumps(data | {"info": {}}))
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        evaluator = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    found = values(precision_outcomes(predicted, scores, owned, torch.arange(len(owned))))
    assert 0.2 < found["grounding/AP"] < 0.9
    for name, theirs in zip(("grounding/AP", "grounding/AP50", "grounding/AP75"), evaluator.stats, strict=False):
        assert found[name] == pytest.approx(float(theirs), abs=1e-12)


def test_a_resample_that_draws_everything_once_is_coco_eval() -> None:
    predicted, scores, owned = random_boxes()
    for found in precision_outcomes(predicted, scores, owned, torch.arange(len(owned))).values():
        once = found.resampled(torch.ones(1, len(owned), dtype=torch.float64))
        assert float(once) == pytest.approx(found.value, abs=1e-12)
    assert math.isnan(weighted_precision(np.ones((1, 2)), np.zeros(2), 0.0))


# --- intervals --------------------------------------------------------------------------------------------------------


def naive_resample(found: object, weights: Tensor) -> list[float]:
    """Each question as often as its picture was drawn, then the metric itself."""
    rows = []
    for drawn in weights:
        kept = [i for i, g in enumerate(found.group.tolist()) for _ in range(int(drawn[g]))]
        label = None if found.label is None else found.label[kept]
        rows.append(outcome(found.values[kept], found.group[kept], label).value)
    return rows


@pytest.mark.parametrize("by_class", [False, True])
def test_a_resample_is_the_metric_of_the_drawn_pictures(by_class: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(6, (30,), generator=generator)
    label = torch.randint(4, (30,), generator=generator) * 3 if by_class else None  # labels with gaps
    found = outcome(torch.rand(30, generator=generator), group, label)
    weights = draws(6, 50, seed=3)
    assert weights.sum(1).tolist() == [6.0] * 50
    np.testing.assert_allclose(found.resampled(weights).numpy(), naive_resample(found, weights), rtol=1e-12)


def test_intervals_are_a_pure_function_of_the_seed_and_hold_the_value() -> None:
    hits = {"a": outcome(torch.arange(200) % 4 == 0, torch.arange(200))}
    one, again, other = (intervals(resample(hits, 500, seed)) for seed in (0, 0, 1))
    assert one == again != other
    low, high = one["a"]
    # The standard error of a share of 1/4 among 200 is 0.0306.
    assert low == pytest.approx(0.25 - 1.96 * 0.0306, abs=0.015) and high == pytest.approx(
        0.25 + 1.96 * 0.0306, abs=0.015
    )


def test_questions_of_one_picture_are_resampled_together() -> None:
    alone = {"a": outcome(torch.arange(400) < 200, torch.arange(400))}
    crowded = {"a": outcome(torch.arange(400) < 200, torch.arange(400) // 100)}  # four pictures, all right or all wrong
    (low, high), (wide_low, wide_high) = (intervals(resample(found, 400, 0))["a"] for found in (alone, crowded))
    assert wide_high - wide_low > 3 * (high - low)


def test_a_paired_difference_is_narrower_than_its_two_intervals() -> None:
    hard = torch.rand(300, generator=torch.Generator().manual_seed(0))  # the same pictures are hard for both
    ours, theirs = outcome(hard < 0.6, torch.arange(300)), outcome(hard < 0.5, torch.arange(300))
    rows = [resample({"a": found}, 500, 0)["a"] for found in (ours, theirs)]
    gap, low, high = difference(ours, theirs, *rows)
    assert gap == pytest.approx(ours.value - theirs.value) and 0 < low < gap < high
    alone = intervals({"a": rows[0]})["a"]
    assert high - low < alone[1] - alone[0]
    with pytest.raises(ValueError, match="not asked the same questions"):
        difference(ours, outcome(hard[:10] < 0.5, torch.arange(10)), *rows)
