"""A box stays on what it was drawn around, through every view; what is drawn of a sample follows it."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from cloc.config import DataConfig
from cloc.contracts import Batch, Region, Sample
from cloc.data.stream.collate import collate
from cloc.data.stream.region_sampling import Chooser, make_chooser
from cloc.data.stream.wording import Wording
from cloc.data.tokenizer import Tokenizer, text_id
from cloc.data.transforms import PAD_VALUE, View, crop_resize, mirror_text, resize_pad, to_picture, to_view

GROUND, PAINT = (20, 40, 160), (250, 200, 10)
SLACK = 1.5  # pixels of the view: interpolation blurs an edge, halfway between the colors is where it was
FRACTION = st.floats(0, 1, width=32)
SIDES = st.integers(8, 120)


def painted(width: int, height: int, cut: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    """A picture with a rectangle of its own color, and the rectangle's normalized box."""
    xs = sorted(int(value * width) for value in (cut[0], cut[2]))
    ys = sorted(int(value * height) for value in (cut[1], cut[3]))
    left, right = min(xs[0], width - 1), max(xs[1], min(xs[0], width - 1) + 1)
    top, bottom = min(ys[0], height - 1), max(ys[1], min(ys[0], height - 1) + 1)
    image = torch.tensor(GROUND, dtype=torch.uint8).view(3, 1, 1).repeat(1, height, width)
    image[:, top:bottom, left:right] = torch.tensor(PAINT, dtype=torch.uint8).view(3, 1, 1)
    return image, torch.tensor([[left / width, top / height, right / width, bottom / height]])


def assert_paint_in_box(view: Tensor, box: Tensor) -> None:
    """Whatever looks more like the paint than like the ground lies in the box; and the middle of the box is painted."""
    size = view.shape[-1]
    paint, ground = ((view.float() - torch.tensor(color).view(3, 1, 1)).abs().sum(0) for color in (PAINT, GROUND))
    near = paint < ground
    left, top, right, bottom = (box * size).tolist()
    rows, columns = torch.nonzero(near, as_tuple=True)
    if len(rows):
        assert columns.min() >= left - SLACK and columns.max() + 1 <= right + SLACK
        assert rows.min() >= top - SLACK and rows.max() + 1 <= bottom + SLACK
    if right - left >= 5 and bottom - top >= 5:  # large enough that its middle is not blurred
        assert near[int((top + bottom) / 2), int((left + right) / 2)]
        assert columns.min() <= left + SLACK and columns.max() + 1 >= right - SLACK
        assert rows.min() <= top + SLACK and rows.max() + 1 >= bottom - SLACK


def through(view: View, image: Tensor, boxes: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One picture and its boxes through a view: picture, content, boxes, which are visible."""
    seen = view(image, np.random.default_rng(seed))
    moved = view.move([seen], boxes.numpy().astype(np.float32).reshape(-1, 4), [len(boxes)])
    return seen.image, *(torch.from_numpy(array) for array in (moved.content[0], moved.boxes, moved.visible))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    SIDES,
    SIDES,
    st.tuples(FRACTION, FRACTION, FRACTION, FRACTION),
    st.integers(16, 64),
    st.sampled_from(["pad", "squash"]),
    st.booleans(),
)
def test_a_painted_rectangle_stays_in_its_box_through_the_whole_picture(
    width: int, height: int, cut: tuple[float, float, float, float], size: int, resize: str, mirrored: bool
) -> None:
    image, box = painted(width, height, cut)
    view = View(size, resize=resize, flip=float(mirrored))
    square, _, boxes, visible = through(view, image, box)
    assert square.shape == (3, size, size) and visible.all()
    assert_paint_in_box(square, boxes[0])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    SIDES,
    SIDES,
    st.tuples(FRACTION, FRACTION, FRACTION, FRACTION),
    st.integers(16, 64),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_a_painted_rectangle_stays_in_its_box_through_the_crop(
    width: int, height: int, cut: tuple[float, float, float, float], size: int, seed: int, mirrored: bool
) -> None:
    image, box = painted(width, height, cut)
    view = View(size, crop=0.2, min_visible=0.01, jitter=(0.1, 0.1, 0.1, 0.0), flip=float(mirrored))
    square, content, boxes, visible = through(view, image, box, seed)
    assert square.shape == (3, size, size)
    assert (boxes >= 0).all() and (boxes <= 1).all()
    assert (content >= 0).all() and (content <= 1).all()
    if visible.all():
        assert_paint_in_box(square, boxes[0])
    else:
        assert (boxes[0, 2:] - boxes[0, :2]).prod() <= 0.02  # next to nothing of it is left


@settings(max_examples=150, deadline=None, derandomize=True)
@given(SIDES, SIDES, st.lists(st.tuples(FRACTION, FRACTION, FRACTION, FRACTION), max_size=4), st.integers(0, 2**32))
def test_to_picture_is_the_inverse_of_to_view(
    width: int, height: int, boxes: list[tuple[float, float, float, float]], seed: int
) -> None:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    given_boxes = torch.tensor(boxes).reshape(-1, 4)
    _, cropped = crop_resize(image, 32, np.random.default_rng(seed), (0.3, 1.0))
    for content in (resize_pad(image, 32)[1], torch.from_numpy(cropped)):
        back = to_picture(to_view(given_boxes, content), content)
        torch.testing.assert_close(back, given_boxes, rtol=0, atol=1e-4)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(SIDES, SIDES, st.lists(st.tuples(FRACTION, FRACTION, FRACTION, FRACTION), max_size=4))
def test_boxes_move_as_the_content_says(
    width: int, height: int, boxes: list[tuple[float, float, float, float]]
) -> None:
    """Training (``View.move``, many pictures at once) and a loaded model (``to_view``) agree."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    rows = torch.tensor(boxes).reshape(-1, 2, 2).sort(1).values.reshape(-1, 4)
    view, content = View(32), resize_pad(image, 32)[1]
    one = through(view, image, rows)
    torch.testing.assert_close(one[2], to_view(rows, content), rtol=0, atol=1e-6)
    seen = view(image, np.random.default_rng(0))
    twice = view.move([seen, seen], np.concatenate([rows.numpy()] * 2), [len(rows)] * 2)
    assert np.array_equal(twice.boxes, np.concatenate([one[2].numpy()] * 2))


def test_a_box_outside_of_the_content_is_clipped_to_the_picture() -> None:
    content = torch.tensor([0.0, 0.25, 1.0, 0.75])
    assert to_picture(torch.tensor([0.1, 0.0, 0.9, 1.0]), content).tolist() == pytest.approx([0.1, 0.0, 0.9, 1.0])
    assert to_picture(torch.tensor([0.1, 0.0, 0.9, 0.2]), content).tolist() == pytest.approx([0.1, 0.0, 0.9, 0.0])


def test_padding_is_centered_and_gray() -> None:
    view, content = resize_pad(torch.zeros(3, 20, 40, dtype=torch.uint8), 40)
    assert content.tolist() == [0.0, 0.25, 1.0, 0.75]
    assert (view[:, :10] == PAD_VALUE).all() and (view[:, 30:] == PAD_VALUE).all() and (view[:, 10:30] == 0).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (33, 32)])
def test_any_shape_of_picture_gives_a_square_view(width: int, height: int) -> None:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for view in (View(32), View(32, resize="squash"), View(32, crop=0.3)):
        square, content, _, _ = through(view, image, torch.zeros(0, 4))
        assert square.shape == (3, 32, 32)
        assert (content[2:] > content[:2]).all()


def test_a_box_keeps_its_phrase_while_enough_of_it_is_visible() -> None:
    image = torch.zeros(3, 60, 60, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.9, 0.9, 1.0, 1.0], [0.45, 0.45, 0.55, 0.55]])
    for seed in range(30):
        _, content = crop_resize(image, 32, np.random.default_rng(seed), (0.2, 1.0))
        moved = to_view(boxes, torch.from_numpy(content))
        inside = moved.clamp(0, 1)
        share = (inside[:, 2:] - inside[:, :2]).prod(1) / (moved[:, 2:] - moved[:, :2]).prod(1)
        _, _, _, visible = through(View(32, crop=0.2, min_visible=0.5), image, boxes, seed)
        assert visible.tolist() == (share >= 0.5).tolist()


def test_the_view_is_a_function_of_its_generator() -> None:
    image = torch.randint(0, 255, (3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for view in (View(24, crop=0.3), View(24, jitter=(0.4, 0.4, 0.4, 0.1))):
        views = [view(image, np.random.default_rng(seed)).image for seed in (1, 1, 2)]
        assert views[0].equal(views[1]) and not views[0].equal(views[2])


def test_squeezed_views_spend_nothing_on_padding() -> None:
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    square, content, boxes, _ = through(View(32, resize="squash"), image, torch.tensor([[0.25, 0.5, 0.5, 1.0]]))
    assert (square == 0).all() and content.tolist() == [0, 0, 1, 1]
    assert boxes.tolist() == [[0.25, 0.5, 0.5, 1.0]]


def test_jitter_leaves_padding_and_boxes_alone() -> None:
    image = torch.full((3, 20, 40), 90, dtype=torch.uint8)
    plain, jittered = (
        through(View(40, jitter=amounts), image, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 3)
        for amounts in (None, (0.5, 0.0, 0.0, 0.0))
    )
    assert (jittered[0][:, :10] == PAD_VALUE).all() and not jittered[0][:, 10:30].equal(plain[0][:, 10:30])
    assert jittered[2].equal(plain[2])


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("a cup left of a ball", "a cup right of a ball"),
        ("Right hand, RIGHT foot", "Left hand, LEFT foot"),
        ("the leftmost dog looks rightwards", "the rightmost dog looks leftwards"),
        ("a bright kite, copyright, a cleft", "a bright kite, copyright, a cleft"),
    ],
)
def test_texts_in_the_mirror(text: str, mirrored: str) -> None:
    assert mirror_text(text) == mirrored and mirror_text(mirrored) == text


# --- what is drawn ----------------------------------------------------------------------------------------------------


TOKENIZER = Tokenizer("open_clip", 77)


def scene(*regions: Region) -> Sample:
    picture = io.BytesIO()
    Image.new("RGB", (16, 8)).save(picture, "PNG")
    return Sample("k", picture.getvalue(), "png", ("a dog left of a cat", "two animals"), regions, 16, 8)


def drawn(sample: Sample, seed: int = 0, **options: object) -> Batch:
    chooser = make_chooser(DataConfig(train="x", **options), 16)
    items = chooser.choose([chooser(sample, np.random.default_rng(seed))])
    return collate(items, TOKENIZER, chooser.regions, 1, Counter(), chooser.negatives)


def texts(batch: Batch) -> set[int]:
    return set(batch.phrase_id[batch.region_phrase[batch.region_valid]].tolist())


def test_a_mirrored_sample_has_mirrored_texts_and_boxes() -> None:
    sample = scene(Region((0.0, 0.0, 0.25, 1.0), ("the left dog",)))
    plain, mirrored = drawn(sample), drawn(sample, flip=1.0)
    other = drawn(scene(Region((0.0, 0.0, 0.25, 1.0), ("the right dog",))))
    assert texts(mirrored) == texts(other) != texts(plain)
    assert mirrored.boxes[0, 0].tolist() == [0.75, 0.25, 1.0, 0.75]
    assert mirrored.images.equal(plain.images.flip(-1))


def test_regions_are_drawn_by_score() -> None:
    sample = scene(
        Region((0.0, 0.0, 0.5, 1.0), ("a dog",), score=0.9), Region((0.5, 0.0, 1.0, 1.0), ("a cat",), score=0.1)
    )
    alone = texts(drawn(scene(sample.regions[0])))
    share = {
        choice: np.mean([texts(drawn(sample, seed, regions=1, choice=choice)) == alone for seed in range(300)])
        for choice in ("uniform", "score")
    }
    assert 0.4 < share["uniform"] < 0.6 and 0.84 < share["score"] < 0.96


@pytest.mark.parametrize(("groups", "count"), [("all", 3), ("one", 2), ("skip", 1)])
def test_phrases_that_own_several_boxes(groups: str, count: int) -> None:
    sample = scene(
        Region((0.0, 0.0, 0.3, 1.0), ("two dogs",)),
        Region((0.3, 0.0, 0.6, 1.0), ("two dogs",)),
        Region((0.6, 0.0, 1.0, 1.0), ("a cat",)),
    )
    for seed in range(5):
        assert int(drawn(sample, seed, groups=groups).region_valid.sum()) == count


def test_small_boxes_are_not_drawn_and_every_phrase_and_caption_is() -> None:
    sample = scene(Region((0.0, 0.0, 0.05, 1.0), ("a fly",)), Region((0.0, 0.0, 1.0, 1.0), ("a dog", "a pet")))
    found = [drawn(sample, seed, min_size=0.1) for seed in range(20)]
    assert all(int(batch.region_valid.sum()) == 1 for batch in found)
    assert len({int(batch.phrase_id[0]) for batch in found}) == len({int(batch.caption_id[0]) for batch in found}) == 2


def test_hard_negatives_join_the_phrases_and_point_at_their_region() -> None:
    dog = Region((0.0, 0.0, 0.5, 1.0), ("a left dog", "a pet"), negatives=("a right dog", "a pet", "a cat", "a cat"))
    cat = Region((0.5, 0.0, 1.0, 1.0), ("a cat",))
    assert drawn(scene(dog, cat)).negatives is None
    for flip, (positive, negative) in ((0.0, ("a left dog", "a right dog")), (1.0, ("a right dog", "a left dog"))):
        ids = {text: text_id(TOKENIZER.encode(text)[0]) for text in (positive, negative, "a cat")}
        seen = set()
        for seed in range(12):
            batch = drawn(scene(dog, cat), seed, flip=flip, negatives=1)
            assert batch.negatives.shape == (1, 4, 1) and batch.stats["negatives_drawn"] == 1
            assert len(batch.phrase_id) == len(set(batch.phrase_id.tolist())) == len(batch.phrases)
            owner = batch.phrase_id[batch.region_phrase[0]].tolist().index(ids["a cat"])
            assert (batch.negatives[0, [owner, 2, 3]] == -1).all()
            seen.add(int(batch.phrase_id[batch.negatives[0, 1 - owner, 0]]))
        assert seen == {ids[negative], ids["a cat"]}  # never "a pet", which names the region
    both = drawn(scene(dog), negatives=3)
    assert (both.negatives[0, 0] >= 0).tolist() == [True, True, False]
    assert both.stats["phrases_distinct"] == 1 and len(both.phrases) == 3


def test_hard_negatives_change_no_other_draw() -> None:
    sample = scene(*(Region((0.1 * i, 0.0, 0.1 * i + 0.2, 1.0), (f"dog {i}",), negatives=("a cat",)) for i in range(8)))
    plain, hard = drawn(sample, 3), drawn(sample, 3, negatives=2)
    assert torch.equal(plain.boxes, hard.boxes) and torch.equal(plain.caption_id, hard.caption_id)


def test_a_key_reaches_the_view_or_the_choice_by_its_name() -> None:
    config = DataConfig(
        train="x", regions=3, negatives=2, min_size=0.1, choice="score", groups="one", crop=0.3, min_visible=0.2,
        jitter=[0.1, 0.2, 0.3, 0.4], flip=0.5, names=True,
    )  # fmt: skip
    chooser = make_chooser(config, 32, "squash")
    assert chooser == Chooser(
        View(32, 0.3, 0.2, (0.1, 0.2, 0.3, 0.4), 0.5, "squash"), 3, 0.1, "score", "one", 2, wording=Wording(names=True)
    )
    assert make_chooser(DataConfig(train="x"), 32) == Chooser(View(32))  # the defaults agree
    known = {field.name for part in (View, Chooser, Wording) for field in fields(part)}
    known -= {"size", "resize", "view", "wording"}
    assert known <= {field.name for field in fields(DataConfig)}
