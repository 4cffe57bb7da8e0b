"""``data check`` finds what is wrong, by key and reason, with any number of processes; and what two sets share."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cloc.__main__ import app
from cloc.contracts import Region, Sample
from cloc.data import check as check_module
from cloc.data.check import check
from cloc.data.check_report import to_json
from cloc.data.decode import decode_rgb
from cloc.data.duplicates import SAME_BITS, gradient_hash, text_hash
from cloc.data.schema import parse_sample
from cloc.data.shards import MANIFEST_NAME, ShardError, ShardReader, load_manifest, read_sample_members, write_shards

BOX = (0.1, 0.1, 0.5, 0.5)


def landscape(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Smooth, with structure at every size, as photographs have."""
    noise = np.random.default_rng(seed).uniform(0, 255, (9, 12, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def sample(
    key: str, seed: int, captions: Sequence[str] = ("a view",), phrases: Sequence[str] = ("a hill",), **options: Any
) -> Sample:
    data = options.get("image") or jpeg(landscape(seed))
    return Sample(key, data, "jpg", tuple(captions), (Region(BOX, tuple(phrases)),))


def write(folder: Path, *samples: Sample, per_shard: int = 4) -> Path:
    write_shards(samples, folder, samples_per_shard=per_shard)
    return folder


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Ten samples in three shards; 3 and 8 are cut off."""
    samples = []
    for number in range(10):
        data = jpeg(landscape(number))
        cut = number in (3, 8)
        samples.append(sample(f"k{number}", number, image=data[: len(data) // 2] if cut else data))
    return write(tmp_path / "faulty", *samples)


def test_bad_samples_are_named_with_shard_and_place(faulty: Path) -> None:
    found = check(faulty)
    assert not found.ok and (found.samples, found.usable) == (10, 8)
    assert [(one.key, one.shard, one.index, one.reason) for one in found.tally.bad] == [
        ("k3", "shard-000000.tar", 3, "corrupt_image"),
        ("k8", "shard-000002.tar", 0, "corrupt_image"),
    ]


@pytest.mark.distributed
def test_any_number_of_processes_finds_the_same(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "_PART", 2)
    one, two = (to_json(check(faulty, workers=workers)) for workers in (1, 2))
    assert one | {"seconds": 0} == two | {"seconds": 0}


def test_statistics(tmp_path: Path) -> None:
    regions = (Region((0, 0, 0.5, 0.5), ("a red hill", "a hill")), Region((0, 0, 1, 1), ("a hill",)))
    first = Sample("a", jpeg(landscape(0)), "jpg", ("one", "two"), regions)
    second = Sample("b", jpeg(landscape(1)), "jpg", ("three",))
    tally = check(write(tmp_path / "set", first, second)).tally
    assert tally.captions == {2: 1, 1: 1} and tally.regions == {2: 1, 0: 1}
    assert tally.phrases == {"a hill": 2, "a red hill": 1} and tally.words == {2: 2, 3: 1}
    assert sorted(tally.areas.tolist()) == [0.25, 1.0]


def test_a_flipped_byte_is_found_by_the_hash(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *(sample(f"k{number}", number) for number in range(3)))
    shard = folder / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    place = data.index(b'"captions":["a view"]') + len(b'"captions":["')
    data[place] = ord("A")  # still a picture, still JSON
    shard.write_bytes(data)
    found = check(folder)
    assert not found.ok and not found.tally.bad and "SHA-256" in found.broken["shard-000000.tar"]


def test_a_truncated_shard_is_broken_and_what_lies_before_the_damage_is_kept(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *(sample(f"k{number}", number) for number in range(8)))
    manifest = load_manifest(folder)
    shard = folder / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[: manifest.shards[1].offsets[2] + 700])  # in the third of its four samples
    (folder / MANIFEST_NAME).unlink()
    found = check(folder, fix=tmp_path / "clean")
    assert list(found.broken) == ["shard-000001.tar"] and not found.ok
    assert not found.manifest_written and not (folder / MANIFEST_NAME).exists()
    assert found.fixed is not None and keys_of(tmp_path / "clean") == [f"k{number}" for number in range(6)]


def keys_of(folder: Path) -> list[str]:
    return [found.key for found in samples_of(folder)]


def samples_of(folder: Path) -> list[Sample]:
    manifest = load_manifest(folder)
    reader, found = ShardReader(manifest), []
    for number, shard in enumerate(manifest.shards):
        for index in range(shard.samples):
            key, members = read_sample_members(reader.read(number, index))
            found.append(parse_sample(members, key, "set")[0])
    return found


def test_fix_writes_a_clean_copy_and_leaves_the_source_alone(faulty: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in faulty.iterdir()}
    found = check(faulty, fix=tmp_path / "clean")
    assert {path.name: path.read_bytes() for path in faulty.iterdir()} == before
    assert found.fixed is not None and found.fixed.samples == 8
    again = check(tmp_path / "clean")
    assert again.ok and keys_of(tmp_path / "clean") == [f"k{number}" for number in range(10) if number not in (3, 8)]
    kept = {one.key: one for one in samples_of(faulty)}
    for one in samples_of(tmp_path / "clean"):
        assert (one.image, one.captions, one.regions) == (
            kept[one.key].image,
            kept[one.key].captions,
            kept[one.key].regions,
        )
    with pytest.raises(ShardError, match="not empty"):
        check(faulty, fix=faulty)


def test_fix_gives_every_sample_a_key_of_its_own(tmp_path: Path) -> None:
    import tarfile

    folder = tmp_path / "set"
    folder.mkdir()
    for name, keys in (("a.tar", ["x/1", "x_1"]), ("b.tar", ["x/1"])):
        with tarfile.open(folder / name, "w") as tar:
            for number, key in enumerate(keys):
                for extension, data in (("jpg", jpeg(landscape(number))), ("txt", b"a view")):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    found = check(folder, fix=tmp_path / "clean")
    assert found.duplicates == {"x/1": 2}
    assert keys_of(tmp_path / "clean") == ["x_1", "x_1-2", "x_1-3"]
    assert check(tmp_path / "clean").ok


# --- what comes twice -----------------------------------------------------------------------------------------------


def test_what_comes_twice_in_a_set(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "set",
        sample("a", 0, ["A dog runs."]),
        sample("b", 0, ["two cats"]),
        sample("c", 1, ["a dog  runs"]),
        sample("d", 2, ["a bird"], image=jpeg(landscape(0), quality=92)),
    )
    found = to_json(check(folder))
    assert found["ok"]
    assert found["repeated_pictures"] == [["a", "b"]]
    assert found["lookalike_pictures"] == [["a", "b", "d"]]
    assert found["repeated_captions"] == [["a", "c"]]


def test_pictures_and_captions_of_two_sets(tmp_path: Path) -> None:
    train = [sample(f"t{number}", number, [f"number {number}"], [f"hill {number}"]) for number in range(6)]
    again = landscape(4)
    val = [
        sample("same file", 2, ["A new text"], ["hill 0"]),
        sample("compressed", 0, ["number 3."], ["hill 9"], image=jpeg(again.resize((60, 45)), quality=40)),
        sample("other", 77, ["another"], ["hill 1"]),
    ]
    found = check(write(tmp_path / "val", *val), against=write(tmp_path / "train", *train))
    assert not found.ok and found.shared is not None
    assert [(here, there) for here, there, _ in found.shared.pictures] == [("same file", "t2"), ("compressed", "t4")]
    assert found.shared.pictures[0][2] == -1 and 0 <= found.shared.pictures[1][2] <= SAME_BITS
    assert found.shared.captions == [("compressed", "t3")] and found.shared.phrases == 2
    alone = check(write(tmp_path / "clean", val[2]), against=tmp_path / "train")
    assert alone.ok and alone.shared is not None and not alone.shared.pictures


def test_blank_pictures_are_not_alike(tmp_path: Path) -> None:
    blank = [jpeg(Image.new("RGB", (40, 30), (value, value, value))) for value in (10, 200)]
    one, two = (
        write(tmp_path / name, sample(name, 0, image=data)) for name, data in zip(("one", "two"), blank, strict=True)
    )
    found = check(one, against=two)
    assert found.ok and found.shared is not None and not found.shared.pictures


def bits(one: tuple[int, int], two: tuple[int, int]) -> int:
    return sum((a ^ b).bit_count() for a, b in zip(one, two, strict=True))


def test_the_gradient_hash_survives_compression_and_resizing_and_tells_pictures_apart() -> None:
    pictures = [landscape(seed, (160, 120)) for seed in range(40)]
    hashes = [gradient_hash(decode_rgb(jpeg(picture))) for picture in pictures]
    for picture, own in zip(pictures, hashes, strict=True):
        assert bits(own, gradient_hash(decode_rgb(jpeg(picture.resize((96, 72)), quality=50)))) <= SAME_BITS
    assert min(bits(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 2 * SAME_BITS


def test_the_gradient_hash_has_a_bit_for_each_neighbor() -> None:
    ramp = torch.arange(90, dtype=torch.uint8).expand(3, 90, 90)
    assert gradient_hash(ramp) == (2**64 - 1, 0)
    assert gradient_hash(ramp.flip(2)) == (0, 0)
    assert gradient_hash(ramp.transpose(1, 2)) == (0, 2**64 - 1)


def test_equal_texts() -> None:
    assert text_hash("A  dog runs .") == text_hash("a dog runs")
    assert text_hash("a dog runs") != text_hash("a dog run")


# --- the command -----------------------------------------------------------------------------------------------------


def test_command_line(faulty: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = ["data", "check", str(faulty), "--json", str(report), "--fix", str(tmp_path / "clean")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1 and "not ok" in done.output and "k3" in done.output
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["bad"] == {"corrupt_image": 2} and written["fixed"]["samples"] == 8
    assert [one["key"] for one in written["bad_samples"]] == ["k3", "k8"]
    assert CliRunner().invoke(app, ["data", "check", str(tmp_path / "clean")]).exit_code == 0
    leaked = CliRunner().invoke(app, ["data", "check", str(tmp_path / "clean"), "--against", str(faulty)])
    assert leaked.exit_code == 1 and "8 pictures" in leaked.output
