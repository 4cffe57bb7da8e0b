"""The key tables of ``docs/`` are those of the schema; every key says what it means, once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any

import pytest

from cloc.config import docs, schema
from cloc.config.domains import Amount, Decay, Devices, Finite, Length, OneOf, PositiveShare, Weight
from tests.kit.paths import ROOT

PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
GROUPS = [cls for cls in vars(schema).values() if is_dataclass(cls) and cls.__module__ == schema.__name__]
GROUPS = [cls for cls in GROUPS if not cls.__subclasses__()]  # keys of a base are in the tables of its heirs


def test_the_tables_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main([]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("cls", GROUPS, ids=lambda cls: cls.__name__)
def test_every_group_has_one_table_and_every_key_its_meaning(cls: type) -> None:
    named = [found["name"] for text in PAGES.values() for found in docs.BLOCK.finditer(text)]
    assert named.count(cls.__name__) == 1
    assert all(key.meaning.endswith(".") for key in docs.keys(cls))


def test_links_of_the_tables_lead_somewhere() -> None:
    anchors = {
        name: {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.M)}
        for name, text in PAGES.items()
    }
    links = {link for text in PAGES.values() for link in re.findall(r"\]\((\w+\.md)(?:#([\w-]+))?\)", text)}
    assert len(links) > 10
    assert [(page, anchor) for page, anchor in links if page not in anchors or anchor not in {"", *anchors[page]}] == []


@pytest.mark.parametrize(
    ("hint", "cell"),
    [
        (bool, "`true`, `false`"),
        (str | None, "text or null"),
        (Amount, "int ≥ 0"),
        (Finite, "float"),
        (Decay, "float in [0, 1)"),
        (PositiveShare | None, "float in (0, 1] or null"),
        (Annotated[str, OneOf("a", "b")], "`a`, `b`"),
        (Annotated[list[Weight], Length(2, "both")], "list of float ≥ 0 (2)"),
        (Annotated[Any, Devices()], "int ≥ 1, -1, `auto`, list of int"),
        (dict[str, Any] | None, "node or null"),
    ],
)
def test_a_cell_says_type_and_domain(hint: Any, cell: str) -> None:
    assert docs.values(hint) == cell


@dataclass
class Toy:
    """A group."""

    size: Amount = 1000
    """Of the toy, see
    docs/toys.md#sizes."""
    names: list[str] = field(default_factory=list)
    """``a`` or ``b|c``."""


class Part:
    """A part.

    Args:
        global_: its weight, as :func:`x.y` says
            in two lines.
    """

    def __init__(self, global_: Weight = 0.5) -> None:
        self.weight = global_


def test_a_table_says_what_stands_below_a_field() -> None:
    rows = docs.table(Toy, "toy", None).splitlines()
    assert rows[2:] == [
        "| `toy.size` | int ≥ 0 | 1,000 | Of the toy, see [toys.md](toys.md#sizes). |",
        "| `toy.names` | list of text | [] | `a` or `b\\|c`. |",
    ]


def test_a_table_of_a_part_reads_its_signature() -> None:
    assert docs.table(Part, "part", None).splitlines()[2:] == [
        "| `part.global` | float ≥ 0 | 0.5 | Its weight, as `x.y` says in two lines. |"
    ]


def test_what_is_composed_stands_in_brackets() -> None:
    assert "1,000 [7]" in docs.table(Toy, "toy", docs.OmegaConf.create({"toy": {"size": 7}}))
    assert "[7" not in docs.table(Toy, "toy", docs.OmegaConf.create({"toy": {"size": 1000.0}}))
