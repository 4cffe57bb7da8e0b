"""Scenes drawn of OpenMoji's pictures: no source, several folders, and a tokenizer beside them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from cloc.contracts import Sample
from cloc.data.convert.formats.registry import DrawnSource, register
from cloc.data.jobs.report import Report
from cloc.data.jobs.resumable_jobs import Task
from cloc.data.openmoji.scenes import SPLITS, Scenes, attribution
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.word_tokenizer import write_word_tokenizer
from cloc.files import write_file

ATTRIBUTION_NAME = "ATTRIBUTION.txt"

_RELATIONS = "relations"
_RELATION_SET = 4  # pictures


@register("openmoji", "no source: its scenes are drawn", draws=True)
def open_openmoji(
    *,
    train: int = 20_000,
    val: int = 1_000,
    test: int = 1_000,
    relation_sets: int = 100,
    image_size: int = 64,
    sprite: tuple[int, int] = (15, 29),
    kinds: int = 144,
    seed: int = 0,
) -> DrawnSource:
    """Draw OpenMoji scenes into the folders ``train``, ``val``, ``test`` and ``relations`` of the target.

    Args:
        train: training scenes; 0 for no such folder.
        val: validation scenes; 0 for no such folder.
        test: test scenes; 0 for no such folder.
        relation_sets: sets of four pictures of the relation benchmark.
        image_size: side of a picture in pixels.
        sprite: smallest and largest long side of a thing in pixels.
        kinds: how many different things there are.
        seed: number of the data set.
    """
    scenes = Scenes(seed, image_size, sprite=sprite, kinds=kinds)
    categories = tuple(thing.phrase for thing in scenes.things)
    sizes = {"train": train, "val": val, "test": test, _RELATIONS: relation_sets}
    total = train + val + test + relation_sets * _RELATION_SET
    return DrawnSource("openmoji", partial(_tasks, scenes, sizes), total, categories, partial(_finish, categories))


def _tasks(scenes: Scenes, sizes: dict[str, int], samples_per_shard: int) -> Iterator[Task]:
    for name, count in sizes.items():
        step = max(1, samples_per_shard // (_RELATION_SET if name == _RELATIONS else 1))
        for start in range(0, count, step):
            yield Task(partial(_draw, scenes, name, start, min(step, count - start)), name)


def _draw(scenes: Scenes, name: str, start: int, count: int, report: Report) -> Iterator[Sample]:
    drawn = scenes.samples(name, count, start) if name in SPLITS else scenes.relation_samples(count, start)
    for sample in drawn:
        report.given.update(records=1, captions=len(sample.captions), regions=len(sample.regions))
        yield sample


def _finish(categories: Iterable[str], out: Path, manifests: list[Manifest]) -> None:
    """Say whose pictures these are, and write a tokenizer of the training texts."""
    for folder in (*(manifest.folder for manifest in manifests), out):
        write_file(folder / ATTRIBUTION_NAME, attribution())
    trained = (text for manifest in manifests if manifest.folder.name == "train" for text in _captions(manifest))
    write_word_tokenizer(itertools.chain(categories, trained), out / "tokenizer")


def _captions(manifest: Manifest) -> Iterator[str]:
    with contextlib.closing(ShardReader(manifest)) as reader:
        for stored in each_sample(reader):
            yield from stored.need().captions
