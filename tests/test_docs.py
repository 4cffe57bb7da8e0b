"""What the pages say of the code is so: files, names, who imports whom, which pages there are."""

from __future__ import annotations

import ast
import re

import pytest

from tests.kit.paths import ROOT
from tests.test_layout import MAY_IMPORT

DOCS = ROOT / "docs"
ARCHITECTURE = (DOCS / "architecture.md").read_text(encoding="utf-8")
WAY = re.findall(r"^\| (\d+) \| `([\w/]+\.py)` \| (.+?) \|", ARCHITECTURE, re.MULTILINE)
BELOW = {"checkpoints", "launchers", "command", "usage", "console", "contracts", "files", "config"}


def test_ten_files_in_order_are_in_the_table_and_in_the_picture() -> None:
    assert [int(number) for number, _, _ in WAY] == list(range(1, 11))
    picture = (DOCS / "images" / "architecture.svg").read_text(encoding="utf-8")
    assert re.findall(r'class="path"[^>]*>([\w/]+\.py)<', picture)[:10] == [path for _, path, _ in WAY]


@pytest.mark.parametrize(("path", "names"), [row[1:] for row in WAY], ids=[row[1] for row in WAY])
def test_what_is_to_be_read_there_is_there(path: str, names: str) -> None:
    tree = ast.parse((ROOT / "cloc" / path).read_text(encoding="utf-8"))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    asked = {part for name in re.findall(r"`([\w.]+)`", names) for part in name.split(".")}
    assert asked and asked <= defined


def test_the_other_files_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"`([a-z_]+/[\w/]+\.py)`", ARCHITECTURE))
    assert [path for path in sorted(named) if not any((top / path).is_file() for top in (ROOT, ROOT / "cloc"))] == []


def test_who_may_import_whom_is_what_the_layout_holds() -> None:
    table = ARCHITECTURE.split("## Who may import whom")[1].split("`labeling` is not written")[0]
    said = {}
    for unit, names in re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE):
        named = set() if names == "nothing of `cloc`" else set(re.findall(r"`(\w+)`", names))
        said[unit] = named | (BELOW if names.startswith("the eight above") else set())
    assert said == MAY_IMPORT


def test_the_index_lists_every_page_once() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {path.name for path in DOCS.glob("*.md")} - {"index.md"}
    listed = re.findall(r"^\| \[[\w.]+\]\(([\w./]+)\)", index, re.MULTILINE)
    assert sorted(name for name in listed if "/" not in name) == sorted(pages)
    assert all((DOCS / name).is_file() for name in listed)


def test_the_tree_of_the_readme_is_that_of_the_package() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The code")[1].split("## Not there yet")[0]
    packages = {path.parent.relative_to(ROOT / "cloc").as_posix() for path in (ROOT / "cloc").rglob("__init__.py")}
    written, above = set(), ""
    for indent, name in re.findall(r"^( {2,4})([\w]+)/ ", tree, re.MULTILINE):
        above = name if len(indent) == 2 else above
        written.add(name if len(indent) == 2 else f"{above}/{name}")
    inner = {"data/convert/formats"}  # below what one line says
    assert written == {name for name in packages if name != "." and name not in inner and "templates" not in name}
