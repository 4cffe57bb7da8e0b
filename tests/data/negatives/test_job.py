"""``data negatives``: wrong texts that are nearly right, the same for any number of processes, after any kill."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloc import __main__ as command_line
from cloc.contracts import Region, Sample
from cloc.data.inspect.check import check
from cloc.data.inspect.show import show
from cloc.data.negatives import job as module
from cloc.data.negatives.generate import Generator, Vocabulary
from cloc.data.negatives.job import add_negatives
from cloc.data.negatives.phrases import take_apart
from cloc.data.openmoji.scenes import Scenes
from cloc.data.shards.index import load_manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.shards.tars import ShardError
from cloc.data.shards.writer import write_shards
from tests.kit.interrupting import interrupt_third
from tests.kit.landscapes import jpeg, landscape

BOX = (0.1, 0.1, 0.5, 0.5)
PICTURES = [
    (["A man walks a dog ."], [["a man in a red shirt", "a man"], ["a brown dog"]]),
    (["Two girls on a bench ."], [["two girls"], ["a wooden bench", "the bench"], ["a blue shirt"]]),
    (["A cat and a ball ."], [["a white cat", "a kitten"], ["a green ball"], ["grass"]]),
    (["A horse ."], [["a large horse"], ["the tail of the horse"], ["a black hat"]]),
    (["Water ."], [["water"], ["three boats"], ["an orange"]]),
]


def phrased(count: int = 20) -> list[Sample]:
    made = []
    for number in range(count):
        captions, regions = PICTURES[number % len(PICTURES)]
        boxes = tuple(Region(BOX, tuple(phrases)) for phrases in regions)
        made.append(Sample(f"p{number}", jpeg(landscape(number)), "jpg", tuple(captions), boxes, 96, 72))
    return made


def read(folder: Path) -> dict[str, Sample]:
    return {one.key: one.need() for one in each_sample(ShardReader(load_manifest(folder)))}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("negatives") / "all"
    write_shards(phrased(), folder, samples_per_shard=6)
    return folder


@pytest.fixture(scope="module")
def written(source: Path) -> Path:
    add_negatives(source, source.parent / "out", per_region=4)
    return source.parent / "out"


def test_all_but_the_negatives_is_as_it_was(source: Path, written: Path) -> None:
    before, after = read(source), read(written)
    plain = {
        key: replace(one, regions=tuple(replace(region, negatives=()) for region in one.regions))
        for key, one in after.items()
    }
    assert {key: replace(one, source="") for key, one in plain.items()} == {
        key: replace(one, source="") for key, one in before.items()
    }
    assert check(written).ok


def test_one_thing_or_attribute_is_exchanged(written: Path) -> None:
    for sample in read(written).values():
        for region in sample.regions:
            assert len(set(region.negatives)) == len(region.negatives) <= 4
            for text in region.negatives:
                assert any(_one_part_differs(text, phrase) for phrase in region.phrases), (text, region.phrases)


def _one_part_differs(text: str, phrase: str) -> bool:
    """Whether one stretch of words was exchanged, no longer than the thing's name; articles aside."""
    one, other = (re.sub(r"^an? ", "", t).split() for t in (text, phrase))
    ahead = len(os.path.commonprefix([one, other]))
    behind = len(os.path.commonprefix([one[ahead:][::-1], other[ahead:][::-1]]))
    return 0 < len(other) - ahead - behind <= len(take_apart(phrase).name.split())


def test_no_negative_names_another_region_or_what_the_captions_tell(written: Path) -> None:
    for sample in read(written).values():
        phrases = {text for region in sample.regions for text in region.phrases}
        negatives = {text for region in sample.regions for text in region.negatives}
        assert not phrases & negatives
        for text in negatives:
            thing = text.split()[-1]
            own = " ".join((*phrases, *sample.captions)).lower()
            color = any(text.split()[-1] in phrase.split() for phrase in phrases)  # another color of the same thing
            assert color or thing.rstrip("s") not in own, (text, phrases)


def test_attributes_come_first_and_words_of_the_set_alone(written: Path) -> None:
    sample = read(written)["p0"]
    texts = set(sample.regions[1].negatives)  # a brown dog
    assert {"a white dog", "a green dog", "a black dog"} & texts and not any("yellow" in text for text in texts)


def test_what_may_be_the_same_is_not_exchanged() -> None:
    vocabulary = Vocabulary()
    made = [
        Sample("a", b"", "jpg", (), (Region(BOX, ("a puppy",)),)),
        Sample("b", b"", "jpg", (), (Region(BOX, ("a hound",)), Region(BOX, ("a fence",)))),
        Sample("c", b"", "jpg", ("a wall",), (Region(BOX, ("a pup",)),)),
    ]
    for sample in made:
        vocabulary.read(sample)
    counts: Counter[str] = Counter()
    done = [Generator(vocabulary, 5)(sample, counts) for sample in made]
    # The second picture shows a dog, whatever it is called; the third tells of a wall, which a fence may be.
    assert [[region.negatives for region in sample.regions] for sample in done] == [[("a fence",)], [(), ()], [()]]
    assert counts == {"exchanged: thing": 1, "regions with fewer": 1, "regions without any": 3}


def test_negatives_that_are_there_are_kept_and_crowds_have_none() -> None:
    vocabulary, counts = Vocabulary(), Counter[str]()
    sample = Sample(
        "a",
        b"",
        "jpg",
        (),
        (Region(BOX, ("a red ball",), negatives=("a cube",)), Region(BOX, ("a blue cup",), crowd=True)),
    )
    for one in (sample, Sample("b", b"", "jpg", (), (Region(BOX, ("a green ball",)),))):
        vocabulary.read(one)
    done = Generator(vocabulary, 2)(sample, counts)
    assert done.regions[0].negatives == ("a cube", "a green ball") and done.regions[1] == sample.regions[1]


def test_the_same_seed_and_key_draw_the_same_another_seed_others(source: Path, written: Path, tmp_path: Path) -> None:
    add_negatives(source, tmp_path / "again", per_region=4)
    assert files(tmp_path / "again") == files(written)
    add_negatives(source, tmp_path / "other", per_region=4, seed=1)
    assert files(tmp_path / "other") != files(written)


@pytest.mark.slow
def test_the_same_for_any_workers(source: Path, written: Path, tmp_path: Path) -> None:
    add_negatives(source, tmp_path / "two", per_region=4, workers=2)
    assert files(tmp_path / "two") == files(written)


def test_killed_while_writing_it_goes_on(
    source: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = interrupt_third(monkeypatch, module)
    with pytest.raises(KeyboardInterrupt):
        add_negatives(source, tmp_path / "out", per_region=4)
    with pytest.raises(ShardError, match="seed was 0, is 1"):
        add_negatives(source, tmp_path / "out", per_region=4, seed=1)
    add_negatives(source, tmp_path / "out", per_region=4)
    assert len(made) == 5 and files(tmp_path / "out") == files(written)


def test_scenes_name_other_things_and_pairs_that_are_held_out_stay_unsaid(tmp_path: Path) -> None:
    for held_out in (None, "colors"):
        scenes = Scenes(held_out=held_out)
        folder = tmp_path / str(held_out)
        write_shards(scenes.samples("train", 60), folder, categories=scenes.cast.categories)
        done = add_negatives(folder, tmp_path / f"{held_out}-out", per_region=3)
        said = {region.category for sample in read(folder).values() for region in sample.regions}
        for sample in read(done.manifest.folder).values():
            own = {region.category for region in sample.regions}
            for region in sample.regions:
                assert len(region.negatives) == 3 and set(region.negatives) <= said - own
        assert done.manifest.categories == tuple(sorted(scenes.cast.categories))
        assert set(done.made) == {"exchanged: thing"} | ({"exchanged: color"} if held_out else set())


def test_a_sheet_shows_them(written: Path, tmp_path: Path) -> None:
    page = show(written, tmp_path / "page.html", count=20).read_text(encoding="utf-8")
    assert "a brown dog (not: " in page


def test_the_command_and_what_it_refuses(source: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    found = run(command_line.app, ["data", "negatives", str(source), str(tmp_path / "out"), "--per-region", "2"])
    assert found.exit_code == 0 and "regions" in found.output and "data.negatives=10" in found.output
    with pytest.raises(ValueError, match="--per-region 0"):
        add_negatives(source, tmp_path / "other", per_region=0)
    with pytest.raises(ShardError, match="lie in one another"):
        add_negatives(source, source / "inside")
    with pytest.raises(ShardError, match="not empty"):
        add_negatives(source, tmp_path / "out")
    bare = tmp_path / "bare"
    write_shards([Sample("a", jpeg(landscape(0)), "jpg", ("a view",))], bare)
    with pytest.raises(ValueError, match="no sample has a region"):
        add_negatives(bare, tmp_path / "none")


def test_too_much_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    good, bad = phrased(4), Sample("x", b"no picture", "gif", ("a view",))
    folder = tmp_path / "mixed"
    write_shards([*good, replace(bad, extension="jpg", image=b"")], folder)
    with pytest.raises(ValueError, match="1 of 5 samples cannot be used.*max-skip-share"):
        add_negatives(folder, tmp_path / "out")
    done = add_negatives(folder, tmp_path / "out", max_skip_share=0.5)
    assert done.manifest.samples == 4 and done.left_out.total() == 1
