"""Sets, measured models and the comparison as a whole, on pictures drawn here and models with random weights."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from cloc.config import ConfigError, DatasetConfig, EvaluationConfig
from cloc.data.shards.writer import write_shards
from cloc.encoder import Encoder
from cloc.evaluation.cache import Cache, model_digest
from cloc.evaluation.compare import _replaced, compare
from cloc.evaluation.metrics.catalog import ALL
from cloc.evaluation.metrics.outcome import values
from cloc.evaluation.model_outputs import ModelOutputs
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.sets.class_images import load_images
from cloc.evaluation.sets.kinds import load_eval_set
from cloc.evaluation.suite import TrainingSuite, measure
from cloc.loading import load
from tests.kit.evaluating import COLORS, QUICK, configuration, dataset, launch, png, result, sample


def run(encoder: Encoder, config: DatasetConfig, evaluation: EvaluationConfig = QUICK) -> dict[str, float]:
    outputs, found = ModelOutputs(encoder, Ranks()), load_eval_set("toy", config)
    return values(measure(outputs, found, outputs.embed(found, evaluation)))


def test_a_set_holds_what_can_be_used_and_counts_what_cannot(data: Path) -> None:
    found = load_eval_set("toy", dataset(data))
    assert len(found.samples) == 12 and found.skipped == {"corrupt_image": 1}
    assert {(own.width, own.height) for own in found.samples} == {(32, 24)}
    assert not any(region.crowd for own in found.samples for region in own.regions)
    assert found.categories == sorted(COLORS)  # also the class without a box
    assert found.counts["relation items by grounding"] == 4 and found.counts["images to classify"] == 10
    few = load_eval_set("toy", dataset(data), limit=6)
    assert [own.key for own in few.samples] == [f"s{i:02d}" for i in (0, 2, 4, 6, 8, 10)] and few.digest != found.digest


def test_every_metric_that_set_and_model_allow(data: Path, encoder: Encoder, runs: Path) -> None:
    found = run(encoder, dataset(data))
    for name in ("image/zero_shot_top1", "image/zero_shot_mAcc", "image/zero_shot_top1_names"):
        assert 0 <= found[name] <= 1
    for source in ("prompter", "roi_align", "crop", "mask_pool"):
        for name in ("top1", "mAcc", "top1_names", "top1_small", "comprehension", "hard_negatives"):
            assert 0 <= found[f"region/{source}/{name}"] <= 1
        assert f"region/{source}/top1_large" not in found  # there is no such box: an absence
        assert found[f"region/{source}/region_to_text_R@10"] >= found[f"region/{source}/region_to_text_R@1"]
    for name in ("any/acc@0.5", "union/acc@0.5", "mIoU", "pointing", "AP", "AP50", "AP75"):
        assert 0 <= found[f"grounding/{name}"] <= 1
    for scoring in ("similarity", "grounded"):
        assert {f"relations/{scoring}/{name}" for name in ("accuracy", "pair", "set4")} <= found.keys()
    clip = run(load(runs / "clip"), dataset(data))
    assert clip.keys() == {
        name for name in found if not name.startswith(("region/prompter", "grounding/", "relations/grounded"))
    }


def test_region_metrics_are_those_of_the_encoder_by_hand(data: Path, encoder: Encoder) -> None:
    found = run(encoder, dataset(data))
    texts = torch.nn.functional.normalize(
        encoder.encode_text([t.format(c) for c in sorted(COLORS) for t in ("a {}", "some {}")])
        .unflatten(0, (4, 2))
        .mean(1)
    )
    right: list[bool] = []
    for own in (sample(i) for i in range(12)):
        regions = [region for region in own.regions if not region.crowd]
        picture = Image.open(io.BytesIO(own.image))
        (rows,) = encoder.encode_regions([picture], [[region.box for region in regions]])
        named = (rows @ texts.T).argmax(1).tolist()
        right += [sorted(COLORS)[i] == region.category for i, region in zip(named, regions, strict=True)]
    assert found["region/prompter/top1"] == pytest.approx(sum(right) / len(right))


def test_only_the_parts_that_are_asked_for(data: Path, encoder: Encoder) -> None:
    found = run(encoder, dataset(data), replace(QUICK, parts=["region"], sources=["roi_align"]))
    assert found and all(name.startswith("region/roi_align/") for name in found)
    found = run(encoder, dataset(data), replace(QUICK, parts=["image"]))
    assert found and all(name.startswith(("image/", "image_text/")) for name in found)


def test_metrics_do_not_depend_on_the_batch_size(data: Path, encoder: Encoder) -> None:
    one, other = (run(encoder, dataset(data), replace(QUICK, batch_size=size)) for size in (3, 64))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name], abs=1e-5), name


def test_frequencies_split_the_classes(data: Path, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "often.json").write_text('{"red": "r", "green": "f", "blue": "f"}')
    found = run(encoder, dataset(data, frequency=str(tmp_path / "often.json")), replace(QUICK, parts=["region"]))
    assert "region/prompter/mAcc_rare" in found and "region/prompter/mAcc_frequent" in found
    assert "region/prompter/mAcc_common" not in found


def test_sets_that_hold_nothing_or_name_nothing_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no data"):
        load_eval_set("toy", DatasetConfig())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_eval_set("toy", DatasetConfig(shards="nowhere"))
    write_shards([replace(sample(1), image=b"no picture")], tmp_path / "bad")
    with pytest.raises(ValueError, match="no usable sample in .*'corrupt_image': 1"):
        load_eval_set("toy", DatasetConfig(shards=str(tmp_path / "bad")))
    (tmp_path / "names.txt").write_text("red\ngreen")
    with pytest.raises(ConfigError, match=r"lacks 1 classes of boxes: \['blue'\]"):
        load_eval_set("toy", DatasetConfig(shards=str(data / "shards"), classes=str(tmp_path / "names.txt")))


def test_a_set_without_captions_or_boxes_has_none_of_their_metrics(encoder: Encoder, tmp_path: Path) -> None:
    write_shards([replace(sample(i), regions=()) for i in range(3)], tmp_path / "captions")
    write_shards([replace(sample(i), captions=()) for i in range(1, 4)], tmp_path / "boxes")
    found = run(encoder, DatasetConfig(shards=str(tmp_path / "captions")))
    assert found and all(name.startswith("image_text/") for name in found)
    found = run(encoder, DatasetConfig(shards=str(tmp_path / "boxes")))
    assert found and not any(name.startswith("image_text/") for name in found)


# --- classification sets ----------------------------------------------------------------------------------------------


def test_pictures_by_class_from_a_folder(data: Path) -> None:
    found = load_images("toy", DatasetConfig(images=str(data / "classes")))
    assert found.classes == ["blue ish", "gray ish", "green ish", "red ish"]
    assert sorted(found.labels) == [0] * 3 + [2] * 3 + [3] * 4
    assert len(load_images("toy", DatasetConfig(images=str(data / "classes")), limit=4).labels) == 4


def test_pictures_by_class_from_shards(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for index in range(4):
            for extension, content in (("png", png(index)), ("cls", str(index % 2).encode())):
                member = tarfile.TarInfo(f"s{index}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    config = DatasetConfig(images=str(tmp_path))
    with pytest.raises(ConfigError, match="the shards name no class"):
        load_images("toy", config)
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    found = load_images("toy", config)
    assert found.labels == [0, 1, 0, 1] and found.classes == ["cat", "dog"] and found.read(0).shape == (3, 24, 32)
    (tmp_path / "one.txt").write_text("cat\n")
    with pytest.raises(ConfigError, match="1 names for labels 0 to 1"):
        load_images("toy", replace(config, classes=str(tmp_path / "one.txt")))


def test_pictures_by_class_from_torchvision(tmp_path: Path) -> None:
    for name in ("Forest", "SeaLake"):
        (tmp_path / "eurosat" / "2750" / name).mkdir(parents=True)
        (tmp_path / "eurosat" / "2750" / name / "1.jpg").write_bytes(png(1))
    found = load_images("toy", DatasetConfig(images=f"torchvision:EuroSAT:{tmp_path}"))
    assert found.labels == [0, 1] and found.classes == ["Forest", "SeaLake"] and found.read(1).size == (32, 24)
    with pytest.raises(ConfigError, match="cannot open CIFAR10"):
        load_images("toy", DatasetConfig(images=f"torchvision:CIFAR10:{tmp_path}"))
    with pytest.raises(ConfigError, match="a class of torchvision.datasets"):
        load_images("toy", DatasetConfig(images=f"torchvision:Nothing:{tmp_path}"))


# --- the comparison ---------------------------------------------------------------------------------------------------


def test_intervals_differences_and_a_cache_that_saves_every_pass(
    data: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = compare(configuration(data, runs, tmp_path))
    first = result(tmp_path)
    entry = first["data"]["toy"]
    assert page.is_file() and entry["skipped"] == {"corrupt_image": 1, "image_to_classify_unreadable": 1}
    for model, metrics in entry["models"].items():
        for name, (low, high) in entry["intervals"][model].items():
            assert low <= high and 0 <= low and high <= 1 and name in metrics
        assert entry["intervals"][model].keys() == metrics.keys()
    gaps = entry["differences"]["clip"]
    for name, (gap, low, high) in gaps.items():
        assert low <= high
        if "best" not in name:
            assert gap == pytest.approx(entry["models"]["cloc"][name] - entry["models"]["clip"][name])
    assert entry["best_sources"]["clip"]["top1"] in ("roi_align", "crop", "mask_pool")
    assert "region/best/top1" in gaps and first["bootstrap"] == {"samples": 50, "level": 0.95, "seed": 0}

    def never(*arguments: object) -> None:
        raise AssertionError("the model was asked again")

    monkeypatch.setattr("cloc.loading.tried", lambda encoder, **_: encoder)
    for method in ("see", "encode_text", "encode_image", "regions"):
        monkeypatch.setattr(Encoder, method, never)
    compare(configuration(data, runs, tmp_path, cost=0))
    assert result(tmp_path)["data"] == first["data"]


def test_the_cache_knows_weights_and_damage(data: Path, runs: Path, tmp_path: Path) -> None:
    one, other = load(runs / "cloc"), load(runs / "cloc")
    assert model_digest(one) == model_digest(other) != model_digest(load(runs / "clip"))
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1e-3
    assert model_digest(one) != model_digest(other)
    cache = Cache(tmp_path, Ranks())
    cache.write({"rows": torch.arange(3)}, "model", "part")
    assert cache.read("model", "part")["rows"].tolist() == [0, 1, 2]
    (tmp_path / "model" / "part.safetensors").write_bytes(b"half a file")
    assert cache.read("model", "part") is None and cache.read("model", "nothing") is None
    assert Cache(None, Ranks()).read("model", "part") is None


def test_the_same_run_twice_and_an_unknown_set_are_refused(data: Path, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the same run twice"):
        compare(configuration(data, runs, tmp_path, baseline=[str(runs / "cloc")]))
    with pytest.raises(ConfigError, match="data='nothing'"):
        compare(configuration(data, runs, tmp_path, data=["nothing"]))


def test_native_is_measured_where_it_is_named(data: Path, encoder: Encoder) -> None:
    found = run(encoder, dataset(data), replace(QUICK, sources=["native"], parts=["region"]))
    assert 0 <= found["region/native/top1"] <= 1 and ALL.describe("region/native/top1").row == "Native"
    assert not any("native" in name for name in run(encoder, dataset(data), replace(QUICK, parts=["region"])))


def test_training_measures_without_crops(data: Path, encoder: Encoder) -> None:
    config = replace(QUICK, data=["toy"], limit=6, sources=[*QUICK.sources, "native"])
    found = TrainingSuite(config, {"toy": dataset(data)}, encoder.model)(encoder.model)
    assert 0 <= found["toy/region/prompter/top1"] <= 1 and not any("crop" in name or "native" in name for name in found)
    with pytest.raises(ValueError, match="unknown; known sets are"):
        TrainingSuite(replace(config, data=["x"]), {"toy": dataset(data)}, encoder.model)


def test_the_regions_benchmark_times_each_way_on_the_same_boxes() -> None:
    from benchmarks.regions import WAYS, make_encoder, make_task, measure

    small = make_encoder(32, 8, 64, 1, "SharedPrompter")
    images, boxes = make_task(2, 3, torch.Generator().manual_seed(0))
    assert all((own >= 0).all() and (own <= 1).all() and (own[:, 2:] > own[:, :2]).all() for own in boxes)
    assert set(measure(small, images, boxes, rounds=1)) == set(WAYS)


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.distributed
def test_two_ranks_measure_as_one_to_the_last_digit(data: Path, runs: Path, tmp_path: Path) -> None:
    own = {name: value for name, value in vars(dataset(data)).items() if value and name != "templates"}
    sets = [f"+datasets.toy.{name}={value}" for name, value in own.items()]
    found = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        common = [f"checkpoint={runs / 'cloc'}", f"baseline=[{runs / 'clip'}]", "data=[toy]", f"out={out}"]
        options = [f"cache={out / 'cache'}", "device=cpu", "evaluation.batch_size=5", "evaluation.bootstrap=20"]
        launch(ranks, "eval.py", *common, *options, *sets)
        found.append(result(out)["data"])
        assert list((out / "cache").rglob("*.safetensors")) and (out / "report" / "index.html").is_file()
    assert found[0] == found[1]
    assert found[0]["toy"]["models"]["cloc"]["grounding/AP"] >= 0


def test_results_of_other_models_are_not_replaced_in_silence(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    clip: Any = SimpleNamespace(name="clip")
    assert _replaced(file, [clip]) == ""
    for content, said in (
        ('{"models": {"cloc": {}, "clip": {}}}', "cloc"),
        ("[]", ""),
        ('{"models": 3}', ""),
        ("{", ""),
    ):
        file.write_text(content)
        assert _replaced(file, [clip]) == said
