"""Regions by phrases and by a grid: which boxes stay, that they are the planted ones, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cloc.encoder import Encoder
from cloc.evaluation.embed import RegionChoice, embed
from cloc.evaluation.embed.regions import Proposer, parse_grid, read_phrases


@pytest.mark.parametrize(
    ("given", "count", "first", "last"),
    [
        ("1", 1, (0, 0, 1, 1), (0, 0, 1, 1)),
        ("3x2", 6, (0, 0, 1 / 3, 0.5), (2 / 3, 0.5, 1, 1)),
        ("1,2, 1", 5, (0, 0, 1, 1), (0.5, 0.5, 1, 1)),
        ("2×1", 2, (0, 0, 0.5, 1), (0.5, 0, 1, 1)),
    ],
)
def test_cells_of_a_grid(given: str, count: int, first: tuple[float, ...], last: tuple[float, ...]) -> None:
    cells = parse_grid(given)
    assert len(cells) == len(set(cells)) == count and cells[0] == first and cells[-1] == last
    assert all(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in cells)


@pytest.mark.parametrize("given", ["", "0", "3x0", "ax2", "2x2x2", "-1", "1,", "40x40", "999"])
def test_what_is_no_grid_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="--grid"):
        parse_grid(given)


def test_phrases_of_an_option_and_of_a_file(tmp_path: Path) -> None:
    assert read_phrases(" a dog,a  red car,,a dog") == ("a dog", "a red car")
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeffa dog, brown\n\nеж\n".encode())
    assert read_phrases(str(file)) == ("a dog, brown", "еж")
    file.write_bytes(b"caf\xe9")
    for given, kind in ((str(file), ValueError), (" , ", ValueError), (str(tmp_path / "no.txt"), FileNotFoundError)):
        with pytest.raises(kind):
            read_phrases(given)


@pytest.mark.parametrize("wrong", [{"top": 0}, {"min_score": math.nan}, {"min_score": 2}, {"overlap": 0}])
def test_limits_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--"):
        RegionChoice(("a dog",), **wrong)


def finder(boxes: list[list[float]], scores: list[float]) -> Any:
    """A model that finds each phrase where it is told, in every picture."""

    def grounded(seen: Any, text: list[torch.Tensor], return_scores: bool) -> Any:
        assert return_scores
        start = [int(row[0]) for row in text[0]]
        found = torch.tensor([boxes[i] for i in start]), torch.tensor([scores[i] for i in start])
        return [found[0]] * len(text), [found[1]] * len(text)

    numbered = torch.arange(len(boxes)).float().unsqueeze(1)
    model = SimpleNamespace(prompter=SimpleNamespace(supports_phrases=True))
    return SimpleNamespace(
        name="told", can_ground=True, model=model, grounded=grounded, encode_text=lambda texts: numbered[: len(texts)]
    )


BOXES = [[0.1, 0.1, 0.4, 0.4], [0.1, 0.1, 0.41, 0.4], [0.5, 0.5, 1.2, 0.9], [0.3, 0.3, 0.3, 0.9], [0, 0, 0.5, 0.5]]
SCORES = [0.6, 0.7, 0.2, 0.9, 0.4]
PHRASES = ("a dog", "a brown dog", "a car", "nothing", "a hat")


def proposed(**choice: Any) -> list[tuple[str, tuple[float, ...]]]:
    made = Proposer(finder(BOXES, SCORES), RegionChoice(PHRASES, **choice))
    one, other = made.propose(SimpleNamespace(pictures=[0, 1]))  # type: ignore[arg-type]
    assert one == other or any(math.isnan(found.score) for found in one)
    return [(found.phrase, tuple(round(value, 3) for value in found.box)) for found in one]


def test_boxes_that_coincide_are_one_and_the_best_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [("a brown dog", (0.1, 0.1, 0.41, 0.4)), ("a hat", (0, 0, 0.5, 0.5)), ("a car", (0.5, 0.5, 1, 0.9))]
    assert proposed() == whole
    monkeypatch.setattr("cloc.evaluation.embed.regions._TOGETHER", 2)  # in several passes
    assert proposed() == whole
    assert proposed(top=1) == whole[:1]
    assert proposed(min_score=0.3) == whole[:2]
    assert len(proposed(overlap=1.0)) == 4
    cells = parse_grid("1,2")
    assert proposed(cells=cells)[3:] == [("", cell) for cell in cells if cell != (0, 0, 0.5, 0.5)]


def test_phrases_and_cells_of_a_folder_are_embedded_as_the_encoder_does(
    data: Path, runs: Path, tmp_path: Path, encoder: Encoder
) -> None:
    choice = RegionChoice(("a red thing", "noise"), parse_grid("2x1"))
    embed(str(runs / "cloc"), data / "classes", tmp_path / "out", device="cpu", regions=choice)
    with np.load(tmp_path / "out" / "regions.npz") as stored:
        rows = {name: stored[name] for name in stored.files}
    assert list(rows) == ["key", "box", "text", "score", "embedding"]
    mine = rows["key"] == "blue_ish/1.png"
    picture = Image.open(data / "classes" / "blue_ish" / "1.png")
    boxes, scores = encoder.ground([picture], [list(choice.phrases)], return_scores=True)
    texts = rows["text"][mine].tolist()
    assert texts[-2:] == ["", ""] and np.isnan(rows["score"][mine][-2:]).all()
    np.testing.assert_allclose(rows["box"][mine][-2:], choice.cells)
    for text, box, score in zip(texts[:-2], rows["box"][mine], rows["score"][mine], strict=False):
        place = choice.phrases.index(text)
        np.testing.assert_allclose(box, boxes[0][place].clamp(0, 1).numpy(), atol=1e-4)
        assert score == pytest.approx(float(scores[0][place]), abs=1e-4)
    (own,) = encoder.encode_regions([picture], [rows["box"][mine]])
    np.testing.assert_allclose(rows["embedding"][mine], own.numpy(), atol=1e-4)


def test_a_clip_has_cells_and_finds_no_phrases(data: Path, runs: Path, tmp_path: Path) -> None:
    grid = RegionChoice((), parse_grid("2"))
    for source in ("", "crop"):
        out = tmp_path / f"cells{source}"
        counts = embed(str(runs / "clip"), data / "classes", out, device="cpu", regions=grid, source=source)
        assert counts["regions"] == 4 * counts["images"]
    with pytest.raises(ValueError, match="clip does not find phrases .* take --grid"):
        embed(str(runs / "clip"), data / "classes", tmp_path / "p", device="cpu", regions=RegionChoice(("a dog",)))
    assert not (tmp_path / "p").exists()
    with pytest.raises(ValueError, match="another model, data, source or regions"):
        embed(str(runs / "clip"), data / "classes", tmp_path / "cells", device="cpu")
