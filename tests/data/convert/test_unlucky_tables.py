"""Tables that look right and are not: what one row says is never taken for another one's, nor cut in silence."""

from __future__ import annotations

from pathlib import Path

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
