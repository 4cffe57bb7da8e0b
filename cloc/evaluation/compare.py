"""Models side by side: what `eval.py` runs. Writes metrics.json, the tables and the report.

Last step of evaluation (``sets → model_outputs → metrics → suite → report → compare``). On several ranks all measure,
and the first one writes.
"""

from __future__ import annotations

import csv
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from cloc.config import ConfigError, DatasetConfig, EvalConfig, find_class
from cloc.config.versions import versions
from cloc.console import plain, print_line, working
from cloc.encoder import Encoder
from cloc.evaluation.cache import Cache
from cloc.evaluation.cost import Probe, better_probe, measure_cost
from cloc.evaluation.metrics.bootstrap import difference, intervals, resample
from cloc.evaluation.metrics.catalog import ALL, Catalog, build_catalog
from cloc.evaluation.metrics.outcome import Outcomes, values
from cloc.evaluation.metrics.regions import BEST
from cloc.evaluation.model_outputs import ModelOutputs
from cloc.evaluation.reduce import Ranks, jointly
from cloc.evaluation.report.example_choice import Evaluated
from cloc.evaluation.report.example_pictures import dataset_report
from cloc.evaluation.report.metrics_file import Entry, MetricsFile, Uncertainty
from cloc.evaluation.report.page import write_report
from cloc.evaluation.report.report_data import Curve, DatasetReport, ReportData
from cloc.evaluation.report.table import comparison_table, markdown
from cloc.evaluation.seeds import group_runs, over_seeds
from cloc.evaluation.sets.kinds import load_eval_set
from cloc.evaluation.suite import check_lead, measure
from cloc.files import make_folder, write_file, write_json
from cloc.loading import load
from cloc.models.devices import find_device, measuring_dtype
from cloc.usage import meant, opening, print_next

OPENMOJI_NOTE = (
    "All emojis designed by OpenMoji – the open-source emoji and icon project (https://openmoji.org). "
    "License: CC BY-SA 4.0. The scenes are compositions of them."
)


def compare(config: EvalConfig) -> Path:
    """Measure a checkpoint and its baselines on every set, on the processes that a launcher started.

    Args:
        config: validated.

    Returns:
        The report's page; ``metrics.json`` lies beside its folder.

    Raises:
        ConfigError: an unknown set or metric, or two models of the same name.
        FileNotFoundError: a checkpoint or a shard folder is not there.
        LaunchError: what a launcher says is not understood.
    """
    if not config.data:
        raise ConfigError(f"data=[]: name at least one evaluation set; known are {sorted(config.datasets)}")
    sets, catalog = {name: _dataset(name, config) for name in config.data}, build_catalog(config.evaluation.metrics)
    for name, dataset in sets.items():
        check_lead(name, dataset, catalog)
    return jointly(lambda ranks, device: _compare(replace(config, device=device), sets, catalog, ranks), config.device)


def _compare(config: EvalConfig, sets: dict[str, DatasetConfig], catalog: Catalog, ranks: Ranks) -> Path:
    console = Console(quiet=not ranks.first)
    encoders = _load_models(config)
    out = Path(config.out) if config.out else Path(encoders[0].info["run"]).parent
    result: MetricsFile = {
        "command": shlex.join(["python", *sys.argv]),
        "bootstrap": {"samples": config.evaluation.bootstrap, "level": 0.95, "seed": config.seed},
        "data": {},
    }
    reports, groups = [], group_runs(encoders)
    probe: Probe | None = None
    waiting = Console(stderr=True, quiet=not ranks.first)
    cache = Cache(config.cache, ranks)
    models = [ModelOutputs(encoder, ranks, cache, waiting) for encoder in encoders]
    for number, (name, dataset) in enumerate(sets.items(), start=1):
        of = f" ({number} of {len(sets)} sets)" * (len(sets) > 1)
        with working(waiting, f"reading {name}{of}"):
            data = load_eval_set(name, dataset, config.limit, ranks)
        embedded = [outputs.embed(data, config.evaluation, catalog.needs) for outputs in models]
        outcomes = {
            outputs.encoder.name: measure(outputs, data, own, catalog.metrics)
            for outputs, own in zip(models, embedded, strict=True)
        }
        metrics = {model: values(found) for model, found in outcomes.items()}
        unreadable = int(embedded[0].classified.isnan().any(1).sum()) if len(embedded[0].classified) else 0
        entry: Entry = {
            "models": metrics,
            "counts": data.counts,
            "skipped": data.skipped | ({"image_to_classify_unreadable": unreadable} if unreadable else {}),
            "notes": data.notes,
            "lead": data.lead,
            "class_texts": data.templates,
        }
        if config.evaluation.bootstrap and ranks.first:
            with working(waiting, f"intervals of {name}{of}"):
                entry = {**entry, **uncertainty(outcomes, config.evaluation.bootstrap, config.seed, catalog)}
        if groups:
            entry["seeds"] = over_seeds(metrics, groups, catalog)
        if ranks.first:
            probe = better_probe(probe, data, config.cost)
        result["data"][name] = entry
        best = {model: catalog.best_sources(own) for model, own in metrics.items()}
        found = Evaluated(models, data, embedded, outcomes, best, catalog)
        reports.append(dataset_report(found, entry, config.pictures, config.evaluation.bootstrap, config.seed))
    page = out / "report" / "index.html"
    if ranks.first:
        make_folder(out)
        if others := _replaced(out / "metrics.json", encoders):
            print_line(console, f"{out / 'metrics.json'}: replaces the results of {others}; out=FOLDER keeps both")
        result["models"] = {encoder.name: _facts(encoder) for encoder in encoders}
        if config.cost:
            with working(waiting, "timing the models"):
                result["cost"] = {
                    encoder.name: measure_cost(encoder, probe, config.evaluation.sources) for encoder in encoders
                }
        write_json(out / "metrics.json", result)
        write_file(out / "metrics.md", markdown(result, catalog))
        console.print(comparison_table(result, catalog, console.width))
        for name, entry in result["data"].items():
            for note in entry["notes"]:
                console.print(f"{name}: {note}", style="yellow", highlight=False, markup=False)
        page = write_report(_report(config, result, reports, encoders, catalog), out / "report")
        print_line(console, "")
        print_line(console, f"metrics  {out / 'metrics.json'}")
        print_line(console, f"report   {page}")
        print_next(opening(page))
    return page


def _replaced(file: Path, encoders: Sequence[Encoder]) -> str:
    """Names of models that results at the same place are of and these are not; empty where none are lost."""
    try:
        known = json.loads(file.read_bytes())["models"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none there, or another program's
        return ""
    if not isinstance(known, dict):
        return ""
    return ", ".join(sorted(map(plain, known.keys() - {encoder.name for encoder in encoders})))


def uncertainty(outcomes: dict[str, Outcomes], samples: int, seed: int, catalog: Catalog = ALL) -> Uncertainty:
    """What stands beside the metrics of a set: 95 % intervals, and differences of the first model to each other.

    Args:
        outcomes: of each model; the first is the one that is measured.
        samples: resamples of the pictures.
        seed: of the draws.
        catalog: metrics, which say what is better.

    Returns:
        ``intervals``: model → metric → [low, high]. ``differences``: other model → metric → [first less other, low,
        high]; ``region/best/MEASURE`` compares each model's own best source, which ``best_sources`` names.
    """
    rows = {model: resample(found, samples, seed) for model, found in outcomes.items()}
    best = {model: catalog.best_sources(values(found)) for model, found in outcomes.items()}
    first, *others = outcomes
    gaps: dict[str, dict[str, list[float]]] = {other: {} for other in others}
    for other in others:
        same = {name: name for name in rows[first] if name in rows[other]}
        names = {name: (name, name) for name in same}
        for measure_, source in best[first].items():
            if measure_ in best[other]:
                ours, theirs = f"region/{source}/{measure_}", f"region/{best[other][measure_]}/{measure_}"
                names[f"{BEST}{measure_}"] = (ours, theirs)
        for name, (ours, theirs) in names.items():
            one, two = outcomes[first][ours], outcomes[other][theirs]
            gaps[other][name] = difference(one, two, rows[first][ours], rows[other][theirs])
    found: Uncertainty = {"intervals": {model: intervals(own) for model, own in rows.items()}}
    return {**found, "differences": gaps, "best_sources": best} if others else found


def _load_models(config: EvalConfig) -> list[Encoder]:
    trusted = [find_class(name, "trusted") for name in config.trusted]
    place = find_device(config.device)
    precision = measuring_dtype(config.precision, place)
    paths = [config.checkpoint, *config.baseline]
    encoders = [load(path, place, trusted=trusted, dtype=precision) for path in paths]
    names = [encoder.name for encoder in encoders]
    for encoder in encoders:
        if names.count(encoder.name) > 1:  # the same run name twice: the parent folder tells them apart
            encoder.name = f"{Path(encoder.info['run']).parent.name}/{encoder.name}"
    if len({encoder.name for encoder in encoders}) < len(encoders):
        raise ConfigError(f"checkpoint and baseline name the same run twice: {[e.info['run'] for e in encoders]}")
    return encoders


def _dataset(name: str, config: EvalConfig) -> DatasetConfig:
    if name in config.datasets:
        return config.datasets[name]
    if Path(name).is_dir():
        return DatasetConfig(shards=name, description=f"shards of {name}")
    known = meant(name, config.datasets) or f"; known are {', '.join(sorted(config.datasets))}"
    raise ConfigError(f"data={name!r}: neither a folder of shards nor a set of datasets{known}")


def _facts(encoder: Encoder) -> dict[str, str | float]:
    model = encoder.model
    facts: dict[str, str | float] = {
        "samples seen": encoder.info.get("samples_seen", 0),
        "view": f"{model.image.image_size} px, {encoder.preprocess.mode}",
        "precision": str(encoder.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "checkpoint": encoder.info.get("file", ""),
    }
    if "activation" in encoder.info:
        facts["activation"] = encoder.info["activation"]
    if texts := encoder.info.get("texts") or getattr(encoder.tokenizer, "clean", None):
        facts["texts"] = texts
    run = Path(encoder.info.get("run", ""))
    seconds = [float(row["seconds"]) for row in _history(run) if row.get("seconds")]
    if seconds:
        facts["training seconds"] = round(max(seconds), 1)
    return facts


def _history(run: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    # A resumed run keeps the lines until each interruption in files of their own, which sort before the plain one.
    for file in sorted(run.glob("metrics*.csv")):
        with file.open() as lines:
            rows += csv.DictReader(lines)
    return rows


def curves(encoder: Encoder, catalog: Catalog = ALL) -> list[Curve]:
    """Learning curves of a run: each loss, and the metrics that say so, against samples and seconds."""
    found: dict[str, Curve] = {}
    samples = seconds = 0.0
    for row in _history(Path(encoder.info["run"])):
        samples, seconds = float(row.get("samples") or samples), float(row.get("seconds") or seconds)
        for name, value in row.items():
            wanted = name.startswith("loss/") or catalog.describe(_curve_name(name)).shown.curve
            if wanted and value and np.isfinite(float(value)):
                curve = found.setdefault(name, Curve(encoder.name, _curve_name(name), [], [], []))
                curve.samples.append(samples)
                curve.seconds.append(seconds)
                curve.values.append(float(value))
    return list(found.values())


def _curve_name(column: str) -> str:
    # val/SET/METRIC: the set is the validation split of what the report is about
    return column.split("/", 2)[2] if column.startswith("val/") else column


def _report(
    config: EvalConfig,
    result: MetricsFile,
    reports: list[DatasetReport],
    encoders: list[Encoder],
    catalog: Catalog,
) -> ReportData:
    notes = [OPENMOJI_NOTE] if any("openmoji" in name for name in config.data) else []
    for name, entry in result["data"].items():
        if entry["skipped"]:
            notes.append(f"{name}: samples and boxes left out: {entry['skipped']}")
        notes += [f"{name}: {note}" for note in entry["notes"]]
    return ReportData(
        title=f"{' and '.join(encoder.name for encoder in encoders)} on {', '.join(config.data)}",
        command=result["command"],
        data=reports,
        curves=[curve for encoder in encoders for curve in curves(encoder, catalog)],
        versions=_versions(encoders),
        notes=notes,
        training=result["models"],
        bootstrap=config.evaluation.bootstrap,
        catalog=catalog,
        cost=result.get("cost", {}),
    )


def _versions(encoders: list[Encoder]) -> dict[str, dict[str, str]]:
    """What measured, and what trained each run, as its ``versions.json`` says."""
    found = {"This evaluation": versions()}
    for encoder in encoders:
        file = Path(encoder.info.get("run", "")) / "versions.json"
        if file.is_file():
            found[f"Training of {encoder.name}"] = _training_versions(file)
    return found


def _training_versions(file: Path) -> dict[str, str]:
    try:
        return {name: str(value) for name, value in json.loads(file.read_bytes()).items() if value is not None}
    except (ValueError, AttributeError):
        return {"unknown": f"{file.name} cannot be read"}
