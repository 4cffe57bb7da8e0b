"""Tars as other systems and tools leave them: hidden files of a Mac, unsorted, compressed, with dots in names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cloc.data.convert.conversion import convert
from cloc.data.inspect.check import Check, check
from cloc.data.inspect.check_report import next_commands, print_check, to_json
from cloc.data.jobs.shard_index import index
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.index import load_manifest
from cloc.data.shards.opening import open_shards
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.shards.tars import ShardError
from tests.kit.landscapes import jpeg, landscape

Members = list[tuple[str, bytes]]


def sample(key: str, seed: int = 0) -> Members:
    return [(f"{key}.jpg", jpeg(landscape(seed))), (f"{key}.txt", f"view {seed}".encode())]


def tar_bytes(members: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.parent


THREE = [*sample("0000", 0), *sample("0001", 1), *sample("0002", 2)]
UNSORTED = [member for end in ("jpg", "txt") for member in THREE if member[0].endswith(end)]


def apple(members: Members) -> Members:
    """As a Mac's tar writes them: a file of its own before each, and a folder of such."""
    doubled = [pair for name, data in members for pair in ((f"data/._{name}", b"Mac OS X"), (f"data/{name}", data))]
    return [("._data", b"Mac OS X"), *doubled, ("__MACOSX/data/0000.jpg", b"Mac OS X"), ("data/.DS_Store", b"x")]


def report(found: Check) -> str:
    out = io.StringIO()
    print_check(found, Console(file=out, width=200, color_system=None))
    return out.getvalue()


def whole(folder: Path) -> dict[str, tuple[bytes, tuple[str, ...]]]:
    stored = [one.need() for one in each_sample(ShardReader(load_manifest(folder)))]
    return {one.key: (bytes(one.image), one.captions) for one in stored}


EXPECTED = {f"000{i}": (jpeg(landscape(i)), (f"view {i}",)) for i in range(3)}


def test_a_macs_hidden_files_are_skipped_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "set" / "000.tar", tar_bytes(apple(THREE)))
    write(folder / "._000.tar", b"Mac OS X")
    found = check(folder)
    assert found.ok and found.usable == 3 and found.hidden == 9
    assert "9 members skipped" in report(found) and to_json(found)["hidden_members"] == 9
    assert {key: value for key, value in whole(folder).items()} == {f"data/{key}": EXPECTED[key] for key in EXPECTED}
    (folder / "manifest.json").unlink()
    assert index(folder).manifest is not None
    assert caplog.text.count("9 members skipped") == 1
    assert convert("grit", folder, tmp_path / "out").report.counts["samples"] == 3
    assert caplog.text.count("9 members skipped") == 2


def test_training_on_a_macs_tar_tells_what_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "set" / "000.tar", tar_bytes(apple(THREE)))
    assert open_shards(str(folder / "000.tar"), ShardCache(tmp_path / "cache")).samples == 3
    assert "9 members skipped" in caplog.text


def test_an_unsorted_tar_is_named_and_joined(tmp_path: Path) -> None:
    folder = write(tmp_path / "set" / "000.tar", tar_bytes(UNSORTED))
    write(folder / "001.tar", tar_bytes(sample("0003", 3)))
    with pytest.raises(ShardError, match=r"'0000' do not lie side by side.*tar --sort=name"):
        load_manifest(folder)
    found = check(folder)
    assert not found.ok and "side by side" in found.broken["000.tar"] and found.samples == 1
    assert "--fix" in next_commands(found, "")[0]
    fixed = check(folder, fix=tmp_path / "fixed")
    assert fixed.fixed is not None and fixed.fixed.samples == 4
    assert whole(tmp_path / "fixed") == EXPECTED | {"0003": (jpeg(landscape(3)), ("view 3",))}
    assert check(tmp_path / "fixed").ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed", "set"]  # nothing else is left


def test_a_key_that_really_comes_twice_is_not_joined(tmp_path: Path) -> None:
    folder = write(tmp_path / "set" / "000.tar", tar_bytes([*THREE, *sample("0000", 4)]))
    found = check(folder, fix=tmp_path / "fixed")
    assert "comes twice" in found.broken["000.tar"] and not found.rewritable


def test_members_that_come_twice_among_unsorted_ones_stay_broken(tmp_path: Path) -> None:
    folder = write(tmp_path / "set" / "000.tar", tar_bytes([*UNSORTED, ("0000.jpg", b"other")]))
    found = check(folder, fix=tmp_path / "fixed")
    assert "comes twice" in found.broken["000.tar"] and found.fixed is None


PACKED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    ".tar.gz": (gzip.compress, "gzip"),
    ".tgz": (gzip.compress, "gzip"),
    ".tar.bz2": (bz2.compress, "bzip2"),
    ".tar.xz": (lzma.compress, "xz"),
}


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_tars_are_named_and_unpacked(ending: str, tmp_path: Path) -> None:
    pack, kind = PACKED[ending]
    folder = write(tmp_path / "set" / f"000{ending}", pack(tar_bytes(UNSORTED)))
    cache = ShardCache(tmp_path / "cache")
    calls: list[Callable[[], object]] = [
        lambda: check(folder),
        lambda: index(folder),
        lambda: load_manifest(folder),
        lambda: open_shards(str(folder), cache),
        lambda: open_shards(str(folder / f"000{ending}"), cache),
        lambda: open_shards(f"https://localhost/000{ending}?download=true", cache),
        lambda: convert("grit", folder, tmp_path / "out"),
    ]
    for call in calls:
        with pytest.raises((ShardError, FileNotFoundError), match=f"{kind}-compressed"):
            call()
    fixed = check(folder, fix=tmp_path / "fixed")
    assert kind in fixed.broken[f"000{ending}"] and whole(tmp_path / "fixed") == EXPECTED


def test_gzip_under_the_name_tar(tmp_path: Path) -> None:
    folder = write(tmp_path / "set" / "000.tar", gzip.compress(tar_bytes(THREE)))
    with pytest.raises(ShardError, match="gzip-compressed"):
        load_manifest(folder)
    fixed = check(folder, fix=tmp_path / "fixed")
    assert "gzip-compressed" in fixed.broken["000.tar"] and "000.tar" in fixed.rewritable
    assert whole(tmp_path / "fixed") == EXPECTED
    with pytest.raises(ValueError, match="more than"):
        convert("grit", folder, tmp_path / "out")


def test_a_cut_gzip_and_zstd_are_told_by_fix(tmp_path: Path) -> None:
    folder = write(tmp_path / "set" / "000.tar.gz", gzip.compress(tar_bytes(THREE))[:-200])
    write(folder / "001.tar.zst", b"\x28\xb5\x2f\xfd" + b"x" * 600)
    write(folder / "002.tar", tar_bytes(sample("0003", 3)))
    found = check(folder, fix=tmp_path / "fixed")
    assert "cannot be unpacked" in found.broken["000.tar.gz"] and "unzstd" in found.broken["001.tar.zst"]
    assert list(whole(tmp_path / "fixed")) == ["0003"]


def test_tars_packed_twice_under_two_endings_are_both_written(tmp_path: Path) -> None:
    folder = write(tmp_path / "set" / "000.tar.gz", gzip.compress(tar_bytes(sample("a", 0))))
    write(folder / "000.tgz", gzip.compress(tar_bytes(sample("b", 1))))
    check(folder, fix=tmp_path / "fixed")
    assert list(whole(tmp_path / "fixed")) == ["a", "b"]


def test_a_packed_tar_beside_its_plain_one_is_no_fault(tmp_path: Path) -> None:
    folder = write(tmp_path / "set" / "000.tar", tar_bytes(THREE))
    write(folder / "000.tar.gz", gzip.compress(tar_bytes(THREE)))
    assert check(folder).ok


def test_dots_follow_webdatasets_rule_and_are_told(tmp_path: Path) -> None:
    members = [*sample("a.b/0001", 0), ("a.b/0001.v2.jpg", jpeg(landscape(1))), *sample("a.b/0002", 2)]
    folder = write(tmp_path / "set.v1" / "000.tar", tar_bytes(members))
    found = check(folder)
    assert found.tally.keys == ["a.b/0001", "a.b/0002"] and found.usable == 2
    assert "1 picture not read (a.b/0001.v2.jpg)" in report(found) and to_json(found)["second_dot"] == 1
    assert whole(folder)["a.b/0001"][0] == jpeg(landscape(0))
