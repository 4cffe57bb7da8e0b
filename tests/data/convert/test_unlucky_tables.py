"""Tables that look right and are not: what one row says is never taken for another one's, nor cut in silence."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cloc.data.convert.formats.columns import _sides
from cloc.data.convert.formats.plain_text import csv_rows
from tests.data.convert.test_bad_doors import refused, run
from tests.kit.miniatures import pictures
from tests.kit.sources import write


def test_a_comma_in_a_text_without_quotes_is_no_end_of_the_text(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    rows = "image,caption\none.jpg,A dog, running fast\none.jpg,A dog\ntwo.jpg,A cat,\n"
    source = write(tmp_path / "in/set.csv", rows)
    refused(source, "set.csv line 2: 3 cells, the header has 2; put texts into quotes")
    done, samples = run(source, overwrite=True)
    assert (
        done.report.skipped == {"bad_annotation": 1}
        and set(samples) == {"two"}
        and samples["two"].captions == ("A cat",)
    )


def test_a_quote_that_is_never_closed_takes_in_no_rows(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    source = write(tmp_path / "in/set.csv", 'image,caption\none.jpg,"A dog"\ntwo.jpg,"A cat\none.jpg,A bird\n')
    refused(source, "set.csv line 3: a quote is opened and never closed")
    source = write(source, 'image,caption\none.jpg,"A dog, ""said"" he,\nand ran"\ntwo.jpg,5" wide')
    assert {key: one.captions for key, one in run(source)[1].items()} == {
        "one": ('A dog, "said" he,\nand ran',),
        "two": ('5" wide',),
    }


def test_a_column_that_comes_twice(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    refused(write(tmp_path / "in/set.csv", "image,caption,caption\none.jpg,a,b\n"), "column 'caption' comes twice")


def test_columns_of_the_middle_of_a_box(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    source = write(tmp_path / "in/set.csv", "image,label,x_center,y_center,width,height\none.jpg,dog,20,10,20,10\n")
    assert [region.box for region in run(source)[1]["one"].regions] == [(0.25, 0.25, 0.75, 0.75)]


@pytest.mark.parametrize("order", ["xyxy", "xywh", "cxcywh", "yxyx"])
def test_named_sides_in_every_order(order: str) -> None:
    sides = {"xyxy": [10, 20, 30, 60], "xywh": [10, 20, 20, 40], "cxcywh": [20, 40, 20, 40], "yxyx": [20, 10, 60, 30]}
    expected = sides[order]
    assert _sides({"xmin": 10, "ymin": 20, "xmax": 30, "ymax": 60}, order) == expected
    assert _sides({"cx": 20, "cy": 40, "w": 20, "h": 40}, order) == expected
    x, y = (20, 40) if order == "cxcywh" else (10, 20)  # then the user says that x and y are of the middle
    assert _sides({"x": x, "y": y, "width": 20, "height": 40}, order) == expected


def test_long_cells_are_read_and_the_limit_of_the_process_stays(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    table = tmp_path / "x.csv"
    table.write_text("image,caption\na.jpg," + "dog " * before + "\n")
    assert [len(row[1]) for _, row in csv_rows(table)] == [7, 4 * before]
    assert csv.field_size_limit() == before
