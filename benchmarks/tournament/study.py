"""What a study compares: a YAML file in ``benchmarks/studies``, checked. First step of the tournament.

Numbers stay texts, as they stand in the file: ``7.5e-3`` is the name of a folder too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cloc.config import ConfigError
from cloc.config.checks import check_keys
from cloc.usage import meant

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "benchmarks" / "studies"
OWN = "own:"
"""Begins a metric of the method's own region source: ``own:top1`` is ``region/SOURCE/top1``."""
COSTS = ("trained_seconds", "train_processor_seconds", "samples_per_second", "boxes_per_second", "parameters")
"""What a column may name beside metrics: a measured cost."""


class _Texts(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML whose values are texts; ``<<`` takes another mapping's keys."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("^<<$"))]}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1 and name != "<<"]:
            raise yaml.YAMLError(f"{twice[0]!r} stands twice{node.start_mark}")
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


@dataclass
class Axis:
    """One key that is searched, the same values for every method that searches it."""

    values: list[str]
    default: str = ""
    """Value that the experiments have: not passed to ``train.py``. A method's first axis needs none."""
    name: str = ""
    """In the names of run folders; the last part of the key unless given."""


@dataclass
class Method:
    """One row of the tables."""

    label: str = ""
    experiment: str = ""
    overrides: list[str] = field(default_factory=list)
    reads: str = ""
    """Region source by which the method itself names boxes; empty for none."""
    criterion: list[str] = field(default_factory=list)
    """Metrics of the validation set; their mean chooses the settings. The study's unless given."""
    search: list[str] = field(default_factory=list)
    """Keys of axes, in the order in which they are searched."""
    inherits: str = ""
    """Method whose chosen settings are taken, before a search of its own."""
    cost: float = 1.0
    """Guess of a run's seconds beside other methods', to tell the time that is left."""
    priority: int = 0
    """Lower ones run first; those of the same number in the file's order."""
    family: str = ""
    """Curve that ``fit`` counts it to; the method's own name unless given."""


@dataclass
class Table:
    """Some of the methods and columns."""

    columns: dict[str, str]
    """Label → metric; ``own:top1`` is that of the method's own source, ``SET:METRIC`` of another set; or a cost."""
    methods: list[str] = field(default_factory=list)
    """In the order of rows; all unless given."""
    baseline: str = ""
    """Method that differences are taken to; the study's unless given."""


@dataclass
class Study:
    """A study as its file has it."""

    title: str
    methods: dict[str, Method]
    sets: dict[str, list[str]]
    """Evaluation sets by name, with the overrides of ``eval.py``."""
    test: list[str]
    columns: dict[str, str]
    """Of the table of all methods, see :class:`Table`."""
    tables: dict[str, Table] = field(default_factory=dict)
    """Further ones, by name."""
    fits: dict[str, str] = field(default_factory=dict)
    """Label → metric whose error ``fit`` follows; all metrics of ``columns`` unless given."""
    validation: str = ""
    overrides: list[str] = field(default_factory=list)
    criterion: list[str] = field(default_factory=list)
    axes: dict[str, Axis] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    search_seed: int = 0
    baseline: str = ""
    """Method that differences are taken to; none unless given."""
    name: str = ""
    """Of the file, without its ending."""

    def in_order(self, only: Iterable[str] = ()) -> list[str]:
        """Names of methods by priority; those alone that are named, if any are."""
        chosen = set(only)
        _known(chosen, self.methods, f"{self.name}: methods")
        return sorted((m for m in self.methods if not chosen or m in chosen), key=lambda m: self.methods[m].priority)

    def metric(self, method: str, name: str) -> str | None:
        """A metric's full name for a method; None for ``own:`` of a method that reads no boxes."""
        if not name.startswith(OWN):
            return name
        source = self.methods[method].reads
        return f"region/{source}/{name.removeprefix(OWN)}" if source else None

    def table(self, name: str = "") -> Table:
        """A table by name; that of all methods and ``columns`` unless named."""
        _known([name] if name else [], self.tables, "table")
        return self.tables[name] if name else Table(self.columns)

    def fitted(self) -> dict[str, str]:
        """Label → metric of what :mod:`benchmarks.tournament.fit` fits."""
        return self.fits or {label: one for label, one in self.columns.items() if one not in COSTS}

    def families(self) -> dict[str, list[str]]:
        """Methods by their family, in the file's order."""
        found: dict[str, list[str]] = {}
        for name, method in self.methods.items():
            found.setdefault(method.family or name, []).append(name)
        return found

    def place(self, column: str) -> tuple[str, str]:
        """Set and metric of a column; the first test set unless it names one."""
        first, _, rest = column.partition(":")
        return (first, rest) if first in self.sets and rest else (self.test[0], column)

    def criterion_of(self, method: str) -> list[str]:
        """Full names of the metrics that choose a method's settings."""
        found = [self.metric(method, name) for name in self.methods[method].criterion or self.criterion]
        return [name for name in found if name is not None]


def find_study(name: str) -> Path:
    """The file of a study, by its name or by its path.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else STUDIES / f"{name}.yaml"
    if not path.is_file():
        known = sorted(one.stem for one in STUDIES.glob("*.yaml"))
        raise ConfigError(f"{name}: no such study{meant(name, known)}; known are {', '.join(known)}, or give a .yaml")
    return path


def read_study(name: str) -> Study:
    """Read and check a study.

    Args:
        name: of a file in ``benchmarks/studies``, or the path of one.

    Raises:
        ConfigError: no such file, no YAML, an unknown key or name; says which.
    """
    path = find_study(name)
    try:
        raw: Any = yaml.load(path.read_text("utf-8"), _Texts)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name}: must hold keys and values, as title: TEXT")
    try:
        study: Study = check_keys({**raw, "name": path.stem}, Study)
        _check(study)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from error
    return study


def key_of(override: str) -> str:
    """The key of an override, without Hydra's signs before it."""
    return override.partition("=")[0].lstrip("+~")


def joined(*parts: Iterable[str]) -> list[str]:
    """Overrides of several lists, each key once: the last one counts."""
    return list({key_of(one): one for part in parts for one in part}.values())


def _known(names: Iterable[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise ConfigError(f"{where}: {name!r} is unknown{meant(name, known)}; known are {', '.join(known)}")


def _check(study: Study) -> None:
    if not (study.methods and study.seeds and study.columns and study.test):
        raise ConfigError("methods, seeds, test and columns: at least one of each")
    if len(set(study.seeds)) < len(study.seeds):
        raise ConfigError(f"seeds={study.seeds}: each once")
    _known(study.test, study.sets, "test")
    _known([study.validation] if study.validation else [], study.sets, "validation")
    _known([study.baseline] if study.baseline else [], study.methods, "baseline")
    for key, axis in study.axes.items():
        if not axis.values or len(set(axis.values)) < len(axis.values):
            raise ConfigError(f"axes.{key}.values={axis.values}: at least one value, each once")
    names = [axis.name or key.rpartition(".")[2] for key, axis in study.axes.items()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"axes: two are called {twice[0]} in the names of run folders; give one a name of its own")
    if OWN.rstrip(":") in study.sets:
        raise ConfigError("sets: 'own' stands for a method's own source; give the set another name")
    for name, table in study.tables.items():
        _known(table.methods, study.methods, f"tables.{name}.methods")
        _known([table.baseline] if table.baseline else [], study.methods, f"tables.{name}.baseline")
    for override in [*study.overrides, *(one for own in study.sets.values() for one in own)]:
        _check_override(override, "overrides")
    for name in study.methods:
        _check_method(study, name)


def _check_method(study: Study, name: str) -> None:
    method, where = study.methods[name], f"methods.{name}"
    if not name.replace("_", "").isalnum():
        raise ConfigError(f"{where}: a method's name names its folder; give letters, digits and _")
    for override in method.overrides:
        _check_override(override, f"{where}.overrides")
    _known(method.search, study.axes, f"{where}.search")
    _known([method.inherits] if method.inherits else [], study.methods, f"{where}.inherits")
    for key in method.search[0 if method.inherits else 1 :]:
        if not study.axes[key].default:
            raise ConfigError(f"axes.{key}: needs a default: {name} searches another axis before it")
    if method.search and not (study.validation and study.criterion_of(name)):
        raise ConfigError(f"{where}.search: needs a validation set and a criterion")
    seen = [name]
    while inherited := study.methods[seen[-1]].inherits:
        if inherited in seen:
            raise ConfigError(f"{where}.inherits: leads back to itself: {' → '.join([*seen, inherited])}")
        _known([inherited], study.methods, f"methods.{seen[-1]}.inherits")
        seen.append(inherited)


def _check_override(override: str, where: str) -> None:
    if "=" not in override and not override.startswith("~"):
        raise ConfigError(f"{where}: {override!r} must be KEY=VALUE")
    if key_of(override) in ("seed", "run_dir", "name"):
        raise ConfigError(f"{where}: {override!r}: the tournament itself sets {key_of(override)}")
