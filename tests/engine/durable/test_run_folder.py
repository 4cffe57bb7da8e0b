"""Run folders in stores that fail, fall silent, or hold names that lead elsewhere."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cloc.config import ConfigError
from cloc.engine.durable.run_folder import RunFolder, StoreError
from cloc.files import LinkError

URL = "memory://me:S3cret@bucket/run"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    found = RunFolder("memory://bucket/run")
    found.make()
    yield found
    fsspec.filesystem("memory").store.clear()


class Failing:
    """A store whose every call raises what shows its secrets, or never returns."""

    protocol, has_limits = "failing", False

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> None:
            if self.silent:
                time.sleep(5)
            raise RuntimeError("url='http://me:S3cret@h?k=S3cret',\n headers={'Authorization': 'Basic S3cret'}")

        return call


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: folder.names(),
        lambda folder: folder.fetch("step-00000001.ckpt"),
        lambda folder: folder.publish("step-00000001.ckpt"),
        lambda folder: folder.push(),
        lambda folder: folder.pull(),
        lambda folder: folder.set_aside("step-00000001.ckpt"),
        lambda folder: folder.remove("step-00000001.ckpt"),
    ],
)
@pytest.mark.parametrize("silent", [False, True])
def test_a_store_that_fails_is_told_in_a_line(call: Any, silent: bool, folder: RunFolder) -> None:
    (folder.local / "checkpoints").mkdir()
    for name in ("checkpoints/step-00000001.ckpt", "config.yaml"):
        (folder.local / name).write_bytes(b"1")
    folder.store, folder.timeout = Failing(silent), 0.05
    with pytest.raises(StoreError, match="memory://bucket/run: .*nothing came in time|RuntimeError") as caught:
        call(folder)
    assert isinstance(caught.value, OSError)  # a checkpoint that cannot be uploaded does not end a run
    assert "S3cret" not in "".join(traceback.format_exception(caught.value)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "../../outside", "tensorboard/../../../outside"])
def test_names_in_a_store_do_not_lead_out(name: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store takes any name; one of a checkpoint's files is written by the store's own routine."""
    path = f"/bucket/run/{name}"
    about = {path: {"name": path, "size": 1, "type": "file"}}
    monkeypatch.setattr(type(folder.store), "exists", lambda *_: True)
    monkeypatch.setattr(type(folder.store), "find", lambda *_, **__: about)
    monkeypatch.setattr(type(folder.store), "get_file", lambda self, source, target: Path(target).write_text("x"))
    with pytest.raises((StoreError, LinkError), match=r"'\.\.' is no name of a folder"):
        folder.pull()
    path = f"/bucket/run/checkpoints/step-00000001.ckpt/{name}"
    about[path] = about[next(iter(about))]
    with pytest.raises(StoreError, match="lead out of it"):
        folder.fetch("step-00000001.ckpt")
    assert not list(folder.local.parent.parent.rglob("outside"))


def test_the_lock_is_no_file_of_the_store(folder: RunFolder) -> None:
    folder.store.pipe("/bucket/run/run.lock", b"theirs")
    folder.store.pipe("/bucket/run/config.yaml", b"a: 1")
    folder.pull()
    assert [path.name for path in folder.local.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("url", ["http://host/run", "https://me:S3cret@host/run?t=S3cret"])
def test_http_is_not_written(url: str) -> None:
    with pytest.raises(ConfigError, match="HTTP is read, not written") as caught:
        RunFolder(url)
    assert "S3cret" not in str(caught.value)


def test_the_local_copy_is_the_users_own(folder: RunFolder, tmp_path: Path) -> None:
    assert folder.local.parent.stat().st_mode & 0o777 == 0o700
    os.chmod(folder.local.parent, 0o777)
    with pytest.raises(ConfigError, match="is open to other users; set TMPDIR"):
        folder.make()
    os.rename(folder.local.parent, tmp_path / "elsewhere")
    folder.local.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LinkError):
        folder.make()


def test_a_location_is_told_without_credentials() -> None:
    folder = RunFolder(URL)
    assert folder.location == "memory://bucket/run"
    assert folder.local == RunFolder("memory://other:0ther@bucket/run").local
    assert RunFolder("runs/x").local == Path("runs/x")
