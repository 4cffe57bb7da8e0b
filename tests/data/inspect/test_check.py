"""``data check`` finds what is wrong, by key and reason, with any number of processes; and what two sets share."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloc.__main__ import app
from cloc.contracts import Region, Sample
from cloc.data.inspect import check as check_module
from cloc.data.inspect.check import check
from cloc.data.inspect.check_report import to_json
from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import MANIFEST_NAME
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.shards.tars import ShardError
from tests.kit.landscapes import BOX, jpeg, landscape, printed, sample, write


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
    return [stored.need() for stored in each_sample(ShardReader(load_manifest(folder)), source="set")]


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


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("faulty", "which is read"),
        ("faulty/clean", "which is read"),
        ("full", "not an empty"),
        ("file", "not an empty"),
    ],
)
def test_a_fix_that_cannot_be_written_is_refused_before_the_pass(
    faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    (tmp_path / "full").mkdir()
    for name in ("full/kept", "file"):
        (tmp_path / name).write_text("mine")
    monkeypatch.setattr(check_module, "WorkerPool", lambda *_: pytest.fail("the pass has begun"))
    with pytest.raises(ShardError, match=message):
        check(faulty, fix=tmp_path / out)
    assert (tmp_path / "full/kept").read_text() == "mine"


def test_fix_leaves_out_the_pictures_that_the_other_set_has(faulty: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", sample("o", 1), sample("p", 9), sample("q", 50))
    found = check(faulty, against=other, fix=tmp_path / "clean")
    assert keys_of(tmp_path / "clean") == ["k0", "k2", "k4", "k5", "k6", "k7"] and not found.ok
    assert check(tmp_path / "clean", against=other).ok
    with pytest.raises(ShardError, match="which is read"):
        check(faulty, against=other, fix=other / "clean")


def test_fix_of_what_has_nothing_usable_writes_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", sample("k", 0, image=b"no picture"))
    found = check(folder, fix=tmp_path / "clean")
    assert not found.ok and found.fixed is None and not (tmp_path / "clean").exists()
    assert "nothing can be trained on" in printed(found)


def test_fix_gives_every_sample_a_key_of_its_own(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "set", {"a.tar": ["x/1", "x_1"], "b.tar": ["x/1"]})
    found = check(folder, fix=tmp_path / "clean")
    assert found.duplicates == {"x/1": 2}
    assert keys_of(tmp_path / "clean") == ["x_1", "x_1-2", "x_1-3"]
    assert check(tmp_path / "clean").ok


def write_foreign(folder: Path, shards: dict[str, list[str]]) -> Path:
    """Tars of jpg + txt, without a manifest."""
    folder.mkdir()
    for name, keys in shards.items():
        with tarfile.open(folder / name, "w") as tar:
            for number, key in enumerate(keys):
                for extension, data in (("jpg", jpeg(landscape(number))), ("txt", b"a view")):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def test_a_key_that_comes_twice_in_a_shard_costs_no_sample(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "set", {"a.tar": ["a", "b", "a"]})
    found = check(folder, fix=tmp_path / "clean")
    assert list(found.broken) == ["a.tar"] and found.duplicates == {"a": 2} and found.usable == 3
    assert keys_of(tmp_path / "clean") == ["a", "b", "a-2"]


def test_foreign_shards_get_an_index_unless_told_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_foreign(tmp_path / "set", {"00000.tar": ["000", "001"], "00001.tar": ["010"]})
    assert CliRunner().invoke(app, ["data", "check", str(folder), "--no-index"]).exit_code == 0
    assert not (folder / MANIFEST_NAME).exists()
    done = CliRunner().invoke(app, ["data", "check", str(folder)])
    assert done.exit_code == 0 and f"wrote {folder / MANIFEST_NAME}" in done.output
    assert [shard.samples for shard in load_manifest(folder).shards] == [2, 1]
    assert not check(folder).manifest_written
    (folder / MANIFEST_NAME).unlink()
    monkeypatch.setattr(check_module.os, "access", lambda path, mode: False)
    with pytest.raises(ShardError, match="pass --no-index"):
        check(folder)


def test_shards_that_do_not_fit_the_manifest_do_not_hide_the_rest(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *(sample(f"k{number}", number) for number in range(16)))
    manifest = load_manifest(folder)
    (folder / "shard-000000.tar").unlink()
    cut = folder / "shard-000001.tar"
    cut.write_bytes(cut.read_bytes()[: manifest.shards[1].offsets[2]])
    (folder / "shard-000003.tar").rename(folder / "shard-000009.tar")
    found = check(folder, fix=tmp_path / "clean")
    assert sorted(found.broken) == [f"shard-00000{number}.tar" for number in (0, 1, 3, 9)]
    assert "not in the manifest" in found.broken["shard-000009.tar"]
    assert (found.samples, found.bad) == (16, {"unreadable_shard": 10})
    cut_off = next(one for one in found.tally.bad if one.shard == cut.name)
    assert (cut_off.key, cut_off.index) == ("", 2) and cut_off.detail.startswith("should span bytes ")
    assert not found.duplicates  # samples without a readable key share none
    assert keys_of(tmp_path / "clean") == ["k4", "k5", *(f"k{number}" for number in range(8, 12))]


# --- the command -----------------------------------------------------------------------------------------------------


def test_command_line(faulty: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = ["data", "check", str(faulty), "--json", str(report), "--fix", str(tmp_path / "clean")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1 and "not ok" in done.output and "k3" in done.output
    assert done.output.endswith(f"not ok\nnext: python -m cloc data check {tmp_path / 'clean'}\n")
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["bad"] == {"corrupt_image": 2} and written["fixed"]["samples"] == 8
    assert [one["key"] for one in written["bad_samples"]] == ["k3", "k8"]
    assert CliRunner().invoke(app, ["data", "check", str(tmp_path / "clean")]).exit_code == 0
    leaked = CliRunner().invoke(app, ["data", "check", str(tmp_path / "clean"), "--against", str(faulty)])
    assert leaked.exit_code == 1 and "8 pictures" in leaked.output and "not compared\t2 samples" in leaked.output
    remedy = f"--against {faulty} --fix {tmp_path / 'clean-fixed'}"
    assert leaked.output.splitlines()[-1] == f"next: python -m cloc data check {tmp_path / 'clean'} {remedy}"
    piped = CliRunner().invoke(app, ["data", "check", str(faulty), "--json", "-"])
    assert piped.exit_code == 1 and json.loads(piped.output)["usable"] == 8
    with pytest.raises(ValueError, match="make its folder"):
        CliRunner().invoke(app, ["data", "check", str(faulty), "--json", "no/folder/x.json"], catch_exceptions=False)


def test_piped_output_is_one_line_a_fact_whatever_the_width(faulty: Path) -> None:
    found = check(faulty)
    lines = printed(found, width=20).splitlines()
    assert lines[0] == str(faulty) and lines[-1] == "not ok"
    rows = dict(line.split("\t") for line in lines if "\t" in line)
    assert rows["samples"].startswith("10, usable 8; ") and rows["corrupt_image"] == "2 samples"
    assert "\tk3 (shard-000000.tar #3): decode_jpeg, Image is incomplete or truncated" in lines
    assert max(map(len, printed(found, terminal=True, width=60).splitlines())) <= 60


def test_a_fault_names_its_shard_and_key_once_and_no_place_in_the_decoder(tmp_path: Path) -> None:
    images = [jpeg(landscape(0))[:300], b"no picture", jpeg(landscape(2)), jpeg(landscape(3))]
    folder = write(tmp_path / "set", *(sample(f"k{number}", 0, image=data) for number, data in enumerate(images)))
    shard = folder / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[: load_manifest(folder).shards[0].offsets[3] + 700])
    progress = printed(check(folder))
    (folder / MANIFEST_NAME).unlink()
    told_too = printed(check(folder))
    for text in (progress, told_too):
        lines = [line for line in text.splitlines() if "shard-000000" in line or "k0" in line]
        assert len(lines) >= 3 and all(line.count("shard-000000") == 1 and line.count("k0") <= 1 for line in lines)
        assert ".cpp" not in text and "BytesIO" not in text and " 0x" not in text


def test_strange_characters_reach_neither_the_terminal_nor_break_the_report(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "set", {"a.tar": ["\udcff\x1b[2J", "[red]b"]})
    with tarfile.open(folder / "b.tar", "w") as tar:
        record = {"captions": ["x"], "regions": [{"box": BOX, "phrases": ["\x1b]0;title\x07"]}], "author": "\ud800"}
        for name, data in (("c.jpg", jpeg(landscape(7))), ("c.json", json.dumps(record).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    found = check(folder, fix=tmp_path / "clean")
    assert found.bad == {"bad_text": 1} and keys_of(tmp_path / "clean") == ["_\x1b[2J", "[red]b"]
    for terminal in (False, True):
        printed(found, terminal).encode("utf-8")
        assert "\x1b[2J" not in printed(found, terminal) and "\x1b]0" not in printed(found, terminal)
    path = tmp_path / "found.json"
    CliRunner().invoke(app, ["data", "check", str(folder), "--json", str(path)])
    assert json.loads(path.read_bytes())["bad_samples"][0]["key"] == "c"
