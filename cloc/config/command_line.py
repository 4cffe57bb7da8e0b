"""The keys of a command line, before Hydra reads them: a wrong one is told in a line, one of a free node is let in.

Hydra needs a tenth of a second to say in seven lines that it does not know a key, and knows only the keys that the
chosen files happen to have.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from cloc.config.domains import ConfigError
from cloc.usage import meant

CONF = Path(__file__).resolve().parents[2] / "conf"
_GROUP = re.compile(r"\w+(/\w+)+", re.ASCII)
_SEARCHED = re.compile(r"\+{0,2}hydra\.searchpath=")
_KEY = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)


def check_overrides(arguments: Sequence[str], schema: type) -> list[str]:
    """Look at the keys of a command line before Hydra does.

    Groups (``model/prompter=paper``), additions (``+key=…``) and command lines with a folder of configurations, whose
    groups are the user's own (``--config-dir``, ``hydra.searchpath``), are left to Hydra and to
    :func:`cloc.config.checks.check_keys`; the keys of a part to what builds it.

    Args:
        arguments: as in ``sys.argv``, behind the program.
        schema: of the composed configuration.

    Returns:
        The same for Hydra: keys inside of nodes and of entries by name, which the chosen files need not have, with
        ``++`` in front.

    Raises:
        ConfigError: the schema has no such key; names it, and one that looks like it.
    """
    if any(argument.startswith(("-c", "--config")) or _SEARCHED.match(argument) for argument in arguments):
        return list(arguments)
    return [f"++{argument}" if _is_free(argument, schema) else argument for argument in arguments]


def _is_free(argument: str, schema: type) -> bool:
    """Whether the key of an argument lies where no file need have it. Raises as :func:`check_overrides`."""
    key, given, _ = argument.partition("=")
    if given and _GROUP.fullmatch(key) and not key.startswith("hydra/") and not (CONF / key).is_dir():
        raise ConfigError(f"{argument}: there is no group {key!r}{meant(key, _groups())}")
    if not given or not _KEY.fullmatch(key) or key.startswith("hydra.") or (CONF / key).is_dir():
        return False
    free, within = False, schema
    for place, known, name in _walk(schema, key.split(".")):
        if name not in known:
            raise ConfigError(f"configuration key {key!r}: Key {name!r} not in {place}{hint(schema, key)}")
        within = known[name]
        free = free or _is_named(within)
    inside = not _is_named(within) or _depth(schema, key) < key.count(".")
    return free and inside and not _in_every_file(key)


def _in_every_file(key: str) -> bool:
    """Whether all files of a group hold a key, so that Hydra takes it as it is.

    A sweep's file and the command line must call it by one name: Hydra's sweepers take ``++loss.region`` for another.
    """
    group, *names = key.split(".")
    files = sorted((CONF / group).glob("*.yaml"))
    return bool(files) and all(_holds(yaml.safe_load(file.read_text(encoding="utf-8")), names) for file in files)


def _holds(tree: Any, names: Sequence[str]) -> bool:
    for name in names:
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True


def _walk(schema: Any, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """The groups on the way to a key: in words, their keys with annotations, and the name asked for."""
    for name in names:
        if _is_named(schema):
            schema = (get_args(_required(schema)) or (str, Any))[1]
            continue
        if not (isinstance(schema, type) and is_dataclass(schema)):
            return
        known = get_type_hints(schema)
        yield repr(schema.__name__), known, name
        schema = known.get(name)


def _depth(schema: Any, key: str) -> int:
    """Place of the last name of a key that a group of the schema holds."""
    return sum(1 for _ in _walk(schema, key.split("."))) - 1


def _required(hint: Any) -> Any:
    """An annotation without its null."""
    choices = [one for one in get_args(hint) if one is not type(None)]
    return choices[0] if get_origin(hint) in (Union, UnionType) and len(choices) == 1 else hint


def _is_named(hint: Any) -> bool:
    """Whether values of an annotation hold keys that the schema does not list: nodes, entries by the user's names."""
    return get_origin(_required(hint)) is dict


def hint(schema: type, key: str) -> str:
    """The end of a message about an unknown key: a name that looks like its last one; empty where there is none."""
    names = key.split(".")
    for _, known, name in _walk(schema, names):
        if name not in known:
            groups: Collection[str] = _groups() if names[0] == name else ()
            return meant(name, [*known, *groups])
    return ""


def _groups() -> list[str]:
    """Groups of files that a command line may choose from."""
    return sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*") if path.is_dir())
