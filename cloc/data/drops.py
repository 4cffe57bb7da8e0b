"""Says which texts and boxes of a source were dropped (left out) or mended (kept, changed), and when it is too many.

Stands behind ``sample``, which counts by reason; serves ``convert``, ``check`` and the start of a training run. Whole
records have their own limit; here it is about what vanishes within records that are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from cloc.data.boxes import fit, in_a_corner, is_likely, likely_kinds, misfits
from cloc.data.regions import DROPPED_REGIONS
from cloc.data.sample import CAPTION_LOSSES

MAX_DROP_SHARE = 0.1
"""Share of the regions of a source that may be dropped unless the caller says otherwise."""

SHOWN_EXAMPLES = 5
"""Records of each reason that a report names."""

WITHOUT_IMAGE = "annotation_without_image"
"""Reason of annotations of no picture in their file: they are of no record, so they have a limit of their own."""

_DROPPED_TEXTS = tuple(
    form.format(kind)
    for kind in ("phrase", "negative")
    for form in ("{}_not_text", "empty_{}", "{}_bad_unicode", "{}_span_malformed")
)
_DROPPED = frozenset((*DROPPED_REGIONS, *CAPTION_LOSSES, *_DROPPED_TEXTS, WITHOUT_IMAGE))
_MOST = 0.5


@dataclass(frozen=True, slots=True)
class RegionFault:
    """Why the regions of a source cannot be right.

    Attributes:
        text: what was counted.
        kinds: the kinds that the boxes rather look like, likeliest first; empty where nothing fits.
        misread: the boxes are of another kind, or where nobody reads them, so that leaving some out mends nothing.
    """

    text: str
    kinds: tuple[str, ...]
    misread: bool


def check_share(name: str, value: float) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: it is not within 0..1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: a share is within 0..1")


def dropped(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the reasons that cost a text or a region, the most frequent first."""
    return {reason: count for reason, count in Counter(counts).most_common() if count and reason in _DROPPED}


def mended(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the reasons for which something was changed and kept, the most frequent first."""
    return {reason: count for reason, count in Counter(counts).most_common() if count and reason not in _DROPPED}


def dropped_regions(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the reasons that cost a region, the most frequent first."""
    return {reason: count for reason, count in dropped(counts).items() if reason in DROPPED_REGIONS}


def has_room(shown: Mapping[str, list[str]], reason: str) -> bool:
    """Tell whether a report still takes an example of a reason."""
    return len(shown.get(reason, ())) < SHOWN_EXAMPLES


def show(shown: dict[str, list[str]], reason: str, examples: list[str]) -> None:
    """Add examples of a reason to those that a report names, as far as there is room."""
    known = shown.setdefault(reason, [])
    known.extend(examples[: SHOWN_EXAMPLES - len(known)])


def region_fault(
    given: int, counts: Mapping[str, int], seen: Mapping[str, int], kind: str, max_drop_share: float
) -> RegionFault | None:
    """Say whether too many regions were dropped, or the boxes are not of the kind that they are said to be.

    Args:
        given: regions listed in the records that are kept, usable or not.
        counts: what was dropped or mended of them, by reason.
        seen: the evidence of ``boxes.observe``, over all boxes.
        kind: what the boxes are said to be.
        max_drop_share: share of the regions that may be dropped, 0..1. As many boxes may lie outside of their picture
            or below a pixel before another kind that fits is believed; at least half of them where none does, or where
            there are few. With 1 nothing is held against a source.
    """
    lost = dropped_regions(counts)
    count = sum(lost.values())
    misfit = 1 - fit(seen, kind)
    kinds = likely_kinds(seen, kind) if misfit > max_drop_share else ()
    corner = in_a_corner(seen, kind) if max_drop_share < 1 else ()
    misread = misfit > max(_MOST, max_drop_share) or (bool(kinds) and is_likely(seen, kind, kinds[0]))
    if count > max_drop_share * given:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in lost.items())
        text = f"{count:,} of {given:,} regions are dropped, more than max_drop_share={max_drop_share} ({reasons})"
        return RegionFault(text + _look(kinds, seen, kind), kinds, misread or "regions_under_another_key" in lost)
    if misread:
        outside, tiny = misfits(seen, kind)
        found = {"reach out of their pictures": outside, "are smaller than a pixel": tiny}
        what = ", ".join(f"{number:,} {name}" for name, number in found.items() if number)
        return RegionFault(f"of {seen['boxes']:,} boxes {what}" + _look(kinds, seen, kind), kinds, True)
    if corner:
        text = f"all {seen['boxes']:,} boxes keep to the upper left quarter of their pictures"
        return RegionFault(text + _look(corner, seen, kind), corner, True)
    return None


def _look(kinds: tuple[str, ...], seen: Mapping[str, int], kind: str) -> str:
    if not kinds:
        return ""
    fits = f"{fit(seen, kinds[0]):.0%} fit, {fit(seen, kind):.0%} as {kind}"
    return f"; the boxes look like {' or '.join(kinds)} ({fits})"
