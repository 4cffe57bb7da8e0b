"""Whoever is given a folder by a stranger and works in it changes nothing outside of it, and waits for nothing."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from cloc.__main__ import app
from cloc.config.multirun import ClearWay
from cloc.contracts import Region, Sample
from cloc.data.convert.conversion import convert
from cloc.data.inspect.check import check
from cloc.data.inspect.show import show
from cloc.data.jobs.report import Report
from cloc.data.jobs.resumable_jobs import Job, Task
from cloc.data.shards.writer import write_shards
from cloc.engine import run
from cloc.engine.durable.run_folder import RunFolder, locked
from cloc.engine.sweep import report as sweep_report
from cloc.evaluation.embed import embed
from cloc.evaluation.report.page import write_report
from cloc.export.capabilities import ExportError
from cloc.export.pipeline import export
from cloc.files import LinkError
from tests.engine.sweep.test_sweep import TOP1, job
from tests.kit.exporting import make_run
from tests.kit.resuming import configure

QUIET = Console(quiet=True)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder outside, with files that are overwritten where a link is followed; nothing in it may change."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "one").write_text("precious")
    return folder


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    return folder


def untouched(mine: Path) -> bool:
    return {path.name: path.read_text() for path in mine.iterdir()} == {"one": "precious"}


def plant(folder: Path, mine: Path, *names: str) -> None:
    """Links under names that somebody can guess: to a file, to nothing, a hard link."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(mine / "one")
        for ending in (".partial", ".part", ".tmp"):
            (folder / f"{name}{ending}").symlink_to(mine / "one")
            (folder / name).with_name(f".{Path(name).name}{ending}").symlink_to(mine / "two")


def sample(index: int) -> Sample:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (index, 90, 90)).save(file, "PNG")
    region = Region((0.0, 0.0, 0.5, 0.5), ("a square",), category="square")
    return Sample(f"{index:03d}", file.getvalue(), "png", ("a picture",), (region,), 32, 32)


def draw(report: Report) -> Any:
    """The samples of one shard."""
    yield sample(0)


@pytest.fixture
def shards(downloaded: Path) -> Path:
    write_shards([sample(index) for index in range(4)], downloaded)
    (downloaded / "manifest.json").unlink()
    return downloaded


def test_check(shards: Path, mine: Path) -> None:
    plant(shards, mine, "manifest.json")
    (shards / "manifest.json").unlink()
    assert check(shards, console=QUIET).ok
    assert json.loads((shards / "manifest.json").read_text())["categories"] == ["square"]
    assert untouched(mine)


@pytest.mark.parametrize("name", ["found.json", "page.html", "sheet.png"])
def test_files_that_are_asked_for(name: str, shards: Path, mine: Path, tmp_path: Path) -> None:
    plant(tmp_path, mine, name)
    if name == "found.json":
        assert CliRunner().invoke(app, ["data", "check", str(shards), "--json", str(tmp_path / name)]).exit_code == 0
    else:
        show(shards, tmp_path / name, count=1)
    assert not (tmp_path / name).is_symlink() and (tmp_path / name).stat().st_size > 8
    assert untouched(mine)


def jsonl(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.png").write_bytes(sample(0).image)
    (folder / "set.jsonl").write_text(json.dumps({"image": "a.png", "captions": ["a picture"]}) + "\n")
    return folder / "set.jsonl"


def test_convert_over_a_folder(downloaded: Path, mine: Path, tmp_path: Path) -> None:
    plant(downloaded, mine, "manifest.json", "shard-000000.tar")
    convert("jsonl", jsonl(tmp_path / "in"), downloaded, overwrite=True, console=QUIET)
    assert not (downloaded / "manifest.json").is_symlink() and not (downloaded / "shard-000000.tar").is_symlink()
    assert untouched(mine)


@pytest.mark.parametrize("name", [".unfinished", "train"])
def test_jobs_below_a_planted_folder(name: str, downloaded: Path, mine: Path) -> None:
    (downloaded / name).symlink_to(mine)
    with pytest.raises(LinkError, match=f"{name} is a link to .*mine"):
        own = Job(downloaded, {}, overwrite=True)
        own.run([Task(draw, "train")], on_shard=lambda report, again: None)
        own.place()
    assert untouched(mine)


def test_a_record_that_leads_elsewhere_is_not_followed(downloaded: Path, mine: Path) -> None:
    own = Job(downloaded, {})
    own.run([Task(draw)], on_shard=lambda report, again: None)
    record = downloaded / ".unfinished" / "record.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    size = len("precious")
    lines[1]["shards"][0] |= {"name": "../../mine/one", "bytes": size}
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Job(downloaded, {}).done == []
    assert untouched(mine)


@pytest.mark.parametrize("kind", ["folder", "page"])
def test_the_report(kind: str, downloaded: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = SimpleNamespace(text="<html>", tables=[])
    monkeypatch.setattr("cloc.evaluation.report.page.lay_out", lambda data: page)
    if kind == "page":
        plant(downloaded, mine, "report/index.html")
        assert write_report(None, downloaded / "report").read_text() == "<html>"
    else:
        (downloaded / "report").symlink_to(mine)
        with pytest.raises(LinkError, match="report is a link"):
            write_report(None, downloaded / "report")
    assert untouched(mine)


def test_embeddings(shards: Path, mine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = make_run(tmp_path / "run")
    embed(model, shards, out, "npz", "", "cpu")
    (out / "pieces" / "000000000000.npz").unlink()
    (out / "pieces").rmdir()
    (out / "pieces").symlink_to(mine)
    with pytest.raises(LinkError, match="pieces is a link"):
        embed(model, shards, out, "npz", "", "cpu")
    (out / "pieces").unlink()
    for name in ("images.npz", "regions.npz", "texts.npz"):
        (out / name).unlink()
        plant(out, mine, name)
    embed(model, shards, out, "npz", "", "cpu")
    assert untouched(mine)


def test_exports_take_the_place_of_no_link(downloaded: Path, mine: Path) -> None:
    for target in (mine, mine / "two"):
        (downloaded / "out").symlink_to(target)
        with pytest.raises(ExportError, match="not an empty folder of its own"):
            export("open_clip", downloaded, downloaded / "out")
        (downloaded / "out").unlink()
    assert untouched(mine)


LOCKS: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda path, mine: path.symlink_to(mine / "one"),
    "dangling link": lambda path, mine: path.symlink_to(mine / "two"),
    "hard link": lambda path, mine: os.link(mine / "one", path),
    "pipe": lambda path, mine: os.mkfifo(path),
}


@pytest.mark.parametrize("kind", LOCKS)
def test_the_lock_of_a_run(kind: str, downloaded: Path, mine: Path) -> None:
    LOCKS[kind](downloaded / "run.lock", mine)
    with pytest.raises(LinkError, match=r"run\.lock is .*remove it"), locked(RunFolder(str(downloaded))):
        pass
    assert untouched(mine)


def test_training_in_a_folder_of_links(squares: Path, downloaded: Path, mine: Path) -> None:
    budget = ["samples=16", "trainer.checkpoint_every=8"]
    run.train(configure(squares, downloaded, *budget))
    names = [path.relative_to(downloaded).as_posix() for path in downloaded.rglob("*") if not path.is_dir()]
    assert {"config.yaml", "metrics.csv", "checkpoints/last.ckpt", "text/tokenizer.json"} <= set(names)
    for name in names:
        (downloaded / name).unlink()
    plant(downloaded, mine, *(name for name in names if name != "run.lock"))
    run.train(configure(squares, downloaded, *budget))
    for name in names:
        assert name == "checkpoints/last.ckpt" or not (downloaded / name).is_symlink(), name
    assert untouched(mine)


@pytest.mark.parametrize("name", ["checkpoints", "text"])
def test_training_below_a_planted_folder(name: str, squares: Path, downloaded: Path, mine: Path) -> None:
    (downloaded / name).symlink_to(mine)
    with pytest.raises(LinkError, match=f"{name} is a link to"):
        run.train(configure(squares, downloaded, "samples=8"))
    assert untouched(mine)


def test_a_run_folder_may_itself_be_a_link(squares: Path, tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "large disk")
    (tmp_path / "large disk" / "elsewhere").mkdir()
    (tmp_path / "large disk" / "own").symlink_to("elsewhere")
    run.train(configure(squares, tmp_path / "runs" / "own", "samples=8"))
    assert (tmp_path / "large disk" / "elsewhere" / "checkpoints" / "last.ckpt").is_file()


def test_sweeps(downloaded: Path, mine: Path) -> None:
    pytest.importorskip("matplotlib")
    job(downloaded, "0", {TOP1: 0.25}, region=1.0)
    job(downloaded, "1", {TOP1: 0.5}, region=2.0)
    names = ("sweep.csv", "sweep.png", "multirun.yaml", "optuna.db")
    plant(downloaded, mine, *names)
    (downloaded / ".submitit").symlink_to(mine)
    ClearWay().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(downloaded)}}}))
    sweep_report.report(downloaded)
    assert not any((downloaded / name).is_symlink() for name in (*names, ".submitit"))
    assert untouched(mine)


def test_the_copy_of_a_remote_run(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"cloc-{os.getuid()}"
    own.symlink_to(mine)  # whoever else may write there can make it
    folder = RunFolder("memory://planted/run")
    with pytest.raises(LinkError, match="is a link"):
        folder.make()
    own.unlink()
    folder.make()
    memory = fsspec.filesystem("memory")
    memory.pipe("/planted/run/config.yaml", b"name: a")
    plant(folder.local, mine, "config.yaml")
    folder.pull()
    assert (folder.local / "config.yaml").read_text() == "name: a"
    (folder.local / "config.yaml").unlink()
    monkeypatch.setattr(memory, "find", lambda root, **options: {f"{root}/../../mine/one": {"size": 4}})
    with pytest.raises(LinkError, match="no name of a folder"):
        folder.pull()
    assert untouched(mine)
