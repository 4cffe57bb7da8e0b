"""What ``check`` found, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cloc.data.check import Check
from cloc.data.duplicates import repeated_captions, repeated_files, repeated_looks
from cloc.data.shards import MANIFEST_NAME

_EXAMPLES = 5
_NAMED = 20  # bad samples that the table names; the JSON names all
_COMMON = 10
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def print_check(found: Check, console: Console | None = None) -> None:
    """Print the statistics, then what is wrong, on standard output where no console is given."""
    console = console or Console()
    console.print(_statistics(found))
    faults = Table(title="faults", title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, fault in found.broken.items():
        faults.add_row("[red]shard", escape(f"{name}: {fault}"))
    for reason, count in found.bad.most_common():
        faults.add_row(f"[red]{reason}", f"{count:,} samples")
    for one in found.tally.bad[:_NAMED]:
        faults.add_row(f"  {one.reason}", escape(f"{one.key} ({one.shard} #{one.index}): {one.detail}"))
    if len(found.tally.bad) > _NAMED:
        faults.add_row("  …", f"{len(found.tally.bad) - _NAMED:,} more; --json FILE names them all")
    if found.duplicates:
        shown = ", ".join(f"{key} ×{count}" for key, count in list(found.duplicates.items())[:_EXAMPLES])
        faults.add_row("[red]keys that come twice", escape(f"{len(found.duplicates):,}: {shown}"))
    if found.shared is not None and found.shared.pictures:
        pairs = ", ".join(f"{here} = {there}" for here, there, _ in found.shared.pictures[:_EXAMPLES])
        count = len(found.shared.pictures)
        faults.add_row("[red]shared pictures", escape(f"{count:,} with {found.shared.folder}: {pairs}"))
    if faults.row_count:
        console.print(faults)
    if found.manifest_written:
        console.print(f"wrote {found.folder / MANIFEST_NAME}", highlight=False)
    if found.fixed is not None:
        console.print(f"wrote {found.fixed.samples:,} samples to {found.fixed.folder}", highlight=False)
    console.print("[bold green]ok" if found.ok else "[bold red]not ok")


def _statistics(found: Check) -> Table:
    tally = found.tally
    table = Table(title=str(found.folder), title_justify="left", show_header=False, box=None, pad_edge=False)
    rate = found.samples / max(found.seconds, 1e-9)
    table.add_row("samples", f"{found.samples:,}, usable {found.usable:,}; {rate:,.0f} samples/s")
    table.add_row("captions a picture", _spread(tally.captions))
    table.add_row("regions a picture", _spread(tally.regions))
    if tally.phrases:
        table.add_row("phrases", f"{tally.phrases.total():,}, {len(tally.phrases):,} distinct")
        table.add_row("words a phrase", _spread(tally.words))
        common = ", ".join(f"{name} {n:,}" for name, n in tally.phrases.most_common(_COMMON))
        table.add_row("most common", escape(common))
        shown = ", ".join(f"{share:.0%} {area:.4f}" for share, area in _quantiles(tally.areas).items())
        table.add_row("box area, quantiles", shown)
    for label, groups in (
        ("pictures that come twice", repeated_files(tally.prints)),
        ("pictures that look alike", repeated_looks(tally.prints)),
        ("captions that come twice", repeated_captions(tally.prints)),
    ):
        if groups:
            table.add_row(label, escape(_groups(groups)))
    for reason, count in tally.mended.most_common():
        table.add_row(f"mended: {reason}", f"{count:,}")
    if found.shared is not None:
        texts = f"{len(found.shared.captions):,} captions, {found.shared.phrases:,} distinct phrases"
        table.add_row(f"shared with {escape(found.shared.folder)}", f"{len(found.shared.pictures):,} pictures, {texts}")
    return table


def to_json(found: Check) -> dict[str, Any]:
    """All that was found, as plain JSON values; every bad sample is named."""
    tally, shared = found.tally, found.shared
    return {
        "folder": str(found.folder),
        "ok": found.ok,
        "samples": found.samples,
        "usable": found.usable,
        "seconds": round(found.seconds, 3),
        "bad": dict(found.bad),
        "bad_samples": [one._asdict() for one in tally.bad],
        "broken_shards": found.broken,
        "duplicate_keys": found.duplicates,
        "mended": dict(tally.mended),
        "captions_per_picture": _histogram(tally.captions),
        "regions_per_picture": _histogram(tally.regions),
        "phrases": tally.phrases.total(),
        "distinct_phrases": len(tally.phrases),
        "words_per_phrase": _histogram(tally.words),
        "common_phrases": [list(pair) for pair in tally.phrases.most_common(100)],
        "box_area_quantiles": {str(share): area for share, area in _quantiles(tally.areas).items()},
        "repeated_pictures": repeated_files(tally.prints),
        "lookalike_pictures": repeated_looks(tally.prints),
        "repeated_captions": repeated_captions(tally.prints),
        "shared": None
        if shared is None
        else {
            "folder": shared.folder,
            "pictures": [{"here": here, "there": there, "bits": bits} for here, there, bits in shared.pictures],
            "captions": [{"here": here, "there": there} for here, there in shared.captions],
            "phrases": shared.phrases,
        },
        "fixed": None if found.fixed is None else {"folder": str(found.fixed.folder), "samples": found.fixed.samples},
    }


def _histogram(counts: Counter[int]) -> dict[str, int]:
    return {str(value): counts[value] for value in sorted(counts)}


def _quantiles(values: np.ndarray) -> dict[float, float]:
    if not len(values):
        return {}
    return {share: round(float(v), 6) for share, v in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)}


def _groups(groups: Sequence[Sequence[str]]) -> str:
    shown = ", ".join(" = ".join(group[:3]) + (" …" if len(group) > 3 else "") for group in groups[:_EXAMPLES])
    return f"{len(groups):,}: {shown}" + (" …" if len(groups) > _EXAMPLES else "")


def _spread(histogram: Counter[int]) -> str:
    total = histogram.total()
    if not total:
        return "none"
    mean = sum(value * count for value, count in histogram.items()) / total
    text = f"{min(histogram)} to {max(histogram)}, mean {mean:.2f}"
    return f"{text}; none in {histogram[0]:,}" if histogram[0] else text
