"""The site of the documents: ``make site``. Sphinx reads the pages as they are, and docstrings for the API.

The root of the sources is the repository's, so that links between README, docs/ and CONTRIBUTING are the same here and
on GitHub. Which modules the API shows is said by packages in ``AREAS``; what is in them is found anew at each build.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project, author, copyright = "cloc", "cloc contributors", "cloc contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**"]
exclude_patterns = ["docs/conf.py", "docs/images"]
root_doc = "docs/index"
html_theme, html_title = "furo", "cloc"
html_show_sourcelink = False

# Anchors are GitHub's, so that a link to a heading is right in both places.
myst_heading_anchors = 6

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_numpy_docstring = False

AREAS = {
    "Use a model": ("cloc", "cloc.encoder", "cloc.loading"),
    "What passes between folders": ("cloc.contracts",),
    "Data": ("cloc.data",),
    "Model parts": ("cloc.models",),
    "Losses": ("cloc.losses",),
    "Evaluation": ("cloc.evaluation",),
    "Tasks": ("cloc.engine.task",),
    "Export": ("cloc.export",),
}
"""Pages of the API, and which modules, or packages with all that is in them, each shows."""

API = ROOT / "docs" / "api"
NOTEBOOKS = ROOT / "docs" / "notebooks"
_TOCTREE = "\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{names}\n```\n"


def modules(area: tuple[str, ...]) -> list[str]:
    """The public modules of an area, packages without text of their own aside."""
    found: list[str] = []
    for name in area:
        module = importlib.import_module(name)
        below = [] if name == "cloc" else list(pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}."))
        found += [name] + [one.name for one in below if not one.name.rpartition(".")[2].startswith("_")]
    return found


def api_page(title: str, area: tuple[str, ...]) -> str:
    """A page of an area, in reStructuredText: what docstrings are written in."""
    lines = [title, "=" * len(title), ""]
    for name in modules(area):
        lines += [f"``{name}``", "-" * (len(name) + 4), "", f".. automodule:: {name}", "   :members:"]
        lines += ["   :show-inheritance:", ""]
    return "\n".join(lines)


def notebook_page(path: Path) -> str:
    """A notebook as a page: its texts, and its code without outputs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    pages = [
        "".join(cell["source"]) if cell["cell_type"] == "markdown" else f"```python\n{''.join(cell['source'])}\n```"
        for cell in cells
    ]
    return "\n\n".join(pages) + "\n"


def slug(title: str) -> str:
    """The name of an area's file."""
    return title.lower().replace(" ", "_")


def write_pages(app: Any) -> None:
    """Write the pages that are made of code; files that have not changed keep their dates."""
    pages = {API / f"{slug(title)}.rst": api_page(title, area) for title, area in AREAS.items()}
    pages |= {path.with_suffix(".md"): notebook_page(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    API.mkdir(exist_ok=True)
    for path in API.glob("*.rst"):
        if path not in pages:
            path.unlink()
    for path, text in pages.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def add_navigation(app: Any, docname: str, source: list[str]) -> None:
    """Give the index what it needs for the side bar: the pages of its tables, in their order, notebooks and the API.

    Links to notebooks lead to the pages made of them.
    """
    source[0] = source[0].replace(".ipynb)", ".md)")
    if docname != root_doc:
        return
    names: dict[str, list[str]] = {"Pages": []}
    for link in re.findall(r"^\| \[[\w. ]+\]\(([\w./]+)\)", source[0], re.MULTILINE):
        page = (ROOT / "docs" / link).resolve().relative_to(ROOT).with_suffix("")
        names["Pages"].append(f"/{page}")
    names["Notebooks"] = [f"/docs/notebooks/{path.stem}" for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    names["API"] = [f"/docs/api/{slug(title)}" for title in AREAS]
    source[0] += "".join(_TOCTREE.format(caption=caption, names="\n".join(pages)) for caption, pages in names.items())


def write_entrance(app: Any, error: Exception | None) -> None:
    """Lead from the root of the site to its first page."""
    if error is None and app.builder.name == "html":
        target = f"{root_doc}.html"
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={target}"><a href="{target}">cloc</a>\n'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", add_navigation)
    app.connect("build-finished", write_entrance)
