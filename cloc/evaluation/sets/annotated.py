"""Annotated shards as an evaluation set: captions, boxes, phrases, categories, negatives.

A kind of set (``sets → model_outputs → metrics → suite → report → compare``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from cloc.config import ConfigError
from cloc.contracts import BadSample
from cloc.data.decode import decode_rgb
from cloc.data.sample import REGION_LOSSES
from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.reader import ShardReader
from cloc.evaluation.cache import digest_of
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.sets.class_names import read_classes, remarks
from cloc.evaluation.sets.eval_set import EvalSet

CHECKED = 64  # pictures that a rank checks at a time


class AnnotatedShards:
    """``shards``: a folder of shards, with ``classes`` where their categories do not name all."""

    def read(self, data: EvalSet, limit: int, ranks: Ranks) -> None:
        """Read the annotations, without crowd regions; a picture that cannot be decoded is left out and counted."""
        manifest = load_manifest(str(data.config.shards))
        reader, places = ShardReader(manifest), _spread(manifest, limit)
        checked: dict[int, tuple[str, int, int]] = {}
        for batch in ranks.batches(len(places), CHECKED):
            checked |= {index: _check(reader, places[index], data.name) for index in batch}
        for part in ranks.collect(checked):
            checked |= part
        kept = [place for index, place in enumerate(places) if not checked[index][0]]
        left_out: Counter[str] = Counter()
        for index, place in enumerate(places):
            reason, width, height = checked[index]
            if reason:
                left_out[reason] += 1
                continue
            sample, counts = reader.read_sample(place, data.name)
            left_out.update({reason: count for reason, count in counts.items() if reason in REGION_LOSSES})
            regions = tuple(region for region in sample.regions if not region.crowd)
            width, height = sample.width or width, sample.height or height
            data.samples.append(replace(sample, image=b"", regions=regions, width=width, height=height))

        def encoded(index: int) -> bytes:
            return reader.read_sample(kept[index], data.name)[0].image

        data.encoded = encoded
        data.skip(left_out)
        data.digest = digest_of(manifest.digest, kept)
        data.categories = list(manifest.categories)
        if data.config.classes:
            _take_classes(data, data.config.classes)


def _take_classes(data: EvalSet, path: str) -> None:
    """The classes of a file instead of those that the shards name."""
    classes = read_classes(path, f"datasets.{data.name}.classes")
    data.categories = classes.names
    data.notes += remarks(classes, [])
    named = {region.category for sample in data.samples for region in sample.regions if region.category}
    unknown = sorted(named - set(data.categories))
    if unknown:
        raise ConfigError(f"datasets.{data.name}.classes: lacks {len(unknown)} classes of boxes: {unknown[:5]}")


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
