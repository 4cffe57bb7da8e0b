"""Which runs a study asks for: the search of each method, axis after axis, then all seeds with what was chosen."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from dataclasses import dataclass, field

from benchmarks.tournament.ledger import Book, Record
from benchmarks.tournament.study import Method, Study, joined, key_of

Settings = dict[str, str]
"""Searched key → value; a key at its axis' default is left out."""


@dataclass(frozen=True)
class Job:
    """One run: what is trained, and the sets that it is then measured on."""

    study: str
    method: str
    settings: tuple[tuple[str, str], ...]
    seed: int
    overrides: tuple[str, ...]
    """Of ``train.py``, all that defines the result but the seed."""
    sets: tuple[str, ...]
    slug: str
    """Names the run's folder."""
    cost: float

    @property
    def id(self) -> str:
        """Twelve hex digits of what defines the result."""
        meaning = [self.study, self.method, sorted(map(_canonical, self.overrides)), self.seed]
        return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:12]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.method}/{self.slug}"


@dataclass
class Trial:
    """One setting that was tried: its job, and the criterion's value on the validation set."""

    axis: str
    job: Job
    value: float | None = None
    failed: str = ""


@dataclass
class Search:
    """How far the search of a method is.

    Attributes:
        settings: chosen so far.
        trials: every one, in order; a run that serves two axes stands under both.
        pending: jobs without a value yet.
        edges: axes whose chosen value lies at the end of its grid.
        failed: why nothing can be chosen.
        waits_for: method whose settings it inherits, which are not chosen yet.
    """

    settings: Settings = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    pending: list[Job] = field(default_factory=list)
    edges: list[str] = field(default_factory=list)
    failed: str = ""
    waits_for: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the settings are chosen."""
        return not (self.pending or self.failed or self.waits_for)


def make_job(study: Study, method: str, settings: Settings, seed: int, sets: list[str]) -> Job:
    """The job of a method with some settings and a seed; a setting at its axis' default is left to the experiment."""
    own = study.methods[method]
    kept = {key: value for key, value in settings.items() if value != study.axes[key].default}
    experiment = [f"experiment={own.experiment}"] if own.experiment else []
    overrides = joined(experiment, study.overrides, own.overrides, [f"{key}={value}" for key, value in kept.items()])
    names = [f"{study.axes[key].name or key.rpartition('.')[2]}{value}" for key, value in kept.items()]
    slug = re.sub(r"[^\w.+-]", "-", "_".join([*names, f"s{seed}"]))  # model/prompter=paper names one folder
    return Job(study.name, method, tuple(kept.items()), seed, tuple(overrides), tuple(sets), slug, own.cost)


def search(study: Study, book: Book, method: str) -> Search:
    """The coordinate search of a method, as far as the ledger goes.

    All values of the first axis with the others at their defaults, then those of the second with the best of the
    first, and so on. A run that failed is no candidate.
    """
    own, found = study.methods[method], Search()
    if own.inherits:
        inherited = search(study, book, own.inherits)
        if not inherited.is_done:
            return Search(waits_for=own.inherits, failed=inherited.failed and f"{own.inherits}: {inherited.failed}")
        found.settings = dict(inherited.settings)
    for axis in own.search:
        trials = [_try(study, book, method, found.settings, axis, value) for value in study.axes[axis].values]
        found.trials += trials
        found.pending = [trial.job for trial in trials if trial.value is None and not trial.failed]
        if found.pending:
            return found
        done = [(trial.value, value) for trial, value in zip(trials, study.axes[axis].values, strict=True)]
        best = max((pair for pair in done if pair[0] is not None), key=lambda pair: pair[0] or 0.0, default=None)
        if best is None:
            found.failed = f"no run over {axis} succeeded: {trials[0].failed}"
            return found
        found.settings[axis] = best[1]
        if len(done) > 2 and best[1] in (done[0][1], done[-1][1]):
            found.edges.append(axis)
    return found


def final(study: Study, book: Book, only: list[str], seeds: list[int]) -> list[Job]:
    """Runs with the chosen settings, seed by seed over the methods whose settings are chosen."""
    chosen = {method: search(study, book, method) for method in study.in_order(only)}
    return [
        make_job(study, method, found.settings, seed, study.test)
        for seed in seeds
        for method, found in chosen.items()
        if found.is_done
    ]


def is_measured(record: Record | None, job: Job, study: Study) -> bool:
    """Whether all sets of a job are in the ledger, measured as the study asks."""
    return record is not None and all(
        name in record.metrics and record.evaluation.get(name) == study.sets[name] for name in job.sets
    )


def trains(study: Study, method: str) -> int:
    """How many runs the search and the seeds of a method train, the inherited search not among them."""
    own: Method = study.methods[method]
    searched = sum(len(study.axes[axis].values) for axis in own.search)
    shared = max(0, len(own.search) - 1) + bool(own.search and study.search_seed in study.seeds)
    return searched + len(study.seeds) - shared


def _try(study: Study, book: Book, method: str, settings: Settings, axis: str, value: str) -> Trial:
    job = make_job(study, method, {**settings, axis: value}, study.search_seed, [study.validation])
    record, wanted = book.get(job.id), study.criterion_of(method)
    if record is None:
        return Trial(axis, job)
    if not is_measured(record, job, study):
        return Trial(axis, job, failed=record.failed)
    missing = [name for name in wanted if name not in record.metrics[study.validation]]
    if missing:
        return Trial(axis, job, failed=f"{study.validation} has no {', '.join(missing)}")
    return Trial(axis, job, statistics.fmean(record.metrics[study.validation][name] for name in wanted))


def _canonical(override: str) -> str:
    """An override with its value as a number where it is one: 68_000 is 68000, 7.5e-3 is 0.0075."""
    value = override.partition("=")[2]
    try:
        number = float(value.replace("_", ""))
    except ValueError:
        return override
    return f"{key_of(override)}={number!r}"
