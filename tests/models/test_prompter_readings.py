"""What the Prompters leave open: each reading against its reference, at the start, and in numbers of parameters."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, normalize

from cloc.config import ConfigError
from cloc.models.build import build_model
from cloc.models.model import Cloc
from cloc.models.positions.fourier import fourier, grid_positions
from cloc.models.positions.image_size import fit_tables
from cloc.models.prompter import PaperPrompter, RoiAlign, SharedPrompter
from cloc.models.region_pooling import roi_tokens
from tests.kit.paths import ROOT

GRID, WIDTH, DIM = (3, 4), 16, 8
BOXES = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5], [0.1, 0.2, 0.9, 0.8]]]).expand(2, -1, -1).double()
CHOICES = PaperPrompter.choices
ONE_TOKEN = {"average": "all", "positions": "fixed", "norm": "pre", "box_tokens": 1}
READINGS = [dict(zip(CHOICES, chosen, strict=True)) for chosen in product(*CHOICES.values())]


def scattered(prompter: nn.Module) -> Any:
    """With random weights of float64: what starts at zero or one shall not hide anything."""
    for parameter in prompter.parameters():
        nn.init.normal_(parameter, std=0.3)
    return prompter.double()


def normed(states: Tensor, norm: Any) -> Tensor:
    return layer_norm(states, states.shape[-1:], norm.weight, norm.bias)


def reference(prompter: Any, prompt: Tensor, tokens: Tensor, average: str, added: Any, norm: str) -> Tensor:
    """One picture and one prompt ``[P,C]``: attention and perceptron over [prompt, tokens], written out."""
    layer, states = prompter.layer, torch.cat([prompt, tokens + added])
    seen = normed(states, layer.norm1) if norm == "pre" else states
    query, key, value = linear(seen, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(3, -1)
    states = states + layer.self_attn.out_proj((query @ key.T / math.sqrt(WIDTH)).softmax(-1) @ value)
    states = states if norm == "pre" else normed(states, layer.norm1)
    read = normed(states, layer.norm2) if norm == "pre" else states
    states = states + layer.linear2(gelu(layer.linear1(read)))
    states = states if norm == "pre" else normed(states, layer.norm2)
    kept = {"all": states, "prompt": states[: len(prompt)], "tokens": states[len(prompt) :]}[average]
    return normed(kept.mean(0), prompter.norm_out)


@pytest.mark.parametrize("reading", [*READINGS, ONE_TOKEN], ids=lambda reading: "-".join(map(str, reading.values())))
def test_each_reading_is_what_it_says(reading: dict[str, Any]) -> None:
    torch.manual_seed(0)
    prompter = scattered(PaperPrompter(WIDTH, DIM, GRID, mlp_ratio=1.5, **reading))
    tokens, texts = torch.randn(2, 12, WIDTH).double(), torch.randn(2, 3, DIM).double()
    added = {"none": 0.0, "fixed": grid_positions(GRID, WIDTH), "learned": prompter.positions}[reading["positions"]]
    added = added[0] if reading["positions"] == "learned" else added
    memory = prompter.memory(tokens)
    regions, states = prompter.boxes(memory, BOXES), prompter.phrases(memory, texts)
    for picture, slot in product(range(2), range(3)):
        corners = prompter.corner(fourier(BOXES[picture, slot], WIDTH // 2).view(reading.get("box_tokens", 2), -1))
        own = prompter.phrase_prompt(texts[picture, slot])[None]
        box, phrase = (
            reference(prompter, prompt, tokens[picture], reading["average"], added, reading["norm"])
            for prompt in (corners, own)
        )
        torch.testing.assert_close(regions[picture, slot], prompter.proj(box), rtol=0, atol=1e-12)
        torch.testing.assert_close(states[picture, slot], phrase, rtol=0, atol=1e-12)
    (regions.square().sum() + states.square().sum()).backward()
    # Distributed training waits for every gradient.
    assert all(parameter.grad is not None for parameter in prompter.parameters())


def test_readings_start_from_the_same_weights_and_cost_nothing_where_they_are_off() -> None:
    def drawn(**options: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        state: dict[str, Tensor] = PaperPrompter(WIDTH, DIM, GRID, **options).state_dict()
        return state

    before = drawn()
    for reading in READINGS:
        found = drawn(**reading)
        more = {"positions"} if reading["positions"] == "learned" else set()
        assert found.keys() - before.keys() == more
        assert all(found[name].equal(value) for name, value in before.items())


def test_learned_positions_follow_the_size_of_the_view() -> None:
    """And no optimizer takes them for a matrix: they have three dimensions."""
    small, large = (PaperPrompter(WIDTH, DIM, (side, side), positions="learned") for side in (4, 8))
    held: list[nn.Module] = [nn.Module(), nn.Module()]
    for whole, part in zip(held, (small, large), strict=True):
        whole.prompter = part
    held[1].load_state_dict(fit_tables(held[0].state_dict(), held[1]))
    assert large.positions is not None and small.positions is not None
    assert large.positions.shape == (1, 64, WIDTH) and small.positions.ndim == 3
    means = [part.positions.mean(1) for part in (small, large)]
    torch.testing.assert_close(*means, rtol=0, atol=0.05)


# --- boxes of one picture at the start --------------------------------------------------------------------------------


def tiny() -> Cloc:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = OmegaConf.to_container(compose("train", ["experiment=demo_cloc"]).model, resolve=True)
    assert isinstance(node, dict)
    node["text"] = {"_target_": "cloc.models.text.ClipText", "options": {"width": 16, "heads": 2, "layers": 1}}
    torch.manual_seed(0)
    return build_model(node | {"prompter": None, "grounding": None}).eval()


@pytest.fixture(scope="module")
def seen() -> Tensor:
    """Tokens of an untrained tiny tower, of four pictures with two colored squares."""
    pictures = torch.full((4, 3, 64, 64), 120, dtype=torch.uint8)
    for number in range(4):
        pictures[number, number % 3, 8:24, 8:24] = 230
        pictures[number, (number + 1) % 3, 36:60, 32:56] = 20
    with torch.no_grad():
        return tiny().encode_images(pictures).tokens


@torch.no_grad()
def cosine(tokens: Tensor, make: Any) -> float:
    """Of the two squares' boxes; mean over pictures and three draws of the head's weights."""
    boxes = torch.tensor([[[1 / 8, 1 / 8, 3 / 8, 3 / 8], [1 / 2, 9 / 16, 7 / 8, 15 / 16]]]).expand(4, -1, -1)
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        prompter = make(128, 128, (8, 8))
        first, second = normalize(prompter.boxes(prompter.memory(tokens), boxes), dim=-1).unbind(1)
        found.append((first * second).sum(-1).mean())
    return torch.stack(found).mean().item()


@pytest.mark.parametrize("positions", ["none", "fixed"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_average_over_the_prompt_tells_boxes_apart_at_the_start(seen: Tensor, positions: str, norm: str) -> None:
    """Not those that hold 64 patch tokens: these are the same for every box but for what attention brings them."""

    def of(average: str) -> float:
        return cosine(seen, lambda *shape: PaperPrompter(*shape, average=average, positions=positions, norm=norm))

    assert of("all") > 0.997 and of("tokens") > 0.999
    assert of("prompt") < 0.65


def test_the_other_heads_tell_boxes_apart_at_the_start(seen: Tensor) -> None:
    assert cosine(seen, RoiAlign) < 0.9 and cosine(seen, SharedPrompter) < 0.8
    assert cosine(seen, lambda *shape: SharedPrompter(*shape, focus=None)) < 0.9


# --- the other Prompters ----------------------------------------------------------------------------------------------


def test_shared_without_focus_has_neither_parameter_nor_prior() -> None:
    torch.manual_seed(0)
    prompter = scattered(SharedPrompter(WIDTH, DIM, GRID))
    bare = SharedPrompter(WIDTH, DIM, GRID, focus=None).double()
    state = prompter.state_dict()
    assert set(state) - set(bare.state_dict()) == {"focus"}
    bare.load_state_dict({name: value for name, value in state.items() if name != "focus"})
    tokens = torch.randn(2, 12, WIDTH).double()
    with torch.no_grad():
        prompter.focus.zero_()
        found, expected = (one.boxes(one.memory(tokens), BOXES) for one in (bare, prompter))
    torch.testing.assert_close(found, expected)
    assert SharedPrompter(WIDTH, DIM, GRID, focus=0.5).focus.unique().tolist() == [0.5]
    assert SharedPrompter(WIDTH, DIM, GRID).focus.unique().tolist() == [2.0]


def test_roi_align_with_a_perceptron() -> None:
    torch.manual_seed(0)
    plain = RoiAlign(WIDTH, DIM, GRID)
    torch.manual_seed(0)
    deep = RoiAlign(WIDTH, DIM, GRID, hidden=20)
    tokens, boxes = torch.randn(2, 12, WIDTH), BOXES.float()
    assert list(plain.state_dict()) == ["proj.weight"]
    torch.testing.assert_close(deep.boxes(tokens, boxes), plain.boxes(tokens, boxes))  # at the start
    scattered(deep)
    norm, wide, _, last = deep.mlp
    pooled = roi_tokens(tokens.double(), GRID, BOXES)
    expected = deep.proj(pooled + last(gelu(wide(normed(pooled, norm)))))
    torch.testing.assert_close(deep.boxes(tokens.double(), BOXES), expected)
    assert wide.weight.shape == (20, WIDTH)


def test_heads_of_equal_parameters() -> None:
    """The command lines of docs/method.md, for the tiny model; Prompters without grounding head."""

    def count(prompter: nn.Module) -> int:
        return sum(parameter.numel() for parameter in prompter.parameters())

    shape = (128, 128, (8, 8))
    shared = count(SharedPrompter(*shape))
    others = [count(PaperPrompter(*shape, mlp_ratio=3)), count(RoiAlign(*shape, hidden=768))]
    assert shared == 215_300
    assert all(abs(other / shared - 1) < 0.02 for other in others), others
    assert count(PaperPrompter(*shape)) > 1.15 * shared and count(RoiAlign(*shape)) < 0.08 * shared


@pytest.mark.parametrize(
    ("kind", "wrong", "told"),
    [
        (PaperPrompter, {"average": "cls"}, r"average='cls': give one of all, prompt, tokens"),
        (PaperPrompter, {"positions": None}, r"positions=None: give one of none, fixed, learned"),
        (PaperPrompter, {"norm": "Post"}, r"norm='Post': give one of pre, post"),
        (PaperPrompter, {"mlp_ratio": 0}, r"mlp_ratio=0"),
        (PaperPrompter, {"box_tokens": 3}, r"box_tokens=3"),
        (SharedPrompter, {"focus": math.nan}, r"focus=nan"),
        (RoiAlign, {"hidden": -1}, r"hidden=-1"),
    ],
)
def test_a_wrong_value_is_refused_by_class_and_configuration(kind: type, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.prompter\..*{told}"):
        kind(WIDTH, DIM, GRID, **wrong)
    node = {"_target_": f"cloc.models.prompter.{kind.__name__}", **wrong}
    text = {"_target_": "cloc.models.text.ClipText", "options": {"width": 16, "heads": 2, "layers": 1}}
    image = {"_target_": "cloc.models.image.TimmTower", "name": "test_vit", "image_size": 32}
    config = {"joint_dim": 8, "image": image, "text": text, "prompter": node, "grounding": None}
    with pytest.raises(ConfigError, match=rf"model\.prompter\.{next(iter(wrong))}="):
        build_model(config, pretrained=False)
