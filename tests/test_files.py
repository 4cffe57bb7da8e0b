"""Writing: whole or not at all, through no link that lies in wait, with the modes that the umask asks for."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cloc import files
from cloc.files import LinkError


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder outside of what was downloaded."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "one").write_text("precious")
    return tmp_path / "mine"


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    (tmp_path / "downloaded").mkdir()
    return tmp_path / "downloaded"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def plant(path: Path, kind: str, mine: Path) -> None:
    """Put something in the way of a file that is to be written."""
    if kind == "link":
        path.symlink_to(mine / "one")
    elif kind == "dangling link":
        path.symlink_to(mine / "two")
    elif kind == "link to a folder":
        path.symlink_to(mine)
    elif kind == "hard link":
        os.link(mine / "one", path)
    else:
        os.mkfifo(path)


PLANTED = ["link", "dangling link", "link to a folder", "hard link", "pipe"]
WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: files.write_file(path, "new"),
    "bytes": lambda path: files.write_file(path, b"new"),
    "function": lambda path: files.write_file(path, lambda file: file.write(b"new")),
    "json": lambda path: files.write_json(path, ["ü"]),
    "tensors": lambda path: files.write_tensors(path, {"a": torch.ones(3)}),
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("writer", WRITERS)
def test_what_lies_at_the_name_is_replaced(kind: str, writer: str, mine: Path, downloaded: Path, umask: None) -> None:
    target = downloaded / "metrics.json"
    plant(target, kind, mine)
    WRITERS[writer](target)
    assert stat.S_ISREG(target.lstat().st_mode)
    assert mode(target) == 0o640
    assert contents(mine) == {"one": "precious"}
    assert list(downloaded.iterdir()) == [target]


def test_tensors_come_back(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(3)}, {"format": "pt"})
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    files.write_file(target, "old")

    def fail(file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        files.write_file(target, fail)
    with pytest.raises(KeyboardInterrupt), files.new_path(target) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), files.into_folder(tmp_path, "text") as room:
        (room / "a").write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), files.hidden_folder(tmp_path / "out") as room:
        (room / "a").write_text("half")
        raise RuntimeError
    (tmp_path / "text").rmdir()
    assert contents(tmp_path) == {"a.json": "old"}


def test_a_link_is_replaced_or_nothing_is_left(tmp_path: Path) -> None:
    files.write_link(tmp_path / "last", "one")
    files.write_link(tmp_path / "last", "two")
    assert os.readlink(tmp_path / "last") == "two"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_link(tmp_path / "folder", "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "last"]


def test_a_full_disk_is_told_with_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.json'"):
        files.write_file(tmp_path / "a.json", "new")
    assert list(tmp_path.iterdir()) == []


def test_file_systems_that_cannot_sync_a_folder_are_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def sync_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_files)
    files.write_file(tmp_path / "a.json", "new")
    assert contents(tmp_path) == {"a.json": "new"}


def test_long_names_are_written(tmp_path: Path) -> None:
    files.write_file(tmp_path / ("ü" * 127), "new")
    assert len(list(tmp_path.iterdir())) == 1


def test_devices_are_written_to_not_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    files.write_file(Path("/dev/stdout"), "said")
    files.write_file(Path("/dev/null"), "dropped")
    assert capfd.readouterr().out == "said"
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_folder_that_the_user_links_is_followed(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "large disk")
    made = files.make_folder(tmp_path / "runs" / "demo", "report")
    files.write_file(made / "index.html", "page")
    assert (tmp_path / "large disk" / "demo" / "report" / "index.html").read_text() == "page"


@pytest.mark.parametrize("kind", ["link", "dangling link", "link to a folder", "pipe"])
@pytest.mark.parametrize("names", [("report",), ("report", "pieces")])
def test_a_planted_folder_is_refused(kind: str, names: tuple[str, ...], mine: Path, downloaded: Path) -> None:
    plant(downloaded.joinpath("report"), kind, mine)
    with pytest.raises(LinkError, match=r"report is a (link to|pipe).*remove it"):
        files.make_folder(downloaded, *names)
    with pytest.raises(LinkError), files.into_folder(downloaded, *names):
        pass
    assert contents(mine) == {"one": "precious"}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("opened", ["append", "open_lock", "host_lock"])
def test_logs_and_locks_are_files_of_their_own(kind: str, opened: str, mine: Path, downloaded: Path) -> None:
    path = downloaded / "run.lock"
    plant(path, kind, mine)
    call = {"append": lambda path: files.append(path, ", and more")}.get(opened, getattr(files, opened))
    if (kind, opened) == ("hard link", "append"):
        call(path)
        assert path.read_text() == "precious, and more"
    else:
        with pytest.raises(LinkError, match="remove it"):
            call(path)
    assert contents(mine) == {"one": "precious"}


def test_logs_grow_and_locks_keep(tmp_path: Path, umask: None) -> None:
    for line in ("one\n", "two\n"):
        files.append(tmp_path / "log", line, sync=line == "two\n")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    with files.open_lock(tmp_path / "log") as file:
        assert file.read() == "one\ntwo\n"
    with files.host_lock(tmp_path / "lock"):
        assert mode(tmp_path / "lock") == mode(tmp_path / "log") == 0o640


def test_a_full_disk_leaves_a_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.append(tmp_path / "log", "one\n")
    write = os.write

    def half(descriptor: int, data: memoryview) -> int:
        if len(data) < 3:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match=r"No space left on device: '.*/log'"):
        files.append(tmp_path / "log", "two\n")
    assert (tmp_path / "log").read_text() == "one\n"


def test_a_new_folder_has_the_modes_of_the_umask(tmp_path: Path, umask: None) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with files.hidden_folder(out) as room:
        (room / "inside").mkdir()
        (room / "inside" / "weights").touch(0o600)
        (room / "config").write_text("{}")
        files.publish(room, out)
    assert [(path.relative_to(out).as_posix(), mode(path)) for path in sorted(out.rglob("*"))] == [
        ("config", 0o640),
        ("inside", 0o750),
        ("inside/weights", 0o640),
    ]
    assert list(tmp_path.iterdir()) == [out]


def test_a_new_folder_takes_the_place_of_nothing(mine: Path, downloaded: Path) -> None:
    (downloaded / "out").symlink_to(mine)
    for path in (mine, downloaded / "out"):
        with pytest.raises(OSError, match="out|mine"), files.hidden_folder(path) as room:
            (room / "a").touch()
            files.publish(room, path)
    assert contents(mine) == {"one": "precious"}
    assert [path.name for path in downloaded.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/tmp"])
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="no name of a folder"):
        files.make_folder(tmp_path / "runs", name)


def test_private_folders_are_private(tmp_path: Path) -> None:
    assert mode(files.make_folder(tmp_path, "mine", private=True)) == 0o700


@pytest.mark.parametrize("kind", PLANTED)
def test_the_way_of_a_library_is_cleared_of_links(kind: str, mine: Path, downloaded: Path) -> None:
    plant(downloaded / "multirun.yaml", kind, mine)
    files.clear(downloaded / "multirun.yaml")
    files.clear(downloaded / "absent")
    (downloaded / "multirun.yaml").write_text("new")
    assert contents(mine) == {"one": "precious"}


def test_files_move_into_a_folder_that_exists(mine: Path, downloaded: Path) -> None:
    folder = files.make_folder(downloaded, "text")
    (folder / "kept").write_text("kept")
    (folder / "vocab.json").symlink_to(mine / "one")
    with files.into_folder(downloaded, "text") as room:
        (room / "vocab.json").write_text("new")
        (room / "more").mkdir()
        (room / "more" / "a").write_text("a")
    assert (folder / "vocab.json").read_text() == "new"
    assert (folder / "more" / "a").read_text() == "a"
    assert sorted(path.name for path in folder.iterdir()) == ["kept", "more", "vocab.json"]
    assert contents(mine) == {"one": "precious"}


def test_what_killed_processes_left_is_removed_but_not_through_links(mine: Path, downloaded: Path) -> None:
    files.hidden(downloaded / "step-1.ckpt").mkdir()
    files.hidden(downloaded / "step-1.ckpt").touch()
    files.hidden(downloaded / "step-1.ckpt").symlink_to(mine)
    (downloaded / "step-1.ckpt").touch()
    files.hidden(downloaded / "other").touch()
    files.remove_parts(downloaded, "step-*.ckpt")
    assert sorted(path.name.split(".")[1] for path in downloaded.iterdir()) == ["ckpt", "other"]
    assert contents(mine) == {"one": "precious"}


def test_a_private_folder_is_gone_when_its_block_ends() -> None:
    with files.private_folder({"a.json": b"{}", "b.txt": b""}) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.txt"]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and (folder / "a.json").read_bytes() == b"{}"
    assert not folder.exists()
    for name in ("../a", "a/b", "", "."):
        with pytest.raises(files.LinkError, match="is no name of a file"), files.private_folder({name: b""}):
            pass
