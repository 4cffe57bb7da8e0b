"""What each method costs, measured in turn on an idle machine: samples a second in training, boxes a second in reading.

A round asks every method once, one after the other (A B C, A B C, …), so that what else the machine does falls on all
alike; medians over rounds count, and ratios are taken within a round. Training is ``train.py`` on the study's data, its
last two thirds. Reading is by ``eval.py``'s own timing: a method whose source needs a pass of the tower for each box
pays it, one that reads all boxes of a picture from one pass pays its share of that.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.tournament.child import Children
from benchmarks.tournament.ledger import Line, write_line
from benchmarks.tournament.plan import Settings, make_job
from benchmarks.tournament.results import Results
from benchmarks.tournament.runs import BASE, ONE_THREAD, Place, RunError, machine
from benchmarks.tournament.study import Study, joined
from benchmarks.tournament.table import label_of, markdown
from cloc.console import counted

PASS_A_BOX = ("crop", "native")
"""Sources that show the tower each box by itself."""
WARM = 1 / 3  # of the samples, which are not timed
PICTURES = 16  # that reading is timed on
IDLE = 0.5  # load of the last minute up to which a machine counts as idle


@dataclass
class Asked:
    """One method in one round.

    Attributes:
        samples_per_second: in training.
        boxes_per_second: by the method's own reading; None where it reads none.
        about: ``cost`` of ``eval.py``: the model's parts and what was timed.
    """

    samples_per_second: float
    boxes_per_second: float | None
    about: dict[str, Any]


@dataclass
class Meter:
    """Measures methods of a study.

    Args:
        study: whose methods.
        place: where the programs are; run folders are temporary.
        samples: trained on in a round.
    """

    study: Study
    place: Place
    samples: int
    children: Children = field(default_factory=Children)

    def ask(self, method: str) -> Asked:
        """Train a method for a moment, and time its reading.

        Raises:
            RunError: a program failed.
        """
        with tempfile.TemporaryDirectory(prefix="cloc-cost-") as made:
            run, log = Path(made, "run"), Path(made, "log")
            settings: Settings = {key: self.study.axes[key].values[0] for key in self.study.methods[method].search}
            job = make_job(self.study, method, settings, 0, [])
            more = [f"samples={self.samples}", "trainer.log_every=1", f"run_dir={run}", "seed=0"]
            self._run("train.py", joined(BASE, job.overrides, self.place.local, more), log)
            about = self._timed(method, run, Path(made, "out"), log)
            return Asked(_rate(run / "metrics.csv"), boxes_per_second(about, self.study.methods[method].reads), about)

    def _timed(self, method: str, run: Path, out: Path, log: Path) -> dict[str, Any]:
        name, source = self.study.validation or self.study.test[0], self.study.methods[method].reads
        options = [f"checkpoint={run}", f"data=[{name}]", f"out={out}", f"cost={PICTURES}", "pictures=1", "cache=null"]
        options += [f"limit={PICTURES}", "evaluation.bootstrap=0"]
        options += [f"evaluation.sources=[{source}]"] if source else ["evaluation.parts=[image]"]
        self._run("eval.py", options, log)
        found = json.loads((out / "metrics.json").read_text("utf-8"))["cost"]
        return dict(next(iter(found.values())))

    def _run(self, script: str, options: list[str], log: Path) -> None:
        command = [sys.executable, str(self.place.tree / script), *options]
        environment = ONE_THREAD | {"PYTHONPATH": str(self.place.tree)}
        ended = self.children.run(command, self.place.tree, log, environment)
        if ended.code:
            raise RunError(f"{script}: {self.place.public(ended.reason)}")


def boxes_per_second(about: dict[str, Any], source: str) -> float | None:
    """Boxes a second by a source, the tower's passes among them: one a box, or a picture's share."""
    rate = about.get("boxes_per_second", {}).get(source)
    if not rate:
        return None
    seen = 0.0 if source in PASS_A_BOX else about["pictures"] * about["picture_ms"] / 1000
    return float(about["boxes"] / (seen + about["boxes"] / rate))


def measure(study: Study, ledger: Path, place: Place, only: list[str], rounds: int, samples: int) -> dict[str, Any]:
    """Measure methods in turn, a line for each in the ledger; print them beside each other.

    Returns:
        The lines' figures by method; ``failed`` where a method cannot be measured.
    """
    methods, meter, load = study.in_order(only), Meter(study, place, samples), os.getloadavg()[0]
    if load > IDLE:
        print(f"the machine is not idle: load {load:.1f}; trust ratios more than rates", file=sys.stderr)
    asked: dict[str, list[Asked]] = {method: [] for method in methods}
    failed: dict[str, str] = {}
    turns = [method for _ in range(rounds) for method in methods]
    for method in counted(turns, "measuring", "methods"):
        if method in failed:
            continue
        try:
            asked[method].append(meter.ask(method))
        except RunError as error:
            failed[method] = str(error)
    lines = {
        m: _line(study, m, found, asked.get(study.baseline, []), load) for m, found in asked.items() if m not in failed
    }
    for line in lines.values():
        write_line(ledger, line | {"rounds": rounds, "samples": samples})
    print(f"{cost_table(Results.read(study, ledger), failed)}\n")
    kept = ("samples_per_second", "samples_ratio", "boxes_per_second", "boxes_ratio", "parameters")
    return {m: {key: line[key] for key in kept} for m, line in lines.items()} | ({"failed": failed} if failed else {})


def cost_table(results: Results, failed: dict[str, str] | None = None) -> str:
    """The newest costs of a ledger in Markdown."""
    study, rows = results.study, []
    newest = {line["method"]: line for line in results.lines if line["kind"] == "cost"}
    for method in study.in_order():
        line = newest.get(method)
        if failed and method in failed:
            rows.append([label_of(study, method), f"failed: {failed[method]}", *["–"] * 6])
        elif line:
            rows.append([label_of(study, method), *_cells(line)])
    header = ["", "samples/s", "over baseline", "reads by", "boxes/s", "over baseline", "towers, M", "heads, M"]
    passes = f"one a box for {' and '.join(PASS_A_BOX)}, else one a picture"
    note = f"Boxes of {PICTURES} pictures, with the tower's passes: {passes}."
    return f"{markdown(header, rows)}\n\n{note}"


def _cells(line: Line) -> list[str]:
    parts = line.get("parameters_of") or {}
    towers = sum(parts.get(name, 0) for name in ("image", "text"))
    heads = sum(count for name, count in parts.items() if name not in ("image", "text"))
    shown = [line["samples_per_second"], line["samples_ratio"], line["boxes_per_second"], line["boxes_ratio"]]
    rate, ratio, boxes, over = ("–" if value is None else f"{value:,.3g}" for value in shown)
    return [rate, ratio, line["source"] or "–", boxes, over, f"{towers / 1e6:.2f}", f"{heads / 1e6:.2f}"]


def _line(study: Study, method: str, found: list[Asked], base: list[Asked], load: float) -> Line:
    boxes = [one.boxes_per_second for one in found if one.boxes_per_second]
    pairs = list(zip(found, base, strict=False))
    read = [(a.boxes_per_second, b.boxes_per_second) for a, b in pairs]
    about = found[-1].about
    return {
        "kind": "cost",
        "study": study.name,
        "method": method,
        "overrides": list(make_job(study, method, {}, 0, []).overrides),
        "samples_per_second": statistics.median(one.samples_per_second for one in found),
        "samples_ratio": _median([one.samples_per_second / other.samples_per_second for one, other in pairs]),
        "source": study.methods[method].reads,
        "boxes_per_second": _median(boxes),
        "boxes_ratio": _median([ours / theirs for ours, theirs in read if ours and theirs]),
        "parameters": about.get("parameters"),
        "parameters_of": about.get("parameters_of"),
        "picture_ms": about.get("picture_ms"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine() | {"load": load},
    }


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _rate(path: Path) -> float:
    """Samples a second of a run's last two thirds, without measuring."""
    with path.open(encoding="utf-8") as lines:
        rows = [(float(row["samples"]), float(row["seconds"])) for row in csv.DictReader(lines) if row.get("seconds")]
    if len(rows) < 3:
        raise RunError(f"train.py: {len(rows)} steps are too few to be timed; give more --samples")
    warm = rows[int(len(rows) * WARM)]
    return (rows[-1][0] - warm[0]) / max(rows[-1][1] - warm[1], 1e-9)
