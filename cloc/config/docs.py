"""Key tables of ``docs/``, written from the schema.

    python -m cloc.config.docs --write

A key's type, default, domain and meaning stand in ``schema`` (or in the signature and docstring of a part) and nowhere
else. A page asks for a table by a pair of comments; what stands between them is replaced::

    <!-- keys OptimConfig optim -->
    <!-- end of keys -->

The class is one of ``schema``, or the dotted name of a part; the second word is the path of its node. Without
``--write`` the pages that are out of date are named, with exit code 1.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from cloc.config import schema
from cloc.config.nodes import find_class
from cloc.files import write_file
from cloc.usage import Parser

ROOT = Path(__file__).resolve().parents[2]
OPEN, CLOSE = r"<!-- keys (?P<name>\S+)(?: (?P<path>\S+))? -->\n", "<!-- end of keys -->"
BLOCK = re.compile(f"(?P<open>{OPEN}).*?(?P<close>{CLOSE})", re.DOTALL)
GIVEN = ("width", "joint_dim", "grid")  # arguments of a head that the model gives it: no keys
COMPOSED = {"TrainConfig": "train", "EvalConfig": "eval"}  # file of conf/ that sets the keys of a class


@dataclass(frozen=True)
class Key:
    """One row of a table.

    Attributes:
        name: last part of the key.
        hint: its annotation.
        default: of the schema; ``???`` where a value must be given.
        meaning: a sentence or two.
    """

    name: str
    hint: Any
    default: Any
    meaning: str


def field_docs(cls: type) -> dict[str, str]:
    """The string below each field of a class, by the field's name.

    Returns:
        One line for each field that has one.
    """
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            found[field.target.id] = " ".join(below.value.value.split())
    return found


def argument_docs(cls: type) -> dict[str, str]:
    """What the ``Args:`` section of a class's docstring says of each argument, on one line each."""
    section = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(cls) or "", re.S | re.M)
    entries = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", section[1] if section else "", re.M)
    return {name: " ".join(text.split()) for name, text in entries}


def _sentence(text: str) -> str:
    """A docstring's words outside of Python: names without their roles, a capital in front."""
    text = re.sub(r":\w+:`~?([\w.]+)`", r"``\1``", text)
    return text[:1].upper() + text[1:]


def keys(cls: type) -> Iterator[Key]:
    """The keys of a class of ``schema`` or of a part; those of nested classes have tables of their own."""
    if not is_dataclass(cls):
        yield from _arguments(cls)
        return
    hints = get_type_hints(cls, include_extras=True)
    docs = {name: text for one in cls.__mro__ if is_dataclass(one) for name, text in field_docs(one).items()}
    for field in fields(cls):
        if is_dataclass(hints[field.name]):
            continue
        made = field.default_factory
        default = field.default if made is MISSING else made()
        yield Key(field.name, hints[field.name], default, docs[field.name])


def _arguments(cls: Any) -> Iterator[Key]:
    hints, docs = get_type_hints(cls.__init__, include_extras=True), argument_docs(cls)
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in GIVEN:
            continue
        given = parameter.default is not parameter.empty
        # `global` is a Python keyword; its argument is spelled `global_`.
        yield Key(name.rstrip("_"), hints[name], parameter.default if given else "???", _sentence(docs[name]))


def values(hint: Any) -> str:
    """Type and domain of an annotation, as a cell of a table: ``int ≥ 1``, ``float in [0, 1]``, names."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("null" if choice is type(None) else values(choice) for choice in get_args(hint))
    if get_origin(hint) is Annotated:
        kind, *domains = get_args(hint)
        own = [domain.cell() for domain in domains]
        return " ".join([values(kind), *own]).strip() if kind is not str and kind is not Any else " ".join(own)
    if get_origin(hint) is list:
        return f"list of {values(get_args(hint)[0])}"
    plain = {bool: "`true`, `false`", int: "int", float: "float", str: "text", Any: ""}
    return plain.get(hint, "node" if get_origin(hint) is dict else getattr(hint, "__name__", ""))


def written(value: Any) -> str:
    """A default as YAML writes it, with thousands apart."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return "" if isinstance(value, dict) else str(value)


def table(cls: type, path: str, composed: DictConfig | None) -> str:
    """The Markdown table of a class.

    Args:
        cls: of ``schema``, or a part.
        path: of its node; empty for the root.
        composed: what a command composes without further words; values that differ from the defaults stand in brackets.

    Returns:
        Its lines, each with its newline.
    """
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key in keys(cls):
        full = f"{path}.{key.name}" if path else key.name
        default, other = key.default, key.default if composed is None else _select(composed, full, key.default)
        shown = written(default)
        if other != default and not isinstance(other, dict):
            shown += f" [{written(other)}]"
        cells = (f"`{full}`", values(key.hint), shown, key.meaning)
        rows.append(f"| {' | '.join(_markdown(cell) for cell in cells)} |".replace("|  |", "| |"))
    return "".join(f"{row}\n" for row in rows)


def _select(composed: DictConfig, key: str, default: Any) -> Any:
    found = OmegaConf.to_container(composed, resolve=False)
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return default
        found = found[part]
    return found


def _markdown(text: str) -> str:
    text = re.sub(r"(?<![`\w/])docs/(\w+\.md)(#[\w-]+)?", r"[\1](\1\2)", text)
    return text.replace("``", "`").replace("|", "\\|")


def compose(name: str) -> DictConfig:
    """What ``train.py`` or ``eval.py`` composes without a word on its command line.

    Args:
        name: of the file in ``conf/``.
    """
    import hydra

    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return hydra.compose(name)


def render(text: str, composed: Callable[[str], DictConfig] = compose) -> str:
    """A page with all of its tables written anew.

    Args:
        text: of the page.
        composed: gives a composition by its name.

    Raises:
        AttributeError, ConfigError: a marker names a class that is not there.
    """

    def replace(found: re.Match[str]) -> str:
        name, path = found["name"], found["path"] or ""
        cls = find_class(name, "keys") if "." in name else getattr(schema, name)
        root = COMPOSED.get(name, "train")
        lines = table(cls, path, None if "NAME" in path else composed(root))
        return f"{found['open']}\n{lines}\n{found['close']}"

    return BLOCK.sub(replace, text)


def main(arguments: list[str]) -> int:
    """Write or compare all pages; returns the exit code."""
    parser = Parser(__doc__, "python -m cloc.config.docs")
    parser.add_argument("--write", action="store_true", help="write the pages that are out of date")
    write, stale = parser.parse_args(arguments).write, []
    compositions = {name: compose(name) for name in COMPOSED.values()}
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        fresh = render(text, compositions.__getitem__)
        if fresh == text:
            continue
        stale.append(page.name)
        if write:
            write_file(page, fresh)
    if stale:
        print(f"{', '.join(stale)}: {'written' if write else 'out of date; run `make docs`'}")
    return int(bool(stale) and not write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
