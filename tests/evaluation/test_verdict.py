"""The verdict on top of the report: what it says of wins, losses, ties, lone models, several sets and several seeds."""

from __future__ import annotations

from typing import Any

import pytest

from cloc.evaluation.report.page import render
from cloc.evaluation.report.report_data import DatasetReport, ReportData
from cloc.evaluation.report.terms import TERMS, Explainer
from cloc.evaluation.report.verdict import over_sets, set_line, verdict
from cloc.evaluation.seeds import over_seeds

NAME, BOX, IMAGE = "region/best/top1", "grounding/any/acc@0.5", "image_text/text_to_image_R@1"


def entry(**gaps: tuple[float, float, float]) -> dict[str, Any]:
    """A set on which the first model differs by so much, with intervals: ``box``, ``image``."""
    names = {"box": BOX, "image": IMAGE}
    return {
        "models": {
            "cloc": {names[name]: 0.5 + gap[0] for name, gap in gaps.items()},
            "clip": {names[name]: 0.5 for name in gaps},
        },
        "differences": {"clip": {names[name]: list(gap) for name, gap in gaps.items()}},
    }


AHEAD, BEHIND, LEVEL = (0.2, 0.1, 0.3), (-0.1, -0.15, -0.05), (0.01, -0.02, 0.04)
BOX_SAID, IMAGE_SAID = "“From a phrase to its box: acc@0.5, any of its boxes”", "“Find the image of a caption: R@1”"


@pytest.mark.parametrize(
    ("gaps", "sentence"),
    [
        (
            {"box": AHEAD, "image": BEHIND},
            f"CLOC is better than CLIP in 1 of 2 main questions ({BOX_SAID} +20.0 points, 95 % interval +10.0 to "
            f"+30.0) and worse in 1 ({IMAGE_SAID} −10.0 points, 95 % interval −15.0 to −5.0).",
        ),
        (
            {"box": BEHIND, "image": LEVEL},
            f"CLOC is worse than CLIP in 1 of 2 main questions ({BOX_SAID} −10.0 points, 95 % interval −15.0 to −5.0) "
            "and not told apart in 1.",
        ),
        (
            {"box": BEHIND},
            f"CLOC is worse than CLIP in the one main question ({BOX_SAID} −10.0 points, 95 % interval −15.0 to −5.0).",
        ),
        (
            {"box": LEVEL, "image": LEVEL},
            f"CLOC and CLIP cannot be told apart in any of 2 main questions ({BOX_SAID} +1.0 points, 95 % interval "
            "−2.0 to +4.0).",
        ),
    ],
)
def test_verdict_of_a_set(gaps: dict[str, Any], sentence: str) -> None:
    assert verdict(entry(**gaps)).sentence == sentence


def test_verdict_names_the_sets_own_measure_even_where_another_speaks_louder() -> None:
    own = entry(box=(0.02, 0.01, 0.03), image=AHEAD) | {"lead": BOX}
    assert f"2 of 2 main questions ({BOX_SAID} +2.0 points" in verdict(own).sentence
    assert f"2 of 2 main questions ({IMAGE_SAID} +20.0" in verdict(own | {"lead": IMAGE}).sentence


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ({}, "Nothing was measured."),
        ({"cloc": {}}, "Nothing was measured."),
        ({"cloc": {BOX: 0.5}}, "Only CLOC was measured: there is nothing to compare it with."),
        ({"cloc": {BOX: 0.5}, "clip": {IMAGE: 0.5}}, "CLOC and CLIP answer no main question in common."),
        (
            {"cloc": {BOX: 0.5, IMAGE: 0.2}, "clip": {BOX: 0.4, IMAGE: 0.3}},
            "CLOC has the better value in 1 of 2 main questions that CLIP answers too. "
            "No interval was computed, so this decides nothing.",
        ),
        ({"cloc": {BOX: 0.5}, "a": {BOX: 0.4}, "b": {BOX: 0.3}}, "that the best of 2 others answers too"),
    ],
)
def test_verdict_says_no_more_than_was_measured(models: dict[str, dict[str, float]], sentence: str) -> None:
    assert sentence in verdict({"models": models}).sentence


def test_what_only_one_side_answers_is_kept_apart() -> None:
    found = verdict({"models": {"cloc": {BOX: 0.5, IMAGE: 0.5}, "clip": {IMAGE: 0.5, "image/zero_shot_top1": 0.5}}})
    rows = [[row.description.metric for row in side] for side in (found.alone, found.missing, found.open)]
    assert rows == [[BOX], ["image/zero_shot_top1"], [IMAGE]]


def test_several_sets_are_counted_by_their_own_measures() -> None:
    kinds = {"a": entry(box=AHEAD), "b": entry(box=AHEAD), "c": entry(image=BEHIND), "d": entry(image=LEVEL)}
    kinds["e"] = {"models": {"cloc": {BOX: 0.5}, "clip": {}}}
    lines = [set_line(name, own) for name, own in kinds.items()]
    assert [line.said for line in lines] == ["better", "better", "worse", "not told apart", "no other value"]
    assert over_sets("CLOC", "CLIP", lines) == (
        "By each set's own measure, CLOC is better than CLIP on 2 of 5 sets, worse on 1 and not told apart on 1; "
        "1 could not be compared."
    )
    assert over_sets("CLOC", "CLIP", lines[2:3]) == "By each set's own measure, CLOC is worse than CLIP on 1 of 1 sets."
    assert "cannot be told apart on any of 1 sets" in over_sets("CLOC", "CLIP", lines[3:4])
    assert "On none of 1 sets could CLOC and CLIP be compared" in over_sets("CLOC", "CLIP", lines[4:])
    page = render(ReportData("t", "c", [DatasetReport(name, "", own) for name, own in kinds.items()]))
    assert "better than CLIP on 2 of 5 sets" in page.split("</h1>")[0] and 'data-model="Verdict"' in page


def test_runs_of_one_recipe_are_no_rivals_of_each_other() -> None:
    models = {name: {BOX: value} for name, value in (("s0", 0.5), ("s1", 0.9), ("t0", 0.2), ("t1", 0.3))}
    own: dict[str, Any] = {"models": models, "differences": {"t1": {BOX: [0.2, 0.1, 0.3]}}}
    own["seeds"] = over_seeds(models, {"s": {"s0": 0, "s1": 1}, "t": {"t0": 0, "t1": 1}})
    found = verdict(own)
    assert [(row.gap.rival, row.gap.text) for row in found.better] == [("t1", "+20.0")]
    page = render(ReportData("t", "c", [DatasetReport("set", "", own)]))
    said = page.split("</header>")[0]
    assert "Over the seeds of training, s is better than t in 0 of 1 main question, worse in 0" in said
    assert "differs by +45.0" in said


def test_terms_are_explained_once_where_they_first_stand_and_nothing_is_let_through() -> None:
    explain = Explainer()
    first, second = explain("the Prompter <b> & IoU"), explain("the Prompter and AP")
    assert first.count("<button") == 2 and "&lt;b&gt; &amp; " in first
    assert "Prompter</button>" not in second and ">AP</button>" in second
    assert [term for _, term, _ in explain.glossary()] == ["Prompter", "IoU", "Average precision"]
    assert all(meaning.endswith(".") for _, meaning in TERMS.values())
    own = DatasetReport("set", "", entry(box=AHEAD))
    page = render(ReportData("t", "c", [own]))
    for place in page.split('popovertarget="')[1:]:
        assert page.count(f'popovertarget="{place.split(chr(34))[0]}"') == 1
        assert f'<div popover id="{place.split(chr(34))[0]}">' in page
