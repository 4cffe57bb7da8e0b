"""Scenes drawn of OpenMoji's pictures: no source, several folders, and single things and a tokenizer beside them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cloc.contracts import Sample
from cloc.data.convert.formats.registry import DrawnSource, register
from cloc.data.jobs.report import Report
from cloc.data.jobs.resumable_jobs import Task
from cloc.data.openmoji.glyphs import attribution
from cloc.data.openmoji.scenes import SPLITS, TEST_UNSEEN, Scenes
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.word_tokenizer import write_word_tokenizer
from cloc.files import create, discard, hidden_folder, make_folder, publish, settle, write_file

ATTRIBUTION_NAME = "ATTRIBUTION.txt"

THINGS_NAME = "things"
"""Folder of single things: a folder for each, called by its phrase."""

_RELATIONS = "relations"
_RELATION_SET = 4  # pictures
_USUAL = {"train": 20_000, "val": 1_000, THINGS_NAME: 5}


@register("openmoji", "no source: its scenes are drawn", draws=True)
def open_openmoji(
    *,
    train: int | None = None,
    val: int | None = None,
    test: int = 1_000,
    relation_sets: int = 100,
    single_things: int | None = None,
    held_out: str | None = None,
    image_size: int = 64,
    things: tuple[int, int] = (3, 6),
    sprite: tuple[int, int] = (15, 29),
    kinds: int = 144,
    seed: int = 0,
) -> DrawnSource:
    """Draw OpenMoji scenes into the folders ``train``, ``val``, ``test`` and ``relations`` of the target.

    Args:
        train: training scenes (20,000); 0 for no such folder.
        val: validation scenes (1,000); 0 for no such folder.
        test: test scenes; 0 for no such folder.
        relation_sets: sets of four pictures of the relation benchmark.
        single_things: pictures of each thing alone (5), in a folder a thing; 0 for none.
        held_out: what is kept for testing: things (only those that the plain set never draws; no train, no val), or
            pairs of thing and colors, or thing and grounds: a fifth is drawn in test_unseen alone.
        image_size: side of a picture in pixels.
        things: fewest and most things of a scene.
        sprite: smallest and largest long side of a thing in pixels.
        kinds: how many different things there are.
        seed: number of the data set.

    Raises:
        ValueError: a negative number; scenes to train on, of things that are never trained on; single things where
            pairs are held out.
    """
    given = {"train": train, "val": val, "test": test, "relation_sets": relation_sets, "single_things": single_things}
    for name, number in given.items():
        if number is not None and number < 0:
            raise ValueError(f"--{name.replace('_', '-')} {number}: give a number of pictures, 0 for none")
    scenes = Scenes(seed, image_size, things, sprite, kinds, held_out=held_out)
    strangers, pairs = held_out == "things", bool(scenes.cast.unseen)
    if strangers and (train or val):
        raise ValueError("--held-out things: these are never trained on; leave out --train and --val")
    if pairs and single_things:
        raise ValueError(f"--held-out {held_out}: single things are of the plain set and of things; leave them out")
    sizes = {"train": train, "val": val, "test": test, TEST_UNSEEN: test if pairs else 0, _RELATIONS: relation_sets}
    found = {name: _USUAL[name] * (not strangers) if size is None else size for name, size in sizes.items()}
    singles = (0 if pairs else _USUAL[THINGS_NAME]) if single_things is None else single_things
    total = sum(found.values()) + relation_sets * (_RELATION_SET - 1)
    tasks, finish = partial(_tasks, scenes, found), partial(_finish, scenes, singles)
    return DrawnSource("openmoji", tasks, total, scenes.cast.categories, finish)


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


def _finish(scenes: Scenes, singles: int, out: Path, manifests: list[Manifest]) -> None:
    """Say whose pictures these are, draw single things, and write a tokenizer of the training texts."""
    _write_singles(scenes, singles, out)
    pictured = [manifest.folder for manifest in manifests] + ([out / THINGS_NAME] if singles else [])
    for folder in (*pictured, out):
        write_file(folder / ATTRIBUTION_NAME, attribution())
    if scenes.held_out == "things":
        return  # names that no training text holds: a model that knows them brings its own tokenizer
    trained = (text for manifest in manifests if manifest.folder.name == "train" for text in _captions(manifest))
    write_word_tokenizer(itertools.chain(scenes.cast.categories, trained), out / "tokenizer")


def _write_singles(scenes: Scenes, count: int, out: Path) -> None:
    """Write ``things/PHRASE/N.jpg``, all or nothing; an older folder goes."""
    target = out / THINGS_NAME
    if target.exists() or target.is_symlink():
        discard(target)
    if not count:
        return
    with hidden_folder(target) as room:
        for phrase, pictures in scenes.single_things(count):
            folder = make_folder(room, phrase)
            for number, picture in enumerate(pictures):
                with create(folder / f"{number}.jpg") as file:
                    file.write(picture)
        settle(room)
        publish(room, target)


def _captions(manifest: Manifest) -> Iterator[str]:
    with contextlib.closing(ShardReader(manifest)) as reader:
        for stored in each_sample(reader):
            yield from stored.need().captions
