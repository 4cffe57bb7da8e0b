"""Relations: captions read, published files read as they are, both scorings by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cloc.config import ConfigError, DatasetConfig
from cloc.evaluation.metrics.outcome import values
from cloc.evaluation.metrics.relations import fact_score, prefers, relation_outcomes
from cloc.evaluation.model_outputs import Placed, common_box
from cloc.evaluation.sets.eval_set import Fact, RelationItem
from cloc.evaluation.sets.relation_captions import parse_fact
from cloc.evaluation.sets.relations import read_relations

RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


@pytest.mark.parametrize(
    ("caption", "fact"),
    [
        ("a peacock to the left of a taco", Fact("a peacock", "left", "a taco")),
        ("A mug under a table.", Fact("a mug", "below", "a table")),
        ("A photo of a dog on the left", Fact("a dog", "left", None)),
        ("A photo of a vase on the top", Fact("a vase", "above", None)),
        ("A photo of a dog to the right of a bench", Fact("a dog", "right", "a bench")),
        ("The cat is behind the laptop.", Fact("the cat", "behind", "the laptop")),
        ("The cats are at the left side of the bed", Fact("the cats", "left", "the bed")),
        ("a cap in front of a fork", Fact("a cap", "front", "a fork")),
        ("a book on top of a shelf", Fact("a book", "above", "a shelf")),
        ("a man on the left of a horse", Fact("a man", "left", "a horse")),
        ("a lonely dog", None),
    ],
)
def test_what_a_caption_says(caption: str, fact: Fact | None) -> None:
    assert parse_fact(caption) == fact


def item(name: str, relation: str, order: list[str] | None = None) -> RelationItem:
    order = order or list(RELATIONS)
    captions = tuple(f"a cat {RELATIONS[other]} a dog" for other in order)
    return RelationItem(b"", captions, order.index(relation), name, relation, tuple(map(parse_fact, captions)))


BOXES = {  # where the cat is, seen from a dog in the middle
    "left": (0.0, 0.45, 0.1, 0.55),
    "right": (0.9, 0.45, 1.0, 0.55),
    "above": (0.45, 0.0, 0.55, 0.1),
    "below": (0.45, 0.9, 0.55, 1.0),
}


def place(relation: str, aspect: float = 1.0) -> Placed:
    return Placed({"a cat": BOXES[relation], "a dog": (0.45, 0.45, 0.55, 0.55)}, aspect)


def test_both_scorings_by_hand() -> None:
    items = [item("one", name) for name in RELATIONS]
    items += [item("two", name, ["below", "above", "right", "left"]) for name in RELATIONS]
    # First set all right; second: left and right true, above and below both called below.
    believed = [*RELATIONS, "left", "right", "below", "below"]
    grounded = ["left", "left", "above", "below", "left", "left", "above", "below"]
    basis = dict(zip(RELATIONS, torch.eye(4), strict=True))
    texts = [torch.stack([basis[fact.relation] for fact in own.facts]) for own in items]
    images = torch.stack([basis[name] for name in believed])
    found = relation_outcomes(items, images, texts, [place(name) for name in grounded])
    assert values(found) == {
        "relations/similarity/accuracy": 7 / 8,
        "relations/similarity/pair": 3 / 4,
        "relations/similarity/set4": 1 / 2,
        "relations/grounded/accuracy": 6 / 8,
        "relations/grounded/pair": 2 / 4,
        "relations/grounded/set4": 0.0,
    }
    assert found["relations/similarity/accuracy"].group.tolist() == [0] * 4 + [1] * 4  # sets are resampled whole
    only = relation_outcomes(items[:2], images[:2], texts[:2], None)
    assert set(only) == {"relations/similarity/accuracy", "relations/similarity/pair"}  # no set of four is whole


def test_a_model_that_cannot_tell_is_wrong_and_not_right_by_standing_first() -> None:
    assert not prefers([1.0, 1.0], 0) and prefers([1.0, 0.9], 0)
    assert not prefers([float("nan"), 0.0], 0)
    found = relation_outcomes([item("one", "left")], torch.zeros(1, 4), [torch.zeros(4, 4)], None)
    assert values(found) == {"relations/similarity/accuracy": 0.0}


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_the_axis_along_which_two_boxes_lie_farther_apart(aspect: float) -> None:
    """Offsets are those of the picture as it is seen: 0.4 of a wide picture's width is more than 0.4 of its height."""
    placed = Placed({"a cat": (0.0, 0.0, 0.2, 0.2), "a dog": (0.4, 0.5, 0.6, 0.7)}, aspect)
    scores = {fact.relation: fact_score(fact, placed, 0) for fact in item("x", "left").facts}
    assert max(scores, key=scores.get) == ("left" if aspect == 2.0 else "above")


def depth(relation: str) -> RelationItem:
    wordings = {"front": "in front of", "behind": "behind", "left": "to the left of", "right": "to the right of"}
    captions = tuple(f"a cap {wording} a fork" for wording in wordings.values())
    answer = list(wordings).index(relation)
    return RelationItem(b"", captions, answer, "x", relation, tuple(map(parse_fact, captions)))


@pytest.mark.parametrize(
    ("cap", "prefers_front", "relation"),
    [
        ((0.4, 0.4, 0.6, 0.7), True, "front"),
        ((0.4, 0.4, 0.6, 0.7), False, "behind"),
        ((0.0, 0.4, 0.2, 0.7), True, "left"),
        ((0.8, 0.4, 1.0, 0.7), False, "right"),
    ],
)
def test_in_front_and_behind_by_overlap_and_learned_score(
    cap: tuple[float, ...], prefers_front: bool, relation: str
) -> None:
    question = depth("front")
    assert question.says_depth and question.things == ["a cap", "a fork"]
    assert not item("x", "left").says_depth
    boxes: dict[str, Any] = {"a cap": cap, "a fork": (0.42, 0.3, 0.62, 0.6)}
    corner = common_box(question, boxes)
    assert corner[1] == pytest.approx(0.3) and corner[3] == pytest.approx(0.7)
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    placed = Placed(boxes, 1.0, torch.tensor([1.0, 0.0] if prefers_front else [0.0, 1.0]), texts)
    scores = [fact_score(fact, placed, i) for i, fact in enumerate(question.facts)]
    assert question.facts[max(range(4), key=scores.__getitem__)].relation == relation


def test_captions_of_other_things_cannot_be_told_by_grounding() -> None:
    for captions in (("a cat on a mat", "a dog on a mat"), ("a red cat", "a blue cat"), ("a cat on a mat", "a cat")):
        own = RelationItem(b"", captions, 0, "x", None, tuple(map(parse_fact, captions)))
        assert not own.can_ground and own.things == []
    swapped = ("a cat to the left of a dog", "a dog to the left of a cat")
    assert RelationItem(b"", swapped, 0, "x", None, tuple(map(parse_fact, swapped))).can_ground
    found = relation_outcomes([own], torch.ones(1, 2), [torch.tensor([[1.0, 0], [0, 0.5]])], [None])
    assert values(found) == {"relations/similarity/accuracy": 1.0}  # nothing grounded is claimed


# --- published files --------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [f"mug_{name}_table.jpeg" for name in ("left_of", "right_of", "on", "under")]
    names += ["cap_in-front_of_fork.jpeg", "cap_behind_fork.jpeg", "000000000042.jpg", "7.jpg"]
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def read(tmp_path: Path, pictures: Path, kind: str, content: Any) -> tuple[list[RelationItem], dict[str, int]]:
    text = "\n".join(map(json.dumps, content)) if kind == "vsr" else json.dumps(content)
    (tmp_path / "set.json").write_text(text)
    config = DatasetConfig(relations=str(tmp_path / "set.json"), relation_format=kind, pictures=str(pictures))
    found, left_out = read_relations(config, "x")
    return found, dict(left_out)


def test_whatsup_controlled(tmp_path: Path, pictures: Path) -> None:
    texts = {"left_of": "to the left of", "right_of": "to the right of", "on": "on", "under": "under"}
    content = []
    for name in texts:
        options = [f"A mug {texts[other]} a table" for other in sorted(texts, key=lambda other: other != name)]
        content.append({"image_path": f"data/controlled_images/mug_{name}_table.jpeg", "caption_options": options})
    found, _ = read(tmp_path, pictures, "whatsup", content)
    assert [own.relation for own in found] == ["left", "right", "above", "below"]
    assert {own.set for own in found} == {"mug table"} and {own.answer for own in found} == {0}
    assert all(own.can_ground and own.facts[0].relation == own.relation for own in found)
    assert found[0].read() == (pictures / "mug_left_of_table.jpeg").read_bytes()
    content = [
        {"image_path": f"x/cap_{name}_fork.jpeg", "caption_options": [f"A cap {text} a fork", "A cap behind a fork"]}
        for name, text in (("in-front_of", "in front of"), ("behind", "behind"))
    ]
    assert [own.relation for own in read(tmp_path, pictures, "whatsup", content)[0]] == ["front", "behind"]


def test_whatsup_spatial_finds_coco_and_gqa_pictures(tmp_path: Path, pictures: Path) -> None:
    content = [[42, "A photo of a dog on the left", "A photo of a dog on the right"], [7, "a cat above a mat", "x"]]
    found, _ = read(tmp_path, pictures, "whatsup", content)
    assert [own.image.name for own in found] == ["000000000042.jpg", "7.jpg"]
    assert found[0].can_ground and found[0].relation is None and not found[1].can_ground


def test_vsr_asks_for_the_opposite_and_counts_what_has_none(tmp_path: Path, pictures: Path) -> None:
    rows = [
        {"image": "7.jpg", "caption": "The cat is left of the dog.", "label": 1, "relation": "left of"},
        {"image": "7.jpg", "caption": "The cat is under the dog.", "label": 0, "relation": "under"},
        {"image": "7.jpg", "caption": "The cat is touching the dog.", "label": 1, "relation": "touching"},
    ]
    found, left_out = read(tmp_path, pictures, "vsr", rows)
    assert [own.candidates for own in found] == [
        ("The cat is left of the dog.", "The cat is right of the dog."),
        ("The cat is under the dog.", "The cat is over the dog."),
    ]
    assert [own.answer for own in found] == [0, 1] and left_out == {"no_opposite": 1}
    assert all(own.can_ground for own in found)


def test_sugarcrepe(tmp_path: Path, pictures: Path) -> None:
    content = {"0": {"filename": "7.jpg", "caption": "A cat on a mat", "negative_caption": "A cat under a mat"}}
    found, _ = read(tmp_path, pictures, "sugarcrepe", content)
    assert found[0].candidates == ("A cat on a mat", "A cat under a mat") and found[0].can_ground


def test_a_relation_set_that_cannot_be_read_is_refused(tmp_path: Path, pictures: Path) -> None:
    gone = {"0": {"filename": "gone.jpg", "caption": "a", "negative_caption": "b"}}
    with pytest.raises(FileNotFoundError, match=r"1 of 1 pictures are missing, the first is .*gone\.jpg"):
        read(tmp_path, pictures, "sugarcrepe", gone)
    with pytest.raises(ValueError, match="is not a file of sugarcrepe"):
        read(tmp_path, pictures, "sugarcrepe", {"0": {"image": "7.jpg"}})
    with pytest.raises(ValueError, match="no usable item; left out: {'no_opposite': 1}"):
        read(tmp_path, pictures, "vsr", [{"image": "7.jpg", "caption": "x", "label": 1, "relation": "near"}])
    with pytest.raises(ConfigError, match="relation_format='x'"):
        read_relations(DatasetConfig(relations="x", relation_format="x"), "x")
    with pytest.raises(ConfigError, match="datasets.x.pictures=None"):
        read_relations(DatasetConfig(relations=str(tmp_path / "set.json"), relation_format="vsr"), "x")
    with pytest.raises(FileNotFoundError, match="relations=nowhere"):
        read_relations(DatasetConfig(relations="nowhere", relation_format="vsr"), "x")
