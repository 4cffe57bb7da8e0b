"""What an evaluation set holds, whatever kind of files it was read from.

Below the kinds of sets, which fill it (``sets → model_outputs → metrics → suite → report → compare``). Annotations stay
in memory, pictures are read when they are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cloc.config import DatasetConfig
from cloc.contracts import Sample
from cloc.data.decode import decode_rgb
from cloc.data.inputs import Picture
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.sets.class_names import NAMES_ONLY
from cloc.files import read_file

OPTIONAL = ("regions with negatives", "relation items by grounding", "images to classify")  # counts told where not 0


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Pictures with one class each.

    Attributes:
        read: index → picture; raises ``OSError`` or ``ValueError`` where it cannot be decoded.
        labels: class index of each.
        classes: their names, also of classes without a picture: they compete too.
        digest: changes with the pictures.
        notes: what a reader of the result should know of the classes.
    """

    read: Callable[[int], Picture]
    labels: list[int]
    classes: list[str]
    digest: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Fact:
    """What a caption says: ``subject`` is ``relation`` of ``other``; of the whole picture where ``other`` is None."""

    subject: str
    relation: str
    other: str | None


@dataclass(frozen=True, slots=True)
class RelationItem:
    """One question about a relation.

    Attributes:
        image: encoded picture, or its path.
        candidates: captions; at least two.
        answer: index of the true one.
        set: name of the items that show the same things.
        relation: the true relation, where the set is made of opposite ones; else None.
        facts: what each candidate says; None for one that is not about two places.
    """

    image: bytes | Path
    candidates: tuple[str, ...]
    answer: int
    set: str
    relation: str | None
    facts: tuple[Fact | None, ...]

    def read(self) -> bytes:
        """The encoded picture."""
        return self.image if isinstance(self.image, bytes) else read_file(self.image)

    @property
    def can_ground(self) -> bool:
        """Whether where the things are can tell the candidates apart: the same things, in another relation or order."""
        known = [fact for fact in self.facts if fact is not None]
        things = {frozenset((fact.subject, fact.other)) for fact in known}
        return len(known) == len(self.facts) == len(set(known)) and len(things) == 1

    @property
    def things(self) -> list[str]:
        """The distinct things that the candidates name, in order; none where grounding cannot tell them apart."""
        if not self.can_ground:
            return []
        facts = [fact for fact in self.facts if fact is not None]
        return list(dict.fromkeys(p for fact in facts for p in (fact.subject, fact.other) if p is not None))

    @property
    def says_depth(self) -> bool:
        """Whether a candidate that can be grounded says in front or behind."""
        return self.can_ground and any(fact is not None and fact.relation in ("front", "behind") for fact in self.facts)


def _nothing(index: int) -> bytes:
    raise LookupError(f"sample {index}: the set was read without pictures")


@dataclass(slots=True)
class EvalSet:
    """An evaluation set.

    Attributes:
        name: key in ``datasets``.
        config: its configuration.
        samples: annotations without crowd regions and without pixels; with the picture's size.
        encoded: index of a sample → its encoded picture.
        relations: relation items.
        images: pictures with one class each, or None.
        categories: class names of the boxes; of all the set, so that classes without a box still compete.
        templates: class texts.
        frequency: class → rare, common or frequent; empty where it is not known.
        extra: what a set of the user's own holds for a metric of his own, by name.
        more_counts: how much of that.
        skipped: samples and boxes left out, by reason.
        notes: what a reader of the result should know of the set, in words.
        digest: changes with what the samples are.
        relation_digest: changes with what the relation items are.
    """

    name: str
    config: DatasetConfig
    samples: list[Sample] = field(default_factory=list)
    encoded: Callable[[int], bytes] = _nothing
    relations: list[RelationItem] = field(default_factory=list)
    images: ImageSet | None = None
    categories: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=lambda: list(NAMES_ONLY))
    frequency: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    more_counts: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    digest: str = ""
    relation_digest: str = ""

    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        """Decoded pictures ``[3,H,W]`` uint8 of some samples."""
        return [decode_rgb(self.encoded(index)) for index in indices]

    def skip(self, left_out: Mapping[str, int]) -> None:
        """Count what was left out, by reason."""
        self.skipped = dict(Counter(self.skipped) + Counter(left_out))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to ask."""
        return not (self.samples or self.relations or self.images is not None or self.extra)

    @property
    def boxes(self) -> list[Tensor]:
        """``[K_i,4]`` boxes of each sample."""
        return [torch.tensor([region.box for region in s.regions]).reshape(-1, 4) for s in self.samples]

    @property
    def phrases(self) -> list[list[str]]:
        """Distinct phrases of each sample, in order."""
        return pairs(self.samples)

    @property
    def counts(self) -> dict[str, int]:
        """What the set holds."""
        regions = [region for sample in self.samples for region in sample.regions]
        found = {
            "images": len(self.samples),
            "captions": sum(len(sample.captions) for sample in self.samples),
            "regions": len(regions),
            "phrases": len({phrase for region in regions for phrase in region.phrases}),
            "classes": len(self.categories),
            "regions with negatives": sum(bool(region.negatives) for region in regions),
            "relation items": len(self.relations),
            "relation items by grounding": sum(item.can_ground for item in self.relations),
            "images to classify": len(self.images.labels) if self.images else 0,
        }
        return {name: count for name, count in found.items() if count or name not in OPTIONAL} | self.more_counts

    @property
    def lead(self) -> str:
        """The metric that says most of this set: the one of its configuration, or one by what it holds."""
        if self.config.lead:
            return self.config.lead
        if any(sample.regions for sample in self.samples):
            return "region/best/top1" if self.categories else "region/best/text_to_region_R@10"
        if any(sample.captions for sample in self.samples):
            return "image_text/text_to_image_R@1"
        return "image/zero_shot_top1" if self.images else "relations/similarity/accuracy"


class SetReader(Protocol):
    """A kind of evaluation set: reads files of that kind into an :class:`EvalSet`."""

    def read(self, data: EvalSet, limit: int, ranks: Ranks) -> None:
        """Fill what this kind holds.

        Args:
            data: with name, configuration and templates; what is left out is counted by its ``skip``.
            limit: at most so many pictures or questions; 0 for all.
            ranks: processes that share the work; all of them read the same.

        Raises:
            ConfigError: a key of the set's configuration is wrong.
            FileNotFoundError: a folder or file is not there.
            ValueError: there is nothing usable in it.
        """


def pairs(samples: list[Sample]) -> list[list[str]]:
    """Distinct phrases of each picture, in order."""
    return [list(dict.fromkeys(p for region in sample.regions for p in region.phrases)) for sample in samples]
