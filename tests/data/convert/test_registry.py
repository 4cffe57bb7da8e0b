"""A format is one module: whatever it registers, the command line, its help and the guess know."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import cloc.__main__ as command_line
from cloc.commands import convert as command
from cloc.data.convert.conversion import Conversion, convert
from cloc.data.convert.formats import registry
from cloc.data.convert.formats.registry import FORMATS, all_options, guess_format, holds, register
from cloc.data.convert.records import Record, RecordSource
from tests.data.convert.test_formats import make_entities, make_genome, make_refcoco, write_tar
from tests.kit.paths import ROOT
from tests.kit.sources import box, image, jpeg, read_samples, write, write_coco

QUIET = Console(quiet=True)


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A format of a file of picture names, as a module of its own would register it."""
    monkeypatch.setattr(registry, "FORMATS", FORMATS.copy())
    command.format_options.cache_clear()

    @register("zoo", "a folder with names.txt", holds("names.txt"))
    def open_zoo(source: Path, *, caption: str = "a thing", images: Path | None = None) -> RecordSource:
        """Open it.

        Args:
            source: the folder.
            caption: what all pictures show, told to
                everybody.
            images: folder of the pictures.
        """
        names = (source / "names.txt").read_text().split()
        records = [Record(name, name, (images or source) / f"{name}.jpg", {"captions": [caption]}) for name in names]
        return RecordSource("zoo", (source / "names.txt",), records, len(names))

    yield
    command.format_options.cache_clear()


@pytest.mark.usefixtures("zoo")
def test_a_new_format_needs_no_other_line(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write(source / "names.txt", "one two")
    for name in ("one", "two"):
        write(source / f"{name}.jpg", jpeg())
    run = CliRunner().invoke
    arguments = ["data", "convert", "auto", str(source), str(tmp_path / "out"), "--caption", "a bus"]
    done = run(command_line.app, arguments)
    assert done.exit_code == 0, done.output
    assert {key: sample.captions for key, sample in read_samples(tmp_path / "out").items()} == {
        "one": ("a bus",),
        "two": ("a bus",),
    }
    told = re.sub(r"[│\s]+", " ", run(command_line.app, ["data", "convert", "--help"], terminal_width=200).output)
    assert "voc, yolo, zoo; or auto" in told and "zoo (a thing): what all pictures show, told to everybody." in told
    with pytest.raises(ValueError, match="'zoo' takes no split; it takes caption, images"):
        convert("zoo", source, tmp_path / "other", split="x", console=QUIET)


def test_every_format_says_what_it_is_and_stands_in_the_docs() -> None:
    table = (ROOT / "docs/shards.md").read_text(encoding="utf-8")
    for name, one in FORMATS.items():
        assert f"\n| `{name}` |" in table
        assert one.name == name and one.reads
    assert list(FORMATS) == sorted(FORMATS)
    options = {option.name: option for option in all_options()}
    assert options["sprite"].type == tuple[int, int] and "(15 29)" in options["sprite"].help
    assert options["ignore_crowd_flag"].type is bool
    assert options["ignore_crowd_flag"].help.startswith("coco, ")
    assert options["split"].help.startswith("coco: which file of a folder") and "(val): " in options["split"].help


def test_sources_are_known_by_the_names_of_their_files(tmp_path: Path) -> None:
    sources = {
        "coco": write_coco(tmp_path / "coco", [image(1, "a.jpg")], [box(1, 1)]),
        "jsonl": write(tmp_path / "set.jsonl", "{}"),
        "lvis": write(tmp_path / "lvis/lvis_v1_val.json", "{}").parent,
        "refcoco": make_refcoco(tmp_path / "refcoco"),
        "flickr30k_entities": make_entities(tmp_path / "flickr"),
        "visual_genome": make_genome(tmp_path / "genome"),
        "grit": write_tar(tmp_path / "grit/00000.tar", {}).parent,
    }
    assert {name: guess_format(source).name for name, source in sources.items()} == {name: name for name in sources}
    write(sources["coco"] / "annotations/lvis_v1_val.json", "{}")
    with pytest.raises(ValueError, match="may be coco or lvis; name the format"):
        guess_format(sources["coco"])
    with pytest.raises(
        ValueError, match=r"of no format.*\(1 .docx\); looked for coco, .*, jsonl, .*; name the format instead of auto"
    ):
        convert("auto", write(tmp_path / "bare/notes.docx", "x").parent, tmp_path / "out", console=QUIET)
    table = write(tmp_path / "tables/boxes.csv", "image,caption\na.jpg,a dog\n")
    with pytest.raises(ValueError, match=f"give the file itself: {table};"):
        guess_format(table.parent)
    with pytest.raises(FileNotFoundError, match="no such source"):
        convert("auto", tmp_path / "absent", tmp_path / "out", console=QUIET)


def test_the_command_line_passes_on_what_was_given_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def convert(*paths: object, **options: object) -> Conversion:
        calls.append((paths, options))
        return Conversion()

    monkeypatch.setattr("cloc.data.convert.conversion.convert", convert)
    run = CliRunner().invoke
    words = ["openmoji", "out", "--train", "0", "--sprite", "3", "5", "--workers", "2", "--relation-sets", "7"]
    assert run(command_line.app, ["data", "convert", *words]).exit_code == 0
    assert run(command_line.app, ["data", "convert", "coco", "in", "out", "--ignore-crowd-flag"]).exit_code == 0
    common = {"samples_per_shard": 1000, "overwrite": False, "max_skip_share": 0.01, "max_drop_share": 0.1}
    common |= {"reencode": "auto", "orientation": "upright"}
    first, second = calls
    given = {"train": 0, "sprite": (3, 5), "relation_sets": 7}
    assert first == (("openmoji", None, Path("out")), {"workers": 2, **common, **given})
    assert second == (("coco", Path("in"), Path("out")), {"workers": 1, **common, "ignore_crowd_flag": True})
