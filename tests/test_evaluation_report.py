"""The evaluation report: the numbers it prints, the words it finds for them, and the page in a browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cloc.evaluation.headline import headline, key_facts
from cloc.evaluation.pictures import Line, Shape, curve_chart, encode_picture, iou, nice_ticks, overlay
from cloc.evaluation.report import Case, Curve, DatasetReport, ReportData, same_phrase, write_report
from cloc.evaluation.table import compare, comparison_table, describe, format_value

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
        {"cloc · prompter": ["Chick", HOSTILE], "clip · crop": ["a cup", "an owl"]},
        {"cloc": [(0.1, 0.1, 0.5, 0.5), (NAN, 0.0, 1.0, 1.0)], "clip": []},
    )


def report(cases: list[Case] | None = None) -> ReportData:
    entry = DatasetReport(
        "openmoji", HOSTILE, {"cloc": CLOC, "clip": CLIP}, [case()] if cases is None else cases, {"classes": 128}
    )
    curve = Curve("cloc", "region/prompter/top1", [1e3, 2e3, 3e3], [1.0, 2.0, 3.0], [0.2, NAN, 0.9])
    return ReportData(
        HOSTILE,
        f"python eval.py x='{HOSTILE}'",
        [entry],
        [curve, Curve("clip", "loss", [1e3], [1.0], [NAN])],
        {"torch": "2.9.0"},
        [f"{HOSTILE} https://openmoji.org"],
        {"cloc": {"samples seen": 80000, "seconds": NAN}, "clip": {"step": HOSTILE}},
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
    found = headline({"cloc": CLOC, "clip": CLIP}, classes=128)
    assert found.sentence == "The Prompter names 93.0% of the held-out boxes; the best CLIP source 28.7%."
    assert found.gap == "That is 64.3 points more than CLIP with RoI-Align."
    assert [bar.label for bar in found.bars][0] == "cloc · Prompter"
    assert found.bars[-1].label == "chance, 1 of 128 classes"


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
    assert sentence in headline(models).sentence


@pytest.mark.parametrize(("crop", "gap"), [(0.3, "20.0 points less than"), (0.1, "level with")])
def test_headline_admits_a_worse_and_an_equal_prompter(crop: float, gap: str) -> None:
    models = {"cloc": {"region/prompter/top1": 0.1}, "clip": {"region/crop/top1": crop}}
    assert headline(models).gap == f"That is {gap} CLIP with Crop."


def test_key_facts_name_the_best_model_and_the_reason_for_a_missing_one() -> None:
    retrieval, grounding = key_facts({"cloc": CLOC, "clip": CLIP})[:2]
    assert (retrieval.model, retrieval.value, retrieval.against) == ("clip", "66.1%", "cloc 64.2%")
    assert grounding.against == "clip has no grounding head"
    assert key_facts({"cloc": CLOC, "a": CLIP, "b": {}})[1].against == "of 2 others none has a grounding head"


def test_many_readings_are_shown_as_the_best_of_each_model() -> None:
    sources = ("crop", "roi_align", "mask_pool")
    models = {f"m{n}": {f"region/{s}/top1": 0.1 * n + 0.01 * i for i, s in enumerate(sources)} for n in range(5)}
    found = headline(models)
    assert [bar.label for bar in found.bars] == [f"m{n} · Mask pool" for n in (4, 3, 2, 1, 0)]
    assert "with its best way" in found.caption


def test_every_metric_of_the_contract_has_a_group_and_a_reading() -> None:
    names = [f"image_text/{d}_R@{k}" for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    names += ["image/zero_shot_top1", "grounding/any/acc@0.5", "grounding/union/acc@0.5", "grounding/mIoU"]
    for source in ("prompter", "roi_align", "crop", "mask_pool"):
        names += [f"region/{source}/{measure}" for measure in ("top1", "mAcc")]
        names += [f"region/{source}/{d}_R@{k}" for d in ("region_to_text", "text_to_region") for k in (1, 10)]
    names += [f"relations/{s}/{m}" for s in ("similarity", "grounded") for m in ("accuracy", "pair", "set4")]
    for name in names:
        meaning = describe(name)
        assert meaning.group != "Other measurements" and len(meaning.reading) > 30, name
        assert meaning.percent == (name != "grounding/mIoU")
    assert describe("loss").group == describe("region/crop/new").group == "Other measurements"


def test_rows_mark_the_best_and_take_differences_from_the_first_model() -> None:
    groups = {group.title: group for group in compare({"cloc": CLOC, "clip": CLIP})}
    assert list(groups) == ["Image–text", "Regions by source", "Grounding", "Relations"]
    rows = {row.meaning.metric: row for group in groups.values() for family in group.families for row in family.rows}
    retrieval, prompter = rows["image_text/text_to_image_R@1"], rows["region/prompter/top1"]
    assert [cell.best for cell in retrieval.cells] == [False, True]
    assert (retrieval.difference, retrieval.ahead) == ("−1.9", False)
    assert (prompter.cells[1].text, prompter.difference, prompter.ahead) == ("–", "–", None)
    assert "no Prompter" in prompter.cells[1].why
    assert "Not a number" in rows["image/zero_shot_top1"].cells[1].why
    assert rows["grounding/mIoU"].cells[0].text == "0.741"
    assert format_value(math.inf, True) == "–"


def test_terminal_table_fits_100_columns() -> None:
    models = {"first": {name: 0.0 for name in CLOC}} | {f"cloc-variant-{number}": CLOC for number in range(6)}
    for chosen in ({"cloc": CLOC, "clip": CLIP}, models, {}):
        console = Console(width=100, file=StringIO())
        console.print(comparison_table({"data": {"[bold]openmoji": {"models": chosen}, "empty": {"models": {}}}}))
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= 100
        assert "[bold]openmoji" in text and "nan" not in text
        assert text.count("93.0%") == sum(m.get("region/prompter/top1") == 0.93 for m in chosen.values())
        assert ("−93.0" in text) == ("first" in chosen)
    with pytest.raises(ValueError, match=r"metrics.json"):
        comparison_table({"models": {}})


def test_page_escapes_every_text_and_prints_no_nan(tmp_path: Path) -> None:
    found = page(report(), tmp_path)
    assert sum(tag == "script" for tag, _ in found.elements) == 1
    assert found.text.count(HOSTILE) >= 7
    assert not re.search(r"\b(nan|none|inf|undefined)\b", found.text, re.IGNORECASE)
    assert "The Prompter names 93.0% of the held-out boxes; the best CLIP source 28.7%." in found.text
    for tag, attributes in found.elements:
        for name in ("src", "href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")) or (tag, value) == ("a", "https://openmoji.org")
        assert tag != "img" or attributes.get("alt")


def test_page_tells_right_from_wrong_without_color(tmp_path: Path) -> None:
    text = page(report(), tmp_path).text
    assert re.search(r"✓\s*Chick", text) and re.search(r"✗\s*a cup", text)
    assert re.search(r"✓\s*1\.00", text)  # the grounded chick; the NaN box of the other phrase is a dash
    assert same_phrase("A  Chick", "chick") and not same_phrase("a chick", "a chicken")


def test_empty_lists_are_stated(tmp_path: Path) -> None:
    text = page(ReportData("t", "", []), tmp_path).text
    stated = "No data set was measured|No learning curve|No held-out picture|No grounded phrase|Nothing was measured"
    for words in (stated + "|command was not recorded|No training record|No version was recorded").split("|"):
        assert words in text
    text = page(ReportData("t", "c", [DatasetReport("d", "", {}), DatasetReport("e", "", {"m": {}})]), tmp_path).text
    assert "No model was measured" in text and text.count("Not measured on this data set") == 4


def test_page_stays_below_4_megabytes_and_says_what_it_left_out(tmp_path: Path) -> None:
    path = write_report(report([case(str(seed), noise(480, seed)) for seed in range(40)]), tmp_path)
    assert path.stat().st_size < 4_000_000
    text = path.read_text(encoding="utf-8")
    assert "pictures were left out" in text and text.count("<img ") >= 10


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_encoded(mode: str) -> None:
    small = encode_picture(Image.new(mode, (64, 32)))
    assert small.uri.startswith("data:image/png") and (small.width, small.height, small.pixelated) == (64, 32, True)
    large = encode_picture(Image.new(mode, (1300, 650)))
    assert large.uri.startswith("data:image/jpeg") and (large.width, large.height) == (640, 320)


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
    for low, high in ((0, 0.93), (0, 80_000), (-3.2, 7), (5, 5), (0, 0), (1e-6, 2e-6)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8


def test_unequal_lists_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'k'.*named\['cloc'\] has 2 entries for 1 boxes"):
        Case("k", noise(8), [(0, 0, 1, 1)], ["a"], {"cloc": ["a", "b"]})
    with pytest.raises(ValueError, match="loss.*clip.*2, 1, 2"):
        Curve("clip", "loss", [1, 2], [1], [1, 2])


HARNESS = """<!doctype html><meta charset="utf-8"><pre id="out">pending</pre>
<iframe src="index.html" width="WIDTH" height="900" style="border:0"></iframe><script>
onload = () => { const page = document.querySelector("iframe").contentDocument, images = [...page.images];
  out.textContent = JSON.stringify({images: images.length, broken: images.filter(i => !i.naturalWidth).length,
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    sections: page.querySelectorAll("section").length}); };
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_page_in_a_browser(tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on the PATH; install it to look at the report as a reader does")
    wide = report([case(), case("photo", noise(200))])
    wide.data[0].metrics |= {f"a-model-with-a-long-name-{number}": CLOC for number in range(4)}
    write_report(wide, tmp_path)
    (tmp_path / "harness.html").write_text(HARNESS.replace("WIDTH", str(width)), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --allow-file-access-from-files --enable-logging=stderr"
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000"]
    target = (tmp_path / "harness.html").as_uri()
    seen = subprocess.run([*command, "--dump-dom", target], capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="out">(\{.*?\})</pre>', seen.stdout)
    assert match, f"the harness did not finish: {seen.stdout[:300]} {seen.stderr[-600:]}"
    assert json.loads(match[1]) == {"images": 4, "broken": 0, "overflow": 0, "sections": 5}
    assert "CONSOLE" not in seen.stderr, seen.stderr
