"""After resuming, the values in force are those of the configuration, to the sample; what cannot change is refused."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import cloc
from cloc.checkpoints import list_checkpoints
from cloc.config import ConfigError, TrainConfig, validate
from cloc.data.stream.sources import open_sources
from cloc.data.word_tokenizer import write_word_tokenizer
from cloc.engine import run
from cloc.engine.agreement import flat
from cloc.engine.durable.checkpoint_file import inspect
from cloc.engine.durable.resume import changes
from cloc.engine.durable.settings import After
from cloc.engine.module import Pretrain
from cloc.engine.optim import build_optimizer, optim_config, rate, set_rate
from cloc.engine.random_state import set_random_state
from tests.kit.resuming import ROOT, assert_same, configure, weights

START = ["samples=32", "trainer.checkpoint_every=16"]  # four steps of 8


@pytest.fixture(scope="module")
def begun(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs of 32 samples by either optimizer, made when they are asked for; to be copied, not continued."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            run.train(configure(squares, made[name], *START, *optimizer(name)))
        return made[name]

    return make


@pytest.fixture
def again(begun: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the run by Muon."""
    return shutil.copytree(begun("muon"), tmp_path / "again", symlinks=True)


def optimizer(name: str) -> list[str]:
    return [f"optim={name}", "optim.warmup=0"]


def rows(folder: Path, column: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def parts(found: Any) -> list[torch.optim.Optimizer]:
    return getattr(found, "optimizers", [found])


def by_hand(config: DictConfig, path: Path, steps: int) -> dict[str, torch.Tensor]:
    """Plain steps from a checkpoint's weights, moments, position and random state, everything else as configured."""
    wanted, resolved = validate(config), OmegaConf.to_container(config, resolve=True)
    stored = torch.load(path, weights_only=True)
    module = Pretrain(wanted, resolved)
    module.load_state_dict(stored.get("current_model_state", stored["state_dict"]))
    old = build_optimizer(module.model, optim_config(stored["cloc"]["config"]))
    old.load_state_dict(stored["optimizer_states"][0])
    moments = {parameter: state for part in parts(old) for parameter, state in part.state.items()}
    new = build_optimizer(module.model, wanted.optim)
    for part in parts(new):
        for parameter in (parameter for group in part.param_groups for parameter in group["params"]):
            part.state[parameter] = moments[parameter]
    stream = module.open_stream(open_sources(wanted.data), 0, 1)
    seen = stored["cloc"]["samples_seen"]
    set_random_state(stored["random_states"][0])
    module.train()
    for _ in range(steps):
        batch = stream.batch_at(seen)
        set_rate(new, rate(seen, wanted.samples, wanted.optim.warmup, wanted.optim.final))
        new.zero_grad()
        module.loss(module.model(batch), batch).total.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), wanted.optim.clip_grad)
        new.step()
        seen += wanted.batch_size
    return module.state_dict()


RATES = ["optim.lr=1e-4", "optim.weight_decay=0.5", "optim.betas=[0.5,0.6]", "optim.final=0.3", "optim.clip_grad=0.1"]
MUON = ["optim.muon_lr=1e-4", "optim.muon_weight_decay=0.3", "optim.warmup=100"]
FACTORS = ["optim.tower_rate=2", "optim.head_rate=3", "optim.layer_decay=0.5"]  # they group the parameters otherwise
DATA = ["data.regions=2", "data.crop=0.5", "data.flip=0.5", "data.jitter=[0.4,0.4,0.4,0.1]"]


@pytest.mark.parametrize(
    ("name", "changed", "size"),
    [
        ("muon", [*RATES, *MUON], 8),
        ("muon", ["batch_size=16"], 16),
        ("adamw", [*RATES, *FACTORS], 8),
        pytest.param("muon", FACTORS, 8, marks=pytest.mark.slow),
        pytest.param("muon", ["loss.region=0.3", "loss.grounding=0", *DATA], 8, marks=pytest.mark.slow),
        pytest.param("adamw", RATES, 8, marks=pytest.mark.slow),
        pytest.param("adamw", ["batch_size=4"], 4, marks=pytest.mark.slow),
    ],
)
def test_the_new_values_hold(
    name: str, changed: list[str], size: int, begun: Any, squares: Path, tmp_path: Path, capsys: Any
) -> None:
    """A run that goes on with other settings takes the steps that one takes by hand with them, to the last bit."""
    folder = shutil.copytree(begun(name), tmp_path / "run", symlinks=True)
    config, steps = configure(squares, folder, *START, "samples=64", *optimizer(name), *changed), 32 // size
    capsys.readouterr()
    run.train(config)
    text = " ".join(capsys.readouterr().out.split())
    assert "continues at sample 32 from" in text and f"{steps} steps of {size} to sample 64" in text
    assert all(f"{key.partition('=')[0]}: " in text.split("new values hold")[1] for key in changed)
    newest = inspect(folder / "checkpoints" / f"step-{4 + steps:08d}.ckpt")
    assert newest.info["samples_seen"] == newest.info["cursor"] == 64
    assert list_checkpoints(newest.path.parent)[0] == newest.path.name
    assert min(rows(folder, "lr")) > 0 and max(rows(folder, "samples")) == 64
    stored = torch.load(newest.path, weights_only=True)
    assert_same(stored["state_dict"], by_hand(config, begun(name) / "checkpoints" / "step-00000004.ckpt", steps))
    assert stored["cloc"]["config"]["optim"] == OmegaConf.to_container(config.optim, resolve=True)
    state = stored["optimizer_states"][0]
    for group in state.get("parts", [state])[-1]["param_groups"]:  # AdamW's
        assert list(group["betas"]) == list(config.optim.betas)
        assert group["weight_decay"] in (config.optim.weight_decay, 0.0)


def test_a_budget_that_does_not_divide_ends_as_that_of_a_new_run(again: Path, squares: Path, capsys: Any) -> None:
    """A last partial batch is a whole step: 32 + 2 × 24, where the budget is 64; and no more than that."""
    for _ in range(2):
        run.train(configure(squares, again, *START, "samples=64", "batch_size=24"))
    assert inspect(again / "checkpoints" / "last.ckpt").info["samples_seen"] == 80
    assert "already trained on 80 samples" in " ".join(capsys.readouterr().out.split())
    assert min(rows(again, "lr")) > 0
    run.train(configure(squares, again, *START, "samples=40", "batch_size=24"))  # less than it has seen
    assert inspect(again / "checkpoints" / "last.ckpt").info["samples_seen"] == 80


@pytest.mark.slow
def test_turns_are_counted_in_samples(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints and evaluations stay at their samples when the batch size changes in between."""
    monkeypatch.setattr("cloc.evaluation.suite.TrainingSuite", lambda *a: lambda model: {"set/top1": 0.5})
    more = ["evaluation.every=16", "evaluation.data=[openmoji_val]", "trainer.keep_last=99"]
    run.train(configure(squares, tmp_path, "samples=24", "trainer.checkpoint_every=16", *more))
    run.train(configure(squares, tmp_path, "samples=96", "trainer.checkpoint_every=16", "batch_size=4", *more))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        measured = [float(row["samples"]) for row in csv.DictReader(file) if row["val/set/top1"]]
    assert measured == [16, 24, 32, 48, 64, 80, 96]
    folder = tmp_path / "checkpoints"
    seen = [inspect(folder / name).info["samples_seen"] for name in reversed(list_checkpoints(folder))]
    assert seen == [16, 24, 32, 48, 64, 80, 96]


def test_the_plan_of_what_is_left(again: Path, squares: Path, capsys: Any) -> None:
    before = sorted(path.name for path in again.rglob("*"))
    run.train(configure(squares, again, *START, "samples=64", "batch_size=16", "dry_run=true"))
    text = " ".join(capsys.readouterr().out.split())
    assert "at sample 32 of step-00000004.ckpt: 2 steps are left" in text
    assert sorted(path.name for path in again.rglob("*")) == before


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("first", "then"), [("0.5", "0"), pytest.param("0", "0.5", marks=SLOW), pytest.param("0.9", "0.5", marks=SLOW)]
)
def test_the_moving_average_is_turned_on_and_off(first: str, then: str, squares: Path, tmp_path: Path) -> None:
    """What trains on is the weights in training; a checkpoint's average is never taken for them."""
    run.train(configure(squares, tmp_path, "samples=8", f"trainer.ema={first}"))
    path = Path(shutil.copy(tmp_path / "checkpoints" / "step-00000001.ckpt", tmp_path / "before"))
    config = configure(squares, tmp_path, "samples=16", f"trainer.ema={then}")
    run.train(config)
    expected, old = by_hand(config, path, 1), torch.load(path, weights_only=True)["state_dict"]
    found = torch.load(tmp_path / "checkpoints" / "step-00000002.ckpt", weights_only=True)
    assert_same(found.get("current_model_state", found["state_dict"]), expected)
    if then != "0":
        name, kept = "model.image.proj.weight", 0.5 if float(first) else 0.0  # a new average begins with its first step
        torch.testing.assert_close(found["state_dict"][name], kept * old[name] + (1 - kept) * expected[name])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("seed=1", "holds another seed (seed: 0 → 1)"),
        ("data.streams=4", "holds another data.streams (data.streams: 1 → 4); restore these values"),
        ("model.image.options.num_heads=2", "another model (model.image.options.num_heads: 4 → 2)"),
        ("model.text.options.heads=2", "another model (model.text.options.heads: 4 → 2)"),
        ("model.image.resize=squash", "another model (model.image.resize: pad → squash)"),
        ("+model.image.tune_last=0", "model.image.tune_last: -1 → 0"),
        ("model.grounding=null loss.grounding=0", "another model"),
        ("model.joint_dim=16", "model.joint_dim: 32 → 16"),
        ("optim.name=adamw", "another optimizer"),
    ],
)
def test_what_cannot_change_is_refused(changed: str, message: str, begun: Any, squares: Path) -> None:
    folder = begun("muon")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*.ckpt"))
    with pytest.raises(ConfigError) as told:
        run.train(configure(squares, folder, *START, "samples=64", *changed.split()))
    assert message in str(told.value) and "init_from" in str(told.value) and "\n" not in str(told.value)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*.ckpt")) == before


def test_what_only_acts_in_training_may_change(again: Path, squares: Path, capsys: Any) -> None:
    changed = ["samples=40", "model.image.options.proj_drop_rate=0.3", "init_from=gone"]
    run.train(configure(squares, again, *START, *changed))
    held, _, idle = capsys.readouterr().out.partition("of no effect here")
    assert "model.image.options.proj_drop_rate: 0.1 → 0.3" in held and "init_from: None → gone" in idle


@pytest.mark.slow
def test_a_tokenizer_may_move_but_not_change(again: Path, squares: Path, tmp_path: Path) -> None:
    shutil.copytree(squares / "tokenizer", tmp_path / "moved")
    run.train(configure(squares, again, *START, "samples=40", f"model.text.tokenizer={tmp_path / 'moved'}"))
    write_word_tokenizer(["blue green red white a square and"], tmp_path / "other")
    with pytest.raises(ConfigError, match=r"another tokenizer \(model\.text\.tokenizer: "):
        run.train(configure(squares, again, *START, "samples=48", f"model.text.tokenizer={tmp_path / 'other'}"))
    write_word_tokenizer(["blue green red white a square and"], tmp_path / "moved")  # the path stays, the words do not
    with pytest.raises(ConfigError, match=r"another tokenizer \(.*moved holds other words than"):
        run.train(configure(squares, again, *START, "samples=48", f"model.text.tokenizer={tmp_path / 'moved'}"))


def test_a_checkpoint_of_a_run_carries_its_tokenizer(again: Path, tmp_path: Path) -> None:
    whole = cloc.load(again)
    shutil.copy(whole.info["file"], tmp_path / "model.ckpt")
    alone = cloc.load(tmp_path / "model.ckpt")
    assert (
        alone.tokenizer.files and alone.tokenizer("a red square").tolist() == whole.tokenizer("a red square").tolist()
    )


def leaves(schema: Any, prefix: str = "") -> Iterator[str]:
    """Every leaf of a dataclass by its dotted name; a mapping is one leaf."""
    for field in fields(schema):
        value = getattr(schema, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_every_key_is_known_to_hold_or_to_be_refused() -> None:
    schema = set(leaves(TrainConfig()))
    assert {key for key in schema if key not in Pretrain.table()} == set()
    assert set(Pretrain.table()) - schema == set()
    found = [path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for experiment in found:
            composed = compose("train", [f"experiment={experiment}", "data.train=x", "model.prompter=null"])
            resolved = OmegaConf.to_container(composed, resolve=True)
            for key in flat(resolved):
                assert isinstance(Pretrain.after(key, resolved), After), key
    with pytest.raises(KeyError, match="optim.momentum"):
        Pretrain.after("optim.momentum", {})


def test_secrets_are_not_shown_and_defaults_are_no_change() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", ["experiment=demo_cloc"])
    now = OmegaConf.to_container(composed, resolve=True)
    before = OmegaConf.to_container(composed, resolve=True)
    del before["trainer"]["ema"], before["optim"]["layer_decay"], before["model"]["image"]["resize"]
    assert changes(Pretrain, before, now) == {}
    del before["data"]["streams"]  # runs of before have one
    assert changes(Pretrain, before, now) == {}
    now["data"]["streams"] = 4
    assert changes(Pretrain, before, now) == {"data.streams": "data.streams: 1 → 4"}
    now["data"]["streams"] = 1
    before["trainer"]["of_another_version"] = 1
    assert changes(Pretrain, before, now) == {}
    # Earlier versions stored the texts of environment variables.
    before |= {"seed": str(now["seed"]), "batch_size": str(now["batch_size"]), "resume": "true"}
    before["optim"] |= {"lr": str(now["optim"]["lr"]), "betas": [str(one) for one in now["optim"]["betas"]]}
    assert changes(Pretrain, before, now) == {}
    assert optim_config(before) == optim_config(now)
    assert changes(Pretrain, before | {"seed": "x"}, now).keys() == {"seed"}
    before["data"]["train"], now["data"]["train"] = "https://user:secret@host/set", "https://user:other@host/set"
    assert changes(Pretrain, before, now) == {}
    before["data"]["train"] = "https://user:secret@elsewhere/set"
    assert changes(Pretrain, before, now) == {"data.train": "data.train: https://elsewhere/set → https://host/set"}


@pytest.mark.parametrize("pixels", [{}, {"mean": None, "std": None}])
def test_pixel_statistics_that_were_not_stored_are_those_of_the_run(pixels: dict[str, Any]) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", ["experiment=demo_cloc", "model=vit_b16"])
    for name, told in (("ViT-B-16", []), ("ViT-L-14-CLIPA", ["model.image.mean", "model.image.std"])):
        before, now = (OmegaConf.to_container(composed, resolve=True) for _ in range(2))
        for resolved in (before, now):
            resolved["model"]["image"] |= {"name": name, "pretrained": None}
            Pretrain.complete(resolved)
        before["model"]["image"] = {key: v for key, v in before["model"]["image"].items() if key not in ("mean", "std")}
        before["model"]["image"] |= pixels
        assert list(changes(Pretrain, before, now)) == told


@pytest.mark.parametrize(
    ("cache", "frozen", "now", "changed"),
    [(None, False, "auto", 0), ("c", True, "auto", 0), ("c", False, "auto", 1), ("c", True, "float32", 1)],
)
def test_the_former_word_for_the_precision_of_the_cache_is_no_change(
    cache: str | None, frozen: bool, now: str, changed: int
) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", ["experiment=demo_clip"])
    before, after = (OmegaConf.to_container(composed, resolve=True) for _ in range(2))
    for config, value in ((before, "float16"), (after, now)):
        config["data"] |= {"token_cache": cache, "token_precision": value}
        config["model"]["frozen_towers"] = frozen
    assert len(changes(Pretrain, before, after)) == changed


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[Pretrain], None]) -> None:
    advance = Pretrain.advance

    def disturbed(self: Pretrain, batch: Any) -> None:
        advance(self, batch)
        if self.global_step == step:
            action(self)

    monkeypatch.setattr(Pretrain, "advance", disturbed)


@torch.no_grad()
def break_weights(module: Pretrain) -> None:
    module.model.image.proj.weight[0, 0] = torch.nan


EACH = ["samples=48", "trainer.checkpoint_every=8", "trainer.max_skipped_steps=2"]


def test_broken_weights_do_not_push_out_good_ones(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """They are not written, told and counted; the run ends, and goes on from before as if nothing had happened."""
    run.train(configure(squares, tmp_path / "whole", *EACH))
    with monkeypatch.context() as patch:
        at_step(patch, 3, break_weights)
        with pytest.raises(FloatingPointError, match="step 5: .* 2 steps in a row"):
            run.train(configure(squares, tmp_path / "run", *EACH))
    text = " ".join(capsys.readouterr().out.split())
    assert "step-00000003.ckpt could not be written: image.proj.weight is not finite" in text
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == ["step-00000002.ckpt", "step-00000001.ckpt"]
    assert rows(tmp_path / "run", "train/failed_checkpoints")[-1] == 2
    run.train(configure(squares, tmp_path / "run", *EACH))
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_a_broken_average_is_not_written(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_average(module: Pretrain) -> None:
        average = next(own for own in module.trainer.callbacks if hasattr(own, "_average_model"))
        break_weights(average._average_model.module)

    with monkeypatch.context() as patch:
        at_step(patch, 3, break_average)
        with pytest.raises(run.CheckpointError, match=r"step-00000006\.ckpt .*: average of image\.proj\.weight is not"):
            run.train(configure(squares, tmp_path, *EACH, "trainer.ema=0.5"))
    assert list_checkpoints(tmp_path / "checkpoints") == ["step-00000002.ckpt", "step-00000001.ckpt"]


@pytest.mark.slow
def test_checkpoints_between_skipped_steps_replace_each_other(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights may be finite and yet give no finite loss: those of before stay."""

    @torch.no_grad()
    def explode(module: Pretrain) -> None:
        module.model.image.proj.weight.fill_(3e38)

    at_step(monkeypatch, 3, explode)
    with pytest.raises(FloatingPointError):
        run.train(configure(squares, tmp_path, *EACH))
    names = list_checkpoints(tmp_path / "checkpoints")
    assert names == [f"step-0000000{step}.ckpt" for step in (4, 3, 2)]


def test_a_stored_checkpoint_of_broken_weights_is_not_continued(again: Path, squares: Path, capsys: Any) -> None:
    path = again / "checkpoints" / "step-00000004.ckpt"
    stored = torch.load(path, weights_only=True)
    stored["state_dict"]["model.image.proj.weight"][0, 0] = torch.inf
    torch.save(stored, path)
    run.train(configure(squares, again, *START, "samples=40"))
    text = " ".join(capsys.readouterr().out.split())
    assert "holds weights that are not finite, the first in model.image.proj.weight" in text
    assert "taking step-00000002.ckpt" in text


@pytest.mark.parametrize(("minutes", "expected"), [("1", [2, 4]), pytest.param("0", [4], marks=SLOW)])
def test_checkpoints_by_time(
    minutes: str, expected: list[int], squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a minute a step, by the clock."""
    now, advance = [0.0], Pretrain.advance

    def slow(self: Pretrain, batch: Any) -> None:
        advance(self, batch)
        now[0] += 30

    monkeypatch.setattr(Pretrain, "advance", slow)
    monkeypatch.setattr("cloc.engine.durable.checkpointing.time", SimpleNamespace(monotonic=lambda: now[0]))
    run.train(configure(squares, tmp_path, "samples=32", f"trainer.checkpoint_minutes={minutes}"))
    found = [inspect(tmp_path / "checkpoints" / name).step for name in list_checkpoints(tmp_path / "checkpoints")]
    assert sorted(found) == expected


def test_a_dry_run_refuses_what_goes_on_from_no_checkpoint(again: Path, squares: Path) -> None:
    """An unfinished run with what cannot change, and a command that wants a new one."""
    before = sorted(again.rglob("*"))
    cases = [
        (["samples=64", "seed=9"], "holds another seed"),
        (["samples=64", "model.joint_dim=16"], "holds another model"),
        (["samples=64", "resume=false"], "resume=false, but"),
        (["resume=false"], "resume=false, but"),
    ]
    for other, told in cases:
        for dry in ("true", "false"):
            with pytest.raises(ConfigError, match=told) as refused:
                run.train(configure(squares, again, *START, *optimizer("muon"), *other, f"dry_run={dry}"))
            assert "\n" not in str(refused.value)
            assert dry == "false" or sorted(again.rglob("*")) == before


def test_a_finished_run_asks_nothing_of_the_machine(
    again: Path, squares: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command on a login node without GPU, where the one with more samples is refused.

    But for a number of processes: a dry run plans for those that nobody has started.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for machine in ("trainer.accelerator=gpu", "trainer.devices=4"):
        same = [*START, *optimizer("muon"), machine]
        for dry in ("true", "false"):
            run.train(configure(squares, again, *same, f"dry_run={dry}"))
            assert "already trained on 32 samples" in " ".join(capsys.readouterr().out.split())
            if machine == "trainer.devices=4" and dry == "true":
                run.train(configure(squares, again, *same, "samples=64", "dry_run=true"))
                assert "4 rank(s)" in capsys.readouterr().out
                continue
            with pytest.raises(ConfigError, match=machine):
                run.train(configure(squares, again, *same, "samples=64", f"dry_run={dry}"))


def test_a_finished_run_is_told_and_one_with_other_settings_is_refused(
    again: Path, squares: Path, tmp_path: Path, capsys: Any
) -> None:
    """Scripts repeat a command; a trial with other values must not pass for one that was trained."""
    same = [*START, *optimizer("muon")]
    run.train(configure(squares, again, *same))
    told = " ".join(capsys.readouterr().out.split())
    assert "already trained on 32 samples (samples=32)" in told and "of no effect" not in told
    moved = shutil.copytree(squares / "tokenizer", tmp_path / "moved")
    how = ["trainer.log_every=7", "data.cache_bytes=0", "evaluation.limit=3", "name=other", f"init_from={again}"]
    run.train(configure(squares, again, *same, *how[:-1], f"model.text.tokenizer={moved}"))
    told = " ".join(capsys.readouterr().out.split())
    assert all(key in told.split("of no effect")[1] for key in ("trainer.log_every: 1 → 7", "name: ", "tokenizer: "))
    for other in (["optim.lr=0.5", "loss.region=0.25", "seed=9"], how[-1:], ["batch_size=4"], ["data.regions=2"]):
        for dry in ("true", "false"):
            with pytest.raises(ConfigError) as refused:
                run.train(configure(squares, again, *same, *other, f"dry_run={dry}"))
            message = str(refused.value)
            assert "set name or run_dir for each trial" in message and "\n" not in message
            assert all(f"{key.partition('=')[0]}: " in message for key in other)
    assert list_checkpoints(again / "checkpoints")[0] == "step-00000004.ckpt"
