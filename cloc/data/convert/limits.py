"""Stops a conversion that leaves too much out, or whose boxes are of another kind than its user says.

Stands between ``records``, which counts, and ``conversion``, which calls it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cloc.data.convert.records import RecordSource
from cloc.data.drops import SHOWN_EXAMPLES, WITHOUT_IMAGE, RegionFault, dropped_regions, region_fault
from cloc.data.jobs.report import Report

_ENOUGH_REGIONS = 1_000  # to say what kind of boxes a source has, before all of it is read


@dataclass(frozen=True, slots=True)
class Limits:
    """What a conversion may leave out.

    Attributes:
        source: what is converted.
        max_skip_share: share of the records that may be left out, 0..1.
        max_drop_share: share of the regions that may be dropped from the other records, 0..1.
        options: names of the options that the format takes.
    """

    source: RecordSource
    max_skip_share: float
    max_drop_share: float
    options: frozenset[str] = frozenset()

    def check_start(self) -> None:
        """Say before any picture is read that too many annotations belong to none.

        Raises:
            ValueError: so it is.
        """
        lost = self.source.mended.get(WITHOUT_IMAGE, 0)
        total = lost + self.source.annotations
        if lost > self.max_drop_share * total:
            share = f"{lost:,} of {total:,} annotations are of no picture in the file"
            remedy = "give annotations and images the same ids, or raise the share (--max-drop-share)"
            raise ValueError(
                f"{self.source.files[0]}: {share}, more than max_drop_share={self.max_drop_share}; {remedy}"
            )

    def check(self, report: Report, finished: bool) -> None:
        """Stop as soon as too much is left out.

        Args:
            report: what was read so far.
            finished: nothing comes after it. Regions, whose number is not known before, are judged then; but a
                thousand boxes of another kind are enough.

        Raises:
            ValueError: more records are left out, or more regions dropped, than may be; the boxes are of another kind.
        """
        if finished or self.source.total is not None:
            self._check_records(report)
        if finished or report.boxes["boxes"] >= _ENOUGH_REGIONS:
            fault = self._fault(report.given["regions"] - report.lost["regions"], report.mended, report)
            if fault is not None and (finished or fault.misread):
                shown = _shown(report, dropped_regions(report.mended))
                raise ValueError(f"{self.source.files[0]}: {fault.text}{shown}. {self._remedy(fault)}")

    def notes(self, report: Report) -> Iterator[str]:
        """Yield what is allowed and hardly meant, a line each."""
        background, records = report.given["background"], report.given["records"]
        if 2 * background > records:
            seen = f"warning: {background:,} of {records:,} pictures have neither box nor caption"
            yield f"{seen}; if they should, look whether the annotations belong to these pictures"
        if report.counts["crowds"] and not report.counts["regions"]:
            seen = f"warning: all {report.counts['crowds']:,} regions are marked as groups (crowd)"
            wrong = "if each is a single thing, "
            remedy = "convert again with --ignore-crowd-flag --overwrite"
            remedy = remedy if "ignore_crowd_flag" in self.options else "correct the flags of the source"
            yield f"{seen}, which are not trained on and not measured; {wrong}{remedy}"

    def _check_records(self, report: Report) -> None:
        """Of all records that hold anything, or of those seen, whichever is more."""
        skipped = report.skipped.total()
        seen = max((self.source.total or 0) - report.given["background"], report.counts["samples"] + skipped)
        if skipped <= self.max_skip_share * seen:
            return
        reasons = ", ".join(f"{reason} {count}" for reason, count in report.skipped.most_common())
        share = f"{skipped:,} of {seen:,} records were left out, more than max_skip_share={self.max_skip_share}"
        fault = self._fault(0, Counter(), report)
        why = "" if fault is None else f" Besides, {fault.text}. {self._remedy(fault)}."
        remedy = "Mend the source, or raise the share (--max-skip-share)"
        raise ValueError(f"{share} ({reasons}){_shown(report, report.skipped)}.{why} {remedy}")

    def _fault(self, given: int, counts: Counter[str], report: Report) -> RegionFault | None:
        return region_fault(given, counts, report.boxes, self.source.boxes, self.max_drop_share)

    def _remedy(self, fault: RegionFault) -> str:
        or_raise = "or raise the share (--max-drop-share)"
        if fault.kinds and "boxes" in self.options:
            return f"Say what they are and convert again: --boxes {fault.kinds[0]} --overwrite; {or_raise}"
        if fault.kinds:
            return f"Mend the source: this format's boxes are {self.source.boxes}; {or_raise}"
        return f"Mend the source, {or_raise}"


def _shown(report: Report, reasons: Iterable[str]) -> str:
    """The first records of these reasons."""
    examples = itertools.chain(*(report.examples.get(reason, ()) for reason in reasons))
    shown = "; ".join(itertools.islice(examples, SHOWN_EXAMPLES))
    return f": {shown}" if shown else ""
