"""Hostile shards, all the way to the batch: what comes out, and what is counted."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cloc.data import sample as schema
from cloc.data.shards import reader
from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.tars import ShardError, read_sample_members
from tests.data.test_bad_input import GOOD_BOX, png_header, write_tar
from tests.kit.streams import make_stream

REGION = {"box": GOOD_BOX, "phrases": ["a chick"]}
GOOD = 7
"""Good samples beside the one in question: a pass is one batch of eight."""


def encode(mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (24, 16), **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = Image.effect_noise(size, 90).convert("L" if mode.startswith("I") else mode)
    (picture.convert(mode) if mode.startswith("I") else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(kind="JPEG", exif=exif)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was loaded",)


def record(**content: Any) -> bytes:
    return json.dumps({"captions": ["a picture"]} | content).encode()


def with_region(**changes: Any) -> dict[str, bytes]:
    return {"png": encode(), "json": record(regions=[REGION, REGION | changes])}


PNG, JPEG, TEXT = encode(), encode(kind="JPEG"), b"a chick"
TRAP = pickle.dumps(_Trap())

# Members of one sample → whether it comes out, and the counters of its batch.
SAMPLES: dict[str, tuple[dict[str, bytes], bool, dict[str, int]]] = {
    "truncated JPEG": ({"jpg": JPEG[: len(JPEG) // 2], "txt": TEXT}, False, {"skipped/corrupt_image": 1}),
    "truncated PNG": ({"png": PNG[: len(PNG) // 2], "txt": TEXT}, False, {"skipped/corrupt_image": 1}),
    "text for a picture": ({"jpg": b"<html>404</html>", "txt": TEXT}, False, {"skipped/corrupt_image": 1}),
    "empty picture": ({"jpg": b"", "txt": TEXT}, False, {"skipped/no_image": 1}),
    "decompression bomb": ({"png": png_header(60_000, 60_000), "txt": TEXT}, False, {"skipped/decompression_bomb": 1}),
    "no picture": ({"txt": TEXT}, False, {"skipped/no_image": 1}),
    "no text": ({"png": PNG}, False, {"skipped/no_caption_and_no_region": 1}),
    "no caption but a region": (
        {"png": PNG, "json": b'{"regions": [{"box": [0, 0, 1, 1], "phrases": ["a cup"]}]}'},
        True,
        {"caption_from_phrases": 1},
    ),
    "caption alone": ({"png": PNG, "txt": TEXT}, True, {}),
    "upright by EXIF": ({"jpg": turned(), "txt": TEXT}, True, {}),
    "CMYK": ({"jpg": encode("CMYK", "JPEG"), "txt": TEXT}, True, {}),
    "gray": ({"jpg": encode("L", "JPEG"), "txt": TEXT}, True, {}),
    "16 bit": ({"png": encode("I;16"), "txt": TEXT}, True, {}),
    "alpha": ({"png": encode("RGBA"), "txt": TEXT}, True, {}),
    "palette": ({"png": encode("P"), "txt": TEXT}, True, {}),
    "box inverted": (with_region(box=[0.5, 0.1, 0.1, 0.5]), True, {"regions/box_inverted": 1}),
    "box outside": (with_region(box=[1.1, 0.1, 1.3, 0.5]), True, {"regions/box_outside": 1}),
    "box empty": (with_region(box=[0.1, 0.1, 0.1, 0.5]), True, {"regions/box_empty": 1}),
    "box NaN": (with_region(box=[float("nan"), 0, 1, 1]), True, {"regions/box_not_finite": 1}),
    "box in pixels": (with_region(box=[10, 20, 300, 400]), True, {"regions/box_in_pixels": 1}),
    "box of text": (with_region(box="everywhere"), True, {"regions/box_malformed": 1}),
    "box reaches out": (with_region(box=[-0.1, 0, 1.2, 1]), True, {"regions/box_clipped": 1}),
    "region without phrase": (with_region(phrases=[]), True, {"regions/region_without_phrase": 1}),
    "ten thousand regions": (
        {"png": PNG, "json": record(regions=[REGION] * 10_000)},
        True,
        {"regions/too_many_regions": 9_000},
    ),
    "text that is not UTF-8": ({"png": PNG, "txt": b"\xff\xfe chick"}, False, {"skipped/bad_text": 1}),
    "JSON that is not UTF-8": ({"png": PNG, "json": b'{"captions": ["\xff"]}'}, False, {"skipped/bad_text": 1}),
    "emoji": ({"png": PNG, "txt": "🐤 Küken 小鸡".encode()}, True, {}),
    "half an emoji": (
        {"png": PNG, "json": b'{"captions": ["\\ud83d", "a chick"]}'},
        True,
        {"regions/caption_bad_unicode": 1},
    ),
    "JSON cut off": ({"png": PNG, "json": record()[:-3]}, False, {"skipped/bad_json": 1}),
    "JSON a thousand deep": ({"png": PNG, "json": b"[" * 100_000}, False, {"skipped/bad_json": 1}),
    "giant member": ({"png": PNG, "txt": TEXT, "bin": b"0" * 1_100_000}, False, {"skipped/giant_member": 1}),
    "giant sample": ({"png": PNG, "txt": TEXT, "bin": b"0" * 5_000_000}, False, {"skipped/giant_member": 1}),
    "pickles": ({"png": PNG, "txt": TEXT, "pyd": TRAP, "pkl": TRAP, "pth": TRAP, "cls": TRAP}, True, {}),
}


def one_pass(folder: Path) -> tuple[list[str], dict[str, float], Any]:
    batch = next(iter(make_stream(load_manifest(folder))))
    return batch.keys, batch.stats, batch


@pytest.mark.parametrize("name", SAMPLES)
def test_a_hostile_sample(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_MEMBER_BYTES", 2**20)
    monkeypatch.setattr(reader, "MAX_SAMPLE_BYTES", 2**22)
    members, comes_out, expected = SAMPLES[name]
    good = [(f"good{i}.{extension}", data) for i in range(GOOD) for extension, data in (("png", PNG), ("txt", TEXT))]
    own = [(f"it.{extension}", data) for extension, data in members.items()]
    write_tar(tmp_path / "x.tar", [*good[:6], *own, *good[6:]])
    keys, stats, batch = one_pass(tmp_path)
    assert {key for key in keys if key != "it"} == {f"good{i}" for i in range(GOOD)}
    assert keys.count("it") == comes_out and len(keys) == 8
    counted = {key: n for key, n in stats.items() if key.startswith(("skipped/", "regions/")) and n}
    assert counted == {key: n for key, n in expected.items() if key != "caption_from_phrases"}
    assert stats.get("caption_from_phrases", 0) == expected.get("caption_from_phrases", 0)
    assert all(torch.isfinite(value).all() for value in (batch.boxes, batch.target_boxes, batch.content))
    assert ((batch.boxes >= 0) & (batch.boxes <= 1)).all()


def damaged(path: Path, start: int) -> None:
    data = bytearray(path.read_bytes())
    data[start : start + 512] = b"\xaa" * 512
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


PAIR = [("a.png", PNG), ("a.txt", TEXT)]
# Members of a tar, what is done to the file, and the error of opening the folder; None where it opens.
TARS: dict[str, tuple[list[tuple[str, bytes]], Any, str | None]] = {
    "cut within a member": (PAIR, lambda path: cut(path, 700), "not a whole tar|truncated"),
    "cut behind a header": (PAIR, lambda path: cut(path, 512), "not a whole tar|truncated"),
    "cut between members": (PAIR, lambda path: cut(path, 512 + len(PNG) + -len(PNG) % 512), "truncated"),
    "header damaged": (PAIR, lambda path: damaged(path, 0), "not a whole tar"),
    "no tar at all": (PAIR, lambda path: path.write_bytes(b"<html>404</html>" * 100), "not a whole tar"),
    "empty file": (PAIR, lambda path: path.write_bytes(b""), "not a whole tar"),
    "name climbs out": ([*PAIR, ("../a.png", PNG)], None, "escapes"),
    "absolute name": ([*PAIR, ("/etc/a.png", PNG)], None, "escapes"),
    "key comes twice": ([*PAIR, ("b.png", PNG), *PAIR], None, "comes twice"),
    "members apart": ([*PAIR, ("b.png", PNG), ("a.json", b"{}")], None, "do not lie side by side"),
    "member comes twice": ([*PAIR, ("a.PNG", PNG)], None, "comes twice"),
    "empty tar": ([], None, None),
}


@pytest.mark.parametrize("name", TARS)
def test_a_hostile_tar_beside_a_good_one(name: str, tmp_path: Path) -> None:
    members, change, error = TARS[name]
    write_tar(tmp_path / "good.tar", [("g.png", PNG), ("g.txt", TEXT)])
    path = write_tar(tmp_path / "hostile.tar", members)
    if change:
        change(path)
    if error:
        with pytest.raises(ShardError, match=error):
            load_manifest(tmp_path)
    else:
        keys, stats, _ = one_pass(tmp_path)
        assert set(keys) == ({"g", "a"} if members else {"g"})
        assert not any(key.startswith("skipped") for key in stats)


def test_a_sparse_member_that_claims_a_terabyte_is_never_expanded(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for extension, data in (("png", PNG), ("txt", TEXT)):
            member = tarfile.TarInfo(f"bomb.{extension}")
            member.size = len(data)
            if extension == "png":
                member.pax_headers = {
                    "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "bomb.png",
                    "GNU.sparse.size": str(1 << 40), "GNU.sparse.map": f"0,{len(data)}",
                }  # fmt: skip
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(ShardError, match="sparse"):
        load_manifest(tmp_path)
    raw = path.read_bytes()
    assert "png" not in read_sample_members(raw)[1]


def test_a_pass_over_all_hostile_samples_counts_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_MEMBER_BYTES", 2**20)
    monkeypatch.setattr(reader, "MAX_SAMPLE_BYTES", 2**22)
    members = [
        (f"{number:03d}.{extension}", data)
        for number, (own, _, _) in enumerate(SAMPLES.values())
        for extension, data in own.items()
    ]
    write_tar(tmp_path / "x.tar", members)
    manifest: Manifest = load_manifest(tmp_path)
    stats: Counter[str] = Counter()
    for batch in islice(make_stream(manifest, batch_size=1, max_skip_share=1.0), len(SAMPLES)):
        stats.update(batch.stats)
    refused = sum(not out for _, out, _ in SAMPLES.values())
    assert sum(count for key, count in stats.items() if key.startswith("skipped/")) >= refused
    assert {key for key in stats if key.startswith("skipped/")} == {
        key for _, _, expected in SAMPLES.values() for key in expected if key.startswith("skipped/")
    }
