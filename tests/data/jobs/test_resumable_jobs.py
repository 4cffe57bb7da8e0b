"""A conversion that is killed continues; its bytes depend on neither that nor the number of processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from cloc.contracts import Region, Sample
from cloc.data.convert import conversion as convert_module
from cloc.data.convert.conversion import convert
from cloc.data.jobs import resumable_jobs as jobs
from cloc.data.jobs.report import Report
from cloc.data.jobs.resumable_jobs import UNFINISHED_NAME, Job, Task
from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import MANIFEST_NAME
from cloc.data.shards.tars import ShardError
from tests.kit.paths import ROOT

QUIET = Console(quiet=True)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_source(folder: Path, count: int = 11) -> Path:
    """Lines of pictures, some of them hostile; two a shard makes six shards."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        Image.new("RGB", (8, 4), (number % 256, 0, 0)).save(folder / f"{number}.png")
        region = {"box": [0, 0, 0.5 if number % 4 else 50, 1], "phrases": [f"thing {number}"]}
        lines.append(json.dumps({"image": f"{number}.png", "captions": [f"picture {number}"], "regions": [region]}))
    lines[3:3] = ["{broken", json.dumps({"image": "absent.png", "captions": ["x", ""], "regions": [{}]})]
    path = folder / "set.jsonl"
    path.write_text("\n".join(lines))
    return path


def settings(**changed: Any) -> dict[str, Any]:
    return {"samples_per_shard": 2, "max_skip_share": 0.5, "max_drop_share": 0.9, "console": QUIET, **changed}


def some_samples(number: int, report: Report) -> Iterator[Sample]:
    report.given.update(records=2)
    for index in range(2):
        yield Sample(f"k{number}-{index}", b"picture", "jpg", ("caption",), (Region((0, 0, 1, 1), ("a", "b")),))


def run_job(out: Path, made: list[int], stop_at: int = -1, identity: str = "x", **options: Any) -> None:
    """Four tasks; note which are done, and be killed in the middle of one."""

    def task(number: int, report: Report) -> Iterator[Sample]:
        for sample in some_samples(number, report):
            yield sample
            if number == stop_at:
                raise KeyboardInterrupt
        made.append(number)

    job = Job(out, {"identity": identity}, **options)
    job.run([Task(partial(task, number)) for number in range(4)], on_shard=lambda report, earlier: None)
    job.place(["category"])
    job.close()


@pytest.mark.parametrize("stop_at", range(4))
def test_a_killed_job_continues_at_the_first_unfinished_shard(tmp_path: Path, stop_at: int) -> None:
    run_job(tmp_path / "whole", [])
    made: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run_job(tmp_path / "out", made, stop_at)
    assert not list((tmp_path / "out").glob("*.tar"))  # half a data set does not pass for a whole one
    with pytest.raises(FileNotFoundError):
        load_manifest(tmp_path / "out")
    run_job(tmp_path / "out", made)
    assert made == list(range(4))
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not (tmp_path / "out" / UNFINISHED_NAME).exists()


def test_a_record_cut_off_or_without_its_shard_is_done_again(tmp_path: Path) -> None:
    run_job(tmp_path / "whole", [])
    made: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run_job(tmp_path / "out", made, 3)
    room = tmp_path / "out" / UNFINISHED_NAME
    record = next(room.glob("record*"))
    record.write_bytes(record.read_bytes()[:-20])
    (room / "shard-000001.tar").write_bytes(b"short")
    run_job(tmp_path / "out", made)
    assert made == [0, 1, 2, 1, 2, 3]
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_another_identity_is_refused_by_name(tmp_path: Path) -> None:
    made: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run_job(tmp_path, made, 1)
    with pytest.raises(ShardError, match=r"identity was 'x', is 'y'.*--overwrite to start anew"):
        run_job(tmp_path, made, identity="y")
    run_job(tmp_path, made, identity="y", overwrite=True)
    assert made == [0, 0, 1, 2, 3]
    with pytest.raises(ShardError, match="not empty"):
        run_job(tmp_path, made, identity="y")
    made.clear()
    run_job(tmp_path, made, identity="z", overwrite=True)
    assert made == [0, 1, 2, 3] and load_manifest(tmp_path).samples == 8


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_killed_while_shards_move_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int) -> None:
    run_job(tmp_path / "whole", [])
    out, publish, left = tmp_path / "out", jobs.publish, [moved]

    def killed(path: Path, target: Path) -> None:
        if target.parent == out and target.suffix == ".tar":
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        publish(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            run_job(out, [])
    assert len(list(out.glob("*.tar"))) == moved
    with pytest.raises(ShardError):  # the manifest names what is not there
        load_manifest(out)
    made: list[int] = []
    run_job(out, made)
    assert made == [] and files(out) == files(tmp_path / "whole")


def test_a_conversion_resumes_with_all_its_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "in")
    whole = convert("jsonl", source, tmp_path / "whole", **settings())
    build, calls = convert_module.build_samples, Counter[str]()

    def killed(*arguments: Any) -> Iterator[Sample]:
        calls["shards"] += 1
        if calls["shards"] == 4:
            raise KeyboardInterrupt
        return build(*arguments)

    monkeypatch.setattr(convert_module, "build_samples", killed)
    with pytest.raises(KeyboardInterrupt):
        convert("jsonl", source, tmp_path / "out", **settings())
    done = convert("jsonl", source, tmp_path / "out", **settings())
    assert calls["shards"] == 4 + 4  # seven shards, three of them done before
    assert done.report == whole.report and done.made == whole.made - 4
    assert whole.report.given == {"records": 13, "captions": 13, "regions": 12}
    assert whole.report.lost == {"captions": 2, "regions": 1} and whole.report.mended == {"box_in_pixels": 3}
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_source_that_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "in")
    with pytest.raises(ValueError, match="--max-skip-share"):
        convert("jsonl", source, tmp_path / "out", **settings(max_skip_share=0.1))
    with pytest.raises(ShardError, match="samples_per_shard was 2, is 3"):
        convert("jsonl", source, tmp_path / "out", **settings(samples_per_shard=3))
    source.write_text(source.read_text() + "\n")
    with pytest.raises(ShardError, match="files was"):
        convert("jsonl", source, tmp_path / "out", **settings())


def test_too_many_skips_stop_the_run_early(tmp_path: Path) -> None:
    source = make_source(tmp_path / "in")
    source.write_text("\n".join(["{broken"] * 4 + source.read_text().splitlines()))
    with pytest.raises(ValueError, match=r"2 of 17 records.*bad_json 2.*line 1"):
        convert("jsonl", source, tmp_path / "out", **settings(max_skip_share=0.1))
    with pytest.raises(ValueError, match="2 of 2 records.*line 1"):  # not "nothing to write"
        source.write_text("{broken\n" * 2)
        convert("jsonl", source, tmp_path / "all_bad", **settings())


def test_counts_that_do_not_add_up_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "in", 2)
    written = jobs.write_shards
    monkeypatch.setattr(jobs, "write_shards", lambda samples, *a, **k: written(list(samples)[:-1], *a, **k))
    with pytest.raises(ShardError, match=r"counts do not add up \(2 samples written, 1 read back"):
        convert("jsonl", source, tmp_path / "out", **settings(samples_per_shard=100))
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_a_report_notices_what_is_missing() -> None:
    report = Report()
    report.given.update(records=3, regions=7, captions=2)
    report.counts.update(samples=2, regions=3, captions=2)
    report.skipped.update(no_image=1)
    report.lost.update(regions=1)
    report.mended.update(box_empty=1, box_joined=1, box_clipped=5, empty_caption=1)
    assert report.imbalance() == "2 captions given, 3 found again; 7 regions given, 6 found again"


@pytest.mark.slow
@pytest.mark.distributed
def test_any_number_of_processes_makes_the_same_bytes(tmp_path: Path) -> None:
    source = make_source(tmp_path / "in")
    one = convert("jsonl", source, tmp_path / "one", **settings())
    three = convert("jsonl", source, tmp_path / "three", **settings(workers=3))
    assert files(tmp_path / "one") == files(tmp_path / "three") and one.report == three.report


def descendants(parent: int) -> list[int]:
    """Processes below ``parent`` that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found += [int(stat.parent.name), *descendants(int(stat.parent.name))]
    return found


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_kill_9_leaves_no_worker_and_the_same_command_continues(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "in", 400), tmp_path / "out"
    command = [sys.executable, "-m", "cloc", "data", "convert", "jsonl", str(source), str(out), "--workers", "2"]
    command += ["--samples-per-shard", "2", "--max-drop-share", "0.9"]  # a quarter of the boxes is in pixels
    record = out / UNFINISHED_NAME / "record.jsonl"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (record.is_file() and record.read_bytes().count(b"\n") > 20):
            time.sleep(0.01)
        workers = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and len(workers) >= 2, "it finished before it could be killed"
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").is_dir() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").is_dir()]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "continuing: " in again.stderr
    convert("jsonl", source, tmp_path / "whole", **settings())
    assert files(out) == files(tmp_path / "whole")
