"""Pictures and texts that come twice, in one set or in two, are found; what only looks alike is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cloc.data.decode import decode_rgb
from cloc.data.inspect.check import check
from cloc.data.inspect.check_report import to_json
from cloc.data.inspect.duplicates import EQUAL_FILES, SAME_BITS, Fingerprints, gradient_hash, shared_pictures, text_hash
from tests.kit.landscapes import jpeg, landscape, printed, sample, write


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
    first, second = found.shared.matches
    assert first == (["same file"], ["t2"], EQUAL_FILES) and found.shared.pictures == [0, 1]
    assert second[:2] == (["compressed"], ["t4"]) and 0 <= second.bits <= SAME_BITS
    assert found.shared.captions == [("compressed", "t3")] and found.shared.phrases == 2
    alone = check(write(tmp_path / "clean", val[2]), against=tmp_path / "train")
    assert alone.ok and alone.shared is not None and not alone.shared.pictures


def test_every_copy_of_a_shared_picture_is_found_and_counted_once(tmp_path: Path) -> None:
    small = jpeg(landscape(0).resize((60, 45)), quality=60)
    val = write(tmp_path / "val", sample("a", 0), sample("b", 0), sample("c", 5), sample("d", 9, image=small))
    train = write(tmp_path / "train", sample("t", 0), sample("u", 0), sample("v", 5), sample("w", 6))
    found = check(val, against=train)
    assert found.shared is not None
    assert found.shared.pictures == [0, 1, 2, 3] and found.shared.pictures_there == 3
    exact = [match for match in found.shared.matches if match.bits == EQUAL_FILES]
    assert exact == [(["a", "b"], ["t", "u"], EQUAL_FILES), (["c"], ["v"], EQUAL_FILES)]
    assert "4 pictures" in printed(found) and "4 of 3 there" in printed(found)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12), st.integers(0, 99))
def test_shared_pictures_are_those_of_two_loops(ours: list[int], theirs: list[int], seed: int) -> None:
    """Six looks, of which some are near each other; a file's number decides its look."""
    rng = np.random.default_rng(seed)
    looks = rng.integers(2**63, 2**64, (6, 2), dtype=np.uint64)
    looks[1] = looks[0] ^ np.uint64(0b1011)  # 6 bits of 128
    looks[3] = looks[2] ^ np.uint64(0b111111)  # 12 bits: two pictures
    looks[5] = (0, 3)  # nearly blank

    def prints(numbers: list[int], side: str) -> Fingerprints:
        chosen = np.array(numbers, np.int64)
        keys = [f"{side}{place}" for place in range(len(numbers))]
        return Fingerprints(keys, chosen.astype(np.uint64), looks[chosen].reshape(-1, 2))

    progress: list[tuple[int, int]] = []
    matches, here, there = shared_pictures(prints(ours, "o"), prints(theirs, "t"), lambda *done: progress.append(done))
    near = {(a, b) for a in range(6) for b in range(6) if a == b or {a, b} == {0, 1}}
    expected = {(f"o{i}", f"t{j}") for i, a in enumerate(ours) for j, b in enumerate(theirs) if (a, b) in near}
    assert {(a, b) for match in matches for a in match.here for b in match.there} == expected
    assert here == sorted({int(a[1:]) for a, _ in expected}) and there == sorted({int(b[1:]) for _, b in expected})
    assert not progress or progress[-1][0] == progress[-1][1]  # progress ends at all


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
