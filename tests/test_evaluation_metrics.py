"""Every metric by hand, on numbers small enough to count."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cloc.contracts import Sample
from cloc.evaluation import retrieval
from cloc.evaluation.grounding import grounding_metrics
from cloc.evaluation.relations import relation_metrics, relation_of
from cloc.evaluation.retrieval import classify, owners, recall, retrieval_metrics

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
    found = retrieval_metrics(items, torch.eye(3), by_text, by_item, ("to_text", "to_item"), [1, 2])
    assert len(texts) == 3
    assert found == {
        "to_text_R@1": pytest.approx(1 / 3),  # only picture 0's best text, t1, is its own
        "to_text_R@2": pytest.approx(2 / 3),  # picture 2's second best is t2; t1 is picture 1's last
        "to_item_R@1": pytest.approx(1 / 3),  # t0 ranks picture 2 first, t1 picture 0, t2 picture 1
        "to_item_R@2": pytest.approx(2 / 3),  # t2 has picture 2 second; t0 has picture 0 last
    }


def test_retrieval_without_any_text_has_no_metric() -> None:
    assert retrieval_metrics(torch.eye(2), torch.zeros(0, 2), [], [set(), set()], ("a", "b"), [1]) == {}


def test_top1_counts_items_and_macc_counts_classes() -> None:
    items = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0]])
    truth = torch.tensor([0, 0, 0, 1])  # class 0: 2 of 3 right; class 1: none; class 2 does not occur
    scores, predicted = classify(items, torch.eye(3), truth)
    assert predicted.tolist() == [0, 0, 1, 0]
    assert scores == {"top1": 0.5, "mAcc": pytest.approx((2 / 3 + 0) / 2)}


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
    found = grounding_metrics([torch.tensor(box)], [torch.tensor([LEFT, RIGHT])])
    assert found["grounding/any/acc@0.5"] == any_
    assert found["grounding/union/acc@0.5"] == union
    assert found["grounding/mIoU"] == pytest.approx(iou, abs=1e-6)


def test_grounding_averages_over_pairs_and_one_half_is_enough() -> None:
    predicted = [torch.tensor([0.0, 0.0, 0.5, 1.0]), torch.tensor([0.5, 0.5, 1.0, 1.0])]
    owned = [torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 0.5, 0.5]])]
    assert grounding_metrics(predicted, owned) == {
        "grounding/any/acc@0.5": 0.5,
        "grounding/union/acc@0.5": 0.5,
        "grounding/mIoU": 0.25,
    }


def test_no_pair_has_no_grounding_metric() -> None:
    assert grounding_metrics([], []) == {}


# --- relations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "other", "relation"),
    [
        ([0.0, 0.4, 0.2, 0.6], [0.8, 0.4, 1.0, 0.6], "left"),
        ([0.8, 0.4, 1.0, 0.6], [0.0, 0.4, 0.2, 0.6], "right"),
        ([0.4, 0.0, 0.6, 0.2], [0.4, 0.8, 0.6, 1.0], "above"),
        ([0.4, 0.8, 0.6, 1.0], [0.4, 0.0, 0.6, 0.2], "below"),
        ([0.0, 0.1, 0.2, 0.3], [0.8, 0.4, 1.0, 0.6], "left"),  # also above, but less
    ],
)
def test_the_relation_of_two_boxes(subject: list[float], other: list[float], relation: str) -> None:
    assert relation_of(subject, other) == relation


RELATIONS = ["left", "right", "above", "below"]
PLACES = {"left": LEFT, "right": RIGHT, "above": [0.0, 0.0, 1.0, 0.4], "below": [0.0, 0.6, 1.0, 1.0]}
OPPOSITE = dict(zip(RELATIONS, ["right", "left", "below", "above"], strict=True))


def relation_sample(set_name: str, relation: str, number: int) -> Sample:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
    order = RELATIONS[number % 4 :] + RELATIONS[: number % 4]  # the true caption is not always the first
    item = {
        "set": set_name,
        "subject": f"a {set_name} subject",
        "object": f"a {set_name} object",
        "relation": relation,
        "candidates": [f"{set_name} {name}" for name in order],
        "answer": order.index(relation),
    }
    return Sample(f"{set_name}{number}", buffer.getvalue(), "png", extra={"relation": item})


class FakeEncoder:
    """Believes of each picture what it is told, under the number that its first pixel carries."""

    def __init__(self, believed: list[str], grounded: list[str] | None) -> None:
        self.believed, self.boxes, self.can_ground = believed, grounded, grounded is not None

    def see(self, pictures: list[Tensor]) -> Any:
        numbers = [int(picture[0, 0, 0]) for picture in pictures]
        pooled = torch.stack([torch.eye(4)[RELATIONS.index(self.believed[n])] for n in numbers])
        return SimpleNamespace(features=SimpleNamespace(pooled=pooled), numbers=numbers)

    def encode_text(self, texts: list[str]) -> Tensor:
        words = [text.split()[-1] for text in texts]
        return torch.stack([torch.eye(4)[RELATIONS.index(w)] if w in RELATIONS else torch.zeros(4) for w in words])

    def grounded(self, seen: Any, texts: list[Tensor]) -> list[Tensor]:
        assert all(len(own) == 2 for own in texts)
        found = [self.boxes[number] for number in seen.numbers]
        return [torch.tensor([PLACES[name], PLACES[OPPOSITE[name]]]) for name in found]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_relation_metrics_by_hand(batch_size: int) -> None:
    samples = [relation_sample("one", name, i) for i, name in enumerate(RELATIONS)]
    samples += [relation_sample("two", name, 4 + i) for i, name in enumerate(RELATIONS)]
    # First set all right; second set: left and right true, above and below mistaken for each other's opposite.
    believed = [*RELATIONS, "left", "right", "below", "below"]
    grounded = ["left", "left", "above", "below", "left", "left", "above", "below"]
    found = relation_metrics(FakeEncoder(believed, grounded), samples, batch_size)
    assert found == {
        "relations/similarity/accuracy": 7 / 8,
        "relations/similarity/pair": 3 / 4,
        "relations/similarity/set4": 1 / 2,
        "relations/grounded/accuracy": 6 / 8,
        "relations/grounded/pair": 2 / 4,
        "relations/grounded/set4": 0.0,
    }


def test_a_model_that_does_not_ground_has_no_grounded_score() -> None:
    samples = [relation_sample("one", name, i) for i, name in enumerate(RELATIONS[:2])]
    found = relation_metrics(FakeEncoder(["left", "left"], None), samples)
    assert found == {"relations/similarity/accuracy": 0.5, "relations/similarity/pair": 0.0}  # no set of four is whole


def test_no_relation_item_has_no_metric() -> None:
    assert relation_metrics(FakeEncoder([], None), []) == {}
