"""Models side by side: what `eval.py` runs. Writes metrics.json, the table and the report."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from cloc.config import ConfigError, DatasetConfig, EvalConfig
from cloc.encoder import Encoder, load
from cloc.evaluation.report import Case, Curve, DatasetReport, ReportData, write_report
from cloc.evaluation.suite import Embedded, EvalSet, class_embeddings, embed, load_eval_set, measure, pairs
from cloc.evaluation.table import comparison_table

CURVES = (  # of all that was measured in training, what a reader wants to see grow
    "image_text/text_to_image_R@1",
    "region/prompter/top1",
    "region/roi_align/top1",
    "region/prompter/text_to_region_R@10",
    "grounding/any/acc@0.5",
)
OPENMOJI_NOTE = (
    "All emojis designed by OpenMoji – the open-source emoji and icon project (https://openmoji.org). "
    "License: CC BY-SA 4.0. The scenes are compositions of them."
)


def compare(config: EvalConfig) -> Path:
    """Measure a checkpoint and its baselines on every set.

    Args:
        config: validated.

    Returns:
        The report's page; ``metrics.json`` lies beside its folder.

    Raises:
        ConfigError: an unknown set, or two models of the same name.
        FileNotFoundError: a checkpoint or a shard folder is not there.
    """
    console = Console()
    if not config.data:
        raise ConfigError(f"data=[]: name at least one evaluation set; known are {sorted(config.datasets)}")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    encoders = _load_models(config, device)
    out = Path(config.out) if config.out else Path(encoders[0].info["run"]).parent
    result: dict[str, Any] = {"command": shlex.join(["python", *sys.argv]), "data": {}}
    reports = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        for name in config.data:
            data = load_eval_set(name, _dataset(name, config), config.limit)
            embedded = [embed(encoder, data, config.evaluation, progress) for encoder in encoders]
            metrics = {
                encoder.name: measure(encoder, data, config.evaluation, own)
                for encoder, own in zip(encoders, embedded, strict=True)
            }
            result["data"][name] = {
                "models": metrics,
                "counts": data.counts,
                "skipped": data.skipped,
                "class_texts": data.config.templates,
            }
            cases = _cases(encoders, data, embedded, metrics, config)
            reports.append(DatasetReport(name, data.config.description, metrics, cases, data.counts))
    out.mkdir(parents=True, exist_ok=True)
    result["models"] = {encoder.name: _facts(encoder) for encoder in encoders}
    (out / "metrics.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    console.print(comparison_table(result))
    page = write_report(_report(config, result, reports, encoders), out / "report")
    console.print(f"\nmetrics  {out / 'metrics.json'}\nreport   {page}", highlight=False, soft_wrap=True)
    return page


def _load_models(config: EvalConfig, device: str) -> list[Encoder]:
    encoders = [load(path, device) for path in [config.checkpoint, *config.baseline]]
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
    raise ConfigError(f"data={name!r}: neither a folder of shards nor one of {sorted(config.datasets)}")


def _facts(encoder: Encoder) -> dict[str, str | float]:
    model = encoder.model
    facts: dict[str, str | float] = {
        "samples seen": encoder.info.get("samples_seen", 0),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "checkpoint": encoder.info.get("file", ""),
    }
    run = Path(encoder.info.get("run", ""))
    rows = _history(run)
    if rows:
        facts["training seconds"] = round(max(float(row["seconds"]) for row in rows if row.get("seconds")), 1)
    return facts


def _history(run: Path) -> list[dict[str, str]]:
    rows = []
    # A resumed run keeps the lines until each interruption in files of their own, which sort before the plain one.
    for file in sorted(run.glob("metrics*.csv")):
        with file.open() as lines:
            rows += csv.DictReader(lines)
    return rows


def curves(encoder: Encoder) -> list[Curve]:
    """Learning curves of a run: each loss, and the metrics of ``CURVES``, against samples and seconds."""
    found: dict[str, Curve] = {}
    samples = seconds = 0.0
    for row in _history(Path(encoder.info["run"])):
        samples, seconds = float(row.get("samples") or samples), float(row.get("seconds") or seconds)
        for name, value in row.items():
            wanted = name.startswith("loss/") or _curve_name(name) in CURVES
            if wanted and value and np.isfinite(float(value)):
                curve = found.setdefault(name, Curve(encoder.name, _curve_name(name), [], [], []))
                curve.samples.append(samples)
                curve.seconds.append(seconds)
                curve.values.append(float(value))
    return list(found.values())


def _curve_name(column: str) -> str:
    # val/SET/METRIC: the set is the validation split of what the report is about
    return column.split("/", 2)[2] if column.startswith("val/") else column


def _cases(
    encoders: list[Encoder],
    data: EvalSet,
    embedded: list[Embedded],
    metrics: dict[str, dict[str, float]],
    config: EvalConfig,
) -> list[Case]:
    """Some held-out pictures, drawn by seed, with every model's names for the boxes and places for the phrases."""
    usable = [i for i, sample in enumerate(data.samples) if sample.regions]
    if not usable or not config.pictures:
        return []
    rng = np.random.default_rng(config.seed)
    chosen = sorted(rng.permutation(usable)[: config.pictures].tolist())
    named = _names(encoders, data, embedded, metrics, chosen)
    starts = np.cumsum([0, *(len(own) for own in pairs(data.samples))])
    cases = []
    for index, picture in zip(chosen, data.pictures(chosen), strict=True):
        regions = data.samples[index].regions[:8]
        phrases = pairs([data.samples[index]])[0]
        grounded = {
            encoder.name: [
                tuple(own.predicted[starts[index] + phrases.index(region.phrases[0])].tolist()) for region in regions
            ]
            for encoder, own in zip(encoders, embedded, strict=True)
            if own.predicted
        }
        cases.append(
            Case(
                key=data.samples[index].key,
                image=tv.to_pil_image(picture),
                boxes=[region.box for region in regions],
                phrases=[region.phrases[0] for region in regions],
                named={label: names[index][: len(regions)] for label, names in named.items()},
                grounded=grounded,
            )
        )
    return cases


def _names(
    encoders: list[Encoder],
    data: EvalSet,
    embedded: list[Embedded],
    metrics: dict[str, dict[str, float]],
    chosen: list[int],
) -> dict[str, dict[int, list[str]]]:
    """What each model calls each box: the nearest class, or the nearest phrase where there are no classes."""
    starts = np.cumsum([0, *(len(sample.regions) for sample in data.samples)])
    phrases = sorted({phrase for sample in data.samples for region in sample.regions for phrase in region.phrases})
    labels: dict[str, dict[int, list[str]]] = defaultdict(dict)
    for encoder, own in zip(encoders, embedded, strict=True):
        source = best_source(metrics[encoder.name])
        if source is None:
            continue
        texts = data.categories or phrases
        gallery: Tensor = class_embeddings(encoder, data) if data.categories else encoder.encode_text(texts)
        for index in chosen:
            rows = own.regions[source][starts[index] : starts[index + 1]]
            labels[f"{encoder.name} · {source}"][index] = [texts[i] for i in (rows @ gallery.T).argmax(1).tolist()]
    return labels


def best_source(metrics: dict[str, float]) -> str | None:
    """The region source with the highest top1, or text-to-region recall where there are no classes."""
    for ending in ("/top1", "/text_to_region_R@10"):
        scores = {
            name.split("/")[1]: value
            for name, value in metrics.items()
            if name.startswith("region/") and name.endswith(ending)
        }
        if scores:
            return max(scores, key=scores.get)
    return None


def _report(
    config: EvalConfig, result: dict[str, Any], reports: list[DatasetReport], encoders: list[Encoder]
) -> ReportData:
    notes = [OPENMOJI_NOTE] if any("openmoji" in name for name in config.data) else []
    for name, entry in result["data"].items():
        if entry["skipped"]:
            notes.append(f"{name}: samples left out: {entry['skipped']}")
    run = Path(encoders[0].info["run"])
    versions = json.loads((run / "versions.json").read_text()) if (run / "versions.json").is_file() else {}
    return ReportData(
        title=f"{' and '.join(encoder.name for encoder in encoders)} on {', '.join(config.data)}",
        command=result["command"],
        data=reports,
        curves=[curve for encoder in encoders for curve in curves(encoder)],
        versions=versions,
        notes=notes,
        training=result["models"],
    )
