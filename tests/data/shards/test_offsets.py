"""The index of a set: offsets beside the manifest, mapped or fetched shard by shard, handed from process to process."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from cloc.data.inspect.check import check
from cloc.data.shards import offsets as module
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.index import load_manifest, write_manifest
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest, parse_manifest
from cloc.data.shards.offsets import HEADER_BYTES, OFFSETS_NAME, MappedOffsets, RemoteOffsets
from cloc.data.shards.opening import open_shards
from cloc.data.shards.patterns import urls_of
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.saved_table import load_table, save_table
from cloc.data.shards.shard_table import ShardTable
from cloc.data.shards.stores import Access
from cloc.data.shards.tars import ShardError, ShardInfo, ShardReadError
from tests.kit.hostile_http import serving
from tests.kit.manifests import version_one
from tests.kit.streams import make_manifest

URL = "memory://bucket/index"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards of at most five samples."""
    return make_manifest(tmp_path_factory.mktemp("index") / "set").folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    (tmp_path / "set").mkdir()
    for file in whole.iterdir():
        (tmp_path / "set" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "set"


@pytest.fixture
def remote(folder: Path) -> Iterator[Path]:
    """The folder whose files are also behind ``URL``."""
    system = fsspec.filesystem("memory")
    for file in folder.iterdir():
        system.pipe(f"/bucket/index/{file.name}", file.read_bytes())
    yield folder
    system.store.clear()


def parse(folder: Path) -> Manifest:
    """The manifest, without a look at the shards."""
    return parse_manifest((folder / MANIFEST_NAME).read_bytes(), str(folder / MANIFEST_NAME), folder)


def everything(manifest: Manifest, cache: ShardCache | None = None) -> list[bytes]:
    reader = ShardReader(manifest, cache=cache)
    return [reader.read(*place) for place in manifest.places()]


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_sample_takes_eight_bytes_and_the_manifest_none(whole: Path) -> None:
    manifest = load_manifest(whole)
    size = (whole / OFFSETS_NAME).stat().st_size
    assert size == HEADER_BYTES + 8 * (manifest.samples + len(manifest.shards))
    record = json.loads((whole / MANIFEST_NAME).read_text())
    assert record["version"] == 2 and "offsets" not in record["shards"][0]
    numbers = np.frombuffer((whole / OFFSETS_NAME).read_bytes(), "<u8", offset=HEADER_BYTES)
    assert numbers.tolist() == [offset for shard in manifest.shards for offset in shard.offsets]


def rewritten(place: int, form: str, value: int) -> Callable[[bytes], bytes]:
    size = struct.calcsize(form)
    return lambda data: data[:place] + struct.pack(form, value) + data[place + size :]


def other_order(data: bytes) -> bytes:
    """What a program that writes numbers as a big-endian machine holds them would have made."""
    magic, order, version, count, digest = struct.unpack("<8sIIQQ", data[:HEADER_BYTES])
    numbers = np.frombuffer(data, "<u8", offset=HEADER_BYTES).astype(">u8")
    return struct.pack(">8sIIQQ", magic, order, version, count, digest) + numbers.tobytes()


WRONG: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another byte order": (other_order, "big-endian numbers, this program reads little-endian ones"),
    "an unknown byte order": (rewritten(8, "<I", 7), "numbers of an unknown byte order"),
    "another version": (rewritten(12, "<I", 99), "version 99 of offsets, this program reads 1"),
    "more numbers": (rewritten(16, "<Q", 29), "29 numbers, the manifest beside it asks for 28"),
    "of another manifest": (rewritten(24, "<Q", 5), "28 numbers of another manifest"),
    "cut off": (lambda data: data[:-8], "248 bytes, 28 offsets take 256"),
    "too long": (lambda data: data + bytes(8), "264 bytes, 28 offsets take 256"),
    "a header cut off": (lambda data: data[:20], "not a file of offsets"),
    "empty": (lambda data: b"", "not a file of offsets"),
    "something else": (lambda data: b"<html>404</html>" * 16, "not a file of offsets"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("where", ["local", "remote", "remote, by ranges"])
def test_a_file_that_is_not_the_manifests_is_refused_in_a_line(
    name: str, where: str, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, told = WRONG[name]
    data = change((remote / OFFSETS_NAME).read_bytes())
    (remote / OFFSETS_NAME).write_bytes(data)
    fsspec.filesystem("memory").pipe(f"/bucket/index/{OFFSETS_NAME}", data)
    by_ranges = where == "remote, by ranges"
    if by_ranges:
        monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    if by_ranges and name in ("cut off", "too long"):
        return  # a shard that needs what is missing tells; what is behind the end is never asked for
    with pytest.raises(ShardError, match=rf"manifest\.offsets: {told}|it has more than the 256 bytes") as caught:
        open_shards(str(remote) if where == "local" else URL, ShardCache(tmp_path / "cache"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["nothing", "a pipe", "a folder"])
def test_offsets_that_are_no_file_are_told(what: str, folder: Path) -> None:
    path = folder / OFFSETS_NAME
    path.unlink()
    if what != "nothing":
        os.mkfifo(path) if what == "a pipe" else path.mkdir()
    told = "is not there" if what == "nothing" else "cannot be read"
    with pytest.raises(ShardError, match=rf"manifest\.offsets: {told}.*rebuild"):
        load_manifest(folder)


def test_offsets_without_remote_file_are_told(remote: Path, tmp_path: Path) -> None:
    fsspec.filesystem("memory").rm(f"/bucket/index/{OFFSETS_NAME}")
    with pytest.raises(ShardError, match=r"manifest\.offsets: is not there.*rebuild"):
        open_shards(URL, ShardCache(tmp_path / "cache"))


def test_new_offsets_beside_an_old_manifest_are_refused(folder: Path) -> None:
    """What a process leaves that is killed between the two files."""
    before = (folder / MANIFEST_NAME).read_bytes()
    (folder / "shard-000004.tar").unlink()
    manifest = load_manifest(make_without(folder))
    write_manifest(manifest)
    (folder / MANIFEST_NAME).write_bytes(before)
    with pytest.raises(ShardError, match=r"manifest\.offsets: 24 numbers, the manifest beside it asks for 28"):
        load_manifest(folder)


def make_without(folder: Path) -> Path:
    for name in (MANIFEST_NAME, OFFSETS_NAME):
        (folder / name).unlink()
    return folder


def test_more_samples_than_a_shard_has_room_for_are_refused_before_memory_is_taken(folder: Path) -> None:
    record = json.loads((folder / MANIFEST_NAME).read_text())
    for samples in (2**40, record["shards"][1]["bytes"] // 512 + 1):
        record["shards"][1]["samples"] = samples
        with pytest.raises(ShardError, match=rf"shard-000001\.tar has {samples:,} samples, too many for [\d,]+ bytes"):
            parse_manifest(json.dumps(record), "manifest.json", folder)


# --- when a shard is used ---------------------------------------------------------------------------------------------


def test_damage_is_noticed_at_the_first_use_of_its_shard_and_of_no_other(folder: Path) -> None:
    data = bytearray((folder / OFFSETS_NAME).read_bytes())
    data[HEADER_BYTES + 8 * 8] ^= 1  # in the second shard
    (folder / OFFSETS_NAME).write_bytes(data)
    reader = ShardReader(parse(folder))
    reader.read(0, 0)
    with pytest.raises(
        ShardReadError, match=r"the offsets of shard-000001\.tar are not those of its manifest.*rebuild"
    ):
        reader.read(1, 0)
    with pytest.raises(ShardError, match=r"shard-000001\.tar are not those"):
        load_manifest(folder)
    reader.read(2, 0)


@pytest.mark.parametrize("numbers", [(0, 4096, 2048), (0, 2048, 10**9), (0, 2**64 - 1, 2**64 - 1)])
def test_offsets_that_do_not_fit_their_shard_are_refused_though_their_checksum_is_right(
    numbers: tuple[int, ...], folder: Path
) -> None:
    infos = [*load_manifest(folder).shards]
    infos[1] = ShardInfo("shard-000001.tar", 2, 0, infos[1].bytes, infos[1].sha256, numbers)
    write_manifest_unchecked(Manifest.of(folder, infos, ()))
    with pytest.raises(ShardReadError, match=r"shard-000001\.tar do not ascend within its [\d,]+ bytes.*rebuild"):
        ShardReader(parse(folder)).read(1, 0)


def write_manifest_unchecked(manifest: Manifest) -> None:
    manifest.shards._sound[:] = b"\1" * len(manifest.shards)
    write_manifest(manifest)


def test_a_sample_that_a_shard_has_not_is_an_error(whole: Path) -> None:
    with pytest.raises(IndexError, match="5 samples, there is no sample 5"):
        load_manifest(whole).shards.span(0, 5)


def test_what_another_host_was_to_look_at_is_checked_when_it_is_read(folder: Path) -> None:
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    manifest = load_manifest(folder, (0, 2))
    assert [manifest.shards.checked(number) for number in range(5)] == [True, False, True, False, True]
    for reader in (ShardReader(manifest), pickle.loads(pickle.dumps(ShardReader(manifest)))):  # noqa: S301
        assert reader.read(0, 0) and reader.read(3, 0)
        with pytest.raises(ShardReadError, match=r"shard-000001\.tar: the shard has .* bytes, its manifest says"):
            reader.read(1, 0)
    with pytest.raises(ShardError, match=r"shard-000001\.tar"):
        load_manifest(folder, (1, 2))


def test_a_worker_gets_the_path_and_maps_it_itself(whole: Path) -> None:
    manifest = load_manifest(whole)
    (store,) = manifest.shards.stores
    assert isinstance(store, MappedOffsets)
    manifest.shards.span(0, 0)
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert store._numbers is not None and again._numbers is None
    assert everything(pickle.loads(pickle.dumps(manifest))) == everything(manifest)  # noqa: S301


def test_a_worker_that_maps_another_file_than_was_opened_says_so(folder: Path) -> None:
    manifest = parse(folder)
    (folder / OFFSETS_NAME).write_bytes(WRONG["of another manifest"][0]((folder / OFFSETS_NAME).read_bytes()))
    with pytest.raises(ShardReadError, match="of another manifest"):
        manifest.shards.span(0, 0)


# --- manifests of version 1 -------------------------------------------------------------------------------------------


def test_a_manifest_of_version_one_is_read_and_renewed(folder: Path, whole: Path) -> None:
    expected = load_manifest(whole)
    assert version_one(folder)["version"] == 1
    old = load_manifest(folder)
    assert old.shards == expected.shards and everything(old) == everything(expected)
    assert (old.digest, old.samples, old.regions) == (expected.digest, expected.samples, expected.regions)
    found = check(folder)
    assert found.ok and found.manifest_written
    for name in (MANIFEST_NAME, OFFSETS_NAME):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert not check(folder).manifest_written


# --- behind URLs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Byte ranges of offsets that were requested."""
    ranges: list[tuple[int, int]] = []
    one, many = module.read_range, module.read_ranges

    def read_range(url: str, start: int, stop: int, access: Access) -> bytes:
        ranges.append((start, stop))
        return one(url, start, stop, access)

    def read_ranges(places: list[tuple[str, int, int]], access: Access) -> list[bytes | None]:
        ranges.extend((start, stop) for _, start, stop in places)
        return many(places, access)

    monkeypatch.setattr(module, "read_range", read_range)
    monkeypatch.setattr(module, "read_ranges", read_ranges)
    monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    return ranges


def test_of_remote_offsets_only_the_shards_that_are_read_are_fetched_and_once_a_host(
    remote: Path, tmp_path: Path, asked: list[tuple[int, int]]
) -> None:
    cache = ShardCache(tmp_path / "cache")
    manifest = open_shards(URL, cache)
    expected = load_manifest(remote)
    assert isinstance(manifest.shards.stores[0], RemoteOffsets) and asked == [(0, HEADER_BYTES)]
    assert manifest.shards.span(2, 1) == expected.shards.span(2, 1)
    assert manifest.shards.span(2, 3) == expected.shards.span(2, 3)
    assert asked[1:] == [(HEADER_BYTES + 8 * 12, HEADER_BYTES + 8 * 18)]
    other = pickle.loads(pickle.dumps(manifest))  # noqa: S301  (another process of the host)
    assert other.shards.span(2, 0) == expected.shards.span(2, 0) and len(asked) == 2
    other.shards.bring([0, 2, 4])
    assert len(asked) == 4
    assert manifest.shards.offsets(4).tolist() == list(expected.shards[4].offsets) and len(asked) == 4
    assert everything(manifest, cache) == everything(expected) and len(asked) == 6


def test_a_mirror_that_was_damaged_or_planted_is_not_believed(
    remote: Path, tmp_path: Path, asked: list[tuple[int, int]]
) -> None:
    cache = ShardCache(tmp_path / "cache")
    expected, manifest = load_manifest(remote), open_shards(URL, cache)
    manifest.shards.bring(range(5))
    (mirror,) = (cache.folder / "offsets").iterdir()
    data = bytearray(mirror.read_bytes())
    data[HEADER_BYTES + 3] ^= 1
    mirror.write_bytes(data)
    count = len(asked)
    assert everything(open_shards(URL, cache), cache) == everything(expected)
    assert len(asked) == count + 2  # the header, and the shard
    mirror.unlink()
    outside = tmp_path / "precious"
    outside.write_text("untouched")
    mirror.symlink_to(outside)
    assert everything(open_shards(URL, cache), cache) == everything(expected)
    assert outside.read_text() == "untouched"


def test_remote_offsets_that_are_damaged_cost_their_shard(
    remote: Path, tmp_path: Path, asked: list[tuple[int, int]]
) -> None:
    data = (remote / OFFSETS_NAME).read_bytes()[:-8]
    fsspec.filesystem("memory").pipe(f"/bucket/index/{OFFSETS_NAME}", data)
    manifest = open_shards(URL, ShardCache(tmp_path / "cache"))
    manifest.shards.span(0, 0)
    with pytest.raises(ShardReadError, match=r"the offsets of shard-000004\.tar are not those of its manifest"):
        manifest.shards.span(4, 0)


@pytest.mark.parametrize("change", ["a bit", "cut", "half a number", "nothing"])
@pytest.mark.parametrize("mirror", ["kept", "of a full disk", "of another user"])
def test_offsets_that_came_wrong_are_asked_for_once_more(
    change: str, mirror: str, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    cache, usual, calls = ShardCache(tmp_path / "cache", 0), module.read_range, []
    manifest, expected = open_shards(URL, cache), everything(load_manifest(remote))

    def changed(url: str, start: int, stop: int, access: Access) -> bytes:
        data = usual(url, start, stop, access)
        calls.append(1)
        if len(calls) % 2:
            ways = {"a bit": bytes([data[0] ^ 1]) + data[1:], "cut": data[:8], "half a number": data[:-4]}
            data = ways.get(change, b"")
        return data

    def fail(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "read_range", changed)
    monkeypatch.setattr(module, "_RECENT", 1)
    if mirror != "kept":
        monkeypatch.setattr(module, "reopen", fail)
    if mirror == "of another user":
        monkeypatch.setattr(module, "open_plain", fail)
    assert everything(manifest, cache) == everything(manifest, cache) == expected
    assert len(calls) == (10 if mirror == "kept" else 20)


def test_offsets_that_came_wrong_twice_are_right_the_next_time(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    cache, usual = ShardCache(tmp_path / "cache", 0), module.read_range
    reader = ShardReader(open_shards(URL, cache), cache=cache)
    monkeypatch.setattr(module, "read_range", lambda url, start, stop, access: b"<html>busy</html>")
    with pytest.raises(ShardReadError, match=r"the offsets of shard-000001\.tar are not those of its manifest"):
        reader.read(1, 0)
    monkeypatch.setattr(module, "read_range", usual)
    assert not reader.given_up(1)
    assert reader.read(1, 0) == ShardReader(load_manifest(remote)).read(1, 0)


def test_a_server_without_ranges_gives_the_whole_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHOLE_BYTES", 0)

    def without_ranges(request: Any) -> bool:
        path = folder / request.path.rpartition("/")[2]
        return request.reply(200, path.read_bytes()) if path.is_file() else request.reply(404)

    with serving(folder, without_ranges) as server:
        cache = ShardCache(tmp_path / "cache")
        assert everything(open_shards(server.url, cache), cache) == everything(load_manifest(folder))


# --- columns, and handing over ----------------------------------------------------------------------------------------


def test_a_table_is_the_sequence_of_its_shards(whole: Path) -> None:
    table = load_manifest(whole).shards
    infos = tuple(table)
    assert len(infos) == 5 and table == infos == ShardTable.of(infos) == ShardTable.of(table)
    assert table[-1] == infos[4] and table[1:3] == infos[1:3] and table[np.int64(2)] == infos[2]
    assert (table.names(), table.total("samples")) == ([info.name for info in infos], sum(i.samples for i in infos))
    assert table.take([3, 1]) == (infos[3], infos[1])
    assert ShardTable.of(()) == () and list(ShardTable.of(())) == []
    twice = ShardTable.joined([(table, "a/"), (ShardTable.of(infos[:2]), "b/")])
    assert twice.name(6) == "b/shard-000001.tar" and twice[6].offsets == infos[1].offsets
    assert twice.take([6, 0])[0].offsets == infos[1].offsets
    with pytest.raises(IndexError):
        table[5]
    many = [(ShardTable.of(()), ""), (table.take([0]), "")] * 65535
    assert len(ShardTable.joined(many)) == 65535
    with pytest.raises(ShardError, match="65,536 indexes in one pattern, 65,535 at most"):
        ShardTable.joined([*many, (table, "")])
    assert table != infos[:4] and table.records.itemsize == 96


@pytest.mark.parametrize("kind", ["mapped", "held", "remote", "remote, by ranges", "two folders"])
def test_what_one_process_opened_another_takes_from_a_file(
    kind: str, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "remote, by ranges":
        monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    if kind == "held":
        version_one(remote)
    path = URL if kind.startswith("remote") else str(remote)
    if kind == "two folders":
        make_manifest(tmp_path / "other", count=4, shards=2)
        path = str(tmp_path / "{set,other}")
    cache = ShardCache(tmp_path / "cache")
    opened = open_shards(path, cache)
    file = save_table(opened, tmp_path / "tables", urls_of(path))
    monkeypatch.setattr(Path, "stat", lambda self, **options: pytest.fail(f"{self} was looked at"))
    taken, _ = load_table(file, urls_of(path), cache)
    monkeypatch.undo()
    assert taken == opened and (taken.digest, taken.remote) == (opened.digest, opened.remote)
    sent = pickle.dumps(taken)
    assert len(sent) < 1500
    for manifest in (taken, pickle.loads(sent)):  # noqa: S301
        assert everything(manifest, cache) == everything(opened, cache)
    assert file == save_table(opened, tmp_path / "tables", urls_of(path))


def test_credentials_stay_out_of_the_file(folder: Path, tmp_path: Path) -> None:
    with serving(folder) as server:
        path = server.url.replace("//", "//user:S3cret@")
        cache = ShardCache(tmp_path / "cache")
        opened = open_shards(path, cache)
        file = save_table(opened, tmp_path / "tables", urls_of(path))
        assert b"S3cret" not in file.read_bytes()
        taken, _ = load_table(file, urls_of(path), cache)
        assert taken.remote == path and everything(taken, cache) == everything(opened, cache)


@pytest.mark.parametrize("change", ["cut", "longer", "garbage", "empty", "absent", "link", "pipe", "another user"])
def test_a_file_that_is_not_whole_is_not_taken(change: str, whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    file = save_table(load_manifest(whole), tmp_path / "tables")
    data = file.read_bytes()
    file.unlink()
    if change == "link":
        (tmp_path / "other").write_bytes(data)
        file.symlink_to(tmp_path / "other")
    elif change == "pipe":
        os.mkfifo(file)
    elif change != "absent":
        changed = {"cut": data[:-1], "longer": data + b"x", "garbage": b"\xff" * len(data), "empty": b""}
        file.write_bytes(changed.get(change, data))
    if change == "another user":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ShardError):
        load_table(file, (), ShardCache(tmp_path))
