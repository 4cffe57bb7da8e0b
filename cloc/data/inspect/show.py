"""``data show``: samples with their boxes and phrases, as a PNG sheet or a page that needs no other file.

Stands beside ``shards`` at the start of ``data → models → losses → evaluation → engine``. With a chooser it also shows
what a model is given: the view, the drawn regions with their drawn phrases, and the drawn caption.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cloc.contracts import BadSample, Region, Sample
from cloc.data.decode import decode_rgb
from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.shards.tars import ShardError
from cloc.data.stream.order import choices
from cloc.data.stream.region_sampling import Chooser
from cloc.files import make_folder, write_file

Box = tuple[float, float, float, float]

# Dark enough to be read as text on white, and to carry white digits.
COLORS = ("#0b66a0", "#b4500b", "#2f7a45", "#8247a8", "#ab2f60", "#766500", "#00808a", "#c0392b", "#5b5bd6", "#5d4037")

_WIDTH = 440  # of a picture on the sheet, in pixels
_TALLEST = 1.3  # height of a picture, in widths
_GAP = 28
_COLUMNS = 4
_TEXT_SIZE = 15
_LINE = 21
_MOST_MARKS = 12  # drawn and named on a picture of the sheet; the page has all
_MOST_CAPTIONS = 2
_PAGE_SIDE = 720  # long side of a picture on the page, in pixels
_JPEG_QUALITY = 85
_TINY = 128  # pictures less wide are enlarged pixel by pixel on the page
_PAGE_WIDTH = 340  # of the narrowest picture on the page: where tags do not overlap, they do not on wider ones
_TAG = 22, 19  # width and height of a number
_TRIES = 6  # places along an edge that a number may move to


@dataclass(frozen=True, slots=True)
class Mark:
    """Boxes with the same text; ``crowd`` ones are dashed, since they are not trained on."""

    boxes: tuple[Box, ...]
    text: str
    crowd: bool = False

    @property
    def area(self) -> float:
        """Of the largest box, as a share of the picture."""
        return max((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in self.boxes)


@dataclass(frozen=True, slots=True)
class Tag:
    """Where the number of a box stands: beside or in its upper left corner, where there is room.

    Attributes:
        number: of the mark, from 1.
        corner: upper left corner of the box, in 0..1.
        shift: from there to that of the number, in pixels.
    """

    number: int
    corner: tuple[float, float]
    shift: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture with its boxes and captions."""

    title: str
    picture: Image.Image
    marks: tuple[Mark, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Cards below a heading, which may be empty; a card is one panel or two."""

    heading: str
    cards: Sequence[Sequence[Panel]]


def show(
    folder: Path | str, out: Path | str, *, count: int = 16, seed: int = 0, chooser: Chooser | None = None
) -> Path:
    """Show some samples.

    Args:
        folder: shards.
        out: file to write: ``.html`` for a page, ``.png`` for a sheet.
        count: samples to show.
        seed: another seed shows other samples, and draws other regions of them.
        chooser: also show the view that it makes, with what it draws.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
        ShardError: no sample can be shown.
        ValueError: another ending.
    """
    out = Path(out)
    check_ending(out)
    cards = _cards(load_manifest(folder), count, seed, chooser)
    if not cards:
        raise ShardError(f"{folder}: holds no sample that can be shown; run python -m cloc data check {folder}")
    write_panels(out, str(folder), [Group("", cards)])
    return out


def check_ending(out: Path) -> None:
    """Say that a file is neither a sheet nor a page.

    Raises:
        ValueError: so it is.
    """
    if out.suffix.lower() not in (".png", ".html"):
        raise ValueError(f"--out {out}: the ending must be .png or .html")


def write_panels(out: Path, title: str, groups: Sequence[Group]) -> None:
    """Write pictures with boxes, on a sheet (``.png``) or a page (``.html``) that needs no other file.

    Args:
        out: the file.
        title: of the page.
        groups: at least one card in all.
    """
    make_folder(out.parent)
    if out.suffix.lower() == ".png":
        write_file(out, lambda file: _sheets(groups).save(file, "PNG", optimize=True))
    else:
        write_file(out, _page(title, groups))


def _cards(manifest: Manifest, count: int, seed: int, chooser: Chooser | None) -> list[list[Panel]]:
    """Up to ``count`` samples that decode, each with one panel or two."""
    starts = np.cumsum([0, *manifest.shards.column("samples")])
    reader, cards = ShardReader(manifest), []
    drawn = np.random.default_rng(seed).permutation(manifest.samples).tolist()
    shards = (np.searchsorted(starts, drawn, "right") - 1).tolist()
    places = ((shard, number - int(starts[shard])) for shard, number in zip(shards, drawn, strict=True))
    for number, stored in zip(drawn, each_sample(reader, places), strict=True):
        try:
            sample = stored.need()
            picture = decode_rgb(sample.image)
        except BadSample:  # a sheet shows what can be shown; check counts the rest
            continue
        cards.append([_original(sample, picture)])
        if chooser is not None:
            cards[-1].append(_seen(sample, chooser, seed, number))
        if len(cards) == count:
            break
    reader.close()
    return cards


def _original(sample: Sample, picture: Tensor) -> Panel:
    named = [(region.box, _named(region), region.crowd) for region in sample.regions]
    return Panel(
        f"{sample.key}  {picture.shape[2]}×{picture.shape[1]}", _pillow(picture), _marks(named), sample.captions
    )


def _named(region: Region) -> str:
    """Phrases, and behind them what the region is not."""
    named = " / ".join(dict.fromkeys(region.phrases)) + (" (crowd)" if region.crowd else "")
    return named + (f" (not: {', '.join(region.negatives)})" if region.negatives else "")


def _seen(sample: Sample, chooser: Chooser, seed: int, place: int) -> Panel:
    candidate = chooser(sample, choices(seed, place))
    item = chooser.choose([candidate])[0]
    boxes = zip(item.boxes, item.phrases, strict=True)
    named = [((x0, y0, x1, y1), text, False) for (x0, y0, x1, y1), text in boxes]
    title = f"view {chooser.view.size}×{chooser.view.size}" + (", mirrored" if candidate.seen.mirrored else "")
    return Panel(title, _pillow(item.image), _marks(named), (item.caption,))


def _marks(named: Sequence[tuple[Box, str, bool]]) -> tuple[Mark, ...]:
    """Join the boxes that have the same text: "skis" may own ten."""
    boxes: dict[tuple[str, bool], list[Box]] = {}
    for box, text, crowd in named:
        boxes.setdefault((text, crowd), []).append(box)
    return tuple(Mark(tuple(found), text, crowd) for (text, crowd), found in boxes.items())


def _tags(marks: Sequence[Mark], size: tuple[int, int]) -> list[Tag]:
    """Find a place for the number of each box on a picture of so many pixels; small boxes choose first."""
    boxes = [(number, box) for number, mark in enumerate(marks, 1) for box in mark.boxes]
    boxes.sort(key=lambda pair: (pair[1][2] - pair[1][0]) * (pair[1][3] - pair[1][1]))
    taken: list[tuple[int, int]] = []
    tags = []
    for number, box in boxes:
        x, y = _tag_place(box, size, taken)
        taken.append((x, y))
        tags.append(Tag(number, box[:2], (x - round(box[0] * size[0]), y - round(box[1] * size[1]))))
    return tags


def _tag_place(box: Box, size: tuple[int, int], taken: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """In the corner of the box; above or beside it where it is small; further along where that is taken."""
    (width, height), (wide, high) = size, _TAG
    x0, y0, x1, y1 = (round(value * side) for value, side in zip(box, (width, height) * 2, strict=True))
    inside = [(x0 + wide * step, y0) for step in range(_TRIES)] + [(x0, y0 + high * step) for step in range(_TRIES)]
    beside = [(x0, y0 - high), (x1, y0), (x0 - wide, y0), (x0, y1)]
    places = beside + inside if x1 - x0 < 2 * wide or y1 - y0 < 2 * high else inside + beside
    for x, y in places:
        fits = 0 <= x <= width - wide and 0 <= y <= height - high
        if fits and not any(abs(x - a) < wide and abs(y - b) < high for a, b in taken):
            return x, y
    return min(max(x0, 0), max(0, width - wide)), min(max(y0, 0), max(0, height - high))


def _pillow(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


def _sheets(groups: Sequence[Group]) -> Image.Image:
    """The sheets of all groups below each other, each with its heading."""
    parts: list[Image.Image] = []
    for group in groups:
        sheet = _sheet(group.cards)
        parts += [_heading(group.heading, sheet.width), sheet] if group.heading else [sheet]
    whole, top = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white"), 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


def _heading(text: str, width: int) -> Image.Image:
    lines = _wrap(text, width - 2 * _GAP, 2)
    strip = Image.new("RGB", (width, _GAP + len(lines) * _LINE), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(strip).text((_GAP, _GAP + number * _LINE), line, "#1c2126", _font(_TEXT_SIZE))
    return strip


def _sheet(cards: Sequence[Sequence[Panel]]) -> Image.Image:
    """All cards in rows, each row as high as its highest card."""
    drawn = [[_draw_panel(panel) for panel in card] for card in cards]
    columns = max(1, min(len(drawn), _COLUMNS // len(drawn[0])))
    width = len(drawn[0]) * (_WIDTH + _GAP // 2) - _GAP // 2
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    heights = [max(panel.height for card in row for panel in card) for row in rows]
    size = (columns * (width + _GAP) + _GAP, sum(heights) + (len(rows) + 1) * _GAP)
    sheet, top = Image.new("RGB", size, "white"), _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            for number, panel in enumerate(card):
                sheet.paste(panel, (_GAP + column * (width + _GAP) + number * (_WIDTH + _GAP // 2), top))
        top += height + _GAP
    return sheet


def _draw_panel(panel: Panel) -> Image.Image:
    """Title, picture with numbered boxes, captions, and a line for each number."""
    scale = min(_WIDTH / panel.picture.width, _TALLEST * _WIDTH / panel.picture.height)
    size = max(1, round(panel.picture.width * scale)), max(1, round(panel.picture.height * scale))
    enlarged = scale > 4  # tiny pictures show their pixels
    picture = panel.picture.resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)
    marks = panel.marks[:_MOST_MARKS]
    _draw_boxes(ImageDraw.Draw(picture), marks, size)
    lines: list[tuple[str, str, int]] = []  # color, text, number of the box or 0
    for caption in panel.captions[:_MOST_CAPTIONS]:
        lines += [("#1c2126", line, 0) for line in _wrap(f"“{caption}”", _WIDTH, 2)]
    if (more := len(panel.captions) - _MOST_CAPTIONS) > 0:
        lines.append(("#565f69", f"and {more} more caption{'s' if more > 1 else ''}", 0))
    for number, mark in enumerate(marks, 1):
        times = f" ×{len(mark.boxes)}" if len(mark.boxes) > 1 else ""
        for place, line in enumerate(_wrap(mark.text + times, _WIDTH - 30, 2)):
            lines.append((_color(number), line, number if place == 0 else -1))
    if (more := sum(len(mark.boxes) for mark in panel.marks[_MOST_MARKS:])) > 0:
        lines.append(("#565f69", f"and {more} more region{'s' if more > 1 else ''}, not drawn", 0))
    card = Image.new("RGB", (_WIDTH, _LINE + size[1] + 8 + len(lines) * _LINE), "white")
    draw = ImageDraw.Draw(card)
    draw.text((0, 0), _wrap(panel.title, _WIDTH, 1)[0], "#565f69", _font(_TEXT_SIZE - 2))
    card.paste(picture, (0, _LINE))
    for row, (color, text, number) in enumerate(lines):
        y = _LINE + size[1] + 8 + row * _LINE
        if number > 0:
            _draw_number(draw, number, (0, y))
        draw.text((30 if number else 0, y), text, color, _font(_TEXT_SIZE))
    return card


def _draw_boxes(draw: ImageDraw.ImageDraw, marks: Sequence[Mark], size: tuple[int, int]) -> None:
    """Outlines with a white rim, large ones first, then the numbers, so that no outline hides one."""
    width, height = size
    for number, mark in sorted(enumerate(marks, 1), key=lambda pair: -pair[1].area):
        for x0, y0, x1, y1 in mark.boxes:
            left, top = round(x0 * width), round(y0 * height)
            box = (left, top, max(left + 4, round(x1 * width) - 1), max(top + 4, round(y1 * height) - 1))
            if mark.crowd:
                _dashed(draw, box, _color(number))
                continue
            draw.rectangle(box, outline="white", width=4)
            draw.rectangle((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), outline=_color(number), width=2)
    for tag in _tags(marks, size):
        place = (round(tag.corner[0] * width) + tag.shift[0], round(tag.corner[1] * height) + tag.shift[1])
        _draw_number(draw, tag.number, place)


def _dashed(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], color: str) -> None:
    x0, y0, x1, y1 = box
    for start in range(x0, x1, 12):
        for y in (y0, y1):
            draw.line((start, y, min(start + 7, x1), y), color, 3)
    for start in range(y0, y1, 12):
        for x in (x0, x1):
            draw.line((x, start, x, min(start + 7, y1)), color, 3)


def _draw_number(draw: ImageDraw.ImageDraw, number: int, place: tuple[int, int]) -> None:
    x, y = place
    draw.rectangle((x, y, x + _TAG[0] - 1, y + _TAG[1] - 1), fill=_color(number))
    draw.text((x + 11, y + 9), str(number), "white", _font(_TEXT_SIZE - 2), anchor="mm")


def _color(number: int) -> str:
    return COLORS[(number - 1) % len(COLORS)]


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic, Arabic and more."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def _wrap(text: str, width: int, most: int) -> list[str]:
    """Break a text into lines of so many pixels; what is left over after the last one becomes an ellipsis."""
    font, lines, words = _font(_TEXT_SIZE), [""], text.split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = len(lines) > most
    lines = lines[:most]
    for number, line in enumerate(lines):
        tail = " …" if cut and number == most - 1 else ""
        while line and font.getlength(line + tail) > width:
            line, tail = line[:-1], " …"
        lines[number] = line + tail
    return lines


def _page(title: str, groups: Sequence[Group]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["tags"] = _page_tags
    most = max(len(panel.marks) for group in groups for card in group.cards for panel in card)
    return environment.get_template("show.html.j2").render(
        title=title, groups=groups, colors=COLORS, most=most, tiny=_TINY
    )


def _page_tags(panel: Panel) -> list[Tag]:
    height = max(1, round(_PAGE_WIDTH * panel.picture.height / panel.picture.width))
    return _tags(panel.marks, (_PAGE_WIDTH, height))


def _data_uri(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((_PAGE_SIDE, _PAGE_SIDE))
    buffer = io.BytesIO()
    tiny = picture.width < _TINY  # the page shows its pixels, and JPEG would show its own
    small.save(buffer, "PNG" if tiny else "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/{'png' if tiny else 'jpeg'};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
