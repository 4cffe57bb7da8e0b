"""Evaluation sets: annotations in memory, pictures read when they are needed.

First step of evaluation (``sets → model_outputs → suite → compare``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cloc.config import ConfigError, DatasetConfig
from cloc.contracts import BadSample, Sample
from cloc.data.decode import decode_rgb
from cloc.data.sample import REGION_LOSSES
from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.evaluation.cache import digest_of
from cloc.evaluation.metrics.classification import NAMES_ONLY, frequencies_of, templates_of
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.report.meaning import OTHER, describe
from cloc.evaluation.sets.class_images import ImageSet, load_images
from cloc.evaluation.sets.class_names import read_classes, remarks
from cloc.evaluation.sets.relations import RelationItem, read_relations

CHECKED = 64  # pictures that a rank checks at a time


@dataclass(slots=True)
class EvalSet:
    """An evaluation set.

    Attributes:
        name: key in ``datasets``.
        config: its configuration.
        samples: annotations without crowd regions and without pixels; with the picture's size.
        places: shard and index of each sample.
        reader: of the shards.
        relations: relation items.
        images: pictures with one class each, or None.
        categories: class names of the boxes; of all the set, so that classes without a box still compete.
        templates: class texts.
        frequency: class → rare, common or frequent; empty where it is not known.
        skipped: samples and boxes left out, by reason.
        notes: what a reader of the result should know of the set, in words.
        digest: changes with what the samples are.
        relation_digest: changes with what the relation items are.
    """

    name: str
    config: DatasetConfig
    samples: list[Sample] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    reader: ShardReader | None = None
    relations: list[RelationItem] = field(default_factory=list)
    images: ImageSet | None = None
    categories: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=lambda: list(NAMES_ONLY))
    frequency: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    digest: str = ""
    relation_digest: str = ""

    def pictures(self, indices: range | list[int]) -> list[Tensor]:
        """Decoded pictures ``[3,H,W]`` uint8 of some samples."""
        stored = each_sample(self.reader, (self.places[index] for index in indices), self.name)
        return [decode_rgb(one.need().image) for one in stored]

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
        optional = ("regions with negatives", "relation items by grounding", "images to classify")
        return {name: count for name, count in found.items() if count or name not in optional}

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


def pairs(samples: list[Sample]) -> list[list[str]]:
    """Distinct phrases of each picture, in order."""
    return [list(dict.fromkeys(p for region in sample.regions for p in region.phrases)) for sample in samples]


def load_eval_set(name: str, config: DatasetConfig, limit: int = 0, ranks: Ranks | None = None) -> EvalSet:
    """Read an evaluation set's annotations.

    Args:
        name: for messages and tables.
        config: where it is.
        limit: at most so many pictures (and relation items); 0 for all. Evenly spread over the set.
        ranks: processes that share the checking of pictures.

    Raises:
        ConfigError: the set's configuration names nothing, or a file that is wrong.
        FileNotFoundError: no such folder.
        ValueError: the set is empty.
    """
    if not (config.shards or config.relations or config.images):
        raise ConfigError(f"datasets.{name}: names no data; set shards, relations or images")
    if config.lead and describe(config.lead).group == OTHER:
        raise ConfigError(f"datasets.{name}.lead={config.lead!r}: not a metric; docs/evaluation.md lists them")
    result = EvalSet(name, config, templates=templates_of(config, name))
    left_out: Counter[str] = Counter()
    if config.shards:
        _load_shards(result, limit, ranks or Ranks(), left_out)
    if config.relations:
        result.relations, missing = read_relations(config, name, limit)
        left_out += missing
        rows = [(item.set, item.candidates, item.answer) for item in result.relations]
        result.relation_digest = digest_of(rows, _stamp(result.relations))
    if config.images:
        result.images = load_images(name, config, limit)
        result.notes += result.images.notes
    if config.frequency:
        result.frequency = frequencies_of(config.frequency, f"datasets.{name}.frequency")
    result.skipped = dict(left_out)
    if not result.samples and not result.relations and result.images is None:
        raise ValueError(
            f"evaluation set {name!r}: no usable sample in {config.shards or config.relations}; "
            f"left out: {result.skipped}"
        )
    return result


def _load_shards(result: EvalSet, limit: int, ranks: Ranks, left_out: Counter[str]) -> None:
    manifest = load_manifest(str(result.config.shards))
    result.reader = ShardReader(manifest)
    places = _spread(manifest, limit)
    checked: dict[int, tuple[str, int, int]] = {}
    for batch in ranks.batches(len(places), CHECKED):
        checked |= {index: _check(result.reader, places[index], result.name) for index in batch}
    for part in ranks.collect(checked):
        checked |= part
    for index, place in enumerate(places):
        reason, width, height = checked[index]
        if reason:
            left_out[reason] += 1
            continue
        sample, counts = result.reader.read_sample(place, result.name)
        left_out.update({reason: count for reason, count in counts.items() if reason in REGION_LOSSES})
        regions = tuple(region for region in sample.regions if not region.crowd)
        size = {"width": sample.width or width, "height": sample.height or height}
        result.samples.append(replace(sample, image=b"", regions=regions, **size))
        result.places.append(place)
    result.digest = digest_of(manifest.digest, result.places)
    result.categories = list(manifest.categories)
    if result.config.classes:
        classes = read_classes(result.config.classes, f"datasets.{result.name}.classes")
        result.categories = classes.names
        result.notes += remarks(classes, [])
        named = {region.category for sample in result.samples for region in sample.regions if region.category}
        unknown = sorted(named - set(result.categories))
        if unknown:
            raise ConfigError(f"datasets.{result.name}.classes: lacks {len(unknown)} classes of boxes: {unknown[:5]}")


def _check(reader: ShardReader, place: tuple[int, int], name: str) -> tuple[str, int, int]:
    """Why a sample cannot be used (or nothing), and the picture's size: met here, not half-way."""
    try:
        sample, _ = reader.read_sample(place, name)
        height, width = decode_rgb(sample.image).shape[-2:]
    except BadSample as error:
        return error.reason, 0, 0
    return "", width, height


def _spread(manifest: Manifest, limit: int) -> list[tuple[int, int]]:
    places = manifest.places()
    if not limit or limit >= len(places):
        return places
    return [places[i * len(places) // limit] for i in range(limit)]


def _stamp(items: list[RelationItem]) -> list[tuple[str, int, int]]:
    """What says that a picture's file is still the same."""
    return [
        (item.image.name, item.image.stat().st_size, item.image.stat().st_mtime_ns)
        if not isinstance(item.image, bytes)
        else (digest_of(item.image.hex()), len(item.image), 0)
        for item in items
    ]
