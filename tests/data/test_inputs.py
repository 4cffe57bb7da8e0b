"""One or many, of any kind: a string is one text, a picture one picture, and what has no meaning is refused."""

from __future__ import annotations

from collections import UserList
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cloc.data.inputs import as_boxes, as_phrases, as_pictures, as_texts
from cloc.data.tokenizer import Tokenizer
from cloc.encoder import Encoder
from cloc.models.build import build_model
from cloc.models.foreign.towers import FixedTokenizer

CONFIG: dict[str, Any] = {
    "joint_dim": 8,
    "image": {
        "_target_": "cloc.models.image.TimmTower",
        "name": "vit_tiny_patch16_224",
        "image_size": 16,
        "options": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    },
    "text": {"_target_": "cloc.models.text.ClipText", "options": {"width": 16, "heads": 2, "layers": 1}},
    "prompter": {"_target_": "cloc.models.prompter.SharedPrompter"},
    "grounding": {"_target_": "cloc.models.grounding.MlpHead"},
}
BOX = [0.1, 0.2, 0.6, 0.9]


class Table:
    """Iterates over the names of its columns, as a data frame does."""

    ndim = 2

    def __iter__(self) -> Any:
        return iter(["url", "caption"])


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(build_model(CONFIG), {}, name="toy")


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.randint(0, 255, (3, 12, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ("a dog", ["a dog"]),
        ("", [""]),
        (np.str_("a dog"), ["a dog"]),
        (np.array("a dog"), ["a dog"]),
        (["a dog"], ["a dog"]),
        (("a dog", "é"), ["a dog", "é"]),
        ((text for text in ("a", "b")), ["a", "b"]),
        (np.array(["a dog", "a cat"]), ["a dog", "a cat"]),
        (np.array(["a dog", "a cat"], dtype=object), ["a dog", "a cat"]),
        (UserList(["a", "b"]), ["a", "b"]),
        ({1: "a", 2: "b"}.values(), ["a", "b"]),
        ([], []),
    ],
)
def test_texts(texts: Any, expected: list[str]) -> None:
    found = as_texts(texts)
    assert found == expected and all(type(text) is str for text in found)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (None, "texts is None; give a string"),
        (3, "texts is int"),
        (b"a dog", "texts is bytes"),
        ({"a": 1}, "texts is dict"),
        ({"a", "b"}, "texts is set"),
        (Table(), "texts is Table"),
        (torch.zeros(2), r"texts\[0\] is Tensor"),
        (torch.tensor(2), "texts is Tensor"),
        (["a", None], r"texts\[1\] is None; give one flat list"),
        (["a", float("nan")], r"texts\[1\] is float"),
        (["a", b"b"], r"texts\[1\] is bytes"),
        ([["a", "b"]], r"texts\[0\] is list"),
        (np.array([["a"], ["b"]]), r"texts\[0\] is list"),
        (np.array([b"a"]), r"texts\[0\] is bytes"),
        (SimpleNamespace(), "texts is SimpleNamespace"),
    ],
)
def test_no_texts(texts: Any, told: str, encoder: Encoder) -> None:
    for use in (as_texts, encoder.encode_text, encoder.tokenizer, FixedTokenizer(encoder.tokenizer)):
        with pytest.raises(TypeError, match=told):
            use(texts)


def test_a_string_is_one_text_for_every_tokenizer(encoder: Encoder) -> None:
    ours = Tokenizer()
    fixed = FixedTokenizer(lambda texts: torch.tensor([[len(text)] for text in texts]))
    assert ours("a brown dog").equal(ours(["a brown dog"]))
    assert fixed("a brown dog").tolist() == [[11]]
    assert encoder.encode_text("a brown dog").equal(encoder.encode_text(["a brown dog"]))
    with pytest.raises(TypeError, match="a text must be a string, got list"):
        ours.encode(["a brown dog"])


def test_pictures(encoder: Encoder, picture: Tensor, tmp_path: Path) -> None:
    array = picture.permute(1, 2, 0).numpy()
    image, file = Image.fromarray(array), tmp_path / "picture.png"
    image.save(file)
    for lone in (picture, array, np.asfortranarray(array), image, file, str(file)):
        (found,) = as_pictures(lone)
        assert found.equal(picture)
    batches = (
        torch.stack([picture] * 2),
        np.stack([array] * 2),
        [file, array],
        (image for _ in range(2)),
        (picture,) * 2,
    )
    for batch in batches:
        assert [found.equal(picture) for found in as_pictures(batch)] == [True, True]
    gray = np.full((4, 6), 7, np.uint8)
    assert as_pictures(gray)[0].equal(torch.full((3, 4, 6), 7, dtype=torch.uint8))
    assert as_pictures([]) == [] and as_pictures(torch.zeros(0, 3, 4, 4, dtype=torch.uint8)) == []
    expected = encoder.encode_image([picture])
    assert expected.shape == (1, 8)
    for lone in (picture, array, image, file):
        torch.testing.assert_close(encoder.encode_image(lone), expected)
        torch.testing.assert_close(encoder.encode_dense(lone)[0], encoder.encode_dense([picture])[0])
    assert encoder.encode_image(torch.stack([picture] * 2)).shape == (2, 8)


@pytest.mark.parametrize(
    ("pictures", "told"),
    [
        (None, "pictures is None; give a picture"),
        (b"\x89PNG", "pictures is bytes"),
        ({"a": 1}, "pictures is dict"),
        (3, "pictures is int"),
        ([None], r"pictures\[0\] must be a PIL image or a tensor, got None"),
        ([[1, 2]], r"pictures\[0\] must be a PIL image or a tensor, got list"),
        ("a brown dog", "got str 'a brown dog', which is no file's path"),
        ("https://example.org/a.jpg", "which is no file's path"),
        (torch.zeros(3, 4, 4), r"\[3,H,W\] uint8, got \[3, 4, 4\] torch.float32; scale it"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "channels come first"),
        (torch.zeros(4, 4, dtype=torch.uint8), "uint8, got"),
        (torch.zeros(2, 3, 4, 4), r"pictures\[0\]: .*scale it"),
        (torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8), r"pictures\[0\]: "),
        (np.zeros((4, 4, 3)), r"\[H,W,3\] or \[H,W\] uint8, got \[4, 4, 3\] float64; scale it"),
        (np.zeros((3, 4, 5), np.uint8), "channels come last"),
    ],
)
def test_no_pictures(pictures: Any, told: str, encoder: Encoder) -> None:
    for use in (as_pictures, encoder.encode_image, encoder.see, encoder.encode_dense):
        with pytest.raises(TypeError, match=told):
            use(pictures)


def test_files_that_are_not_there_or_hold_no_picture(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.png is not there"):
        as_pictures(tmp_path / "nothing.png")
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"pictures\[0\]: .*text\.jpg: corrupt_image"):
        as_pictures([tmp_path / "text.jpg"])
    with pytest.raises(ValueError, match=r"has no pixel"):
        as_pictures(torch.zeros(3, 0, 4, dtype=torch.uint8))


def test_phrases_are_never_letters(encoder: Encoder, picture: Tensor) -> None:
    expected = encoder.ground([picture], [["a brown dog"]])
    for pictures in (picture, [picture], picture[None]):
        for phrases in (
            "a brown dog",
            ["a brown dog"],
            [["a brown dog"]],
            (("a brown dog",),),
            np.array(["a brown dog"]),
        ):
            (found,) = encoder.ground(pictures, phrases)
            torch.testing.assert_close(found, expected[0])
    assert [rows.shape for rows in encoder.ground(picture, ["a dog", "a cat"])] == [(2, 4)]
    assert [rows.shape for rows in encoder.ground([picture] * 2, "a dog")] == [(1, 4), (1, 4)]
    assert [rows.shape for rows in encoder.ground([picture] * 2, [("a dog", "a cat"), []])] == [(2, 4), (0, 4)]
    assert [rows.shape for rows in encoder.ground(picture, [])] == [(0, 4)]


@pytest.mark.parametrize(
    ("phrases", "count", "error", "told"),
    [
        (["a dog", "a cat"], 2, TypeError, r"phrases\[0\]='a dog' is a string; give a list of texts for each picture"),
        ([["a dog"], "a cat"], 2, TypeError, r"phrases\[1\]='a cat' is a string"),
        (None, 1, TypeError, "phrases is None"),
        ([None], 1, TypeError, r"phrases\[0\] is None"),
        ([[["a dog"]]], 1, TypeError, r"phrases\[0\]\[0\] is list"),
        (b"a dog", 1, TypeError, "phrases is bytes"),
        ([["a dog"]], 2, ValueError, "2 pictures but 1 lists of phrases"),
        ([], 1, ValueError, "1 pictures but 0 lists of phrases"),
        ([["a dog"], ["a cat"]], 1, ValueError, "1 pictures but 2 lists of phrases"),
    ],
)
def test_no_phrases(encoder: Encoder, picture: Tensor, phrases: Any, count: int, error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        encoder.ground([picture] * count, phrases)


def test_boxes_of_a_lone_picture(encoder: Encoder, picture: Tensor) -> None:
    (expected,) = encoder.encode_regions([picture], [[BOX]])
    lone = (BOX, [BOX], [[BOX]], torch.tensor(BOX), torch.tensor([[BOX]]), np.array([BOX]), [torch.tensor(BOX)])
    for boxes in (*lone, (row for row in [BOX]), [torch.tensor([BOX])], tuple(BOX)):
        (found,) = encoder.encode_regions(picture, boxes)
        torch.testing.assert_close(found, expected)
    for boxes in ([BOX, BOX], torch.tensor([BOX, BOX]), [[BOX, BOX]]):
        assert [rows.shape for rows in encoder.encode_regions(picture, boxes, "crop")] == [(2, 8)]
    for boxes in ([], [[]], torch.zeros(0, 4)):
        assert [len(rows) for rows in as_boxes(boxes, lone=True)] == [0]
    assert [len(rows) for rows in as_boxes(torch.tensor([[BOX, BOX], [BOX, BOX]]), lone=False)] == [2, 2]


@pytest.mark.parametrize(
    ("boxes", "error", "told"),
    [
        ([None], TypeError, r"boxes\[0\] is None; give \[K,4\] numbers, and \[\] for no box"),
        (None, TypeError, "boxes is None"),
        (["none"], TypeError, r"boxes\[0\] is str"),
        ([{"x": 1}], TypeError, r"boxes\[0\] is dict"),
        ([[[0.1, 0.2, 0.6]]], ValueError, r"boxes\[0\] has the shape \[1, 3\]; give \[K,4\]"),
        ([[0.1, 0.2, 0.6, 0.9, 0.0, 0.0, 1.0, 1.0]], ValueError, r"the shape \[8\]"),
        ([torch.full((4, 2), 0.5)], ValueError, r"the shape \[4, 2\]"),
        ([[BOX, BOX[:3]]], ValueError, r"boxes\[0\] is list; give \[K,4\]"),
    ],
)
def test_no_boxes(encoder: Encoder, picture: Tensor, boxes: Any, error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        encoder.encode_regions([picture], boxes)


def test_phrases_of_no_picture() -> None:
    assert as_phrases([], 0, False) == as_phrases("a dog", 0, False) == []
