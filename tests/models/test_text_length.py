"""Texts of another length than pretrained weights: positions are stretched or cut, and the run can be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cloc.config import ConfigError
from cloc.encoder import Encoder
from cloc.engine.durable.initial_weights import take_weights
from cloc.models.build import build_model
from cloc.models.model import Cloc
from cloc.models.positions.resizing import stretch_positions
from cloc.models.text import ClipText, HuggingFaceText
from cloc.models.weights.open_clip_towers import text_length
from cloc.models.weights.pretrained import complete

EMBED = 16
SIZES = {"width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
ARCHITECTURE = {
    "embed_dim": EMBED,
    "vision_cfg": VISION,
    "text_cfg": {"context_length": 77, "vocab_size": 49408} | SIZES,
}
IMAGE = {
    "_target_": "cloc.models.image.TimmTower",
    "name": "vit_tiny_patch16_224",
    "image_size": 16,
    "options": {"embed_dim": 16, "depth": 1, "num_heads": 2},
}
TEXT = {"_target_": "cloc.models.text.ClipText"}


def config(text: dict[str, Any]) -> dict[str, Any]:
    return {"joint_dim": EMBED, "image": IMAGE, "text": TEXT | text, "prompter": None, "grounding": None}


def shaken(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return shaken(open_clip.model.CustomTextCLIP(**ARCHITECTURE))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """A small architecture under a name of open_clip's registry."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "toy", ARCHITECTURE)
    return "toy"


@pytest.fixture
def source(request: pytest.FixtureRequest, theirs: nn.Module, toy: str, tmp_path: Path) -> dict[str, Any]:
    """The text node that starts from the same weights, as a file, a pickled file or a folder."""
    if request.param == "file":
        save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
        return {"name": toy, "pretrained": str(tmp_path / "weights.safetensors")}
    if request.param == "pickled":
        torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "weights.pt")
        return {"name": toy, "pretrained": str(tmp_path / "weights.pt")}
    if request.param == "open_clip":
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE, "preprocess_cfg": {}}))
        save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    else:
        transformers = pytest.importorskip("transformers")
        part = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        text = part | {"hidden_act": "gelu", "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
        vision = part | {"image_size": 32, "patch_size": 16}
        stored = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED)
        shaken(transformers.CLIPModel(stored)).save_pretrained(tmp_path)
    return {"pretrained": str(tmp_path)}


def words(count: int, at: int | None = None) -> Tensor:
    """Token ids of a text, one of whose words may be another."""
    ids = torch.full((1, count + 2), 1000)
    ids[0, 0], ids[0, -1] = 49406, 49407
    if at is not None:
        ids[0, at] = 2000
    return ids


def rebuilt(model: Cloc, stored: dict[str, Any]) -> Cloc:
    """From configuration and weights alone, as a checkpoint is loaded."""
    again = build_model(json.loads(json.dumps(stored)), pretrained=False)
    again.load_state_dict(model.state_dict())
    return again.eval()


@pytest.mark.parametrize("source", ["file", "pickled", "open_clip", "hf"], indirect=True)
def test_longer_texts_are_read_to_their_end_and_the_run_can_be_loaded(source: dict[str, Any]) -> None:
    base = build_model(complete(config(source))).eval()
    stored = complete(config(source | {"context_length": 248}))
    assert stored["text"]["context_length"] == 248 and complete(stored) == stored
    model = build_model(stored).eval()
    assert model.text.context_length == 248 and base.text.context_length == 77
    with torch.no_grad():
        for one in (model, rebuilt(model, stored)):
            torch.testing.assert_close(
                one.text(words(18)), base.text(words(18))
            )  # the first 20 places are as they were
            assert not torch.allclose(one.text(words(200)), one.text(words(200, at=150)), atol=1e-6)
            assert not torch.allclose(one.text(words(246)), one.text(words(246, at=246)), atol=1e-6)


@pytest.mark.parametrize("source", ["file", "open_clip", "hf"], indirect=True)
@pytest.mark.parametrize("length", [32, None])
def test_shorter_texts_are_as_the_weights_read_them(source: dict[str, Any], length: int | None) -> None:
    base = build_model(complete(config(source))).eval()
    stored = complete(config(source | {"context_length": length}))
    assert stored["text"]["context_length"] == (length or 77)
    model = build_model(stored).eval()
    with torch.no_grad():
        for one in (model, rebuilt(model, stored)):
            torch.testing.assert_close(one.text(words(30, at=29)), base.text(words(30, at=29)))


def test_a_file_of_another_length_than_its_architecture_is_taken_as_it_is(
    theirs: nn.Module, toy: str, tmp_path: Path
) -> None:
    """Long-CLIP's: open_clip alone would squeeze its 248 positions into 77."""
    state = theirs.state_dict()
    state["text.positional_embedding"] = stretch_positions(state["text.positional_embedding"], 248)
    save_file(state, tmp_path / "long.safetensors")
    stored = complete(config({"name": toy, "pretrained": str(tmp_path / "long.safetensors")}))
    assert stored["text"]["context_length"] == 248
    assert build_model(stored).text.tower.positional_embedding.equal(state["text.positional_embedding"])
    short = build_model(complete(config(stored["text"] | {"context_length": 77})))
    assert short.text.tower.positional_embedding.equal(state["text.positional_embedding"][:77])


def test_a_tag_has_the_length_of_its_architecture() -> None:
    assert text_length("ViT-B-32", "openai") == 77 and text_length("ViT-B-16-SigLIP", "webli") == 64
    node = {"name": "ViT-B-32", "pretrained": "openai"}
    assert complete(config(node))["text"]["context_length"] == 77
    assert complete(config(node | {"context_length": 248}))["text"]["context_length"] == 248


def test_stretching_is_long_clips() -> None:
    table = torch.randn(77, 5, dtype=torch.float64)
    long = stretch_positions(table, 248)
    assert long[:20].equal(table[:20])
    for i in range(56):
        for k in range(4):
            expected = (4 - k) / 4 * table[20 + i] + k / 4 * table[21 + i]
            torch.testing.assert_close(long[20 + 4 * i + k], expected)
    for k in range(4):  # behind the last one
        torch.testing.assert_close(long[244 + k], table[76] + k / 4 * (table[76] - table[75]))
    assert stretch_positions(table, 77).equal(table) and stretch_positions(table, 9).equal(table[:9])
    for own, length in ((3, 4), (16, 77), (64, 65), (77, 78)):  # a square of squares is no grid either
        made = stretch_positions(torch.arange(own, dtype=torch.float64)[:, None].expand(-1, 3), length)
        assert made.shape == (length, 3) and (made.diff(dim=0) > 0).all()


def test_what_reads_its_padding_has_one_length(toy: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    part = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = part | {"vocab_size": 64, "max_position_embeddings": 64}
    vision = part | {"image_size": 16, "patch_size": 16}
    transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text)).save_pretrained(
        tmp_path
    )
    for length in (77, 248, 16):
        with pytest.raises(
            ConfigError, match=rf"context_length={length} does not go with .* padded to 64 tokens; give 64, or null"
        ):
            complete(config({"pretrained": str(tmp_path), "context_length": length}))
    for length in (None, 64):
        assert complete(config({"pretrained": str(tmp_path), "context_length": length}))["text"]["context_length"] == 64
    with pytest.raises(ConfigError, match="context_length=248 does not go with"):
        node = {"name": "ViT-B-16-SigLIP", "pretrained": "webli", "context_length": 248, "tokenizer": str(tmp_path)}
        complete(config(node))


def test_towers_without_weights_have_the_length_that_is_given() -> None:
    assert ClipText(8, options=SIZES).context_length == 77
    assert ClipText(8, options=SIZES, context_length=9).context_length == 9
    assert complete(config({"context_length": None, "options": SIZES}))["text"]["context_length"] == 77
    assert complete(config({"options": SIZES}))["text"] == TEXT | {"options": SIZES}


def test_a_new_run_from_another_may_have_longer_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = build_model(config({"context_length": 16, "options": SIZES}))
    found = Encoder(old, {"config": {}, "run": "run"})
    monkeypatch.setattr("cloc.engine.durable.initial_weights.load", lambda path, **options: found)
    new = build_model(config({"context_length": 40, "options": SIZES}))
    assert "positions of texts from 16 to 40" in take_weights(new, str(tmp_path))
    assert new.text.tower.positional_embedding.equal(
        stretch_positions(old.text.tower.positional_embedding.detach(), 40)
    )
    other = build_model(config({"context_length": 16, "options": SIZES | {"width": 48}}))
    with pytest.raises(ConfigError, match="another architecture"):
        take_weights(other, str(tmp_path))


@pytest.mark.parametrize(("kind", "most"), [("Bert", 40), ("Roberta", 38)])
def test_no_more_tokens_than_an_encoder_has_positions(kind: str, most: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    stored = getattr(transformers, f"{kind}Config")(vocab_size=60, max_position_embeddings=40, pad_token_id=1, **sizes)
    getattr(transformers, f"{kind}Model")(stored).save_pretrained(tmp_path)
    tower = HuggingFaceText(8, str(tmp_path), context_length=most)
    assert tower(torch.full((1, most), 5)).shape == (1, 8)
    with pytest.raises(ConfigError, match=rf"context_length={most + 1}: .* has {most} positions"):
        HuggingFaceText(8, str(tmp_path), context_length=most + 1)
