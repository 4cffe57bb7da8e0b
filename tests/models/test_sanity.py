"""Models that would say NaN, or fail at their first picture, are refused where they are loaded; so are absurd sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import cloc
from cloc.evaluation.embed import embed
from cloc.evaluation.model_outputs import ModelOutputs
from cloc.evaluation.reduce import Ranks
from cloc.models.trust.values import check_room
from cloc.models.weights.pretrained import complete
from tests.kit.exporting import OPEN_CLIP, TEXT, make_run
from tests.models.test_trust import hugging_face_folder, open_clip_folder, refused

NAN, INFINITE = float("nan"), float("inf")
BAD_PIXELS = [
    ("mean", [NAN, 0.5, 0.5]),
    ("mean", [0.5, 0.5]),
    ("mean", ["0.5", 0.5, 0.5]),
    ("mean", [127.5] * 3),
    ("std", [0.5, 0.0, 0.5]),
    ("std", [0.5, -1, 0.5]),
    ("std", [0.5, INFINITE, 0.5]),
    ("std", [1e-9] * 3),
    ("std", [58.4] * 3),
]


def change(file: Path, *keys: str, to: Any) -> Path:
    content = json.loads(file.read_text())
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = to
    file.write_text(json.dumps(content))
    return file.parent


@pytest.mark.parametrize(("key", "value"), BAD_PIXELS)
def test_statistics_of_pixels_are_three_sensible_numbers(tmp_path: Path, key: str, value: list[Any]) -> None:
    folder = change(open_clip_folder(tmp_path / "a") / "open_clip_config.json", "preprocess_cfg", key, to=value)
    refused(folder, rf"/a: {key}=.* three numbers")
    refused(Path(f"open_clip:local-dir:{folder}"), rf"/a: {key}=.* three numbers")
    folder = change(hugging_face_folder(tmp_path / "b") / "preprocessor_config.json", f"image_{key}", to=value)
    refused(folder, rf"/b: {key}=.* three numbers")
    run = make_run(tmp_path / "run")
    file = run / "checkpoints/last.ckpt"
    stored = torch.load(file, weights_only=True)
    stored["cloc"]["config"]["model"]["image"][key] = value
    torch.save(stored, file)
    refused(run, rf"last\.ckpt.*{key}")


@pytest.mark.parametrize("side", [0, -1, 10**6, "32", None, 32.5, True])
def test_a_short_side_is_a_number_of_pixels(tmp_path: Path, side: Any) -> None:
    folder = hugging_face_folder(tmp_path / "b")
    refused(change(folder / "preprocessor_config.json", "size", "shortest_edge", to=side), r"shortest_edge=")


@pytest.mark.parametrize("bad", [NAN, INFINITE, -INFINITE])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, bad: float) -> None:
    for folder, file, name in (
        (open_clip_folder(tmp_path / "a"), "open_clip_model.safetensors", "ln_final.bias"),
        (hugging_face_folder(tmp_path / "b"), "model.safetensors", "vision_model.post_layernorm.bias"),
    ):
        state = load_file(folder / file)
        state[name][0] = bad
        save_file(state, folder / file, {"format": "pt"})
        refused(folder, rf"/{folder.name}: 1 of \d+ numbers of .*{name.rpartition('.')[0].split('.')[-1]}.* not finite")
    run = make_run(tmp_path / "run")
    stored = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    stored["state_dict"]["model.text.tower.ln_final.bias"][3] = bad
    torch.save(stored, run / "checkpoints/last.ckpt")
    refused(run, r"last\.ckpt: 1 of 64 numbers of text\.tower\.ln_final\.bias are not finite")


def test_large_finite_weights_are_finite(tmp_path: Path) -> None:
    """Their sum is not."""
    run = make_run(tmp_path / "run")
    stored = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    stored["state_dict"]["model.log_scales.global"] = torch.tensor([3e38])
    stored["state_dict"]["model.text.tower.token_embedding.weight"][5] = 3e38  # of a token that the trial has not
    torch.save(stored, run / "checkpoints/last.ckpt")
    cloc.load(run)


@pytest.mark.parametrize("eps", [NAN, INFINITE, 0.0, -1.0])
def test_a_norm_divides_by_a_positive_number(tmp_path: Path, eps: float) -> None:
    folder = open_clip_folder(tmp_path / "a", text_cfg={"norm_kwargs": {"eps": eps}})
    refused(folder, r"eps=")
    folder = change(hugging_face_folder(tmp_path / "b") / "config.json", "vision_config", "layer_norm_eps", to=eps)
    refused(folder, r"eps=")


@pytest.mark.parametrize(
    ("section", "option"),
    [
        ("text_cfg", {"heads": 2.0}),
        ("text_cfg", {"embed_cls": True}),
        ("vision_cfg", {"pool_type": "none"}),
    ],
)
def test_a_tower_that_fails_at_its_first_picture_is_refused_at_load(
    tmp_path: Path, section: str, option: dict[str, Any]
) -> None:
    refused(open_clip_folder(tmp_path / "stranger", **{section: option}), "/stranger")


def test_embeddings_that_are_not_finite_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are finite can still overflow on one picture: a black one here."""
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "black.png")
    run = make_run(tmp_path / "run")
    encoder = cloc.load(run)
    tower = type(encoder.model.image).forward

    def overflow(self: Any, images: torch.Tensor) -> Any:
        pooled, tokens = tower(self, images)
        dark = images.mean((1, 2, 3)) < -1
        return torch.where(dark.unsqueeze(1), torch.nan, pooled), tokens

    monkeypatch.setattr(type(encoder.model.image), "forward", overflow)
    folder = tmp_path / "pictures"
    folder.mkdir()
    (tmp_path / "black.png").rename(folder / "black.png")
    with pytest.raises(ValueError, match="run: 1 of 1 rows for pictures are not finite"):
        embed(str(run), folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.npz"))
    monkeypatch.setattr(type(encoder), "encode_text", lambda self, texts, *_: torch.full((len(texts), 32), NAN))
    with pytest.raises(ValueError, match="rows for texts are not finite"):
        ModelOutputs(encoder, Ranks()).texts(["a chick"])


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "option", "told"),
    [
        ("vision_cfg", {"layers": 1_000_000}, r"vision_cfg\.layers=1000000.*at most 1,000"),
        ("vision_cfg", {"width": 10_000_000}, "describes at least [0-9,]+ weights"),
        ("vision_cfg", {"width": 10**9}, r"vision_cfg\.width=.*at most"),
        ("vision_cfg", {"layers": 1000}, "describes at least"),
        ("vision_cfg", {"image_size": 10**6}, r"image_size=.*at most"),
        ("vision_cfg", {"mlp_ratio": 1e6}, "describes at least"),
        ("vision_cfg", {"mlp_ratio": INFINITE}, "mlp_ratio=inf"),
        ("text_cfg", {"vocab_size": 2**24}, "describes at least"),
        ("text_cfg", {"context_length": 10**6}, r"context_length=.*at most"),
        ("embed_dim", 2**23, "describes at least"),
        ("embed_dim", 2**40, "embed_dim=.*at most"),
    ],
)
def test_absurd_sizes_of_open_clip_are_refused_before_anything_is_built(
    tmp_path: Path, section: str, option: Any, told: str
) -> None:
    folder = open_clip_folder(tmp_path / "stranger", **{section: option})
    refused(folder, told)
    if section != "embed_dim":
        part, target = {"vision_cfg": ("image", OPEN_CLIP), "text_cfg": ("text", TEXT)}[section]
        nodes = {"image": OPEN_CLIP, "text": TEXT} | {part: {"_target_": target["_target_"], "pretrained": str(folder)}}
        with pytest.raises(ValueError, match=told):
            complete({"joint_dim": 16, **nodes})


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("vision_config", "num_hidden_layers"), 10**6),
        (("vision_config", "hidden_size"), 10**7),
        (("vision_config", "intermediate_size"), 2**24),
        (("text_config", "vocab_size"), 2**24),
        (("text_config", "max_position_embeddings"), 2**24),
        (("projection_dim",), 2**24),
    ],
)
def test_absurd_sizes_of_hugging_face_are_refused(tmp_path: Path, keys: tuple[str, ...], value: int) -> None:
    folder = change(hugging_face_folder(tmp_path / "b") / "config.json", *keys, to=value)
    refused(folder, r"config\.json: .*(at most|describes at least)")


@pytest.mark.parametrize(
    ("part", "option"),
    [
        ("image", {"layers": 10**6}),
        ("image", {"layers": 1000, "width": 768}),
        ("image", {"width": 10**7}),
        ("text", {"vocab_size": 2**24}),
        ("text", {"width": 2**24}),
    ],
)
def test_absurd_sizes_of_a_checkpoint_are_refused(tmp_path: Path, part: str, option: dict[str, int]) -> None:
    run = make_run(tmp_path / "run")
    stored = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    stored["cloc"]["config"]["model"][part]["options"] |= option
    torch.save(stored, run / "checkpoints/last.ckpt")
    refused(run, r"last\.ckpt.*(at most|describes at least)")


@pytest.mark.parametrize(
    ("name", "millions"),  # parameters, of open_clip's docs/model_profile.csv
    [
        ("ViT-B-32", 151.28),
        ("ViT-L-14", 427.62),
        ("RN50", 102.01),
        ("ViT-B-16-SigLIP", 203.16),
        ("convnext_base_w", 179.39),
        ("coca_ViT-B-32", 253.56),
    ],
)
def test_published_architectures_have_room_in_their_weights(name: str, millions: float) -> None:
    """Even in files of one byte a number."""
    config = open_clip.get_model_config(name)
    check_room({"joint_dim": config["embed_dim"], **config}, int(millions * 1e6), name)
