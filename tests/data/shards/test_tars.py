"""Tars of every make and every damage: read as ``tarfile`` reads them, or refused; never half, never for ever."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloc.data.convert.conversion import convert
from cloc.data.inspect.check import check
from cloc.data.shards.index import index_folder, load_manifest, write_manifest
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.scanning import index_damaged, index_shard
from cloc.data.shards.tars import ShardError, ShardInfo, read_sample_members
from cloc.files import open_file, read_file
from tests.data.test_bad_input import PNG, write_tar
from tests.kit.manifests import version_one

Samples = dict[str, dict[str, bytes]]
BLOCK = 512


def header(name: bytes, kind: bytes, content: bytes, **fields: bytes) -> bytes:
    """One member by hand; ``size`` replaces what the header says of it."""
    block = bytearray(BLOCK)
    size = fields.get("size", b"%011o\0" % len(content))
    block[: len(name)], block[124 : 124 + len(size)], block[156:157] = name, size, kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % BLOCK)


def pax(**records: str) -> bytes:
    lines = b""
    for key, value in records.items():
        record = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(record) + len(str(len(record) + 2))
        lines += b"%d%s" % (length, record)
    return header(b"pax", b"x", lines)


def file(name: str, content: bytes = b"content", **fields: bytes) -> bytes:
    return header(name.encode(), b"0", content, **fields)


PAIR = file("a.jpg") + file("a.txt", b"a chick")
END = bytes(2 * BLOCK)


def by_tarfile(path: Path) -> Samples:
    samples: Samples = {}
    with tarfile.open(path, "r:", ignore_zeros=True) as tar:
        for member in tar:
            key, dot, extension = member.name.partition(".")
            if member.isreg() and dot:
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return samples


def by_index(folder: Path) -> Samples:
    reader = ShardReader(index_folder(folder))
    places = [(shard, index) for shard, info in enumerate(reader.manifest.shards) for index in range(info.samples)]
    return dict(read_sample_members(reader.read(*place)) for place in places)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call returns or raises, which must not take longer."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:  # noqa: BLE001  (handed to the caller)
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, f"no answer after {seconds} s"
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


LONG = "n" * 300
GOOD: dict[str, bytes] = {
    "joined": PAIR + END + bytes(9000 // BLOCK * BLOCK) + file("b.jpg") + file("b.txt") + END,
    "joined within a sample": file("a.jpg") + END + file("a.txt") + END,
    "joined thrice, nothing in the middle": PAIR + END + END + file("b.jpg") + END,
    "long name by pax": pax(path=f"{LONG}.jpg", comment="c") + file("cut.jpg") + PAIR + END,
    "long name by GNU": header(b"././@LongLink", b"L", f"{LONG}.jpg\0".encode()) + file("cut.jpg") + PAIR + END,
    "long name, whose size says less": header(b"././@LongLink", b"L", b"long.jpg\0", size=b"00000000001\0")
    + file("cut.jpg")
    + PAIR
    + END,
    "long name without its zero": header(b"././@LongLink", b"L", b"x" * 1020 + b".jpg") + file("cut.jpg") + PAIR + END,
    "both; the first counts": pax(path="p.jpg") + header(b"l", b"L", b"l.jpg\0") + file("cut.jpg") + PAIR + END,
    "size by pax": pax(size="3") + file("a.jpg", b"content") + file("a.txt") + END,
    "pax record that says nothing of use": pax(mtime="1.5", SCHILY__xattr="v" * 5000) + PAIR + END,
    "global comment": header(b"g", b"g", b"17 comment=abcde\n") + PAIR + END,
    "size in base 256": file("a.jpg", b"content", size=b"\x80" + (7).to_bytes(11, "big")) + file("a.txt") + END,
    "size with spaces": file("a.jpg", b"content", size=b"     7 \0") + file("a.txt") + END,
    "empty files": file("a.jpg", b"") + file("a.txt", b"") + END,
    "folders, links and devices": b"".join(header(b"x.jpg", bytes((kind,)), b"") for kind in b"123456") + PAIR + END,
    "a kind that nobody knows, with content": header(b"x.jpg", b"V", b"content") + PAIR + END,
    "contiguous file": header(b"a.jpg", b"7", b"content") + file("a.txt") + END,
    "old header": header(b"a.jpg", b"\0", b"content") + header(b"folder.d/", b"\0", b"") + file("a.txt") + END,
    "name that is not UTF-8": header(b"\xff\xfe.jpg", b"0", b"content") + PAIR + END,
    "many zeros at the end": PAIR + bytes(40 * BLOCK),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_in_order_is_read_as_tarfile_reads_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(GOOD[name])
    expected = by_tarfile(tmp_path / "x.tar")
    assert within(20, lambda: by_index(tmp_path)) == expected and expected
    assert index_damaged(tmp_path / "x.tar").samples == len(expected)


NEGATIVE = b"\xff" * 8 + (-1024).to_bytes(4, "big", signed=True)
REFUSED: dict[str, tuple[bytes, str]] = {
    "negative size": (PAIR + file("b.jpg", size=NEGATIVE) + END, "a size of -1024"),
    "negative size in octal": (PAIR + file("b.jpg", size=b"-0000002000\0") + END, "a size of -1024"),
    "negative size by pax": (PAIR + pax(size="-1024") + file("b.jpg") + END, "a size of '-1024'"),
    "size of 300 digits by pax": (PAIR + pax(size="9" * 300) + file("b.jpg") + END, "a size of '999"),
    "size beyond the file": (PAIR + file("b.jpg", size=b"\x80" + (2**80).to_bytes(11, "big")) + END, "truncated"),
    "size that is no number": (PAIR + file("b.jpg", size=b"9" * 12) + END, "no tar header"),
    "checksum off by a prime": (PAIR + b"b" + file("c.jpg")[1:] + END, "no tar header"),
    "long names without end": (PAIR + header(b"l", b"L", b"l.jpg\0") * 1500 + file("b.jpg") + END, "more than"),
    "pax without end": (PAIR + pax(path="p.jpg") * 1500 + file("b.jpg") + END, "more than"),
    "giant pax header": (PAIR + pax(comment="c" * 2**21) + file("b.jpg") + END, "a header of"),
    "pax of digits alone": (PAIR + header(b"pax", b"x", b"1" * 900_000) + file("b.jpg") + END, "no pax record"),
    "pax record of length 0": (PAIR + header(b"pax", b"x", b"0 path=p\n") + file("b.jpg") + END, "no pax record"),
    "pax record beyond its header": (
        PAIR + header(b"pax", b"x", b"99 path=p\n") + file("b.jpg") + END,
        "no pax record",
    ),
    "name without a member": (PAIR + pax(path="p.jpg") + END, "no tar header"),
    "name for all members": (header(b"g", b"g", b"13 path=p.jpg"[:12] + b"\n") + PAIR + END, "names all members"),
    "sparse by GNU": (PAIR + header(b"b.jpg", b"S", b"content") + END, "sparse"),
    "sparse by pax": (PAIR + pax(GNU__sparse__major="1", GNU__sparse__minor="0") + file("b.jpg") + END, "sparse"),
    "garbage behind the end": (PAIR + END + b"<html>404</html>" * 64, "damaged at byte 3072"),
    "no zeros at the end": (PAIR, "no zeros follow byte 2,048"),
    "joined, the last one cut": (PAIR + END + file("b.jpg"), "no zeros follow"),
    "climbs out by pax": (PAIR + pax(path="x/../../b.jpg") + file("b.jpg") + END, "escapes"),
    "link that climbs out": (PAIR + header(b"../b", b"2", b"") + END, "escapes"),
    "member twice": (PAIR + file("a.txt") + END, "comes twice"),
    "sample again behind the end": (PAIR + END + file("b.jpg") + END + file("a.png") + END, "side by side"),
    "sample twice": (PAIR + file("b.jpg") + PAIR + END, "comes twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    data, said = REFUSED[name]
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ShardError, match=said) as caught:
        within(20, lambda: index_shard(tmp_path / "x.tar"))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path / "x.tar"))
    kept = within(20, lambda: index_damaged(tmp_path / "x.tar"))
    assert kept.samples <= 3 and list(kept.offsets) == sorted(kept.offsets)


@pytest.mark.parametrize("name", [name for name, (data, _) in REFUSED.items() if data.startswith(PAIR)])
def test_bytes_of_a_sample_that_are_none_are_refused(name: str, tmp_path: Path) -> None:
    """With a manifest nobody indexes: the bytes of a sample may be anything."""
    data, said = REFUSED[name]
    if said in ("escapes", "comes twice", "side by side", "no zeros follow", "no zeros follow byte 2,048", "sparse"):
        return  # of a whole shard
    with pytest.raises(ShardError, match="rebuild the manifest"):
        within(20, lambda: read_sample_members(memoryview(data)))


def test_both_halves_of_joined_shards_are_checked_and_converted(tmp_path: Path) -> None:
    halves = [
        write_tar(tmp_path / f"{key}.tar", [(f"{key}.png", PNG), (f"{key}.txt", b"a chick")]) for key in ("one", "two")
    ]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x.tar").write_bytes(b"".join(half.read_bytes() for half in halves))
    found = check(tmp_path / "set")
    assert found.ok and found.tally.keys == ["one", "two"]
    assert convert("grit", tmp_path / "set", tmp_path / "out").report.counts["samples"] == 2


def test_a_sample_before_damage_may_lack_members_and_is_not_converted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    members = [("a.png", PNG), ("a.txt", b"a"), ("b.png", PNG), ("b.txt", b"b"), ("b.json", b"{}")]
    data = write_tar(tmp_path / "in" / "x.tar", members).read_bytes()
    (tmp_path / "in" / "x.tar").write_bytes(data[: data.index(b"b.json") + BLOCK])
    report = convert("grit", tmp_path / "in", tmp_path / "out", max_skip_share=1.0).report
    assert report.counts["samples"] == 1 and report.skipped == {"unreadable_shard": 2}


# --- manifests --------------------------------------------------------------------------------------------------------


def manifest_of(tmp_path: Path, version: int = 1) -> dict[str, Any]:
    for name in ("x", "y"):
        members = [(f"{name}{i}.{end}", data) for i in range(3) for end, data in (("png", PNG), ("txt", b"a"))]
        write_tar(tmp_path / f"{name}.tar", members)
    record = json.loads(write_manifest(index_folder(tmp_path)).read_text())
    return record if version == 2 else version_one(tmp_path)


WRONG: tuple[Any, ...] = (
    None, True, 1.0, -1, 10**400, 2**64, 1e308, float("nan"), "", "1", "\ud800", "a\nb", "x" * 300,
    [], [[]], {}, {"a": 1},
)  # fmt: skip
PLACES = [("version",), ("shards",), ("categories",), ("shards", 0), ("categories", 0)]
PLACES += [("shards", 0, key) for key in ("name", "samples", "bytes", "sha256")]
OF_VERSION = {
    1: [("shards", 0, "offsets"), ("shards", 0, "offsets", 1)],
    2: [("shards", 0, "offsets_crc32"), ("shards", 0, "regions")],
}


@pytest.mark.parametrize(
    ("version", "place"),
    [(version, place) for version, own in OF_VERSION.items() for place in [*PLACES, *own]],
    ids=lambda value: value if isinstance(value, int) else ".".join(map(str, value)),
)
@pytest.mark.parametrize("value", WRONG, ids=lambda value: f"{value!r:.12}")
def test_a_manifest_of_garbage_is_refused_in_a_line_or_changes_nothing(
    version: int, place: tuple[Any, ...], value: Any, tmp_path: Path
) -> None:
    record = manifest_of(tmp_path, version)
    record["categories"] = ["bird"]
    *above, last = place
    owner = record
    for key in above:
        owner = owner[key]
    owner[last] = value
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(record))
    try:
        manifest = load_manifest(tmp_path)
    except ShardError as error:
        assert "\n" not in str(error) and str(tmp_path) in str(error)
    else:
        unknown_hash = place[-1] == "sha256" and value == ""
        assert (place[0] == "categories" or unknown_hash) and manifest.samples == 6


def shifted(by: int, place: int) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        record["shards"][0]["offsets"][place] += by

    return change


def without_an_offset(record: dict[str, Any]) -> None:
    del record["shards"][0]["offsets"][1]
    record["shards"][0]["samples"] -= 1


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a member of the first sample is left out": shifted(2 * BLOCK, 0),
    "a member of the last sample is left out": shifted(-2 * BLOCK, -1),
    "a member goes to the sample before": shifted(2 * BLOCK, 1),
    "two samples are one": without_an_offset,
    "no header there": shifted(1, 1),
}
OF_ANY_VERSION: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a shard twice": lambda record: record["shards"].append(record["shards"][0]),
    "a shard is not named": lambda record: record["shards"].pop(),
    "a key too many": lambda record: record["shards"][0].update(more=1),
    "a key too few": lambda record: record["shards"][0].pop("sha256"),
}


@pytest.mark.parametrize(
    ("version", "name"), [*((1, name) for name in CHANGES | OF_ANY_VERSION), *((2, name) for name in OF_ANY_VERSION)]
)
def test_a_manifest_that_misses_something_is_noticed(version: int, name: str, tmp_path: Path) -> None:
    record = manifest_of(tmp_path, version)
    (CHANGES | OF_ANY_VERSION)[name](record)
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(record))
    with pytest.raises(ShardError, match=r"rebuild"):
        read_first(tmp_path)


@pytest.mark.parametrize("name", CHANGES)
def test_offsets_that_miss_something_are_noticed_whatever_their_checksum_says(name: str, tmp_path: Path) -> None:
    record = manifest_of(tmp_path)
    CHANGES[name](record)
    infos = [ShardInfo(**{**shard, "offsets": tuple(shard["offsets"])}) for shard in record["shards"]]
    write_manifest(Manifest.of(tmp_path, infos, ()))
    with pytest.raises(ShardError, match=r"rebuild"):
        read_first(tmp_path)


def read_first(folder: Path) -> None:
    manifest = load_manifest(folder)
    reader = ShardReader(manifest)
    for index in range(manifest.shards[0].samples):
        read_sample_members(reader.read(0, index))


# --- what is no file --------------------------------------------------------------------------------------------------


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def test_only_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link") == b"content"
    (tmp_path / "to_pipe").symlink_to(pipe(tmp_path / "pipe"))
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "to_pipe", Path("/dev/zero"), Path("/dev/stdin")):
        with pytest.raises(OSError, match="not a file"):
            within(20, lambda path=path: open_file(path))


def test_a_pipe_named_like_a_shard_or_a_manifest_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("k.png", PNG), ("k.txt", b"x")])
    pipe(tmp_path / "b.tar")
    with pytest.raises(ShardError, match=r"b\.tar: cannot be opened.*not a file"):
        within(20, lambda: load_manifest(tmp_path))
    found = within(60, lambda: check(tmp_path))
    assert (found.usable, list(found.broken)) == (1, ["b.tar"])
    (tmp_path / "b.tar").unlink()
    pipe(tmp_path / MANIFEST_NAME)
    with pytest.raises(ShardError, match="cannot be read.*not a file"):
        within(20, lambda: load_manifest(tmp_path))
    record = index_shard(tmp_path / "a.tar")
    (tmp_path / "a.tar").unlink()
    pipe(tmp_path / "a.tar")
    (tmp_path / MANIFEST_NAME).unlink()
    content = {name: getattr(record, name) for name in record.__dataclass_fields__}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({"version": 1, "categories": [], "shards": [content]}))
    with pytest.raises(ShardError, match="not there"):
        within(20, lambda: load_manifest(tmp_path))


def test_a_pipe_in_the_place_of_a_picture_or_a_tar_is_one_record_left_out(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(PNG)
    pipe(tmp_path / "bad.png")
    lines = [json.dumps({"image": name, "captions": ["x"]}) for name in ("good.png", "bad.png")]
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    done = within(60, lambda: convert("jsonl", tmp_path / "set.jsonl", tmp_path / "out", max_skip_share=1.0))
    assert done.report.skipped == {"image_unreadable": 1} and done.report.counts["samples"] == 1
    (tmp_path / "grit").mkdir()
    write_tar(tmp_path / "grit/a.tar", [("k.png", PNG), ("k.txt", b"x")])
    pipe(tmp_path / "grit" / "b.tar")
    done = within(60, lambda: convert("grit", tmp_path / "grit", tmp_path / "two", max_skip_share=1.0))
    assert done.report.skipped == {"unreadable_shard": 1} and done.report.counts["samples"] == 1


def test_a_tar_of_zeros_is_empty_and_a_large_one_is_skipped_quickly(tmp_path: Path) -> None:
    with (tmp_path / "x.tar").open("wb") as tar:
        tar.truncate(2**25)
    assert within(30, lambda: index_shard(tmp_path / "x.tar")).samples == 0
    with pytest.raises(ShardError, match="empty"):
        (tmp_path / "x.tar").write_bytes(b"")
        index_shard(tmp_path / "x.tar")


def test_bytes_that_tarfile_writes_are_read_in_every_format(tmp_path: Path) -> None:
    for number, kind in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with tarfile.open(folder / "x.tar", "w", format=kind) as tar:
            for name in ("a", "b" * 90, "d" * 120 + "/c", "é"):
                member = tarfile.TarInfo(f"{name}.jpg")
                member.size, member.mtime = 700, 1.5 if kind == tarfile.PAX_FORMAT else 1
                tar.addfile(member, io.BytesIO(name.encode() * 700))
        assert by_index(folder) == by_tarfile(folder / "x.tar")
