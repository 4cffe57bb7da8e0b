"""A metric and a kind of set of one's own: a class here, a line of configuration, and no other file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch import Tensor

from cloc.config import ConfigError, DatasetConfig, EvaluationConfig, check_keys
from cloc.contracts import Region, Sample
from cloc.encoder import Encoder
from cloc.evaluation.compare import compare
from cloc.evaluation.metrics.catalog import ALL, METRICS, Catalog, build_catalog
from cloc.evaluation.metrics.metric import BOXES, Chance, Description, Lead, Metric, Section, Shown
from cloc.evaluation.metrics.outcome import Outcomes, outcome
from cloc.evaluation.metrics.regions import RegionMetric
from cloc.evaluation.model_outputs import OUTPUTS, Embedded, ModelOutputs
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.report.headline import headline
from cloc.evaluation.report.table import compare as grouped
from cloc.evaluation.report.table import comparison_table, make_gap
from cloc.evaluation.sets.eval_set import EvalSet
from cloc.evaluation.sets.kinds import KINDS, load_eval_set
from cloc.evaluation.suite import TrainingSuite, measure
from tests.kit.evaluating import QUICK, configuration, dataset, png, result
from tests.kit.paths import ROOT

HERE = "tests.evaluation.test_plugins"


class CaptionDistance(Metric):
    """How far a picture's embedding lies from that of its first caption."""

    needs = ("images",)
    pattern = "mine/caption_distance"

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def applies(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> bool:
        return len(embedded.images) > 0

    def measure(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> Outcomes:
        texts = outputs.texts([sample.captions[0] for sample in data.samples]).cpu()
        distance = (embedded.images - texts).norm(dim=1) ** self.power
        return {"mine/caption_distance": outcome(distance, torch.arange(len(distance)))}

    def describe(self, name: str) -> Description | None:
        if name != "mine/caption_distance":
            return None
        lead = Lead(1000, "stands {} from its captions")
        words = ("Distance to the caption", "The Euclidean distance between a picture and its first caption.")
        return Description(
            name, Section("Of my own"), *words, "Mean", "units", higher_is_better=False, shown=Shown(lead)
        )


class Error(RegionMetric):
    """A metric of boxes of which less is better."""

    pattern = "region/SOURCE/error"

    def measure_rows(self, outputs: ModelOutputs, data: EvalSet, rows: Tensor, prefix: str) -> Outcomes:
        return {f"{prefix}error": outcome(rows[:, 0].abs(), torch.arange(len(rows)))}

    def describe_measure(self, name: str, measure: str, row: str, place: int) -> Description | None:
        told = Description(name, BOXES, "Error of a box", "How wrong.", row, "px", higher_is_better=False)
        return told if measure == "error" else None


class Greedy(CaptionDistance):
    """A metric that asks for what no model makes."""

    needs = ("dreams",)


class Drawn:
    """A set that no file holds: so many pictures drawn by number, each with a caption and a box."""

    def __init__(self, pictures: int = 4) -> None:
        self.count = pictures

    def read(self, data: EvalSet, limit: int, ranks: Ranks) -> None:
        box = Region((0.1, 0.1, 0.6, 0.8), ("a thing",), category="thing")
        numbers = range(min(self.count, limit or self.count))
        data.samples = [Sample(str(i), b"", "png", (f"picture {i}",), (box,), 32, 24) for i in numbers]
        data.encoded, data.digest, data.categories = png, f"drawn-{self.count}", ["thing", "other"]
        data.extra, data.more_counts = {"seed": 7}, {"seeds": 1}
        data.skip({"too_dark": 1})


class Forgetful(Drawn):
    """A set that does not say when embeddings of its pictures are out of date."""

    def read(self, data: EvalSet, limit: int, ranks: Ranks) -> None:
        super().read(data, limit, ranks)
        data.digest = ""


def drawn(**arguments: Any) -> DatasetConfig:
    return DatasetConfig(set={"_target_": f"{HERE}.Drawn", **arguments}, description="drawn")


def named(*metrics: Any) -> EvaluationConfig:
    return replace(QUICK, metrics=list(metrics))


def test_a_metric_of_ones_own_is_in_the_numbers_the_table_and_the_page(
    data: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cloc.console.FIRST", 0.0)  # progress is told at once
    mine = {"_target_": f"{HERE}.CaptionDistance", "power": 2.0}
    page = compare(configuration(data, runs, tmp_path, evaluation=named("retrieval", mine, "grounding")))
    found = result(tmp_path)["data"]["toy"]
    for model in ("cloc", "clip"):
        low, high = found["intervals"][model]["mine/caption_distance"]
        assert 0 <= low <= found["models"][model]["mine/caption_distance"] <= high <= 4
        assert not any(name.startswith(("region/", "relations/", "image/")) for name in found["models"][model])
    assert "mine/caption_distance" in found["differences"]["clip"]
    value = found["models"]["cloc"]["mine/caption_distance"]
    printed, progress = capsys.readouterr()
    assert "cloc on toy: 5 of 12 pictures (42%), " in progress and "clip on toy: 12 pictures in 0:" in progress
    assert "cloc reads texts: " in progress
    assert printed.splitlines()[-2:] == [f"report   {page}", f"next: python -m webbrowser {page.as_uri()}"]
    assert max(map(len, printed.split("\nmetrics ")[0].splitlines())) <= 80
    for text in (printed, page.read_text(encoding="utf-8")):
        assert "Of my own" in text and "Distance to the caption" in text and "Mean (units)" in text
        assert f"{value:.3f}" in text
    assert f"`mine/caption_distance` | {value:.3f}" in (tmp_path / "metrics.md").read_text().replace("**", "")
    assert "The Euclidean distance between a picture and its first caption." in page.read_text(encoding="utf-8")


def test_a_metric_of_ones_own_is_measured_while_training(data: Path, encoder: Encoder) -> None:
    config = replace(named({"_target_": f"{HERE}.CaptionDistance"}), data=["toy"], limit=3)
    found = TrainingSuite(config, {"toy": dataset(data)}, encoder.model)(encoder.model)
    assert list(found) == ["toy/mine/caption_distance"]


def test_what_no_metric_needs_is_not_computed(data: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("boxes were asked for")

    monkeypatch.setattr(Encoder, "regions", never)
    monkeypatch.setattr(Encoder, "grounded", never)
    catalog = build_catalog(["retrieval", "zero_shot"])
    outputs, toy = ModelOutputs(encoder, Ranks()), load_eval_set("toy", dataset(data))
    embedded = outputs.embed(toy, QUICK, catalog.needs)
    assert not embedded.regions and not len(embedded.predicted) and not len(embedded.relation_images)
    names = measure(outputs, toy, embedded, catalog.metrics)
    assert names and all(name.startswith(("image_text/", "image/")) for name in names)


def test_where_less_is_better_the_least_wins() -> None:
    catalog = Catalog([Error(), CaptionDistance()])
    models = {
        "a": {"region/crop/error": 3.0, "region/roi_align/error": 2.0, "mine/caption_distance": 0.4},
        "b": {"region/crop/error": 1.0, "region/roi_align/error": 5.0, "mine/caption_distance": 0.7},
    }
    assert catalog.best_sources(models["a"]) == {"error": "roi_align"}
    assert ALL.best_sources({"region/crop/top1": 0.1, "region/roi_align/top1": 0.2}) == {"top1": "roi_align"}
    rows = {
        row.description.metric: row
        for group in grouped({"models": models}, catalog)
        for family in group.families
        for row in family.rows
    }
    best = rows["region/best/error"]
    assert [(cell.value, cell.best) for cell in best.cells] == [(2.0, False), (1.0, True)]
    assert (best.gap.text, best.gap.ahead) == ("+1.000", False) and best.description.label.endswith("(px)")
    assert rows["mine/caption_distance"].gap.ahead is True
    assert make_gap(-0.3, "b", (-0.4, -0.2), True, higher_is_better=False).ahead is True
    assert make_gap(-0.3, "b", (-0.4, 0.2), True, higher_is_better=False).ahead is None
    told = headline({"models": models, "lead": "mine/caption_distance"}, catalog)
    assert told.sentence == "a stands 0.400 from its captions; b 0.700."
    width = Console(width=100, record=True, quiet=True)
    width.print(comparison_table({"data": {"toy": {"models": models}}}, catalog))


def test_every_metric_says_what_it_is() -> None:
    names = {
        "zero_shot": "image/zero_shot_top1",
        "retrieval": "image_text/image_to_text_R@1",
        "region_retrieval": "region/crop/region_to_text_R@1",
        "region_naming": "region/crop/mAcc_small",
        "hard_negatives": "region/crop/hard_negatives",
        "comprehension": "region/crop/comprehension",
        "grounding": "grounding/mIoU",
        "average_precision": "grounding/AP",
        "relations": "relations/grounded/set4",
    }
    assert names.keys() == METRICS.keys()
    for name, example in names.items():
        metric = METRICS[name]()
        own = metric.describe(example)
        assert own is not None and own.protocol and own.row and set(metric.needs) <= OUTPUTS.keys(), name
        parts = re.split(r"[A-Z][A-Z_]*", metric.pattern)
        assert all(part in example for part in parts if part not in ("_", "/")), (metric.pattern, example)
        assert sum(other().describe(example) is not None for other in METRICS.values()) == 1, example
    assert Chance(1, "classes").of({"classes": 128}) == 1 / 128 and Chance(5, "classes").of({"classes": 5}) is None


def test_the_names_of_our_metrics_are_those_of_the_configuration() -> None:
    assert EvaluationConfig().metrics == list(METRICS)
    assert OmegaConf.load(ROOT / "conf/evaluation/full.yaml").metrics == list(METRICS)
    for file in (ROOT / "conf" / "evaluation").glob("*.yaml"):
        build_catalog(OmegaConf.load(file).get("metrics", []))
    assert KINDS.keys() <= get_type_hints(DatasetConfig).keys()


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["nothing"], r"evaluation.metrics\[0\]='nothing': known are zero_shot, .*; a class of your own goes by"),
        (["grounding", "grounding"], r"evaluation.metrics\[1\]='grounding': named twice"),
        ([{"_target_": f"{HERE}.Drawn"}], r"evaluation.metrics\[0\]: Drawn is no .*Metric"),
        ([{"_target_": f"{HERE}.CaptionDistance", "powr": 1}], r"evaluation.metrics\[0\].powr: .*did you mean 'power'"),
        ([{"_target_": f"{HERE}.Greedy"}], r"Greedy.needs=\['dreams'\]: known are images"),
    ],
)
def test_metrics_that_are_none_are_refused(metrics: Sequence[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_catalog(metrics)


def test_two_metrics_of_one_name_are_refused(data: Path, encoder: Encoder) -> None:
    outputs, toy = ModelOutputs(encoder, Ranks()), load_eval_set("toy", dataset(data), limit=2)
    embedded = outputs.embed(toy, QUICK, ["images"])
    with pytest.raises(ValueError, match=r"CaptionDistance measures \['mine/caption_distance'\], as another"):
        measure(outputs, toy, embedded, [CaptionDistance(), CaptionDistance(2.0)])


def test_a_kind_of_set_of_ones_own_is_measured_and_drawn(data: Path, runs: Path, tmp_path: Path) -> None:
    sets = {"mine": drawn(pictures=3)}
    page = compare(configuration(data, runs, tmp_path, data=["mine"], datasets=sets, pictures=3))
    entry = result(tmp_path)["data"]["mine"]
    assert entry["counts"]["images"] == 3 and entry["counts"]["seeds"] == 1 and entry["skipped"] == {"too_dark": 1}
    assert entry["lead"] == "region/best/top1" and "region/prompter/top1" in entry["models"]["cloc"]
    assert page.read_text(encoding="utf-8").count("<img ") >= 3
    assert load_eval_set("mine", sets["mine"], limit=2).extra == {"seed": 7}


def test_a_kind_of_set_stands_beside_the_others_and_is_checked(data: Path) -> None:
    both = load_eval_set(
        "toy",
        replace(
            drawn(), relations=str(data / "relations.json"), relation_format="whatsup", pictures=str(data / "relations")
        ),
    )
    assert len(both.samples) == 4 and len(both.relations) == 4
    with pytest.raises(ConfigError, match=r"datasets.toy.set.size: .*it takes pictures"):
        load_eval_set("toy", drawn(size=3))
    with pytest.raises(ConfigError, match="datasets.toy.set._target_=.*has no method `read`"):
        load_eval_set("toy", DatasetConfig(set={"_target_": f"{HERE}.CaptionDistance"}))
    with pytest.raises(ValueError, match="datasets.toy: sets no digest"):
        load_eval_set("toy", DatasetConfig(set={"_target_": f"{HERE}.Forgetful"}))
    with pytest.raises(ValueError, match="no usable sample in tests.evaluation.test_plugins.Empty"):
        load_eval_set("toy", DatasetConfig(set={"_target_": f"{HERE}.Empty"}))


class Empty(Drawn):
    """A set without a sample."""

    def read(self, data: EvalSet, limit: int, ranks: Ranks) -> None:
        data.skip({"gone": 2})


def test_the_schema_takes_both_lines() -> None:
    given = {"metrics": ["retrieval", {"_target_": f"{HERE}.CaptionDistance", "power": 1}]}
    assert check_keys(OmegaConf.create(given), EvaluationConfig).metrics == given["metrics"]
    line = {"set": {"_target_": f"{HERE}.Drawn", "pictures": 2}, "description": "mine"}
    assert check_keys(OmegaConf.create(line), DatasetConfig).set == line["set"]
