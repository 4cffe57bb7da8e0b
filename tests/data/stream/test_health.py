"""What the log says of the data, and how ``data.train`` reaches the stream from the command line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from cloc.config import validate
from cloc.data.stream.batches import READER_MEMORY
from cloc.data.stream.sources import open_sources
from cloc.engine.module import Pretrain
from cloc.engine.task import Reading
from tests.kit.paths import ROOT
from tests.kit.streams import make_manifest, make_stream


def test_health_is_that_of_all_processes() -> None:
    one = Counter(samples=6, regions_drawn=10, phrases_distinct=4, captions_truncated=1) + Counter(
        {"skipped/bad_json": 2}
    )
    two = Counter(samples=6, regions_drawn=2, phrases_distinct=2, phrases_truncated=2)
    parts = [Reading(one, {READER_MEMORY: 2.0**21}, 0.1), Reading(two, {READER_MEMORY: 2.0**20}, 0.7)]
    health = Pretrain.health(parts)
    assert health["data_wait_share"] == 0.7
    assert health["reader_memory_mib"] == 2
    assert health["data/skipped_share"] == pytest.approx(2 / 14)
    assert health["data/regions_per_image"] == 1
    assert health["data/truncated_share"] == pytest.approx(3 / 24)
    assert health["data/duplicate_phrase_share"] == 0.5


def test_health_without_any_region() -> None:
    assert Pretrain.health([Reading(Counter(samples=4), {}, 0.0)])["data/duplicate_phrase_share"] == 0


def test_batches_tell_the_memory_of_their_reader(tmp_path: Path) -> None:
    stats = next(iter(make_stream(make_manifest(tmp_path / "set")))).stats
    assert 2**24 < stats[READER_MEMORY] < 2**36


@pytest.mark.parametrize("form", ["pattern", "mapping"])
def test_sources_from_the_command_line(tmp_path: Path, form: str) -> None:
    make_manifest(tmp_path / "a")
    make_manifest(tmp_path / "b", count=4, shards=2)
    weighted = ", ".join(f"{name}: {{path: {tmp_path}/{name}, weight: {w}}}" for name, w in (("a", 0.75), ("b", 0.25)))
    train = {"pattern": f'"{tmp_path}/{{a,b}}"', "mapping": f"{{{weighted}}}"}[form]
    given = ["name=toy", "samples=8", "batch_size=8", f"data.train={train}", f"data.cache_dir={tmp_path}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = validate(compose("train", given))
    data = open_sources(config.data)
    assert data.samples == 27
    assert [part.weight for part in data.parts] == ([27] if form == "pattern" else [0.75, 0.25])
