"""The report opens with the set's own metric, and no difference that its interval tells apart is hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloc.config import ConfigError, DatasetConfig
from cloc.contracts import Region, Sample
from cloc.evaluation.metrics.catalog import ALL
from cloc.evaluation.report.dot_plot import overview
from cloc.evaluation.report.headline import headline
from cloc.evaluation.report.page import render
from cloc.evaluation.report.report_data import DatasetReport, ReportData
from cloc.evaluation.report.table import apart, compare, make_gap
from cloc.evaluation.sets.eval_set import EvalSet
from cloc.evaluation.suite import check_lead

EVERYTHING = {
    "region/prompter/top1": 0.9,
    "region/prompter/mAcc": 0.7,
    "region/roi_align/top1_small": 0.2,
    "grounding/any/acc@0.5": 0.42,
    "image/zero_shot_top1": 0.6,
    "image/zero_shot_mAcc_names": 0.3,
    "image_text/text_to_image_R@5": 0.5,
    "relations/similarity/accuracy": 0.25,
    "relations/similarity/set4": 0.04,
    "region/crop/comprehension": 0.55,
    "region/crop/hard_negatives": 0.35,
    "grounding/AP": 0.15,
    "mine/of_my_own": 0.5,
}


@pytest.mark.parametrize("metric", EVERYTHING)
def test_whatever_was_measured_has_a_headline_and_a_chart(metric: str) -> None:
    entry = {"models": {"cloc": {metric: EVERYTHING[metric]}, "clip": {}}}
    said = headline(entry).sentence
    assert said != "Nothing was measured." and ("0%" in said or f"{EVERYTHING[metric]:.3f}" in said), said
    assert [dot.value for row in overview(entry) for dot in row.dots][:1] == [EVERYTHING[metric]]
    page = render(ReportData("t", "c", [DatasetReport("set", "", entry)]))
    assert "Nothing was measured" not in page and "No model was measured" not in page


@pytest.mark.parametrize(
    ("lead", "sentence"),
    [
        ("region/best/mAcc", "The Prompter names 70.0% of the held-out boxes, averaged over classes."),
        ("grounding/any/acc@0.5", "CLOC draws the right box for 42.0% of the phrases."),
        ("image/zero_shot_top1", "CLOC classifies 60.0% of the images rightly without labels."),
        ("relations/similarity/set4", "CLOC reaches 4.0% in “Relations by similarity: Sets of four, all right”."),
        ("image_text/image_to_text_R@1", "The Prompter names 90.0% of the held-out boxes."),  # was not measured
    ],
)
def test_the_sets_own_metric_leads(lead: str, sentence: str) -> None:
    assert headline({"models": {"cloc": EVERYTHING}, "lead": lead}).sentence == sentence


def test_what_a_set_holds_decides_where_it_names_no_metric(tmp_path: Path) -> None:
    def lead(**content: Any) -> str:
        return EvalSet("toy", DatasetConfig(), **content).lead

    box = Region((0.0, 0.0, 1.0, 1.0), ("a hen",), category="hen")
    captions, boxes = Sample("a", b"", "png", ("a hen",), (), 8, 8), Sample("a", b"", "png", ("a hen",), (box,), 8, 8)
    assert lead(samples=[boxes], categories=["hen"]) == "region/best/top1"
    assert lead(samples=[boxes]) == "region/best/text_to_region_R@10"
    assert lead(samples=[captions]) == "image_text/text_to_image_R@1"
    assert lead() == "relations/similarity/accuracy"
    assert EvalSet("toy", DatasetConfig(lead="grounding/AP"), samples=[boxes]).lead == "grounding/AP"
    with pytest.raises(ConfigError, match="datasets.toy.lead='region/top1': not a metric"):
        check_lead("toy", DatasetConfig(shards="x", lead="region/top1"), ALL)


def test_a_small_difference_that_is_one_is_no_tie() -> None:
    entry = {
        "models": {"a": {"image/zero_shot_top1": 0.50021}, "b": {"image/zero_shot_top1": 0.5}},
        "differences": {"b": {"image/zero_shot_top1": [0.00021, 0.0001, 0.0004]}},
    }
    assert headline(entry).gap == "That is 0.02 points more than b (95 % interval +0.01 to +0.04)."
    entry["differences"]["b"]["image/zero_shot_top1"] = [0.00021, -0.0001, 0.0004]
    assert headline(entry).gap == (
        "That is level with b (95 % interval 0.0 to 0.0): the two cannot be told apart on this set."
    )
    turned = {"models": dict(reversed(entry["models"].items())), "differences": {"a": {}}}
    turned["differences"]["a"]["image/zero_shot_top1"] = [-0.00021, -0.0004, -0.0001]
    assert headline(turned).gap == "That is 0.02 points more than b (95 % interval +0.01 to +0.04)."


def test_the_text_of_a_gap_shows_what_its_interval_decides() -> None:
    assert make_gap(0.3, "b", (0.2, 0.4), True).text == "+30.0"
    assert make_gap(-0.0002, "b", (-0.0004, -0.00001), True).text == "−0.020"
    assert make_gap(0.0002, "b", (-0.0004, 0.1), True).text == "0.0"


def test_every_difference_apart_from_zero_is_on_the_page_open() -> None:
    names = ("region/prompter/top1_small", "image_text/text_to_image_R@5", "grounding/mIoU")
    models = {name: dict.fromkeys(names, 0.5) for name in ("cloc", "clip", "other")}
    models["other"] = dict.fromkeys(names, 0.1)  # never the best other: its differences stand in no table
    differences = {
        "clip": {names[0]: [-0.02, -0.03, -0.01], names[1]: [0.02, -0.01, 0.05], names[2]: [0.1, 0.05, 0.2]},
        "other": {names[1]: [-0.004, -0.005, -0.003]},
    }
    entry = {"models": models, "differences": differences}
    clip, other = apart(entry)
    assert [own[0] for own in clip.behind] == ["Small boxes: Prompter"] and [own[1] for own in clip.ahead] == ["+0.100"]
    assert (clip.asked, other.behind) == (3, [("Find the image of a caption: R@5", "−0.4", "−0.5 to −0.3")])
    page = render(ReportData("t", "c", [DatasetReport("set", "", entry)]))
    assert "cloc is ahead in 1 and behind in 1" in page and "Find the image of a caption: R@5: <strong>−0.4" in page
    folded = page.split("Naming boxes, by size")[0].rsplit("<details", 1)[1]
    assert " open" in folded  # it holds a difference that its interval tells apart
    assert compare(entry)[0].title == "Whole images"
