"""What was found, told: a table, JSON, and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cloc.console import plain, print_table
from cloc.data.inspect.show import Group, Mark, Panel, write_panels
from cloc.evaluation.search.pictures import Look
from cloc.evaluation.search.queries import Box, Query, quoted

_SIDE = 720  # of a picture that is kept to be drawn, in pixels
_LACKING = (320, 240)  # what stands for a picture that is not there
_NAMES = {"images": "pictures", "regions": "boxes"}


@dataclass(frozen=True, slots=True)
class Found:
    """What a query found.

    Attributes:
        query: what was looked for.
        kind: ``images`` or ``regions``.
        looks: the pictures, the best first.
        nearest: best cosine of all, where it was too low.
    """

    query: Query
    kind: str
    looks: Sequence[Look]
    nearest: float | None = None

    @property
    def heading(self) -> str:
        """The query, and what was looked through for it."""
        return f"{quoted(self.query)} · {_NAMES[self.kind]}"


def print_found(found: Found, console: Console) -> None:
    """Print a table, the best first: picture, phrase, score, box, fit."""
    table = Table(title=Text(plain(found.heading)), title_justify="left")
    boxed = any(_box_of(look) for look in found.looks)
    fits = any(_fit_of(look) is not None for look in found.looks)
    phrases = any(look.hit.text for look in found.looks)
    shown = (("picture", True), ("phrase", phrases), ("score", True), ("box", boxed), ("fit", fits))
    for name in [name for name, there in shown if there]:
        table.add_column(name)
    for look in found.looks:
        fit = _fit_of(look)
        cells: list[str | Text] = [Text(plain(look.hit.key))]
        cells += [Text(plain(look.hit.text))] * phrases
        cells += [f"{look.hit.score:.3f}"]
        cells += [_told(_box_of(look))] * boxed
        cells += ["" if fit is None else f"{fit:.2f}"] * fits
        table.add_row(*cells)
    print_table(table, console, keys=1 + phrases)


def _box_of(look: Look) -> Box | None:
    return look.hit.box or look.box


def _fit_of(look: Look) -> float | None:
    return look.fit if look.hit.box is None else look.hit.fit


def _told(box: Box | None) -> str:
    return "" if box is None else ",".join(f"{value:.2f}" for value in box)


def to_json(found: Sequence[Found], index: Path, model: str) -> dict[str, Any]:
    """All that was found, for programs: of each query and kind the pictures in order."""
    results = [
        {"query": one.query.label, "kind": one.kind, "found": [_row(look) for look in one.looks]} for one in found
    ]
    return {"index": str(index), "model": model, "results": results}


def _row(look: Look) -> dict[str, Any]:
    row: dict[str, Any] = {"picture": look.hit.key, "score": round(look.hit.score, 6)}
    if look.hit.box is not None:
        row |= {"box": _rounded(look.hit.box), "phrase": look.hit.text, "fit": look.hit.fit}
    if look.box is not None:
        row["grounded"] = {"box": _rounded(look.box), "fit": look.fit}
    if look.missing:
        row["missing"] = look.missing
    return row


def _rounded(box: Box) -> list[float]:
    return [round(value, 6) for value in box]


def write_sheet(out: Path, title: str, found: Sequence[Found]) -> None:
    """Draw all that was found, a group for each query and kind, with the boxes."""
    groups = [
        Group(one.heading, [[_panel(one.query, rank, look)] for rank, look in enumerate(one.looks, 1)])
        for one in found
        if one.looks
    ]
    write_panels(out, title, groups)


def _panel(query: Query, rank: int, look: Look) -> Panel:
    title = f"{rank} · {look.hit.score:.3f} · {plain(look.hit.key)}"
    if look.picture is None:
        return Panel(title, Image.new("RGB", _LACKING, "#c8ccd0"), (), (f"not shown: {plain(look.missing)}",))
    picture = Image.fromarray(look.picture.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((_SIDE, _SIDE))
    box = _box_of(look)
    marks = () if box is None else (Mark((box,), plain(_label(query, look))),)
    return Panel(title, picture, marks, ())


def _label(query: Query, look: Look) -> str:
    """What a box is: found for the query; of a region also the phrase that it was made by, which may be another."""
    phrase, fit = look.hit.text, _fit_of(look)
    facts = [f"box of “{phrase}”"] * bool(phrase) + ([] if fit is None else [f"fit {fit:.2f}"])
    return f"{query.label} ({', '.join(facts)})" if facts else query.label
