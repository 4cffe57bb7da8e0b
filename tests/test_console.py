"""What the data commands print is for people on a terminal, and for programs behind a pipe."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cloc.console import plain, print_line, print_rows, progress
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


def test_progress_is_drawn_on_terminals_alone() -> None:
    for terminal in (True, False):
        console = made(terminal, 100)
        with progress(console, "reading [x]", 10) as bar:
            bar.advance(4)
            bar.advance(2, worked=0)
        with progress(console, "comparing", unit="pictures") as bar:
            bar.move(3, 8)
            bar.move(8, 8)
        text = console.file.getvalue()
        assert bool(text) == terminal
        if terminal:
            assert "reading [x]" in text and "6/10" in text and "8/8" in text and "pictures/s" in text


def test_convert_tells_its_counts_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(landscape(0)))
    lines = tmp_path / "x.jsonl"
    lines.write_text(json.dumps({"image": "a.jpg", "captions": ["x"]}) + "\n" + json.dumps({"image": "none.jpg"}))
    convert("jsonl", lines, tmp_path / "out", max_skip_share=1)
    progress = capsys.readouterr()
    rows = dict(line.split("\t") for line in progress.out.splitlines() if "\t" in line)
    assert rows["source: records"] == "2" and rows["written: samples"] == "1"
    assert rows["left out: image_unreadable"] == "1" and progress.err == ""
    assert progress.out.splitlines()[-1] == f"wrote 1 sample to {tmp_path / 'out'}"
