"""The account of a job: what was read, written, left out, dropped and mended, so that all of it can be found again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloc.contracts import BadSample, Sample
from cloc.data.drops import dropped_regions, has_room, show
from cloc.data.regions import REGION_LOSSES, excerpt
from cloc.data.sample import CAPTION_LOSSES

_COUNTERS = ("given", "counts", "skipped", "lost", "mended", "boxes", "pictures")


@dataclass(slots=True)
class Report:
    """What a conversion read, wrote and left out.

    Attributes:
        given: records, captions and regions of the source, groups among the regions; ``background``: records that hold
            neither caption nor region, of which there is nothing to write.
        counts: samples, captions, regions, crowds (groups, which are not among the regions) and phrases written.
        skipped: whole records left out, by reason.
        lost: captions and regions of the records left out.
        mended: captions and regions dropped or mended within kept records, by reason; ``drops`` parts the two.
        boxes: what the boxes can be, the evidence of ``boxes.observe``.
        pictures: what was done to pictures that are kept: encoded anew, boxes turned with them.
        examples: where the first records of each reason were, with what was wrong.
    """

    given: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    boxes: Counter[str] = field(default_factory=Counter)
    pictures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, error: BadSample, where: str) -> None:
        """Count a record that cannot be used."""
        self.skipped[error.reason] += 1
        show(self.examples, error.reason, [f"{where}: {error}"])

    def mend(self, counts: Mapping[str, int], where: str, annotations: Mapping[str, Any]) -> None:
        """Count what was dropped or mended in a record that is kept, and show the first dropped regions."""
        self.mended.update(counts)
        for reason in dropped_regions(counts):
            if has_room(self.examples, reason):
                show(self.examples, reason, [f"{where}: {excerpt(annotations, reason)}"])

    def tally(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Pass samples on, counting what they hold."""
        for sample in samples:
            self.counts["samples"] += 1
            self.counts["captions"] += len(sample.captions)
            crowds = sum(region.crowd for region in sample.regions)
            self.counts["regions"] += len(sample.regions) - crowds
            self.counts["crowds"] += crowds
            self.counts["phrases"] += sum(len(region.phrases) for region in sample.regions)
            yield sample

    def add(self, other: Report) -> None:
        """Add the counts of a later part of the same source."""
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        for reason, examples in other.examples.items():
            show(self.examples, reason, examples)

    def imbalance(self) -> str:
        """Say which counts of the source are not accounted for; empty where all are."""
        losses = {"captions": CAPTION_LOSSES, "regions": REGION_LOSSES}
        accounted = {"records": self.counts["samples"] + self.skipped.total() + self.given["background"]}
        for unit, reasons in losses.items():
            accounted[unit] = self.counts[unit] + self.lost[unit] + sum(self.mended[reason] for reason in reasons)
        accounted["regions"] += self.counts["crowds"]
        wrong = [
            f"{self.given[unit]:,} {unit} given, {n:,} found again"
            for unit, n in accounted.items()
            if n != self.given[unit]
        ]
        return "; ".join(wrong)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON: the inverse of ``from_json``."""
        return {name: dict(getattr(self, name)) for name in (*_COUNTERS, "examples")}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Report:
        """Rebuild a report from ``to_json``."""
        return cls(**{name: Counter(record.get(name, {})) for name in _COUNTERS}, examples=dict(record["examples"]))
