"""Shards; the reference is ``tarfile``, which reads on behind zero blocks, and webdataset's rule of names."""

from __future__ import annotations

import io
import os
import random
import re
import tarfile
from pathlib import Path

from cloc.contracts import BadSample
from cloc.data.shards.index import index_folder
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.tars import ShardError, read_sample_members

from . import mutate
from .kinds import Case, Kind, Unreadable

Members = dict[str, dict[str, bytes]]
NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
FORMATS = {"USTAR": tarfile.USTAR_FORMAT, "GNU": tarfile.GNU_FORMAT, "PAX": tarfile.PAX_FORMAT}
BLOCK = 512
ODDITIES = ("negative size", "huge size", "octal size", "type", "name", "chain", "pax size", "member again")


def prepare(folder: Path) -> None:
    """Nothing: tars are written as they are needed."""


def make(rng: random.Random, folder: Path, prepared: None) -> Case:
    """A folder with one shard: whole, damaged, joined of two, with odd headers, or no file at all."""
    path = folder / "shard.tar"
    what, data = build(rng)
    oddity = rng.random()
    if oddity < 0.03:
        os.mkfifo(path)
        return Case("a FIFO", lambda: read(folder), _no_tar, (ShardError, BadSample, FileNotFoundError))
    if oddity < 0.15:
        data += build(rng, "second")[1]
        what = f"{what}, joined with another"
    elif oddity < 0.40:
        what, data = _odd_header(data, rng)
    elif oddity < 0.85:
        name, data = mutate.damage(data, rng)
        what = f"{name} {what}"
    path.write_bytes(data)
    refusals = (ShardError, BadSample, FileNotFoundError)
    return Case(what, lambda: read(folder), lambda: reference(path), refusals, data)


def build(rng: random.Random, prefix: str = "s") -> tuple[str, bytes]:
    """A tar of a few samples."""
    kind, buffer = rng.choice(list(FORMATS)), io.BytesIO()
    folder = rng.choice(("", "", "a/", "./", "é/", "d" * 120 + "/"))
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[kind]) as tar:
        for number in range(rng.randrange(1, 5)):
            for extension, content in (("jpg", rng.randbytes(rng.choice((10, 700)))), ("json", b'{"captions": ["a"]}')):
                member = tarfile.TarInfo(f"{folder}{prefix}{number}.{extension}")
                member.size = len(content)
                if kind == "PAX" and rng.random() < 0.3:
                    member.pax_headers = {"comment": "c" * rng.choice((3, 600))}
                tar.addfile(member, io.BytesIO(content))
    return f"{kind} {folder[:4]!r}", buffer.getvalue()


def _odd_header(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Change one field of one header, with a checksum that fits."""
    headers = [at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(headers)
    block = bytearray(data[at : at + BLOCK])
    oddity = rng.choice(
        ("negative size", "huge size", "octal size", "type", "name", "chain", "pax size", "member again")
    )
    if oddity == "negative size":
        block[124:136] = b"\xff" * 8 + (-rng.choice((1, 512, 1024, 2**30))).to_bytes(4, "big", signed=True)
    elif oddity == "huge size":
        block[124:136] = b"\x80" + (2 ** rng.choice((33, 62, 80))).to_bytes(11, "big")
    elif oddity == "octal size":
        block[124:136] = rng.choice(
            (b"77777777777\0", b"00000000000\0", b"-0000000001\0", b" 1\0" + bytes(9), b"9" * 12)
        )
    elif oddity == "type":
        block[156:157] = rng.choice(b"01234567LKxgSVDM\0AZ".decode()).encode()
    elif oddity == "name":
        new = rng.choice((b"../x.jpg", b"/etc/x.jpg", b"x", b".jpg", b"a.b.c.jpg", b"\xff\xfe.jpg", b"", b"s0.JPG"))
        block[:100] = new.ljust(100, b"\0")
    elif oddity == "member again":
        return oddity, data[:at] + data[at : at + 2 * BLOCK] + data[at:]
    else:
        return oddity, data[:at] + _extra_header(oddity, rng) + data[at:]
    return f"{oddity} at {at}", data[:at] + _with_checksum(block) + data[at + BLOCK :]


def _extra_header(oddity: str, rng: random.Random) -> bytes:
    if oddity == "chain":
        count, kind = rng.choice((1, 60, 1500)), rng.choice((tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME))
        return _header(b"chain", kind, b"12 path=aaaa\n" if kind == tarfile.XHDTYPE else b"long.jpg\0") * count
    value = rng.choice(("10", "-512", "99999999999999", "x", "1" * 300))
    record = f" size={value}\n"
    length = len(record) + len(str(len(record) + 2))
    return _header(b"pax", tarfile.XHDTYPE, f"{length}{record}".encode())


def _header(name: bytes, kind: bytes, content: bytes) -> bytes:
    block = bytearray(BLOCK)
    block[: len(name)], block[124:136], block[156:157] = name, f"{len(content):011o}\0".encode(), kind
    block[257:265] = b"ustar\x0000"
    return _with_checksum(block) + content.ljust(-(-len(content) // BLOCK) * BLOCK, b"\0")


def _with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def read(folder: Path) -> Members:
    """Index a folder of shards and read every sample through its index."""
    reader = ShardReader(index_folder(folder))
    return read_all(reader)


def read_all(reader: ShardReader) -> Members:
    """Every sample of an indexed folder."""
    samples: Members = {}
    for shard, info in enumerate(reader.manifest.shards):
        for index in range(info.samples):
            key, members = read_sample_members(reader.read(shard, index))
            samples[key] = {extension: bytes(content) for extension, content in members.items()}
    reader.close()
    return samples


def reference(path: Path) -> Members:
    """All regular members of a tar by sample, hidden ones aside; where one comes twice nobody knows which is meant."""
    samples: Members = {}
    try:
        with tarfile.open(path, "r:", ignore_zeros=True) as tar:
            for member in tar:
                *folders, base = member.name.split("/")
                hidden = base.startswith(".") or "__MACOSX" in folders
                name = None if hidden else NAME.match(member.name)
                content = tar.extractfile(member) if name and member.isreg() else None
                if content is None:
                    continue
                own, extension = samples.setdefault(name[1], {}), name[2].lower()
                if extension in own:
                    raise Unreadable(f"{member.name!r} comes twice")
                own[extension] = content.read()
                if len(own[extension]) != member.size:
                    raise Unreadable(f"{member.name!r} is cut off")
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError, OverflowError) as error:
        raise Unreadable(f"tarfile: {type(error).__name__} {error}"[:120]) from error
    return samples


def _no_tar() -> Members:
    raise Unreadable("no regular file")


TARS = Kind("tar", 0.20, prepare, make)
