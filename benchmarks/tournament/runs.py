"""One job from its beginning to its line in the ledger: trained, or gone on with, then measured."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import cloc
from benchmarks.tournament.child import STOPPED, Children, Ended
from benchmarks.tournament.ledger import Line, Record
from benchmarks.tournament.plan import Job
from benchmarks.tournament.study import ROOT, Study, joined, key_of
from cloc.files import write_json

LOG, MARK = "tournament.log", "tournament.json"  # in a run folder
KILLS = 3  # of one run by a signal, after which it is a failed one
BASE = ["trainer.threads=1", "evaluation.every=0"]  # before the study's own, which may say otherwise
MEASURED = ["pictures=1", "cost=0", "cache=null", "evaluation.bootstrap=0"]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
_HASH = re.compile(r": process 0 of \d+, weights ([0-9a-f]{16})$", re.MULTILINE)
# Of a run that was trained elsewhere, whose output is not there.
_DIGEST = (
    "import sys, cloc; from cloc.models.weights.digests import weights_digest as d; "
    "print(': process 0 of 1, weights ' + d(cloc.load(sys.argv[1]).model))"
)


class RunError(RuntimeError):
    """A run failed; says why."""


class StoppedError(RuntimeError):
    """A run was asked to stop; it can be gone on with."""


@dataclass
class Place:
    """Where runs lie and what trains them.

    Attributes:
        runs: folder of run folders: ``STUDY/METHOD/SLUG`` below it.
        tree: checkout whose ``train.py`` and ``eval.py`` run, in which they run.
        local: overrides that say where files lie on this machine; no part of a result, and in no ledger.
    """

    runs: Path
    tree: Path = ROOT
    local: list[str] = field(default_factory=list)

    def folder(self, job: Job) -> Path:
        """The run folder of a job."""
        return self.runs / job.study / job.method / job.slug

    def public(self, text: str) -> str:
        """A text without this machine's paths."""
        values = [one.partition("=")[2] for one in self.local]
        for path in sorted([str(self.runs), str(self.tree), str(Path.home()), *values], key=len, reverse=True):
            text = text.replace(path, "…") if len(path) > 1 else text
        return text


@dataclass
class Work:
    """The work on one job; :meth:`line` does it.

    Args:
        study: it belongs to.
        job: what to do.
        place: where.
        record: what the ledger knows of it.
        children: starts programs.
    """

    study: Study
    job: Job
    place: Place
    record: Record | None
    children: Children
    tail: str = ""
    """Last lines of a program that failed."""
    _spent: dict[str, float] = field(default_factory=dict)

    def line(self) -> Line:
        """Do all that is missing.

        Returns:
            The line for the ledger, of status ``done`` or ``failed``.

        Raises:
            StoppedError: it was asked to stop before it was done.
        """
        folder = self.place.folder(self.job)
        folder.mkdir(parents=True, exist_ok=True)
        metrics: dict[str, dict[str, float]] = {}
        found: Line = {}
        try:
            self._train(folder)
            found = self._about(folder)
            for names, more in self._groups():
                measured, parameters = self._measure(folder, names, more)
                metrics |= measured
                found["parameters"] = parameters
        except RunError as error:
            reason = self.place.public(str(error))
            return {**self._head("failed"), "reason": reason, **found, **self._measurements(metrics)}
        return {**self._head("done"), **found, **self._measurements(metrics)}

    def _head(self, status: str) -> Line:
        job = self.job
        return {
            "kind": "run",
            "id": job.id,
            "study": job.study,
            "method": job.method,
            "status": status,
            "seed": job.seed,
            "settings": dict(job.settings),
            "overrides": list(job.overrides),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
        }

    def _measurements(self, metrics: dict[str, dict[str, float]]) -> Line:
        evaluation = {name: self.study.sets[name] for name in metrics}
        return {**self._spent, "evaluation": evaluation, "metrics": metrics}

    def _train(self, folder: Path) -> None:
        """Train, go on, or find that it is trained.

        What has no mark was trained elsewhere: ``train.py`` refuses it where its configuration is another.
        """
        if self._is_marked(folder) and _HASH.search(_read(folder / LOG)):
            return
        overrides = joined(BASE, self.job.overrides, self.place.local, [f"seed={self.job.seed}"])
        command = [sys.executable, str(self.place.tree / "train.py"), *overrides, f"run_dir={folder}"]
        is_begun = any((folder / "checkpoints").glob("*"))
        self._run("train", command, folder)
        if is_begun:  # an earlier life's share is unknown
            self._spent.clear()
        write_json(folder / MARK, {"id": self.job.id})
        if not _HASH.search(_read(folder / LOG)):
            self._run("digest", [sys.executable, "-c", _DIGEST, str(folder)], folder)

    def _is_marked(self, folder: Path) -> bool:
        """Whether a run folder is known to be that of this job; refuses that of another."""
        found = json.loads(_read(folder / MARK) or "{}").get("id", self.job.id)
        if found != self.job.id:
            raise RunError(f"its folder {self.job.title} holds {found}, trained with other overrides; move it away")
        return (folder / MARK).is_file()

    def _groups(self) -> list[tuple[list[str], list[str]]]:
        """Sets that are not measured yet, those with the same overrides together."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for name in self.job.sets:
            more = self.study.sets[name]
            if self.record is None or self.record.evaluation.get(name) != more:
                groups.setdefault(tuple(more), []).append(name)
        return [(names, list(more)) for more, names in groups.items()]

    def _measure(self, folder: Path, names: list[str], more: list[str]) -> tuple[dict[str, dict[str, float]], int]:
        out = folder / "measured" / "-".join(names)
        paths = [one for one in self.place.local if key_of(one).startswith("datasets.")]
        options = joined(MEASURED, more, paths)
        where = [f"checkpoint={folder}", f"data=[{','.join(names)}]", f"out={out}"]
        self._run("eval", [sys.executable, str(self.place.tree / "eval.py"), *where, *options], folder)
        try:
            result = json.loads((out / "metrics.json").read_text("utf-8"))
            parameters = next(iter(result["models"].values()))["parameters"]
            found = {name: next(iter(result["data"][name]["models"].values())) for name in names}
        except (FileNotFoundError, ValueError, LookupError, TypeError, StopIteration) as error:
            raise RunError(f"eval: metrics.json is not what was asked for: {error!r}") from error
        return {
            name: {key: one for key, one in own.items() if math.isfinite(one)} for name, own in found.items()
        }, parameters

    def _run(self, what: str, command: list[str], folder: Path) -> None:
        """Run a program; again where somebody killed it, which a run survives.

        Raises:
            RunError: it failed.
            StoppedError: it was asked to stop.
        """
        environment = ONE_THREAD | {"PYTHONPATH": str(self.place.tree)}
        for attempt in range(1, KILLS + 1):
            ended = self.children.run(command, self.place.tree, folder / LOG, environment)
            self._count(what, ended)
            if ended.code == STOPPED or self.children.stopping:
                raise StoppedError(self.job.title)
            if ended.code == 0:
                return
            if ended.code > 0 or attempt == KILLS:
                self.tail = ended.tail()
                raise RunError(f"{what}: {ended.reason}")

    def _count(self, what: str, ended: Ended) -> None:
        if what == "digest":
            return
        for kind, value in (("seconds", ended.seconds), ("processor_seconds", ended.processor)):
            key = f"{what}_{kind}"
            self._spent[key] = round(self._spent.get(key, 0.0) + value, 2)

    def _about(self, folder: Path) -> Line:
        """What the run folder says of its training."""
        versions: dict[str, str] = json.loads(_read(folder / "versions.json") or "{}")
        config: dict[str, Any] = yaml.safe_load(_read(folder / "config.yaml")) or {}
        self._check_defaults(config)
        commit, changed, _ = versions.get("git", "unknown").partition("+")
        return {
            "samples": config.get("samples"),
            "commit": commit,
            "dirty": bool(changed),
            "versions": {"torch": versions.get("torch"), "cloc": cloc.__version__},
            "weights": found[1] if (found := _HASH.search(_read(folder / LOG))) else None,
            "trained_seconds": _trained(folder / "metrics.csv"),
        }

    def _check_defaults(self, config: dict[str, Any]) -> None:
        """The value that the study calls an axis' default is the one that the experiment has."""
        for key in self.study.methods[self.job.method].search:
            axis = self.study.axes[key]
            if key in dict(self.job.settings) or not axis.default:
                continue
            value: Any = config
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if _number(value) != _number(axis.default):
                raise RunError(f"axes.{key}: the experiment has {value}, the study calls {axis.default} its default")


@cache
def machine() -> dict[str, Any]:
    """Name of the processor, and the number of cores that this process may use."""
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    usable: Callable[..., set[int]] | None = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    return {"processor": next(filter(None, names), platform.processor() or platform.machine()), "cores": cores}


def _number(value: Any) -> float | str:
    try:
        return float(str(value).replace("_", ""))
    except ValueError:
        return str(value)


def _read(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.is_file() else ""


def _trained(path: Path) -> float | None:
    """Seconds of training, without measuring, over all lives of a run."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as lines:
        found = [float(row["seconds"]) for row in csv.DictReader(lines) if row.get("seconds")]
    return found[-1] if found else None
