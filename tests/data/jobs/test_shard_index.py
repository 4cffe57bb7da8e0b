"""``data index``: the same bytes by one process or in parts, and nothing done twice."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloc.__main__ import app
from cloc.data.jobs import shard_index
from cloc.data.jobs.shard_index import PARTS_NAME, Part, index
from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import MANIFEST_NAME
from cloc.data.shards.offsets import OFFSETS_NAME
from cloc.data.shards.tars import ShardError
from tests.fuzz import mutate
from tests.kit.manifests import version_one
from tests.kit.streams import make_manifest

FILES = (MANIFEST_NAME, OFFSETS_NAME)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten shards of two samples, with their manifest."""
    return make_manifest(tmp_path_factory.mktemp("index") / "set", count=20, shards=10).folder


@pytest.fixture
def bare(whole: Path, tmp_path: Path) -> Path:
    """A copy without a manifest."""
    return Path(shutil.copytree(whole, tmp_path / "set", ignore=shutil.ignore_patterns(*FILES)))


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that were read."""
    names: list[str] = []
    scan = shard_index.scan_shard
    monkeypatch.setattr(shard_index, "scan_shard", lambda path: (names.append(path.name), scan(path))[1])
    return names


def assert_indexed(folder: Path, whole: Path) -> None:
    for name in FILES:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert not (folder / PARTS_NAME).exists()


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_parts_in_any_order_make_the_bytes_of_one_run(
    order: tuple[int, ...], bare: Path, whole: Path, scanned: list[str]
) -> None:
    for number in order[:-1]:
        done = index(bare, Part(number, 3))
        assert done.manifest is None and number not in done.missing
        assert not any((bare / name).exists() for name in FILES)
        assert index(bare, Part(number, 3)).shards == 0  # nothing is done twice
    last = index(bare, Part(order[-1], 3))
    assert last.written and last.manifest is not None and last.manifest.samples == 20
    assert_indexed(bare, whole)
    assert sorted(scanned) == sorted(path.name for path in bare.glob("*.tar"))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.distributed)])
def test_one_run_makes_what_the_writer_made(workers: int, bare: Path, whole: Path) -> None:
    assert index(bare, workers=workers).shards == 10
    assert_indexed(bare, whole)


def test_more_parts_than_shards_are_no_problem(bare: Path, whole: Path) -> None:
    for number in range(1, 16):
        done = index(bare, Part(number, 15))
    assert done.written
    assert_indexed(bare, whole)


def test_shards_that_changed_since_are_read_again(bare: Path, scanned: list[str]) -> None:
    index(bare, Part(1, 2))
    scanned.clear()
    shutil.copy(bare / "shard-000009.tar", bare / "shard-000001.tar")  # other keys, in the first part
    done = index(bare, Part(2, 2))
    assert done.missing == (1,) and "part 1 of 2 is not there yet, or is of shards that have changed" in done.told
    scanned.clear()
    assert index(bare, Part(1, 2)).written and len(scanned) == 5
    assert load_manifest(bare).shards[1].sha256 == load_manifest(bare).shards[9].sha256


def test_a_shard_that_comes_meanwhile_moves_the_parts(bare: Path) -> None:
    index(bare, Part(1, 2))
    shutil.copy(bare / "shard-000009.tar", bare / "a.tar")
    assert index(bare, Part(2, 2)).missing == (1,)
    assert index(bare, Part(1, 2)).written
    assert load_manifest(bare).samples == 22


def test_a_damaged_shard_is_told_and_what_was_read_before_is_kept(bare: Path, whole: Path, scanned: list[str]) -> None:
    bad = bare / "shard-000007.tar"
    data = bad.read_bytes()
    bad.write_bytes(data[:1500])
    with pytest.raises(ShardError, match=r"shard-000007\.tar: not a whole tar"):
        index(bare)
    bad.write_bytes(data)
    scanned.clear()
    assert index(bare).written
    assert scanned == ["shard-000007.tar", "shard-000008.tar", "shard-000009.tar"]
    assert_indexed(bare, whole)


@pytest.mark.parametrize("damage", [b"", b"cloc-tab", b"\xff" * 4000, None])
def test_a_part_that_is_damaged_is_made_again(damage: bytes | None, bare: Path, whole: Path) -> None:
    index(bare, Part(1, 2))
    (path,) = (bare / PARTS_NAME).iterdir()
    data = path.read_bytes()
    path.write_bytes(data[:-9] if damage is None else damage)
    assert index(bare, Part(2, 2)).missing == (1,)
    assert index(bare, Part(1, 2)).written
    assert_indexed(bare, whole)


def test_a_manifest_that_is_there_is_kept_or_renewed_or_refused(
    whole: Path, tmp_path: Path, scanned: list[str]
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "set"))
    done = index(folder)
    assert not done.written and "there already, and fits" in done.told
    version_one(folder)
    assert index(folder).written and not scanned  # the shards are not read for it
    assert_indexed(folder, whole)
    (folder / "shard-000003.tar").rename(folder / "shard-000033.tar")
    with pytest.raises(ShardError, match=r"manifest\.json: it .*; rebuild"):
        index(folder)


@pytest.mark.parametrize("part", ["0/2", "3/2", "x", "1", "1/0", "-1/2", "1/2/3", ""])
def test_a_part_that_there_is_not_is_a_line(part: str, bare: Path) -> None:
    with pytest.raises(ValueError, match=r"--part .*the parts are 1/N, 2/N, … N/N"):
        Part.parse(part)


def test_the_command_says_what_is_missing_and_what_is_next(bare: Path, whole: Path) -> None:
    run = CliRunner().invoke
    first = run(app, ["data", "index", str(bare), "--part", "2/3"])
    assert first.exit_code == 0 and "parts 1, 3 of 3 are not there yet" in first.output
    assert f"data index {bare} --part 1/3" in first.output.replace("\n", "")
    assert run(app, ["data", "index", str(bare), "--part", "1/3"]).exit_code == 0
    last = run(app, ["data", "index", str(bare), "--part", "3/3"])
    assert f"wrote {bare / MANIFEST_NAME}: 20 samples in 10 shards" in last.output.replace("\n", "")
    assert_indexed(bare, whole)


@pytest.mark.parametrize("step", ["_missing", "write_manifest"])
def test_another_process_that_joins_the_parts_meanwhile(
    step: str, bare: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = getattr(shard_index, step)

    def late(*of: Any) -> Any:
        monkeypatch.undo()
        assert index(bare).written
        return usual(*of)

    monkeypatch.setattr(shard_index, step, late)
    done = index(bare)
    assert not done.written and not done.missing and "there already, and fits" in done.told
    assert_indexed(bare, whole)


def test_a_folder_that_cannot_be_written_is_a_line_where_something_is_to_be_written(
    bare: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Path(shutil.copytree(whole, tmp_path / "old"))
    version_one(old)
    monkeypatch.setattr(os, "access", lambda *_: False)
    for folder in (bare, old):
        with pytest.raises(ShardError, match=r"manifest\.json cannot be written here"):
            index(folder)
    assert "there already, and fits" in index(whole).told


def test_a_part_with_any_byte_changed_is_made_again(bare: Path, whole: Path) -> None:
    """All but the zeros between its sections."""
    index(bare, Part(1, 2))
    (path,) = (bare / PARTS_NAME).iterdir()
    data, rng = path.read_bytes(), random.Random(0)
    index(bare, Part(2, 3))  # of another number of parts: no use here, and no harm
    for _ in range(200):
        what, changed = mutate.damage(data, rng)
        path.write_bytes(changed)
        table, categories, stamps = shard_index._read_part(bare, Part(1, 2))
        try:
            kept = [table.offsets(number).tolist() for number in range(len(table))]
        except ShardError:
            continue  # the manifest would not be written
        if table.names():
            assert table == load_manifest(whole).shards[:5] and not categories and len(stamps) == 5, what
            assert kept == [list(info.offsets) for info in load_manifest(whole).shards[:5]]
