"""Our own parts are what the protocols say, and what is declared wrongly is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cloc.models import protocols
from cloc.models.build import build_model
from cloc.models.protocols import GroundingHead, ImageTower, Prompter, TextTower, layers, prefix_tokens, recompute
from tests.kit.exporting import CNN, MLP, OPEN_CLIP, PAPER, SHARED, SPATIAL, TEXT, TIMM


def members(protocol: Any) -> set[str]:
    named = set(protocol.__annotations__) | {name for name in vars(protocol) if not name.startswith("_")}
    return named | ({"forward"} if "__call__" in vars(protocol) else set())


@pytest.mark.parametrize("image", [OPEN_CLIP, TIMM, CNN], ids=["open_clip", "timm", "cnn"])
@pytest.mark.parametrize(("prompter", "grounding"), [(SHARED, SPATIAL), (PAPER, MLP)], ids=["shared", "paper"])
def test_our_parts_have_what_the_protocols_name(image: Any, prompter: Any, grounding: Any) -> None:
    model = build_model({"joint_dim": 32, "image": image, "text": TEXT, "prompter": prompter, "grounding": grounding})
    for part, protocol in (
        (model.image, ImageTower),
        (model.text, TextTower),
        (model.prompter, Prompter),
        (model.grounding, GroundingHead),
    ):
        assert [name for name in members(protocol) if not hasattr(part, name)] == []
    pooled, tokens = model.image(torch.zeros(2, 3, model.image.image_size, model.image.image_size))
    rows, columns = model.image.grid
    assert pooled.shape == (2, model.image.joint_dim) and tokens.shape == (2, rows * columns, model.image.width)


def test_prefix_tokens_are_those_before_the_patches() -> None:
    options = TIMM["options"] | {"reg_tokens": 3}
    nodes = (OPEN_CLIP, TIMM, TIMM | {"options": options}, CNN)
    towers = [build_model({"joint_dim": 32, "image": node, "text": TEXT}).image for node in nodes]
    assert [prefix_tokens(tower) for tower in towers] == [1, 1, 4, 0]


class Wrong(nn.Module):
    """Declares what it does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)


def test_a_layer_or_a_block_that_is_not_there_is_told() -> None:
    tower = Wrong()
    tower.block_modules = lambda: [nn.Linear(2, 2)]
    with pytest.raises(ValueError, match=r"Wrong.block_modules\(\) gives a Linear that is not in it"):
        layers(tower)
    tower.parameter_layers = lambda: {"iner.weight": 0}
    with pytest.raises(ValueError, match=r"Wrong.parameter_layers\(\) names 'iner.weight'"):
        layers(tower)


def test_what_can_recompute_is_told_to() -> None:
    tower = Wrong()
    tower.set_grad_checkpointing = lambda enable=True: setattr(tower, "told", enable)
    assert recompute(tower) == ["Wrong"] and tower.told
    assert protocols.blocks(tower) == []
