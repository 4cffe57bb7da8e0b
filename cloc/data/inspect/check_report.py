"""Reports what ``check`` found: to people (a table, or plain lines where the output is piped), to programs as JSON."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console

from cloc.console import print_line, print_rows
from cloc.data.drops import dropped, dropped_regions, mended
from cloc.data.inspect.check import Check
from cloc.data.inspect.duplicates import repeated_captions, repeated_files, repeated_looks
from cloc.data.inspect.tally import Bad
from cloc.data.shards.manifest import MANIFEST_NAME
from cloc.data.shards.scanning import hidden_told

_WRITE_BOXES = "write x0, y0, x1, y1 in 0..1 under regions[].box, for instance by data convert with --boxes"
_EXAMPLES = 5  # of each kind that the table names; the JSON names all
_COMMON = 10
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def print_check(result: Check, console: Console | None = None) -> None:
    """Print the statistics, then what is wrong, on standard output where no console is given."""
    console = console or Console()
    print_rows(console, str(result.folder), _statistics(result))
    faults = list(_faults(result))
    if faults:
        print_rows(console, "faults", faults, "red")
    if result.manifest_written:
        print_line(console, f"wrote {result.folder / MANIFEST_NAME}")
    if result.fixed is not None:
        left = f"{result.samples - result.fixed.samples:,} left out"
        print_line(console, f"wrote {result.fixed.samples:,} samples to {result.fixed.folder}, {left}")
    elif result.region_fault is not None and result.region_fault.misread:
        print_line(console, f"no copy mends the boxes; {_WRITE_BOXES}", "dim")
    elif faults and (result.usable or result.rewritable):
        print_line(console, "--fix OUT writes a copy without these", "dim")
    print_line(console, *(("ok", "bold green") if result.ok else ("not ok", "bold red")))


def _statistics(result: Check) -> Iterator[tuple[str, str]]:
    tally = result.tally
    rate = result.samples / max(result.seconds, 1e-9)
    yield "samples", f"{result.samples:,}, usable {result.usable:,}; {rate:,.0f} samples/s"
    yield "captions a picture", _spread(tally.captions)
    yield "regions a picture", _spread(tally.regions)
    if tally.crowds:
        total = sum(number * count for number, count in tally.regions.items())
        lost = "" if total else "warning: no region is left; "
        yield "crowds", f"{lost}{tally.crowds:,} groups beside {total:,} regions, not trained on and not measured"
    if tally.phrases:
        yield "phrases", f"{tally.phrases.total():,}, {len(tally.phrases):,} distinct"
        yield "words a phrase", _spread(tally.words)
        yield "most common", ", ".join(f"{name} {count:,}" for name, count in tally.phrases.most_common(_COMMON))
        quantiles = ", ".join(f"{share:.0%} ≤ {area:.2%}" for share, area in _quantiles(tally.areas).items())
        yield "box area / picture", quantiles
    for label, groups in (
        ("pictures that come twice", repeated_files(tally.prints)),
        ("pictures that look alike", repeated_looks(tally.prints)),
        ("captions that come twice", repeated_captions(tally.prints)),
    ):
        if groups:
            yield label, _groups(groups)
    for word, counts in (("dropped", dropped(tally.mended)), ("mended", mended(tally.mended))):
        for reason, count in counts.items():
            yield f"{word}: {reason}", f"{count:,}"
    if result.hidden:
        yield "hidden files", hidden_told(result.hidden)
    if tally.dots:
        shown = ", ".join(tally.dotted) + (", …" if tally.dots > len(tally.dotted) else "")
        unread = f"{tally.dots:,} {_plural('picture', tally.dots)} not read"
        yield "second dot", f"{unread} ({shown}): a key ends at the first dot; rename samples"
    if result.shared is not None:
        shared = result.shared
        texts = f"{len(shared.captions):,} captions, {shared.phrases:,} distinct phrases"
        yield "shared", f"{len(shared.pictures):,} pictures, {texts}; with {shared.folder}"
        if shared.not_compared:
            yield "not compared", f"{shared.not_compared:,} samples of {shared.folder} that cannot be used"


def _faults(result: Check) -> Iterator[tuple[str, str]]:
    tally = result.tally
    yield from result.broken.items()
    for reason, count in result.bad.most_common():
        yield reason, f"{count:,} {_plural('sample', count)}"
        named = [one for one in tally.bad if one.reason == reason]
        yield from (("", _place(one)) for one in named[:_EXAMPLES])
        if count > _EXAMPLES:
            yield "", f"and {count - _EXAMPLES:,} more; --json FILE names them all"
    if result.duplicates:
        shown = ", ".join(f"{key} ×{count}" for key, count in list(result.duplicates.items())[:_EXAMPLES])
        more = ", …" if len(result.duplicates) > _EXAMPLES else ""
        yield "keys that come twice", f"{len(result.duplicates):,}: {shown}{more}"
    if result.shared is not None and result.shared.pictures:
        count = len(result.shared.pictures)
        pairs = ", ".join(f"{match.here[0]} = {match.there[0]}" for match in result.shared.matches[:_EXAMPLES])
        more = ", …" if len(result.shared.matches) > _EXAMPLES else ""
        yield "shared pictures", f"{count:,} of {result.shared.pictures_there:,} there: {pairs}{more}"
    if result.region_fault is not None:
        yield "regions", result.region_fault.text
        lost = dropped_regions(tally.mended)
        yield from (("", example) for reason in lost for example in tally.examples.get(reason, ()))
    if not result.usable:
        yield "no usable sample", "nothing can be trained on"


def _place(one: Bad) -> str:
    return f"{one.key or '(no key)'} ({one.shard} #{one.index}): {one.detail}"


def to_json(result: Check) -> dict[str, Any]:
    """All that was found, as plain JSON values; every bad sample is named."""
    tally, shared, fixed = result.tally, result.shared, result.fixed
    return {
        "folder": str(result.folder),
        "ok": result.ok,
        "samples": result.samples,
        "usable": result.usable,
        "seconds": round(result.seconds, 3),
        "bad": dict(result.bad),
        "bad_samples": [asdict(one) for one in tally.bad],
        "broken_shards": result.broken,
        "duplicate_keys": result.duplicates,
        "dropped": dropped(tally.mended),
        "mended": mended(tally.mended),
        "dropped_examples": tally.examples,
        "region_fault": result.region_fault and result.region_fault.text,
        "crowds": tally.crowds,
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
            "pictures": len(shared.pictures),
            "pictures_there": shared.pictures_there,
            "matches": [match._asdict() for match in shared.matches],
            "captions": [{"here": here, "there": there} for here, there in shared.captions],
            "phrases": shared.phrases,
            "not_compared": shared.not_compared,
        },
        "hidden_members": result.hidden,
        "second_dot": tally.dots,
        "manifest_written": result.manifest_written,
        "fixed": None if fixed is None else {"folder": str(fixed.folder), "samples": fixed.samples},
    }


def _histogram(counts: Counter[int]) -> dict[str, int]:
    return {str(value): counts[value] for value in sorted(counts)}


def _quantiles(values: np.ndarray) -> dict[float, float]:
    if not len(values):
        return {}
    return {share: round(float(v), 6) for share, v in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)}


def _groups(groups: Sequence[Sequence[str]]) -> str:
    shown = ", ".join(" = ".join(group[:3]) + (" = …" if len(group) > 3 else "") for group in groups[:_EXAMPLES])
    pictures = len({key for group in groups for key in group})
    more = ", …" if len(groups) > _EXAMPLES else ""
    return f"{len(groups):,} in {pictures:,} {_plural('sample', pictures)}: {shown}{more}"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _spread(histogram: Counter[int]) -> str:
    total = histogram.total()
    if not total:
        return "none"
    mean = sum(value * count for value, count in histogram.items()) / total
    text = f"{min(histogram)} to {max(histogram)}, mean {mean:.2f}"
    return f"{text}; none in {histogram[0]:,}" if histogram[0] else text


def next_commands(found: Check, train: str) -> list[str]:
    """What is to be done with checked shards (look at them, ``train`` on them), or with those that are not whole."""
    command = ["python", "-m", "cloc", "data"]
    if found.ok:
        return [shlex.join([*command, "show", str(found.folder), "--out", "samples.html"]), train]
    if found.fixed is not None:
        return [shlex.join([*command, "check", str(found.fixed.folder)])]
    misread = found.region_fault is not None and found.region_fault.misread
    if misread or not (found.usable or found.rewritable):
        return []
    copy = found.folder.with_name(f"{found.folder.name}-fixed")
    against = [] if found.shared is None else ["--against", found.shared.folder]
    return [shlex.join([*command, "check", str(found.folder), *against, "--fix", str(copy)])]
