"""What a model costs is measured beside its quality, and runs that differ in their seed alone are taken together."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cloc.config import DatasetConfig
from cloc.encoder import Encoder
from cloc.evaluation import cost as costs
from cloc.evaluation.compare import compare
from cloc.evaluation.report.summary_tables import cost_line, cost_words, seeds_table
from cloc.evaluation.seeds import T95, group_runs, over_seeds, seed_difference, spread
from cloc.evaluation.sets.eval_set import EvalSet
from tests.kit.evaluating import QUICK, configuration, result, sample

BOX = "grounding/any/acc@0.5"


def toy(count: int = 8) -> EvalSet:
    samples = [sample(index) for index in range(count)]
    bare = [replace(own, regions=tuple(region for region in own.regions if not region.crowd)) for own in samples]
    return EvalSet("toy", DatasetConfig(), samples=bare, encoded=lambda index: bare[index].image)


def test_cost_of_a_model_has_its_times_and_counts(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "MOST_BOXES", 5)
    probe = costs.take_probe(toy(), 4)
    assert probe is not None and [len(own) for own in probe.boxes] == [1, 2, 2, 0]  # pictures with boxes; five in all
    found = costs.measure_cost(encoder, probe)
    assert (found["data"], found["pictures"], found["boxes"], found["precision"]) == ("toy", 4, 5, "float32")
    assert found["picture_ms"] > 0 and found["phrases_per_second"] > 0 and 1 <= found["repeats"] <= costs.REPEATS
    assert set(found["boxes_per_second"]) == {"prompter", "roi_align", "crop", "mask_pool"}
    assert min(found["boxes_per_second"].values()) > 0
    assert found["threads"] == torch.get_num_threads() and found["device"]
    assert found["parameters"] == sum(p.numel() for p in encoder.model.parameters())
    assert set(found["parameters_of"]) == {"image", "text", "prompter", "grounding"}
    assert "4 pictures with 5 boxes of toy" in cost_words({"cloc": found})
    assert "ms a picture" in cost_line({"cloc": found})[0] and "boxes/s by Prompter" in cost_line({"cloc": found})[0]


def test_a_crop_is_a_pass_of_its_own_so_few_are_timed(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[int]] = {}
    regions = Encoder.regions

    def counted(self: Encoder, seen: Any, boxes: Any, source: str) -> Any:
        asked[source] = [len(own) for own in boxes]
        return regions(self, seen, boxes, source)

    monkeypatch.setattr(Encoder, "regions", counted)
    monkeypatch.setattr(costs, "MOST_CROPS", 3)
    probe = costs.take_probe(toy(), 4)
    assert probe is not None and costs.measure_cost(encoder, probe)["boxes"] == sum(map(len, probe.boxes))
    costs.measure_cost(encoder, probe, ["native", "roi_align"])
    assert sum(asked.pop("crop")) == sum(asked.pop("native")) == 3 and all(
        sum(own) == sum(map(len, probe.boxes)) > 3 for own in asked.values()
    )


def test_timing_warms_up_and_keeps_to_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks, calls = iter([0, 9, 10, 11, 20, 22, 30, 33]), []
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(costs, "BUDGET", 6.0)
    median = costs._median(lambda: calls.append(1), torch.device("cpu"))
    assert median == (2, 3) and len(calls) == 4  # the 9 seconds of the first call do not count


def test_a_set_without_boxes_gives_way_and_one_without_pictures_has_no_times(encoder: Encoder) -> None:
    bare = toy(1)  # its one picture has no box
    assert not bare.samples[0].regions
    known = costs.better_probe(None, bare, 4)
    assert known is not None and costs.better_probe(known, toy(), 4).name == "toy"
    boxed = costs.better_probe(known, toy(), 4)
    assert costs.better_probe(boxed, bare, 4) is boxed
    assert costs.take_probe(EvalSet("empty", DatasetConfig()), 4) is None and costs.better_probe(None, toy(), 0) is None
    found = costs.measure_cost(encoder, None)
    assert "picture_ms" not in found and found["parameters"] > 0
    assert "boxes_per_second" not in costs.measure_cost(encoder, known)


def test_metrics_json_keeps_its_form_and_gains_cost(data: Path, runs: Path, tmp_path: Path) -> None:
    evaluation = replace(QUICK, sources=["roi_align"], bootstrap=0)
    config = configuration(data, runs, tmp_path / "a", evaluation=evaluation, cost=2)
    compare(config)
    compare(replace(config, out=str(tmp_path / "b"), cost=0))
    timed, plain = result(tmp_path / "a"), result(tmp_path / "b")
    assert set(timed["cost"]) == {"cloc", "clip"} and timed["cost"]["clip"]["picture_ms"] > 0
    assert set(timed) - set(plain) == {"cost"} and timed["data"] == plain["data"]
    assert "seeds" not in timed["data"]["toy"]
    assert "ms a picture" in (tmp_path / "a" / "report" / "index.html").read_text()
    assert "No cost was measured" in (tmp_path / "b" / "report" / "index.html").read_text()


def run(name: str, seed: int | None, samples: int = 8, **config: Any) -> Any:
    config |= {"seed": seed, "name": "demo/cloc", "run_dir": name} if seed is not None else {}
    return SimpleNamespace(name=name, info={"config": config, "samples_seen": samples})


def test_runs_that_differ_in_their_seed_alone_are_a_group() -> None:
    runs = [run("a/cloc", 0, lr=1), run("b/cloc", 1, lr=1), run("c/cloc", 2, lr=2), run("d/cloc", 2, 7, lr=1)]
    assert group_runs([*runs, run("x", None)]) == {"cloc": {"a/cloc": 0, "b/cloc": 1}}
    assert group_runs([runs[0], run("e", 0, lr=1)]) == {}  # the same seed twice says nothing of seeds
    assert list(group_runs([*runs, run("f", 3, lr=2)])) == ["cloc (a/cloc, …)", "cloc (c/cloc, …)"]
    assert group_runs([SimpleNamespace(name="foreign", info={})]) == {}


def test_mean_and_error_over_seeds_by_hand() -> None:
    found = spread([0.1, 0.2, 0.6])
    assert found["mean"] == pytest.approx(0.3) and found["values"] == [0.1, 0.2, 0.6]
    assert found["error"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2 / 3))
    paired = seed_difference({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.4})  # differences 0.1 and 0.3: mean 0.2, error 0.1
    assert paired == pytest.approx((0.2, 0.2 - 12.706 * 0.1, 0.2 + 12.706 * 0.1))
    loose = seed_difference({0: 0.5, 1: 0.7}, {0: 0.4, 2: 0.4, 3: 0.4})  # errors 0.1 and 0; one degree of freedom
    assert loose == pytest.approx((0.2, 0.2 - 12.706 * 0.1, 0.2 + 12.706 * 0.1))
    scipy = pytest.importorskip("scipy.stats")
    assert pytest.approx([scipy.t.ppf(0.975, free) for free in range(1, len(T95) + 1)], abs=6e-4) == T95


def test_groups_of_a_set_hold_each_runs_best_source_and_only_what_all_have() -> None:
    models = {
        "a": {"region/prompter/top1": 0.8, "region/crop/top1": 0.1, BOX: 0.5, "x": 0.1},
        "b": {"region/prompter/top1": 0.2, "region/crop/top1": 0.4, BOX: 0.7},
        "c": {BOX: 0.1, "region/crop/top1": float("nan")},
    }
    found = over_seeds(models, {"cloc": {"a": 0, "b": 1}})
    metrics = found["groups"]["cloc"]["metrics"]
    assert metrics["region/best/top1"]["values"] == [0.8, 0.4] and "x" not in metrics
    assert metrics[BOX]["mean"] == pytest.approx(0.6) and found["differences"] == {}
    table = seeds_table("toy", {"models": models, "seeds": found})
    assert table is not None and table.columns == ["Metric", "cloc (2 runs)"]
    row = next(line for line in table.lines if line.metric == BOX)
    assert (row.values[0].text, row.values[0].note) == ("60.0% ± 10.00", "50.0% 70.0%")
    assert row.values[0].more == {"standard error": pytest.approx(0.1), "seed 0": 0.5, "seed 1": 0.7}
