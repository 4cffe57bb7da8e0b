"""What the ledger holds of each method, by seed: the way from records to columns of a table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.tournament.ledger import Book, Line, Record, read_book, read_lines
from benchmarks.tournament.plan import final, search
from benchmarks.tournament.study import COSTS, Study


@dataclass
class Row:
    """A method's runs with its chosen settings.

    Attributes:
        method: its name.
        records: of the seeds that are measured on a test set, by seed.
        failed: reason by seed, of those that are not measured on all of them.
        state: why there is no run at all; empty where there is one.
        asked: seeds that the study asks for.
    """

    method: str
    records: dict[int, Record] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    state: str = ""
    asked: int = 0

    @property
    def n(self) -> str:
        """How many seeds there are, of how many, and what failed; never silent about one that is missing."""
        told = [f"failed: {reason}" for reason in dict.fromkeys(self.failed.values())]
        if not self.records:
            return "; ".join(told) or self.state or "not run"
        missing = self.asked - len(self.records)
        counted = f"{len(self.records)} of {self.asked}" if missing else str(self.asked)
        return "; ".join([counted, *(f"{len(self.failed)} {one}" for one in told)])


@dataclass
class Results:
    """A study with its ledger."""

    study: Study
    lines: list[Line]
    book: Book

    @classmethod
    def read(cls, study: Study, ledger: Path) -> Results:
        """Read a ledger; one that is not there is empty."""
        return cls(study, read_lines(ledger), read_book(ledger))

    def row(self, method: str) -> Row:
        """The runs of a method with its chosen settings."""
        study, found = self.study, Row(method, asked=len(self.study.seeds))
        chosen = search(study, self.book, method)
        if not chosen.is_done:
            found.state = self._state(method)
            if chosen.failed:
                found.failed[study.search_seed] = chosen.failed
            return found
        for job in final(study, self.book, [method], study.seeds):
            record = self.book.get(job.id)
            if record is not None and any(name in record.metrics for name in job.sets):
                found.records[job.seed] = record
            if record is not None and record.failed and not all(name in record.metrics for name in job.sets):
                found.failed[job.seed] = record.failed
        return found

    def _state(self, method: str) -> str:
        found = search(self.study, self.book, method)
        if found.waits_for:
            return f"waits for the search of {found.waits_for}"
        tried = {trial.job.id for trial in found.trials if trial.value is not None}
        return f"in search, {len(tried)} tried" if tried else "not run"

    def failed_trials(self, method: str) -> int:
        """Runs that failed in a search which chose without them."""
        found = search(self.study, self.book, method)
        return len({trial.job.id for trial in found.trials if trial.failed}) if found.is_done else 0

    def values(self, row: Row, column: str) -> dict[int, float]:
        """A column's values of a row, by seed; those of seeds that lack it are not there."""
        if column in COSTS:
            return self._costs(row, column)
        place, metric = self.study.place(column)
        name = self.study.metric(row.method, metric)
        measured = {seed: record.metrics.get(place, {}) for seed, record in row.records.items()}
        return {seed: one[name] for seed, one in measured.items() if name is not None and name in one}

    def _costs(self, row: Row, column: str) -> dict[int, float]:
        if column in ("samples_per_second", "boxes_per_second"):
            newest = [line for line in self.lines if line["kind"] == "cost" and line["method"] == row.method][-1:]
            return dict(enumerate(line[column] for line in newest if line.get(column) is not None))
        return {seed: record.line[column] for seed, record in row.records.items() if column in record.line}

    def remeasured(self, row: Row) -> int:
        """Seeds that were measured with other overrides of ``eval.py`` than the study has now."""
        asked = [(name, self.study.sets[name]) for name in self.study.test]
        known = [record.evaluation for record in row.records.values()]
        return sum(any(own.get(name, more) != more for name, more in asked) for own in known)

    def machine_hours(self) -> float:
        """Hours of one thread that all runs took: of the processor, or else of training by the clock."""
        trained: dict[str, float] = {}
        for line in (line for line in self.lines if line["kind"] == "run"):
            known = line.get("train_processor_seconds")
            if known is not None or line["id"] not in trained:
                trained[line["id"]] = known if known is not None else line.get("trained_seconds") or 0.0
        measured = sum(line.get("eval_processor_seconds") or 0.0 for line in self.lines if line["kind"] == "run")
        return (sum(trained.values()) + measured) / 3600

    def all_runs(self, method: str) -> list[Record]:
        """Every run of a method that is in the ledger and in its study, whatever its settings."""
        study = self.study
        known = {trial.job.id for trial in search(study, self.book, method).trials}
        known |= {job.id for job in final(study, self.book, [method], study.seeds)}
        return [record for key, record in self.book.items() if key in known]


def mean(values: dict[int, float]) -> float | None:
    """Mean over seeds; None of none."""
    return statistics.fmean(values.values()) if values else None
