"""Every format's miniature converts by ``data convert auto``, and comes back box for box."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from cloc.contracts import Sample
from cloc.data.convert.conversion import convert
from cloc.data.convert.formats.registry import FORMATS, guess_format
from cloc.data.inspect.check import check
from tests.kit.miniatures import MINIATURES, Miniature, Regions
from tests.kit.sources import read_samples

QUIET = Console(quiet=True)


def regions(sample: Sample) -> Regions:
    return [(region.box, region.phrases, region.category, region.crowd) for region in sample.regions]


def compare(made: Miniature, out: Path) -> None:
    """Convert as a user would, and hold what comes back against what was written."""
    done = convert("auto", made.source, out, console=QUIET, max_skip_share=0, max_drop_share=0, **made.options)
    assert done.report.imbalance() == "" and check(out).ok
    samples = read_samples(out)
    assert {key: regions(sample) for key, sample in samples.items()} == made.regions
    assert {key: sample.captions for key, sample in samples.items()} == made.captions


@pytest.mark.parametrize("layout", MINIATURES)
def test_a_miniature_comes_back_box_for_box(layout: str, tmp_path: Path) -> None:
    format, make = MINIATURES[layout]
    made = make(tmp_path / "in")
    assert guess_format(made.source).name == format
    compare(made, tmp_path / "out")


def test_there_are_eighteen_formats_or_more() -> None:
    assert len(FORMATS) >= 18
