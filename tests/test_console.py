"""What commands print is for people on a terminal, and for programs behind a pipe."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.table import Table

from cloc.console import counted, plain, print_line, print_rows, print_table, progress, progress_console, working
from cloc.data.convert.conversion import convert
from tests.kit.landscapes import jpeg, landscape


def made(terminal: bool, width: int = 40) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def test_a_pipe_gets_one_line_a_row_however_long() -> None:
    console = made(False)
    print_rows(console, "title", [("label", "word " * 30), ("[b]", "[/b] \x1b[2J\t")])
    assert console.file.getvalue() == f"title\nlabel\t{'word ' * 30}\n[b]\t[/b] \\x1b[2J\\t\n"


def test_a_terminal_gets_a_table_that_fits() -> None:
    console = made(True)
    print_rows(console, "title", [("label", "word " * 30), ("[b]", "\x1b[2J")])
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 40 and text.count("word") == 30
    assert "[b]" in text and "\\x1b[2J" in text and "\x1b[2J" not in text


def test_plain_leaves_what_can_be_printed() -> None:
    text = "a chick, äöü, 鳥, 🐤"
    assert plain(text) == text
    assert plain("a\tb\r\udcff") == "a\\tb\\r\\udcff"
    console = made(False)
    print_line(console, "x" * 100, "bold")
    assert console.file.getvalue() == "x" * 100 + "\n"


def test_progress_is_a_bar_in_a_terminal() -> None:
    console = made(True, 100)
    with progress(console, "reading [x]", 10) as bar:
        bar.advance(4)
        bar.advance(2, worked=0)
    with progress(console, "comparing", unit="pictures") as bar:
        bar.move(3, 8)
        bar.move(8, 8)
    text = console.file.getvalue()
    assert "reading [x]" in text and "6/10" in text and "8/8" in text and "pictures/s" in text


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr("cloc.console.time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_progress_is_a_line_now_and_then_elsewhere(now: list[float]) -> None:
    console = made(False)
    with progress(console, "reading [x]", 6000) as bar:
        bar.advance(1000, worked=0)  # an earlier run's
        for _ in range(10):
            now[0] += 4
            bar.advance(200)
    assert console.file.getvalue().splitlines() == [
        "reading [x]: 1,400 of 6,000 samples (23%), 50/s, 1:32 left",
        "reading [x]: 2,200 of 6,000 samples (37%), 50/s, 1:16 left",
        "reading [x]: 3,000 of 6,000 samples (50%), 50/s, 1:00 left",
        "reading [x]: 3,000 samples in 0:40",
    ]


def test_progress_without_a_total_and_of_work_that_is_soon_done(now: list[float]) -> None:
    console = made(False)
    with progress(console, "soon", 10) as bar:
        bar.advance(10)
    with progress(console, "embedding", unit="pictures") as bar:
        for _ in bar.each([range(3), range(3)], len):
            now[0] += 6
    with progress(Console(file=console.file, quiet=True), "quiet", 1) as bar:
        now[0] += 60
        bar.advance()
    assert console.file.getvalue().splitlines() == [
        "embedding: 3 pictures, 0.5/s",
        "embedding: 6 pictures in 0:12",
    ]


def test_progress_is_told_while_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloc.console.FIRST", 0.0)
    monkeypatch.setattr("cloc.console.EVERY", 0.02)
    console = made(False)
    with progress(console, "converting", 4020, "records"):
        time.sleep(0.2)
    assert console.file.getvalue().splitlines()[0] == "converting: 0 of 4,020 records (0%)"


def test_what_cannot_be_counted_is_told_where_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    console = made(False)
    monkeypatch.setattr("cloc.console.FIRST", 0.01)
    with working(console, "reading annotations"):
        time.sleep(0.1)
    assert console.file.getvalue() == "reading annotations …\n"


def test_what_is_measured_is_told_in_lines_alone(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in counted(range(2), "measuring"):
        now[0] += 90
    printed = capsys.readouterr()
    assert printed.err == "measuring: 1 of 2 rounds (50%), 0.011/s, 1:30 left\n" + (
        "measuring: 2 of 2 rounds (100%), 0.011/s, 0:00 left\nmeasuring: 2 rounds in 3:00\n"
    )
    assert printed.out == ""


def test_progress_goes_to_standard_error_of_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress_console().stderr and not progress_console().quiet
    monkeypatch.setenv("RANK", "1")
    assert progress_console().quiet


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("keys", [1, 2])
def test_a_table_is_parted_where_it_is_too_wide(count: int, keys: int) -> None:
    table = Table(title="a title", caption="a caption")
    for name in ("state of the model, in many words that need room", "job")[:keys]:
        table.add_column(name)
    metrics = [f"image_text/text_to_image_R@{number}" for number in range(count)]
    for metric in metrics:
        table.add_column(metric, justify="right")
    numbers = [f"0.{number}234 ± 0.0{number}1" for number in range(count)]
    table.add_row(*["a label that is long enough to be folded at the end", "0"][:keys], *numbers)
    console = made(False, 80)
    print_table(table, console, keys)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert [text.count(number) for number in numbers] == [1] * count
    assert text.count("a title") == text.count("a caption") == 1
    assert (text.count("state of the model") > 1) == (count > 4 - keys)


def test_convert_tells_its_counts_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(landscape(0)))
    lines = tmp_path / "x.jsonl"
    lines.write_text(
        json.dumps({"image": "a.jpg", "captions": ["x"]}) + "\n" + json.dumps({"image": "none.jpg", "captions": ["y"]})
    )
    convert("jsonl", lines, tmp_path / "out", max_skip_share=1)
    progress = capsys.readouterr()
    rows = dict(line.split("\t") for line in progress.out.splitlines() if "\t" in line)
    assert rows["source: records"] == "2" and rows["written: samples"] == "1"
    assert rows["left out: image_unreadable"] == "1" and progress.err == ""
    assert progress.out.splitlines()[-1] == f"wrote 1 sample to {tmp_path / 'out'}"
