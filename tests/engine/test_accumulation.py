"""Accumulated through cached features = the same micro-batches in one graph, for every parameter."""

from __future__ import annotations

from dataclasses import replace

import lightning
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from benchmarks.step import make_batch
from cloc.config import ConfigError, validate
from cloc.contracts import Batch
from cloc.data.tokenizer import Tokenizer
from cloc.engine.accumulation import accumulated, join, split
from cloc.engine.module import Pretrain
from cloc.losses.objective import ClocLoss
from cloc.models.build import build_model
from cloc.models.model import Cloc
from tests.kit.paths import ROOT

MODEL = {
    "joint_dim": 32,
    "image": {
        "_target_": "cloc.models.image.TimmTower",
        "name": "vit_tiny_patch16_224",
        "image_size": 32,
        "options": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "class_token": False}
        | {"global_pool": "avg", "proj_drop_rate": 0.2},
        "adapter_depth": 1,
        "adapter_width": 64,
        "adapter_dropout": 0.3,
    },
    "text": {"_target_": "cloc.models.text.ClipText", "options": {"width": 32, "heads": 2, "layers": 1}},
    "prompter": {"_target_": "cloc.models.prompter.SharedPrompter"},
    "grounding": {"_target_": "cloc.models.grounding.SpatialHead"},
}


def tiny(**changes: object) -> Cloc:
    torch.manual_seed(0)
    return build_model(MODEL | changes, pretrained=False).train()


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Eight pictures with 0 to 3 regions; the second micro-batch has none, and phrases meet across micro-batches."""
    found = make_batch(8, 3, 32, Tokenizer("open_clip", 77))
    valid = torch.tensor(
        [[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 1, 0]]
    ).bool()
    phrase = found.region_phrase.clone()
    phrase[6, 0], phrase[4, 1] = phrase[0, 0], phrase[0, 1]
    negatives = torch.full((8, 3, 2), -1)
    negatives[0, 0, 0], negatives[6, 1, 1] = phrase[7, 0], phrase[0, 2]
    return replace(found, region_valid=valid, region_phrase=phrase, negatives=negatives)


def gradients(model: Cloc) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(value is not None for value in found.values())
    return found


@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
@pytest.mark.parametrize("bf16", [False, True])
def test_accumulated_equals_the_micro_batches_in_one_graph(batch: Batch, contrast: str, bf16: bool) -> None:
    bias = {"logit_bias": -10.0} if contrast == "sigmoid" else {}
    plain, cached = tiny(**bias), tiny(**bias)
    loss = ClocLoss(contrast=contrast)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        torch.manual_seed(7)
        terms = accumulated(cached, loss, batch, 4)
        after = torch.rand(1)
        torch.manual_seed(7)
        micros, phrases = split(batch, 4)
        parts = []
        for micro in micros:
            parts.append(plain(micro))
            torch.clear_autocast_cache()
        whole = join(parts, phrases, len(batch.phrases))
        with torch.autocast("cpu", enabled=False):
            expected = loss(replace(whole, scales=plain.scales()), batch)
        assert torch.rand(1) == after  # what follows draws the same numbers
    terms.total.backward()
    expected.total.backward()
    torch.testing.assert_close(terms.total, expected.total)
    assert terms.terms.keys() == expected.terms.keys() == {"global", "region", "grounding"}
    for name, value in gradients(plain).items():
        if bf16:
            assert (gradients(cached)[name] - value).norm() <= 0.02 * value.norm() + 1e-6, name
        else:
            torch.testing.assert_close(gradients(cached)[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_adding_up_micro_batches_is_something_else(batch: Batch) -> None:
    """The test above could not fail otherwise: gradients of separate losses differ."""
    whole, apart = tiny().eval(), tiny().eval()
    accumulated(whole, ClocLoss(), batch, 4).total.backward()
    for micro in split(batch, 4)[0]:
        (ClocLoss()(apart(micro), micro).total / 4).backward()
    name = "image.proj.weight"
    assert (gradients(whole)[name] - gradients(apart)[name]).norm() > 0.1 * gradients(whole)[name].norm()


def test_without_dropout_it_is_the_step_of_the_whole_batch(batch: Batch) -> None:
    whole, cached = tiny().eval(), tiny().eval()
    ClocLoss()(whole(batch), batch).total.backward()
    accumulated(cached, ClocLoss(), batch, 2).total.backward()
    for name, value in gradients(whole).items():
        torch.testing.assert_close(gradients(cached)[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_between_frozen_towers_it_is_the_step_of_the_whole_batch(batch: Batch) -> None:
    """Prompter and head alone have gradients, and so has the region's temperature; that of the pictures has none."""
    image = {**MODEL["image"], "adapter_depth": 0}
    model, loss = tiny(image=image, frozen_towers=True), ClocLoss(global_=None)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert "log_scales.region" in trained and "log_scales.global" not in trained
    found = []
    for terms in (loss(model(batch), batch), accumulated(model, loss, batch, 4)):
        found.append(torch.autograd.grad(terms.total, list(trained.values()), allow_unused=True))
    for name, one, other in zip(trained, *found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=name)


def test_a_plain_clip_accumulates_too(batch: Batch) -> None:
    whole, cached = tiny(prompter=None, grounding=None).eval(), tiny(prompter=None, grounding=None).eval()
    loss = ClocLoss(region=0.0, grounding=0.0)
    loss(whole(batch), batch).total.backward()
    accumulated(cached, loss, batch, 4).total.backward()
    for name, value in gradients(whole).items():
        torch.testing.assert_close(gradients(cached)[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.accumulate=0", "trainer.accumulate=0: must be at least 1"),
        ("trainer.accumulate=3", "trainer.accumulate=3: must be at least 1 and divide batch_size=8"),
        ("trainer=fsdp trainer.accumulate=2", "trainer.accumulate=2 with trainer.strategy=fsdp"),
        ("+trainer.accumulate_grad_batches=2", "accumulate_grad_batches.*did you mean 'accumulate'"),
    ],
)
def test_what_cannot_be_accumulated_is_refused(override: str, message: str) -> None:
    run = ["name=toy", "samples=64", "batch_size=8", "data.train=nowhere", *override.split()]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), pytest.raises(ConfigError, match=message):
        validate(compose("train", run))


def test_a_trainer_that_adds_up_parts_is_refused() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", ["name=toy", "samples=8", "batch_size=8", "data.train=nowhere"])
    module = Pretrain(validate(composed), OmegaConf.to_container(composed, resolve=True))
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(accumulate_grad_batches=2, max_steps=1, enable_model_summary=False, **options)
    with pytest.raises(ConfigError, match=r"accumulate_grad_batches=2.*trainer\.accumulate=2"):
        trainer.fit(module, DataLoader([0]))


def test_a_part_of_a_process_must_divide(batch: Batch) -> None:
    with pytest.raises(ValueError, match="trainer.accumulate=3 does not divide the 8 pictures of a process"):
        split(batch, 3)
