"""Shards made by several processes, in a job that may be killed at any time and continued.

Serves conversion at the start of ``data → models → losses → evaluation → engine``, and labeling. Each task makes one
shard from what it is given alone, so the bytes do not depend on the number of processes. Finished shards and a record
of them wait in ``OUT/.unfinished``, where no reader looks. Only when all are done do they move into place.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cloc.contracts import Sample
from cloc.data.jobs.report import Report
from cloc.data.jobs.worker_pool import WorkerPool
from cloc.data.shards.index import write_manifest
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest
from cloc.data.shards.tars import ShardError, ShardInfo
from cloc.data.shards.writer import write_shards
from cloc.files import append, make_folder, publish, write_file

UNFINISHED_NAME = ".unfinished"
"""Folder within the target that holds a job's finished shards and its record."""

_RECORD_NAME = "record.jsonl"


@dataclass(frozen=True, slots=True)
class Task:
    """What makes one shard.

    Attributes:
        make: yields the shard's samples and counts in the report. Called with the report, and then with what the job's
            ``initialize`` made in this process, if there is one; pickled into a process, and the same at every call.
        folder: folder below the target, empty for the target itself.
    """

    make: Callable[..., Iterator[Sample]]
    folder: str = ""


class Job:
    """A target folder that is being filled.

    A job whose processes each load a model once, where ``label(path, report, model)`` yields the samples of a shard::

        job = Job(out, {"detector": name, "shards": [path.name for path in paths]})
        tasks = (Task(partial(label, path)) for path in paths)
        job.run(tasks, workers=4, initialize=partial(load_model, name), on_shard=lambda report, earlier: bar.advance())
        job.place()
        job.close()

    Args:
        out: target folder.
        identity: all that decides the bytes of the result; plain JSON. A job continues only with the same one.
        overwrite: replace what ``out`` holds: shards, or a job with another identity.

    Attributes:
        done: results of the tasks that earlier runs finished, the first ones of the list of tasks.

    Raises:
        ShardError: ``out`` is not empty, or holds a job with another identity.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.out = out
        self._room = out / UNFINISHED_NAME
        self._record = self._room / _RECORD_NAME
        self._identity = json.loads(json.dumps(identity))
        self.done: list[dict[str, Any]] = []
        make_folder(out)
        if self._record.is_file() and self._resume(overwrite):
            return
        if any(path.name != UNFINISHED_NAME for path in out.iterdir()) and not overwrite:
            raise ShardError(f"{out}: the folder is not empty; name another one, or pass overwrite (--overwrite)")
        shutil.rmtree(self._room, ignore_errors=True)
        make_folder(out, UNFINISHED_NAME)
        self._write_record([self._identity])

    def run(
        self,
        tasks: Iterable[Task],
        *,
        workers: int = 1,
        initialize: Callable[[], Any] | None = None,
        on_shard: Callable[[Report, bool], None],
    ) -> None:
        """Do the tasks that are not done.

        Args:
            tasks: one a shard, in a fixed order; those done before are not looked into.
            workers: processes; 1 does it all in this one. The result is the same for any number.
            initialize: makes what each process keeps from task to task, for instance a loaded model, and hands to
                ``Task.make``; called where there is something to do. See :class:`WorkerPool`.
            on_shard: called in order with each shard's report and whether an earlier run made it; may raise to stop.

        Raises:
            WorkerError: ``initialize`` failed, or processes were killed again and again at the same task.
        """
        for result in self.done:
            on_shard(Report.from_json(result["report"]), True)
        fresh = itertools.islice(_numbered(tasks), len(self.done), None)
        calls = ((number, task, self._room) for number, task in fresh)
        with WorkerPool(workers, initialize) as pool:
            for result in pool.run(_make_shard, calls):
                append(self._record, json.dumps(result) + "\n", sync=True)
                self.done.append(result)
                on_shard(Report.from_json(result["report"]), False)

    def count(self, unit: str) -> int:
        """Return the ``samples``, ``regions`` or ``crowds`` that reading the finished shards again has found."""
        return sum(info[unit] for result in self.done for info in result["shards"])

    def place(self, categories: Iterable[str] | None = None) -> list[Manifest]:
        """Move all shards into place.

        Args:
            categories: names to record in the manifests besides those that occur.

        Returns:
            The manifests, in the order in which the folders first came.
        """
        return [
            self._place(folder, categories or ()) for folder in dict.fromkeys(result["folder"] for result in self.done)
        ]

    def close(self) -> None:
        """Forget the record: the target is complete."""
        shutil.rmtree(self._room)

    def _resume(self, overwrite: bool) -> bool:
        """Read the record of an earlier run; False where it is of another job that is to be replaced."""
        make_folder(self.out, UNFINISHED_NAME)  # it may have come with a downloaded folder, and be a link
        whole = _objects(self._record.read_bytes())
        if not whole:
            return False
        recorded = whole[0]
        if recorded != self._identity:
            if overwrite:
                return False
            names = sorted(
                name for name in {**recorded, **self._identity} if recorded.get(name) != self._identity.get(name)
            )
            pairs = ((name, _told(recorded.get(name)), _told(self._identity.get(name))) for name in names)
            seen = "; ".join(f"{name} was {before}, is {now}" for name, before, now in pairs)
            remedy = "give --overwrite to start anew, or the source and options of before to continue"
            raise ShardError(f"{self.out}: an unfinished conversion of another source or options ({seen}); {remedy}")
        self.done = list(itertools.takewhile(self._is_there, whole[1:]))
        self._write_record([recorded, *self.done])
        return True

    def _write_record(self, items: Iterable[Mapping[str, Any]]) -> None:
        write_file(self._record, "".join(json.dumps(item) + "\n" for item in items))

    def _is_there(self, result: Mapping[str, Any]) -> bool:
        """Whether a result is whole and its shards are where it says; a record that leads elsewhere is none of ours."""
        if not {"folder", "shards", "categories", "report"} <= result.keys():
            return False
        try:
            shards = [ShardInfo.from_json(info) for info in result["shards"]]
        except ValueError:
            return False
        return all(
            any(
                path.is_file() and path.stat().st_size == shard.bytes
                for path in (self._room / result["folder"] / shard.name, self.out / result["folder"] / shard.name)
            )
            for shard in shards
        )

    def _place(self, folder: str, categories: Iterable[str]) -> Manifest:
        """Move the shards of one folder into place; cut short, it leaves a folder that no reader takes."""
        target = make_folder(self.out, *Path(folder).parts)
        mine = [result for result in self.done if result["folder"] == folder]
        shards = [ShardInfo.from_json(info) for result in mine for info in result["shards"]]
        shards.sort(key=lambda info: info.name)
        names = {info.name for info in shards}
        (target / MANIFEST_NAME).unlink(missing_ok=True)
        for path in target.glob("*.tar"):  # of what is overwritten
            if path.name not in names or (self._room / folder / path.name).is_file():
                path.unlink()
        known = set(categories).union(*(result["categories"] for result in mine))
        manifest = Manifest.of(target, shards, sorted(known))
        write_manifest(manifest)  # first: a manifest without its shards is refused, shards without one are not
        for info in shards:
            waiting = self._room / folder / info.name
            if waiting.is_file():
                publish(waiting, target / info.name)
        return manifest


def _objects(lines: bytes) -> list[dict[str, Any]]:
    """JSON objects, one a line, up to the first line that is none: a kill cuts the last one off, a bad disk any."""
    objects = []
    for line in lines.splitlines(keepends=True):
        try:
            value = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            break
        objects.append(value)
    return objects


def _numbered(tasks: Iterable[Task]) -> Iterator[tuple[int, Task]]:
    """Number the tasks of each folder from 0."""
    seen: Counter[str] = Counter()
    for task in tasks:
        yield seen[task.folder], task
        seen[task.folder] += 1


def _make_shard(number: int, task: Task, room: Path, *state: Any) -> dict[str, Any]:
    """Write the samples of one task; return plain JSON for the job's record."""
    report = Report()
    samples = report.tally(task.make(report, *state))
    result: dict[str, Any] = {"folder": task.folder, "shards": [], "categories": []}
    first = next(samples, None)
    if first is not None:
        place = make_folder(room, *Path(task.folder).parts)
        scratch = make_folder(place, f"making-{number:06d}")
        manifest = write_shards(
            itertools.chain([first], samples), scratch, samples_per_shard=sys.maxsize, overwrite=True
        )
        for part, info in enumerate(manifest.shards):  # more than one where the samples are giants
            name = f"shard-{number:06d}.tar" if part == 0 else f"shard-{number:06d}-{part}.tar"
            publish(scratch / info.name, place / name)
            result["shards"].append(replace(info, name=name).to_json())
        shutil.rmtree(scratch)
        result["categories"] = list(manifest.categories)
    return result | {"report": report.to_json()}


def _told(value: Any) -> str:
    """A part of a job's identity for a message: of files their names and bytes."""
    if isinstance(value, list) and value and all(isinstance(one, list) and len(one) == 3 for one in value):
        shown = ", ".join(f"{name} ({size} bytes)" for name, size, _ in value[:3])
        return shown + (f" and {len(value) - 3} more" if len(value) > 3 else "") + ", as it was saved then"
    return repr(value)[:200]
