"""States of optimizers that earlier versions wrote: their groups were others, the moments stay with their parameter."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch.optim import AdamW, Muon

from cloc.config import OptimConfig
from cloc.engine.optim import Combined, build_optimizer, optim_config, parameter_groups, rearranged
from cloc.models.build import build_model
from cloc.models.model import Cloc

TEXT = {"_target_": "cloc.models.text.ClipText", "options": {"width": 16, "heads": 2, "layers": 1}}
IMAGE = {"_target_": "cloc.models.image.TimmTower", "image_size": 64}


def model(**image: Any) -> Cloc:
    torch.manual_seed(0)
    parts = {"image": IMAGE | image, "text": TEXT, "prompter": None, "grounding": None}
    return build_model({"joint_dim": 16, **deepcopy(parts)}, pretrained=False)


def factor_without_blocks(name: str, config: OptimConfig) -> float:
    """Earlier versions had two layers in a ResNet: what its names tell to be the input, and all the rest."""
    if not name.startswith("image."):
        raise AssertionError(name)
    return config.layer_decay if re.search(r"embed|\.(conv1|conv_stem|bn1)\.", f"tower.{name}") else 1.0


def former_state(built: Cloc, config: OptimConfig, names: list[list[str]], muon: int) -> tuple[dict[str, Any], Any]:
    """One step with groups of these names; the first of them are Muon's. The state, and the moments by name."""
    named = dict(built.named_parameters())
    groups = [{"params": [named[name] for name in own]} for own in names]
    adamw: Any = AdamW(groups[muon:])
    optimizer = Combined([Muon(groups[:muon]), adamw]) if muon else adamw
    for own in names:
        for name in own:
            named[name].grad = torch.randn_like(named[name])
    optimizer.step()
    parts = getattr(optimizer, "optimizers", [optimizer])
    moments = {p: value for part in parts for p, value in part.state.items()}
    return optimizer.state_dict(), {name: deepcopy(moments[named[name]]) for own in names for name in own}


def check_taken_over(built: Cloc, config: OptimConfig, state: dict[str, Any], moments: dict[str, Any]) -> None:
    """The optimizer of today goes on with the moments, each with its parameter."""
    optimizer = build_optimizer(built, config)
    optimizer.load_state_dict(rearranged(state, built, config, config))
    found = {p: value for part in getattr(optimizer, "optimizers", [optimizer]) for p, value in part.state.items()}
    trained = [(name, parameter) for name, parameter in built.named_parameters() if parameter.requires_grad]
    assert len(found) == len(trained)
    for name, parameter in trained:
        for key, value in found[parameter].items():
            torch.testing.assert_close(value, moments[name][key], msg=f"{name} {key}")


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("backbone", "head", "more"),
    [
        ("test_convnext", "image.trunk.head.norm", {}),
        ("test_vit3", "image.trunk.attn_pool", {}),
        ("test_convnext", "image.trunk.head.norm", {"tune_last": 1}),
    ],
)
def test_moments_of_a_head_that_is_frozen_by_now_are_left_out(
    kind: str, backbone: str, head: str, more: dict[str, Any]
) -> None:
    built = model(name=backbone, adapter_depth=1, adapter_width=64, **more)
    config = OptimConfig(name=kind, layer_decay=0.5 if kind == "adamw" else 1.0)
    frozen = [name for name, _ in built.named_parameters() if name.startswith(head)]
    assert frozen and not any(dict(built.named_parameters())[name].requires_grad for name in frozen)
    for name in frozen:  # as it was
        dict(built.named_parameters())[name].requires_grad_(True)
    old = parameter_groups(built, config)
    state, moments = former_state(built, config, [list(g.names) for g in old], sum(g.optimizer == "muon" for g in old))
    for name in frozen:
        dict(built.named_parameters())[name].requires_grad_(False)
    with pytest.raises(ValueError, match="doesn't match the size|different number of parameter groups"):
        build_optimizer(built, config).load_state_dict(deepcopy(state))
    check_taken_over(built, config, state, moments)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_of_a_backbone_whose_layers_were_not_counted_stay_with_their_parameter(kind: str) -> None:
    built, config = model(name="test_resnet"), OptimConfig(name=kind, layer_decay=0.8)
    today = parameter_groups(built, config)
    kinds = {name: (g.optimizer, g.weight_decay) for g in today for name in g.names}
    factor = {name: g.peak_lr for g in today for name in g.names}  # of the text tower, as it is
    for name in kinds:
        if name.startswith("image."):
            factor[name] = factor_without_blocks(name, config)
        elif name.startswith("text."):
            factor[name] /= config.muon_lr if kinds[name][0] == "muon" else config.lr
        else:
            factor[name] = 1.0
    old: dict[Any, list[str]] = {}
    for name, _ in built.named_parameters():
        if name in kinds:
            optimizer, decay = kinds[name]
            old.setdefault((optimizer != "muon", -decay, -round(factor[name], 6)), []).append(name)
    groups = [old[key] for key in sorted(old)]
    assert len(groups) < len(today)
    state, moments = former_state(built, config, groups, sum(not key[0] for key in old))
    check_taken_over(built, config, state, moments)
    with pytest.raises(ValueError, match=r"its moments are of 1 parameters in 1 groups, here are \d+ in \d+"):
        wrong = {"state": {}, "param_groups": [{"params": [0]}]}
        rearranged(wrong, built, config, OptimConfig(name=kind, layer_decay=0.5, tower_rate=0.1))


def test_a_state_of_today_is_handed_on_as_it_is() -> None:
    built, config = model(name="test_resnet"), OptimConfig(name="adamw", layer_decay=0.8)
    state = build_optimizer(built, config).state_dict()
    assert rearranged(state, built, config, config) is state


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_of_a_checkpoint_without_head_rate_load_with_one(kind: str) -> None:
    """What earlier versions stored: a configuration without the key, and groups of parts with one rate."""
    torch.manual_seed(0)
    image = IMAGE | {"name": "test_vit", "image_size": 32}
    heads = {"prompter": {"_target_": "cloc.models.prompter.PaperPrompter"}}
    heads |= {"grounding": {"_target_": "cloc.models.grounding.MlpHead"}}
    built = build_model({"joint_dim": 16, "image": image, "text": TEXT, **heads}, pretrained=False)
    config = OptimConfig(name=kind)
    without = {key: value for key, value in asdict(config).items() if key != "head_rate"}
    before = optim_config({"optim": without})
    assert before == config
    old = parameter_groups(built, before)
    state, moments = former_state(built, before, [list(g.names) for g in old], sum(g.optimizer == "muon" for g in old))
    assert rearranged(state, built, before, config) is state
    optimizer = build_optimizer(built, now := OptimConfig(name=kind, head_rate=3.0))
    optimizer.load_state_dict(rearranged(state, built, before, now))
    assert len(optimizer.param_groups) > len(old)
    found = {p: value for part in getattr(optimizer, "optimizers", [optimizer]) for p, value in part.state.items()}
    for name, parameter in built.named_parameters():
        for key, value in moments[name].items():
            torch.testing.assert_close(found[parameter][key], value, msg=f"{name} {key}")
