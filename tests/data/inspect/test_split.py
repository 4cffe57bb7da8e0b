"""``data split``: by picture, the same whatever the order; copies of a picture are never on both sides."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cloc.contracts import Sample
from cloc.data.inspect import split as module
from cloc.data.inspect.check import check
from cloc.data.inspect.duplicates import SAME_BITS, Fingerprints, same_pictures
from cloc.data.inspect.split import split
from cloc.data.shards.index import load_manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.shards.tars import ShardError
from tests.kit.interrupting import interrupt_third
from tests.kit.landscapes import jpeg, landscape, sample, write


def small(seed: int) -> bytes:
    """The same picture at half the size, compressed anew."""
    return jpeg(landscape(seed).resize((48, 36), Image.Resampling.BICUBIC), 80)


def pictures(count: int = 40) -> list[Sample]:
    """Each third one three times: as the same file, and at half the size."""
    own = [sample(f"p{seed}", seed) for seed in range(count)]
    copies = [sample(f"copy{seed}", seed) for seed in range(0, count, 3)]
    return own + copies + [sample(f"small{seed}", 0, image=small(seed)) for seed in range(0, count, 3)]


def contents(folder: Path) -> dict[str, bytes]:
    return {one.key: bytes(one.need().image) for one in each_sample(ShardReader(load_manifest(folder)))}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("split") / "all", *pictures(), per_shard=7)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_parts_are_whole_clean_and_of_their_share(source: Path, tmp_path: Path) -> None:
    done = split(source, tmp_path / "out", val=0.2, test=0.1)
    parts = {name: contents(tmp_path / "out" / name) for name in ("train", "val", "test")}
    assert {key: data for part in parts.values() for key, data in part.items()} == contents(source)
    assert [len(parts[name]) for name in ("val", "test")] == [round(0.2 * 68), round(0.1 * 68)]
    assert done.repeated == 3 * 14 and sum(done.pictures.values()) == 40
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test", "train", "val"]
    for one, other in combinations(parts, 2):
        assert check(tmp_path / "out" / one, against=tmp_path / "out" / other).ok


@pytest.mark.slow
def test_the_same_for_any_workers(source: Path, tmp_path: Path) -> None:
    split(source, tmp_path / "a", val=0.2)
    split(source, tmp_path / "b", val=0.2, workers=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_same_for_any_order_another_for_another_seed(source: Path, tmp_path: Path) -> None:
    split(source, tmp_path / "a", val=0.2)
    renamed = [Sample(f"x{one.key}", one.image, one.extension, one.captions, one.regions) for one in pictures()]
    split(write(tmp_path / "turned", *renamed[::-1]), tmp_path / "c", val=0.2)
    assert set(contents(tmp_path / "c" / "val").values()) == set(contents(tmp_path / "a" / "val").values())
    split(source, tmp_path / "d", val=0.2, seed=1)
    assert contents(tmp_path / "d" / "val") != contents(tmp_path / "a" / "val")


def test_killed_while_writing_it_goes_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = interrupt_third(monkeypatch, module)
    with pytest.raises(KeyboardInterrupt):
        split(source, tmp_path / "out", val=0.2, samples_per_shard=10)
    with pytest.raises(ShardError, match="seed was 0, is 1"):
        split(source, tmp_path / "out", val=0.2, samples_per_shard=10, seed=1)
    split(source, tmp_path / "out", val=0.2, samples_per_shard=10)
    shards = len(list((tmp_path / "out").rglob("*.tar")))
    assert len(made) == shards + 1  # the one that was cut short; the two before it were not made again
    split(source, tmp_path / "plain", val=0.2, samples_per_shard=10)
    assert files(tmp_path / "out") == files(tmp_path / "plain")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"val": 0.0}, "--val 0.0"),
        ({"val": 20}, "--val 20"),
        ({"val": float("nan")}, "--val nan"),
        ({"test": -0.1}, "--test -0.1"),
        ({"val": 0.5, "test": 0.5}, "training would get 0%"),
        ({"val": 0.001}, "val would get 0.10% of 68 samples, which is none"),
    ],
)
def test_shares_without_sense_are_refused(options: dict[str, float], said: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        split(source, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_where_all_is_one_picture_there_is_no_split(tmp_path: Path) -> None:
    folder = write(tmp_path / "all", *(sample(f"p{number}", 0) for number in range(20)))
    with pytest.raises(ValueError, match="20 samples are one picture"):
        split(folder, tmp_path / "out")


def test_folders_in_one_another_and_full_ones_are_refused(source: Path, tmp_path: Path) -> None:
    for out in (source, source / "parts", source.parent):
        with pytest.raises(ShardError, match="lie in one another"):
            split(source, out, overwrite=True)
    split(source, tmp_path / "out")
    with pytest.raises(ShardError, match="not empty"):
        split(source, tmp_path / "out")


def test_unusable_samples_are_counted_against_a_limit(tmp_path: Path) -> None:
    folder = write(tmp_path / "all", *pictures(20), sample("bad", 0, image=b"no picture"))
    with pytest.raises(ValueError, match="1 of 35 samples cannot be used.*bad in shard.*--max-skip-share"):
        split(folder, tmp_path / "out")
    done = split(folder, tmp_path / "out", max_skip_share=0.1)
    assert done.left_out.total() == 1 and sum(one.samples for one in done.manifests.values()) == 34


def test_categories_of_the_source_stay_in_all_parts(source: Path, tmp_path: Path) -> None:
    split(source, tmp_path / "out")
    assert load_manifest(tmp_path / "out" / "val").categories == load_manifest(source).categories


def test_near_hashes_are_found_as_every_two_compared() -> None:
    numbers = np.random.default_rng(0)
    base = numbers.integers(0, 2**63, (60, 2), np.uint64)
    near = base.copy()
    for row in near:
        for bit in numbers.choice(128, numbers.integers(0, 2 * SAME_BITS), replace=False):
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    hashes = np.concatenate([base, near])
    prints = Fingerprints([str(i) for i in range(120)], np.arange(120, dtype=np.uint64), hashes)
    expected: list[set[int]] = [{number} for number in range(120)]
    for a, b in combinations(range(120), 2):
        if np.bitwise_count(hashes[a] ^ hashes[b]).sum() <= SAME_BITS and expected[a] is not expected[b]:
            joined = expected[a] | expected[b]
            for number in joined:
                expected[number] = joined
    assert {tuple(group.tolist()) for group in same_pictures(prints)} == {tuple(sorted(one)) for one in expected}
    assert any(len(one) > 1 for one in expected) and any(len(one) == 1 for one in expected)
