"""Captions of a ``txt`` member: one a line, as CLIP_benchmark writes its retrieval sets, or one text of img2dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cloc.config import DatasetConfig
from cloc.contracts import BadSample
from cloc.data import sample as schema
from cloc.data.convert.conversion import convert
from cloc.data.inspect.check import check
from cloc.data.sample import count_captions, parse_sample
from cloc.data.shards.index import load_manifest
from cloc.evaluation.sets.kinds import load_eval_set
from tests.kit.sources import jpeg, read_samples, write_members
from tests.kit.streams import make_stream

FIVE = [f"caption {number} of a street" for number in range(5)]
TWO_LINES = "a bus\nin the rain"


@pytest.mark.parametrize(
    ("text", "record", "expected"),
    [
        ("\n".join(FIVE), {}, FIVE),
        ("\n".join(FIVE) + "\n", {}, FIVE),
        ("\r\n".join(FIVE), {}, FIVE),
        ("\n\n a bus \n   \nrain\n\n", {}, ["a bus", "rain"]),
        ("a bus", {}, ["a bus"]),
        ("a bus\u2028in the\x0brain\x85", {}, ["a bus", "in the", "rain"]),
        (TWO_LINES, {"caption": TWO_LINES}, [TWO_LINES]),
        (f" {TWO_LINES}\n", {"caption": TWO_LINES, "width": None}, [TWO_LINES]),
        ("\n".join(FIVE), {"caption": FIVE[0]}, FIVE),
        ("\n".join(FIVE), {"captions": ["of the JSON"]}, ["of the JSON"]),
    ],
)
def test_captions_of_a_text(text: str, record: dict[str, Any], expected: list[str]) -> None:
    members = {"jpg": b"x", "txt": text.encode(), "json": json.dumps(record).encode()}
    sample, counts = parse_sample(members, "k", "set")
    assert list(sample.captions) == expected and not counts
    assert count_captions(record, text.encode()) == len(expected)


@pytest.mark.parametrize("text", ["", "\n\n", "  \r\n "])
def test_a_text_of_nothing_is_one_empty_caption(text: str) -> None:
    with pytest.raises(BadSample, match="empty_caption 1"):
        parse_sample({"jpg": b"x", "txt": text.encode()}, "k", "set")
    assert count_captions({}, text.encode()) == 1


def test_a_million_lines() -> None:
    text = b"aa\n" * 1_000_000
    sample, counts = parse_sample({"jpg": b"x", "txt": text}, "k", "set")
    assert len(sample.captions) == schema.MAX_CAPTIONS and counts == {"too_many_captions": 999_000}
    assert count_captions({}, text) == 1_000_000


@pytest.fixture
def retrieval(tmp_path: Path) -> Path:
    return write_members(tmp_path / "set", {f"s{n}": {"jpg": jpeg(), "txt": "\n".join(FIVE)} for n in range(8)})


def test_all_readers_see_five_captions(retrieval: Path, tmp_path: Path) -> None:
    assert check(retrieval, index=False).tally.captions == {5: 8}
    report = convert("grit", retrieval, tmp_path / "out", console=Console(quiet=True)).report
    assert report.given["captions"] == report.counts["captions"] == 40
    assert read_samples(tmp_path / "out")["s0"].captions == tuple(FIVE)
    found = load_eval_set("set", DatasetConfig(shards=str(retrieval)))
    assert found.counts["captions"] == 40
    batch = next(iter(make_stream(load_manifest(retrieval))))
    assert len(batch.keys) == 8 and not batch.stats.get("captions_truncated")
