"""``data show`` draws boxes where they are, and what a model is given; ``data bench`` measures every stage."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor
from typer.testing import CliRunner

from cloc.__main__ import app
from cloc.config import ConfigError, data_config
from cloc.contracts import Region, Sample
from cloc.data.inspect.bench import STAGES, bench
from cloc.data.inspect.show import COLORS, Mark, _tags, show
from cloc.data.shards.tars import ShardError
from cloc.data.shards.writer import write_shards
from cloc.data.stream.region_sampling import Chooser
from cloc.data.transforms import View
from tests.kit.streams import make_manifest


def write(folder: Path, *samples: Sample) -> Path:
    write_shards(samples, folder)
    return folder


def gray(size: tuple[int, int] = (200, 100)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()


SAMPLE = Sample(
    "key",
    gray(),
    "png",
    ("<a caption> & more", "another"),
    (Region((0.5, 0.2, 0.9, 0.8), ("on the left <b>", "a thing")), Region((0, 0, 0.2, 0.2), ("many",), crowd=True)),
)


def test_the_sheet_draws_the_box_where_it_is(tmp_path: Path) -> None:
    sheet = Image.open(show(write(tmp_path / "set", SAMPLE), tmp_path / "deep/sheet.png"))
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    grays = np.argwhere((pixels == 128).all(-1))
    (top, left), (bottom, right) = grays.min(0), grays.max(0) + 1
    assert abs((right - left) / (bottom - top) - 2) < 0.05
    inside = pixels[top:bottom, left:right]
    rows, columns = np.nonzero((inside == ImageColor.getrgb(COLORS[0])).all(-1))
    found = [
        columns.min() / inside.shape[1],
        rows.min() / inside.shape[0],
        (columns.max() + 1) / inside.shape[1],
        (rows.max() + 1) / inside.shape[0],
    ]
    assert found == pytest.approx([0.5, 0.2, 0.9, 0.8], abs=0.02)


def test_the_page_needs_no_other_file_and_escapes_texts(tmp_path: Path) -> None:
    page = show(write(tmp_path / "set", SAMPLE), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;a caption&gt; &amp; more" in page and "on the left &lt;b&gt; / a thing" in page
    assert "<b>" not in page.replace("<b>1</b>", "").replace("<b>2</b>", "")
    assert re.findall(r'(?:src|href)="(?!data:)', page) == [] and "<script" not in page
    assert 'x="500.0" y="200.0" width="400.0" height="600.0"' in page and "(crowd)" in page


def test_the_page_keeps_the_pixels_of_tiny_pictures(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    tiny = Sample("tiny", buffer.getvalue(), "png", ("x",))
    page = show(write(tmp_path / "set", tiny), tmp_path / "page.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)', page)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), noise)
    assert 'class="picture small"' in page


def test_the_view_shows_what_is_drawn_mirrored(tmp_path: Path) -> None:
    chooser = Chooser(View(64, flip=1.0))
    page = show(write(tmp_path / "set", SAMPLE), tmp_path / "page.html", chooser=chooser).read_text(encoding="utf-8")
    view = page[page.index("view 64×64, mirrored") :]
    assert "on the right" in view or "a thing" in view
    assert "many" not in view  # crowds are not trained on
    assert 'x="100.0" y="350.0" width="400.0" height="300.0"' in view  # mirrored, and padded above and below


def test_boxes_with_one_text_share_a_number(tmp_path: Path) -> None:
    boxes = [(0.0, 0.0, 0.2, 0.2), (0.5, 0.5, 0.7, 0.9), (0.8, 0.1, 0.9, 0.2)]
    regions = (
        Region(boxes[0], ("ski",)),
        Region((0.1, 0.1, 1, 1), ("snow",)),
        *(Region(b, ("ski",)) for b in boxes[1:]),
    )
    page = show(write(tmp_path / "set", Sample("k", gray(), "png", ("x",), regions)), tmp_path / "page.html").read_text(
        encoding="utf-8"
    )
    assert page.count("<li ") == 2 and "ski <i>×3</i>" in page and page.count("<rect ") == 2 * len(regions)
    assert re.findall(r'class="tag m(\d)', page).count("1") == 3
    assert page.index('<g class="m2') < page.index('<g class="m1')  # small ones on top, where the mouse finds them


def test_numbers_hide_neither_each_other_nor_small_boxes() -> None:
    rng = np.random.default_rng(0)
    marks = []
    for _ in range(12):
        x, y = rng.integers(0, 3, 2) / 4  # many begin at one corner
        marks.append(Mark(((x, y, x + 0.25, y + 0.25), (0.9, y, 0.92, y + 0.02)), "x"))
    size = 440, 330
    places = [
        (round(tag.corner[0] * size[0]) + tag.shift[0], round(tag.corner[1] * size[1]) + tag.shift[1])
        for tag in _tags(marks[:6], size)
    ]
    assert len(places) == 12 and all(0 <= x <= 440 - 22 and 0 <= y <= 330 - 19 for x, y in places)
    for number, (x, y) in enumerate(places):
        assert all(abs(x - a) >= 22 or abs(y - b) >= 19 for a, b in places[:number])
    (tag,) = _tags([Mark(((0.5, 0.5, 0.52, 0.52),), "small")], size)
    assert tag.shift == (0, -19)
    assert len(_tags(marks * 20, (10, 10))) == 480  # no room at all


def test_what_cannot_be_shown_is_left_out(tmp_path: Path) -> None:
    bad = Sample("bad", b"no picture", "png", ("x",))
    show(write(tmp_path / "set", bad, SAMPLE), tmp_path / "sheet.png")
    with pytest.raises(ShardError, match="no sample that can be shown"):
        show(write(tmp_path / "none", bad), tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="the ending must be"):
        show(tmp_path / "set", tmp_path / "sheet.gif")


def test_many_long_phrases_and_odd_shapes_fit(tmp_path: Path) -> None:
    regions = tuple(Region((0.0, 0.0, 0.1 + i / 40, 0.3), (f"phrase {i} " + "word " * 60,)) for i in range(30))
    wide = Sample("wide" * 40, gray((300, 3)), "png", ("x" * 500,), regions)
    tall = Sample("tall", gray((2, 300)), "png", ("",) and ("y",), regions)
    sheet = Image.open(show(write(tmp_path / "set", wide, tall), tmp_path / "sheet.png"))
    assert sheet.width < 1100 and sheet.height < 1500


def test_samples_of_all_shards_are_shown_once(tmp_path: Path) -> None:
    folder = make_manifest(tmp_path / "set", count=7, shards=3).folder
    page = show(folder, tmp_path / "page.html", count=100).read_text(encoding="utf-8")
    assert len(set(re.findall(r'class="title">(\S+)', page))) == page.count("<article>") == 7


def test_show_command(tmp_path: Path) -> None:
    folder, out = write(tmp_path / "set", SAMPLE), tmp_path / "sheet.png"
    run = CliRunner()
    options = ["--view", "--image-size", "32", "--out", str(out)]
    assert run.invoke(app, ["data", "show", str(folder), "data.crop=0.5", "flip=1", *options]).exit_code == 0
    assert Image.open(out).width > 800  # two panels
    with pytest.raises(ValueError, match="add --view"):
        run.invoke(app, ["data", "show", str(folder), "crop=0.5"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [("crp=0.5", "did you mean 'crop'"), ("crop=2", "data.crop=2"), ("crop", "give KEY=VALUE"), ("flip=no", "flip")],
)
def test_wrong_overrides_name_the_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_config([override])


def test_overrides_are_those_of_training() -> None:
    config = data_config(["data.crop=0.5", "jitter=[0.4,0.4,0.4,0.1]", "regions=9"])
    assert (config.crop, config.jitter, config.regions, config.flip) == (0.5, [0.4, 0.4, 0.4, 0.1], 9, 0.0)


def test_bench_times_every_stage_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "set", broken=(3,))
    result = bench(manifest.folder, Chooser(View(16)), samples=22, batch_size=8, workers=0)
    assert list(result.seconds) == list(STAGES) and all(value > 0 for value in result.seconds.values())
    assert result.stream > 0 and result.skipped == 1
    assert 0 < result.share_of_decode < 1
    make_manifest(tmp_path / "none", broken=(0, 1), count=2, shards=1)
    with pytest.raises(ShardError, match="no sample can be used"):
        bench(tmp_path / "none", Chooser(View(16)), samples=4)


def test_bench_command(tmp_path: Path) -> None:
    folder = make_manifest(tmp_path / "set").folder
    arguments = ["data", "bench", str(folder), "crop=0.5", "--samples", "16", "--batch-size", "8", "--workers", "0"]
    done = CliRunner().invoke(app, [*arguments, "--image-size", "16"])
    assert done.exit_code == 0, done.exception
    assert "tokenize" in done.output and "of decoding alone" in done.output
    assert done.output.endswith(" batch_size=64 data.crop=0.5 data.workers=0 dry_run=true\n")
