"""Counts what samples hold (``data check``): each is read, parsed and decoded as training does it.

Stands below ``check``, which adds up the parts that its processes count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cloc.contracts import BadSample, Sample
from cloc.data.boxes import NORMALIZED, observe
from cloc.data.decode import decode_rgb
from cloc.data.drops import dropped_regions, has_room, show
from cloc.data.inspect import duplicates
from cloc.data.inspect.duplicates import Fingerprints
from cloc.data.regions import count_regions, excerpt, raw_boxes
from cloc.data.sample import IMAGE_EXTENSIONS, encode_json, read_object
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.shards.tars import ShardInfo

_NUMBER = re.compile(r"^sample \d+ ")  # counted from the beginning of the part
_DOTTED = 5  # names that are shown


@dataclass(frozen=True, slots=True)
class Bad:
    """A sample that cannot be used; ``key`` is empty where not even that could be read."""

    key: str
    shard: str
    index: int
    reason: str
    detail: str


@dataclass(slots=True)
class Tally:
    """What some samples hold.

    Attributes:
        samples: how many there are.
        keys: of those that could be read.
        bad: those that cannot be used.
        given: regions that the usable samples list, usable or not.
        mended: captions and regions that were dropped or mended in usable samples, by reason; ``drops`` parts the two.
        boxes: what the boxes can be, the evidence of ``boxes.observe``.
        crowds: usable groups, which are not trained on.
        examples: of each reason for which regions are dropped the first ones, as they are in the JSON.
        captions: number of captions of each usable sample, as a histogram.
        regions: number of regions of each usable sample, as a histogram; groups aside.
        phrases: how often each phrase names a region.
        words: number of words of each of these, as a histogram.
        areas: share of the picture that each box covers, 0..1.
        prints: fingerprints of the usable samples.
        dotted: names of pictures behind a second dot (``0001.v2.jpg``), which belong to the sample of the first and
            are not read; the first ones, and ``dots`` their number.
    """

    samples: int = 0
    keys: list[str] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    given: int = 0
    mended: Counter[str] = field(default_factory=Counter)
    boxes: Counter[str] = field(default_factory=Counter)
    crowds: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)
    captions: Counter[int] = field(default_factory=Counter)
    regions: Counter[int] = field(default_factory=Counter)
    phrases: Counter[str] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    prints: Fingerprints = field(default_factory=Fingerprints)
    dots: int = 0
    dotted: list[str] = field(default_factory=list)


def tally_part(folder: Path, part: ShardInfo, first: int) -> Tally:
    """Count the samples between the offsets of a part of a shard; ``first`` is the number of its first one."""
    tally, reader = Tally(samples=part.samples), ShardReader(Manifest.of(folder, [part], ()))
    areas: list[float] = []
    files: list[int] = []  # of fingerprints, as are the next three
    gradients: list[tuple[int, int]] = []
    captions: list[int] = []
    owners: list[int] = []
    for index, stored in enumerate(each_sample(reader), first):
        key = stored.key
        tally.keys += [key] if key else []
        _count_dots(key, stored.members, tally)
        try:
            sample = stored.need()
            picture = decode_rgb(sample.image)
            encode_json(sample)
        except (BadSample, OSError) as error:
            tally.bad.append(Bad(key, part.name, index, *_fault(error, folder / part.name, key)))
            continue
        tally.mended.update(stored.mended)
        record = read_object(stored.members["json"], key) if "json" in stored.members else {}
        tally.given += count_regions(record)
        observe(raw_boxes(record), (picture.shape[-1], picture.shape[-2]), NORMALIZED, tally.boxes)
        for reason in dropped_regions(stored.mended):
            if has_room(tally.examples, reason):
                show(tally.examples, reason, [f"{key} ({part.name} #{index}): {excerpt(record, reason)}"])
        _count(sample, tally, areas)
        owners += [len(files)] * len(sample.captions)
        captions += map(duplicates.text_hash, sample.captions)
        files.append(duplicates.file_hash(sample.image))
        gradients.append(duplicates.gradient_hash(picture))
        tally.prints.keys.append(key)
    reader.close()
    tally.areas = np.array(areas, np.float32)
    tally.prints.files, tally.prints.captions = np.array(files, np.uint64), np.array(captions, np.uint64)
    tally.prints.gradients = np.array(gradients, np.uint64).reshape(-1, 2)
    tally.prints.owners = np.array(owners, np.int64)
    return tally


def join(parts: Sequence[Tally]) -> Tally:
    """Add up the parts of one set, in order."""
    whole = Tally()
    for part in parts:
        whole.samples += part.samples
        whole.keys += part.keys
        whole.bad += part.bad
        whole.given += part.given
        whole.crowds += part.crowds
        whole.dots += part.dots
        whole.dotted = (whole.dotted + part.dotted)[:_DOTTED]
        for reason, examples in part.examples.items():
            show(whole.examples, reason, examples)
        for name in ("mended", "boxes", "captions", "regions", "phrases", "words"):
            getattr(whole, name).update(getattr(part, name))
    if parts:
        whole.areas = np.concatenate([part.areas for part in parts])
        whole.prints = duplicates.join([part.prints for part in parts])
    return whole


def _count_dots(key: str, members: Mapping[str, bytes], tally: Tally) -> None:
    """Count the pictures whose names have a second dot: the key ends at the first one, so they are no samples."""
    named = [f"{key}.{end}" for end in members if "." in end and end.rpartition(".")[2] in IMAGE_EXTENSIONS]
    tally.dots += len(named)
    tally.dotted = (tally.dotted + named)[:_DOTTED]


def _count(sample: Sample, tally: Tally, areas: list[float]) -> None:
    tally.captions[len(sample.captions)] += 1
    regions = [region for region in sample.regions if not region.crowd]
    tally.regions[len(regions)] += 1
    tally.crowds += len(sample.regions) - len(regions)
    for region in regions:
        tally.phrases.update(region.phrases)
        tally.words.update(len(phrase.split()) for phrase in region.phrases)
        x0, y0, x1, y1 = region.box
        areas.append((x1 - x0) * (y1 - y0))


def _fault(error: Exception, path: Path, key: str) -> tuple[str, str]:
    """Reason and detail, without what stands beside them in the report: shard, number and key; and what mends it."""
    if isinstance(error, BadSample):
        return error.reason, error.detail.removeprefix(f"{path}: ").removeprefix(f"sample {key!r}: ")
    detail = str(error).removeprefix(f"{path}: ").partition(";")[0]
    return "unreadable_shard", _NUMBER.sub("", detail)
