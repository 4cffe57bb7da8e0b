"""The evaluation report: the numbers it prints, the words it finds for them, and the page in a browser."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cloc.evaluation.metrics.catalog import ALL
from cloc.evaluation.report.charts import Line, curve_chart, nice_ticks, scatter_chart
from cloc.evaluation.report.dot_plot import Dot, DotRow, dot_chart, overview
from cloc.evaluation.report.formats import format_gap, format_value
from cloc.evaluation.report.headline import headline, key_facts, trained
from cloc.evaluation.report.page import write_report
from cloc.evaluation.report.picture_drawing import Shape, encode_picture, heat_picture, iou, overlay
from cloc.evaluation.report.report_data import Answer, Case, Curve, DatasetReport, Gallery, Heat, ReportData
from cloc.evaluation.report.splits import Classes, ClassPoint, Split
from cloc.evaluation.report.table import compare, comparison_table, markdown

NAN = float("nan")
HOSTILE = "<script>alert('x')</script> & a 🎉"
CLOC = {
    "image_text/text_to_image_R@1": 0.642,
    "region/prompter/top1": 0.93,
    "region/crop/top1": 0.31,
    "grounding/any/acc@0.5": 0.924,
    "grounding/mIoU": 0.741,
    "relations/similarity/set4": 0.04,
}
CLIP = {
    "image_text/text_to_image_R@1": 0.661,
    "region/crop/top1": 0.217,
    "region/roi_align/top1": 0.287,
    "image/zero_shot_top1": NAN,
}
# Elements that HTML never closes.
VOID = {"meta", "link", "img", "br", "hr", "input"}


def noise(side: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def case(key: str = "scene-1", image: Image.Image | None = None) -> Case:
    return Case(
        key,
        image or noise(64),
        [(0.1, 0.1, 0.5, 0.5), (0.4, 0.4, 1.0, 1.0)],
        ["a chick", HOSTILE],
        {
            "cloc · prompter": [Answer("Chick", True), Answer(HOSTILE, True)],
            "clip · crop": [Answer("a cup", False), Answer("an owl", False)],
        },
        {"cloc": [(0.1, 0.1, 0.5, 0.5), (NAN, 0.0, 1.0, 1.0)], "clip": []},
        more=2,
    )


def entry(**models: dict[str, float]) -> dict[str, Any]:
    """What ``metrics.json`` holds of a set: an interval of a point each way, and paired differences."""
    first, *others = models.values()
    gaps = [
        {m: [first[m] - own[m], first[m] - own[m] - 0.01, first[m] - own[m] + 0.01] for m in own if m in first}
        for own in others
    ]
    gaps = [own | {"region/best/top1": [0.643, 0.6, 0.7]} for own in gaps]
    return {
        "models": models,
        "counts": {"images": 1200, "classes": 128},
        "intervals": {name: {m: [v - 0.01, v + 0.01] for m, v in own.items()} for name, own in models.items()},
        "differences": dict(zip(list(models)[1:], gaps, strict=True)),
    }


def report(cases: list[Case] | None = None) -> ReportData:
    cases = [case()] if cases is None else cases
    row = DotRow(HOSTILE, "28 boxes; 3 taken for a cup", [Dot("cloc", 0.9, "90.0%"), Dot("clip", 0.2, "20.0%")])
    own = DatasetReport("openmoji", HOSTILE, entry(cloc=CLOC, clip=CLIP))
    if cases:
        own.typical, own.galleries = cases[0], [Gallery("Random pictures", HOSTILE, cases)]
        own.heats = [Heat("k", noise(64), HOSTILE, [(0.1, 0.1, 0.5, 0.5)], {"cloc · prompter": np.eye(8)})]
        own.classes = Classes("cloc", "clip", [row], [row], [ClassPoint(HOSTILE, 0.2, 0.9, 7)], 3)
        own.sizes = [Split("Name a box", [row])]
    curve = Curve("cloc", "region/prompter/top1", [1e3, 2e3, 3e3], [1.0, 2.0, 3.0], [0.2, NAN, 0.9])
    return ReportData(
        HOSTILE,
        f"python eval.py x='{HOSTILE}'",
        [own],
        [curve, Curve("clip", "loss/global", [1e3], [1.0], [NAN])],
        {"This evaluation": {"torch": "2.9.0"}},
        [f"{HOSTILE} https://openmoji.org"],
        {"cloc": {"samples seen": 80000, "seconds": NAN}, "clip": {"step": HOSTILE}},
        bootstrap=1000,
    )


class Page(HTMLParser):
    """Collects elements and visible text, and checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data


def page(data: ReportData, folder: Path) -> Page:
    return Page(write_report(data, folder / "new" / "report").read_text(encoding="utf-8"))


def test_headline_compares_the_prompter_with_the_best_source_of_a_model_without_one() -> None:
    found = headline(entry(cloc=CLOC, clip=CLIP))
    assert found.sentence == "The Prompter names 93.0% of the held-out boxes; the best CLIP source 28.7%."
    assert found.gap == (
        "That is 64.3 points more than CLIP with RoI-Align (95 % interval +60.0 to +70.0). "
        "Chance, 1 of 128 classes, is 0.8%."
    )


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ({"cloc": {"region/prompter/top1": 0.1}, "clip": {"region/crop/top1": 0.3}}, "best CLIP source 30.0%"),
        ({"cloc": {"region/prompter/top1": 0.1, "region/crop/top1": 0.3}}, "best other source 30.0%"),
        ({"cloc": {"region/prompter/top1": 0.1}}, "The Prompter names 10.0% of the held-out boxes."),
        ({"cloc": {"region/prompter/mAcc": 0.1}, "a": {"region/crop/top1": 0.3}}, "averaged over classes."),
        ({"clip": {"region/crop/top1": 0.3}}, "CLIP with Crop names 30.0%"),
        ({"a": {"region/prompter/text_to_region_R@10": 0.5}, "b": {}}, "first ten for 50.0% of the phrases."),
        ({"a": {"grounding/any/acc@0.5": 0.5}}, "a draws the right box for 50.0% of the phrases."),
        ({"a": {"image_text/text_to_image_R@1": 0.5}, "b": {"image_text/text_to_image_R@1": 0.6}}, "b ranks the right"),
        ({"a": {"region/prompter/top1": NAN}}, "Nothing was measured."),
        ({}, "Nothing was measured."),
    ],
)
def test_headline_says_no_more_than_the_metrics(models: dict[str, dict[str, float]], sentence: str) -> None:
    assert sentence in headline({"models": models}).sentence


@pytest.mark.parametrize(("crop", "gap"), [(0.3, "20.0 points less than"), (0.1, "level with")])
def test_headline_admits_a_worse_and_an_equal_prompter(crop: float, gap: str) -> None:
    models = {"cloc": {"region/prompter/top1": 0.1}, "clip": {"region/crop/top1": crop}}
    assert headline({"models": models}).gap == f"That is {gap} CLIP with Crop."


def test_headline_says_that_an_interval_over_zero_decides_nothing() -> None:
    found = entry(cloc={"region/prompter/top1": 0.31}, clip={"region/crop/top1": 0.3})
    found["differences"]["clip"]["region/best/top1"] = [0.01, -0.01, 0.03]
    del found["counts"]  # so that no chance level is told behind it
    assert headline(found).gap.endswith("(95 % interval −1.0 to +3.0): the two cannot be told apart on this set.")


def test_key_facts_name_the_best_model_and_the_reason_for_a_missing_one() -> None:
    grounding, retrieval = key_facts(entry(cloc=CLOC, clip=CLIP))[:2]
    assert (retrieval.model, retrieval.value, retrieval.against) == ("clip", "66.1%", "cloc 64.2%")
    assert retrieval.interval == "65.1–67.1"
    assert grounding.against == "clip has no grounding head"
    assert key_facts(entry(cloc=CLOC, a=CLIP, b={}))[0].against == "of 2 others none has a grounding head"


def test_what_was_trained_is_told_in_words() -> None:
    facts = {"parameters": 1_461_000, "samples seen": 34048, "training seconds": 183.2}
    assert trained({"cloc": facts, "b": {}}) == ["cloc: 1.46M parameters, trained on 34,048 samples in 183 s."]


def test_the_opening_chart_takes_each_models_best_source_and_spans_the_intervals() -> None:
    chart = dot_chart(overview(entry(cloc=CLOC, clip=CLIP)))
    row = chart.rows[0]
    assert [(dot.model, dot.value, dot.note) for dot in row.dots] == [
        ("cloc", 0.93, "Prompter"),
        ("clip", 0.287, "RoI-Align"),
    ]
    assert (row.gap.text, row.gap_range, row.gap.ahead) == ("+64.3", "+60.0 to +70.0", True)
    assert chart.top == 1.0 and chart.place(0.5) == 50 and chart.place(-1) == 0 and chart.place(7) == 100
    assert dot_chart([]) is None


def test_every_metric_of_the_contract_has_a_group_and_a_reading() -> None:
    names = [f"image_text/{d}_R@{k}" for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    names += ["image/zero_shot_top1", "grounding/any/acc@0.5", "grounding/union/acc@0.5", "grounding/mIoU"]
    for source in ("prompter", "roi_align", "crop", "mask_pool"):
        names += [f"region/{source}/{measure}" for measure in ("top1", "mAcc")]
        names += [f"region/{source}/{d}_R@{k}" for d in ("region_to_text", "text_to_region") for k in (1, 10)]
    names += [f"relations/{s}/{m}" for s in ("similarity", "grounded") for m in ("accuracy", "pair", "set4")]
    for name in names:
        said = ALL.describe(name)
        assert said.section.title != "Other measurements" and len(said.protocol) > 30, name
        assert said.percent == (name != "grounding/mIoU") and said.higher_is_better
    assert ALL.describe("loss").section.title == ALL.describe("region/crop/new").section.title == "Other measurements"


def test_rows_mark_the_best_and_take_differences_from_the_first_model() -> None:
    groups = {group.title: group for group in compare({"models": {"cloc": CLOC, "clip": CLIP}})}
    assert list(groups) == ["Whole images", "Naming boxes", "Grounding", "Relations"]
    rows = {
        row.description.metric: row for group in groups.values() for family in group.families for row in family.rows
    }
    retrieval, prompter = rows["image_text/text_to_image_R@1"], rows["region/prompter/top1"]
    assert [cell.best for cell in retrieval.cells] == [False, True]
    assert (retrieval.gap.text, retrieval.gap.ahead) == ("−1.9", False)
    assert (prompter.cells[1].text, prompter.gap.text, prompter.gap.ahead) == ("–", "–", None)
    assert rows["region/best/top1"].gap.text == "+64.3" and rows["region/best/top1"].cells[1].note == "RoI-Align"
    assert "no Prompter" in prompter.cells[1].why
    assert "Not a number" in rows["image/zero_shot_top1"].cells[1].why
    assert rows["grounding/mIoU"].cells[0].text == "0.741"
    assert format_value(math.inf, True) == "–" and format_gap(-0.0001, True) == "0.0"


def test_a_difference_whose_interval_holds_zero_is_not_a_lead() -> None:
    found = entry(cloc=CLOC, clip=CLIP)
    found["differences"]["clip"]["image_text/text_to_image_R@1"] = [-0.019, -0.04, 0.002]
    row = compare(found)[0].families[0].rows[0]
    assert (row.gap.text, row.gap.interval, row.gap.ahead) == ("−1.9", (-0.04, 0.002), None)


def test_terminal_table_fits_80_columns() -> None:
    models = {"first": {name: 0.0 for name in CLOC}} | {f"cloc-variant-{number}": CLOC for number in range(6)}
    for chosen in ({"cloc": CLOC, "clip": CLIP}, models, {}):
        console = Console(width=80, file=StringIO())
        console.print(comparison_table({"data": {"[bold]openmoji": {"models": chosen}, "empty": {"models": {}}}}))
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= 80 and "…" not in text
        assert "[bold]openmoji" in text and "nan" not in text
        named = sum(m.get("region/prompter/top1") == 0.93 for m in chosen.values())
        assert text.count("93.0%") == 2 * named  # by the Prompter, and as the best source
        assert ("−93.0" in text) == ("first" in chosen)
    with pytest.raises(ValueError, match=r"metrics.json"):
        comparison_table({"models": {}})


def test_markdown_holds_every_row_with_its_intervals() -> None:
    text = markdown({"data": {"openmoji": entry(cloc=CLOC, clip=CLIP), "empty": {"models": {}}}})
    lines = text.splitlines()
    assert lines[0] == "## openmoji" and lines[2] == "| metric | cloc | clip | difference |"
    assert "| `grounding/mIoU` | **0.741** (0.731–0.751) | – | – |" in lines
    retrieval = "| `image_text/text_to_image_R@1` | 64.2% (63.2–65.2) | **66.1%** (65.1–67.1) | −1.9 (−2.9 to −0.9) |"
    assert retrieval in lines and "## empty" in lines


def test_page_escapes_every_text_and_prints_no_nan(tmp_path: Path) -> None:
    found = page(report(), tmp_path)
    assert sum(tag == "script" for tag, _ in found.elements) == 1
    assert found.text.count(HOSTILE) >= 9
    assert not re.search(r"\b(nan|none|inf|undefined)\b", found.text, re.IGNORECASE)
    assert "The Prompter names 93.0% of the held-out boxes; the best CLIP source 28.7%." in found.text
    for tag, attributes in found.elements:
        for name in ("src", "href"):
            value = attributes.get(name) or "#"
            beside = value.startswith("tables/") and (tmp_path / "new" / "report" / value).is_file()
            assert value.startswith(("#", "data:")) or beside or (tag, value) == ("a", "https://openmoji.org")
        assert tag != "img" or attributes.get("alt")


def test_page_tells_right_from_wrong_without_color(tmp_path: Path) -> None:
    text = page(report(), tmp_path).text
    assert re.search(r"✓\s*Chick", text) and re.search(r"✗\s*a cup", text)
    assert re.search(r"✓\s*1\.00", text)  # the grounded chick; the NaN box of the other phrase is a dash
    assert "2 more boxes of this picture are not shown" in text


def test_empty_lists_are_stated(tmp_path: Path) -> None:
    text = page(ReportData("t", "", []), tmp_path).text
    stated = "No data set was measured|No learning curve|No held-out picture|No phrase was mapped|Nothing was measured"
    stated += "|No box was measured|No intervals were asked for"
    for words in (stated + "|command was not recorded|No training record|No version was recorded").split("|"):
        assert words in text, words
    empty = [DatasetReport("d", "", {"models": {}}), DatasetReport("e", "", {"models": {"m": {}}})]
    text = page(ReportData("t", "c", empty), tmp_path).text
    assert text.count("No model was measured") == 2 and text.count("Nothing was measured on this data set") == 2


def test_charts_without_a_point_are_left_out_and_said_in_words(tmp_path: Path) -> None:
    assert scatter_chart("clip", "cloc", [("a", NAN, 0.5)]) is None and scatter_chart("clip", "cloc", []) is None
    nothing = DotRow("a thing", "", [])
    own = DatasetReport("toy", "", {"models": {"cloc": {"x": 0.5}, "clip": {"x": 0.5}}})
    own.classes = Classes("cloc", "clip", [nothing], [nothing], [ClassPoint("a thing", NAN, NAN, 7)])
    own.sizes = [Split("Name a box", [nothing]), Split("Find a box", [])]
    shown = page(ReportData("t", "c", [own]), tmp_path)
    assert "No box was measured" in shown.text and "Name a box" not in shown.text and "<svg" not in shown.text
    own.sizes.append(Split("With a point", [DotRow("small", "", [Dot("cloc", 0.5, "50 %")])]))
    shown = page(ReportData("t", "c", [own]), tmp_path)
    assert "With a point" in shown.text and "By size of the box" in shown.text and "By class" not in shown.text


def test_page_stays_below_3_megabytes_and_says_what_it_left_out(tmp_path: Path) -> None:
    path = write_report(report([case(str(seed), noise(480, seed)) for seed in range(80)]), tmp_path)
    assert path.stat().st_size < 3_000_000
    text = path.read_text(encoding="utf-8")
    assert "pictures were left out" in text and text.count("<img ") >= 10


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_encoded(mode: str) -> None:
    small = encode_picture(Image.new(mode, (64, 32)))
    assert small.uri.startswith("data:image/png") and (small.width, small.height, small.pixelated) == (64, 32, True)
    large = encode_picture(Image.new(mode, (1300, 650)))
    assert large.uri.startswith("data:image/jpeg") and (large.width, large.height) == (640, 320)


def test_a_heat_map_is_hottest_where_the_similarity_is_highest() -> None:
    heat = np.zeros((4, 4))
    heat[0, 3] = 0.3
    encoded = heat_picture(Image.new("RGB", (128, 128), "gray"), heat)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded.uri.partition(",")[2]))).convert("L"), int)
    assert drawn.shape == (256, 256)
    assert drawn[:40, -40:].mean() > 1.5 * drawn[128:, :128].mean()
    assert heat_picture(Image.new("RGB", (8, 8)), np.zeros((2, 2))).uri  # flat: no division by nothing


def test_overlay_leaves_out_what_cannot_be_drawn() -> None:
    shapes = [
        Shape(1, (0.0, 0.0, 1.0, 1.0)),
        Shape(2, (NAN, 0, 1, 1)),
        Shape(3, (0.5, 0, 0.1, 1)),
        Shape(4, (-1, 0, 2, 1), 1),
    ]
    drawn = overlay(shapes, 640, 480)
    assert re.findall(r'class="b b\d" data-n="(\d)"', drawn) == ["1", "4"]
    assert "nan" not in drawn
    assert iou((0, 0, 1, 1), (0, 0, 0.5, 1)) == 0.5
    assert iou((0, 0, 1, 1), (NAN, 0, 1, 1)) is None and iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_curves_break_at_nan_and_ticks_span_the_values() -> None:
    chart = curve_chart([Line("<b>", 0, [1, 2, 3, 4], [0.1, NAN, 0.3, 0.4])], "samples", "x", True)
    assert chart is not None and "nan" not in chart and "<b>" not in chart
    assert re.findall(r'path d="([^"]*)"', chart)[0].count("M") == 2
    assert curve_chart([Line("a", 0, [1], [NAN])], "seconds", "x", True) is None
    points = scatter_chart("clip", "cloc", [("a", 0.1, 0.9), ("b", 0.1, 0.9), ("<i>", 0.5, 0.5)])
    assert (
        points is not None
        and points.count("<circle") == 2
        and "a, b: clip 10%, cloc 90%" in points
        and "<i>" not in points
    )
    for low, high in ((0, 0.93), (0, 80_000), (-3.2, 7), (5, 5), (0, 0), (1e-6, 2e-6)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8


def test_unequal_lists_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'k'.*named\['cloc'\] has 2 entries for 1 boxes"):
        Case("k", noise(8), [(0, 0, 1, 1)], ["a"], {"cloc": [Answer("a", True)] * 2})
    with pytest.raises(ValueError, match="loss.*clip.*2, 1, 2"):
        Curve("clip", "loss", [1, 2], [1], [1, 2])
