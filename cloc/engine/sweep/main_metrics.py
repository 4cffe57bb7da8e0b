"""What runs are compared by, of all that was measured: as the metrics say of themselves (below ``report``)."""

from __future__ import annotations

from collections.abc import Iterable

from cloc.evaluation.metrics.catalog import ALL

FEW = 6


def main_metrics(names: Iterable[str]) -> list[str]:
    """Of measurements ``val/SET/METRIC`` the main ones, set by set.

    The key facts of the report's page and, of the metrics whose learning curve it draws, the one that may open it; the
    first few where none says so.
    """
    groups: dict[str, list[str]] = {}
    known = sorted({name for name in names if name.startswith("val/")})
    for name in known:
        groups.setdefault(name.split("/")[1], []).append(name)
    return [name for group in groups.values() for name in _of_a_set(group)] or known[:FEW]


def _of_a_set(names: list[str]) -> list[str]:
    shown = {name: ALL.describe(name.split("/", 2)[-1]) for name in names}
    facts = {name: own.shown.fact.place for name, own in shown.items() if own.shown.fact is not None}
    leads = {
        name: (own.shown.lead.place, own.order)
        for name, own in shown.items()
        if own.shown.lead is not None and own.shown.curve and name not in facts
    }
    return [*sorted(leads, key=leads.__getitem__)[:1], *sorted(facts, key=facts.__getitem__)]


def lower_is_better(names: Iterable[str]) -> frozenset[str]:
    """Those of which a smaller value is the better one."""
    return frozenset(name for name in names if not ALL.describe(name.split("/", 2)[-1]).higher_is_better)
