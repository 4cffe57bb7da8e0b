"""A checkpoint without its run folder: it carries its text tower's files, or says what must come along."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import cloc
from cloc.config import ConfigError
from cloc.data.tokenizer import Tokenizer
from cloc.data.word_tokenizer import write_word_tokenizer
from cloc.engine.durable.initial_weights import take_weights
from cloc.engine.pretrain_data import save_text_files
from cloc.models.build import build_model
from cloc.models.trust import text_files
from cloc.models.trust.text_files import DIGEST, KEY
from tests.kit.exporting import OPEN_CLIP, TEXT, save, stored, word_text

pytest.importorskip("transformers")
WORDS = ["a chick and a cup", "two dogs run left of an umbrella"]


def model_of(text: dict[str, Any]) -> dict[str, Any]:
    return {"joint_dim": 32, "image": OPEN_CLIP, "text": text, "prompter": None, "grounding": None}


def train(run: Path, text: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A run folder as training leaves it; returns what its checkpoint holds."""
    torch.manual_seed(0)
    model = build_model(model_of(text))
    built = model_of({**text, "pretrained": False} if "name" in text else text)
    content = stored(model.state_dict(), built) | save_text_files(model.text, run) | more
    save(run / "checkpoints/last.ckpt", content)
    return content


def alone(run: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(run / "checkpoints/last.ckpt", folder / "model.ckpt")
    return folder / "model.ckpt"


def other_tokenizer(folder: Path) -> None:
    """The same words with other numbers."""
    write_word_tokenizer(WORDS, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    last = max(words.values())
    content["model"]["vocab"] = {word: i if i < 4 else last + 4 - i for word, i in words.items()}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def encoder_folder(folder: Path) -> Path:
    """A small Hugging Face text encoder with its tokenizer."""
    from transformers import BertConfig, BertModel

    rows = write_word_tokenizer(WORDS, folder)
    part = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=rows, max_position_embeddings=32, **part)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["ClipText", "HuggingFaceText"])
def test_it_says_the_same_where_nothing_else_of_the_run_is(kind: str, tmp_path: Path) -> None:
    if kind == "ClipText":
        text = word_text(tmp_path / "words")
    else:
        name = str(encoder_folder(tmp_path / "words"))
        text = {"_target_": "cloc.models.text.HuggingFaceText", "name": name, "context_length": 24}
    train(tmp_path / "run", text)
    right = cloc.load(tmp_path / "run").encode_text(WORDS)
    file = alone(tmp_path / "run", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "words")
    model = cloc.load(file)
    assert model.name == "model" and Path(model.info["run"]).parent == file.parent
    assert torch.equal(model.encode_text(WORDS), right)
    assert torch.equal(pickle.loads(pickle.dumps(model.tokenizer))(WORDS), model.tokenizer(WORDS))
    model.tokenizer.save(tmp_path / "saved")
    assert torch.equal(Tokenizer(str(tmp_path / "saved"), 24)(WORDS), model.tokenizer(WORDS))
    assert not (tmp_path / "saved/config.json").exists()
    assert Tokenizer.of(model.model.text).digest == model.tokenizer.digest


def test_its_own_files_count_whatever_lies_at_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", word_text(Path("words")))
    right = cloc.load("run").encode_text(WORDS)
    file = alone(tmp_path / "run", tmp_path / "elsewhere")
    shutil.rmtree("words")
    other_tokenizer(Path("words"))
    assert torch.equal(cloc.load(file).encode_text(WORDS), right)


def test_without_its_files_another_tokenizer_at_their_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of earlier versions have neither files nor digest; those whose tokenizer is too large have a digest."""
    monkeypatch.chdir(tmp_path)
    content = train(tmp_path / "run", word_text(Path("words")), **{KEY: {}})
    right = cloc.load("run").encode_text(WORDS)
    file = alone(tmp_path / "run", tmp_path / "elsewhere")
    assert torch.equal(cloc.load(file).encode_text(WORDS), right)  # its words are those that lie there
    old = {key: value for key, value in content.items() if key not in (KEY, DIGEST)}
    save(tmp_path / "elsewhere/old.ckpt", old)
    for _ in range(2):
        with pytest.raises(ConfigError, match="'words' is the path that its run had.*copy its text/ beside"):
            cloc.load("elsewhere/old.ckpt")
        shutil.rmtree("words")
        other_tokenizer(Path("words"))
    with pytest.raises(ConfigError, match="words holds another tokenizer than the one that it was trained with"):
        cloc.load(file)
    shutil.rmtree("words")
    for name in ("old.ckpt", "model.ckpt"):
        with pytest.raises(ConfigError, match="'words' is no folder here.*copy its text/ beside the checkpoint"):
            cloc.load(f"elsewhere/{name}")
    shutil.copytree("run/text", "elsewhere/text")
    for name in ("old.ckpt", "model.ckpt"):
        assert torch.equal(cloc.load(f"elsewhere/{name}").encode_text(WORDS), right)
    shutil.rmtree("elsewhere/text")
    other_tokenizer(Path("elsewhere/text"))
    with pytest.raises(ConfigError, match="text holds another tokenizer"):
        cloc.load(file)


def test_open_clips_tokenizer_stays_whatever_lies_beside(tmp_path: Path) -> None:
    """As where a second checkpoint lies in the folder, and the ``text/`` of its run."""
    content = train(tmp_path / "run", TEXT)
    assert content[DIGEST] == Tokenizer().digest and KEY not in content
    right = cloc.load(tmp_path / "run").encode_text(WORDS)
    file = alone(tmp_path / "run", tmp_path / "elsewhere")
    save(tmp_path / "elsewhere/old.ckpt", {key: value for key, value in content.items() if key != DIGEST})
    encoder_folder(tmp_path / "elsewhere/text")
    for one in (file, tmp_path / "elsewhere/old.ckpt"):
        model = cloc.load(one)
        assert model.tokenizer.name == "open_clip" and torch.equal(model.encode_text(WORDS), right)


@pytest.mark.parametrize(
    "files",
    [
        ["tokenizer.json"],
        {"../tokenizer.json": torch.zeros(3, dtype=torch.uint8)},
        {"/tmp/x.json": torch.zeros(3, dtype=torch.uint8)},
        {"tokenizer.py": torch.zeros(3, dtype=torch.uint8)},
        {".json": torch.zeros(3, dtype=torch.uint8)},
        {"tokenizer.json\n": torch.zeros(3, dtype=torch.uint8)},
        {7: torch.zeros(3, dtype=torch.uint8)},
        {"tokenizer.json": "{}"},
        {"tokenizer.json": torch.zeros(3)},
        {"tokenizer.json": torch.zeros(1, dtype=torch.uint8).expand(1 << 28)},
        {f"{i}.json": torch.zeros(1, dtype=torch.uint8) for i in range(99)},
    ],
)
def test_what_it_carries_is_data_of_bounded_size(files: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", word_text(tmp_path / "words"), **{KEY: files})
    with pytest.raises(ValueError, match="text_files") as caught:
        cloc.load(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_none_is_told_in_a_line(tmp_path: Path) -> None:
    content = train(tmp_path / "run", word_text(tmp_path / "words"))
    files = {**content[KEY], "tokenizer.json": torch.tensor(list(b'{"model": 7}'), dtype=torch.uint8)}
    save(tmp_path / "run/checkpoints/last.ckpt", {**content, KEY: files})
    with pytest.raises(ValueError, match="no tokenizer that transformers reads") as caught:
        cloc.load(tmp_path / "run").encode_text(WORDS)
    assert "\n" not in str(caught.value)


def test_only_what_belongs_to_a_tokenizer_is_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "text"
    write_word_tokenizer(WORDS, folder)
    (folder / "code.py").write_text("1")
    (folder / "empty.txt").touch()
    (tmp_path / "secret").write_text("x")
    (folder / "link.json").symlink_to(tmp_path / "secret")
    found = text_files.carried(folder)
    assert {"tokenizer.json", "tokenizer_config.json", "empty.txt"} <= found.keys()
    assert not {"code.py", "link.json"} & found.keys()
    assert text_files.admit_files(found, "x") == {name: (folder / name).read_bytes() for name in found}
    monkeypatch.setattr(text_files, "MOST_BYTES", 100)
    assert text_files.carried(folder) == {}


def test_a_run_does_not_begin_with_weights_for_other_words(tmp_path: Path) -> None:
    text = word_text(tmp_path / "words")
    train(tmp_path / "run", text)
    file = alone(tmp_path / "run", tmp_path / "elsewhere")
    torch.manual_seed(1)
    model = build_model(model_of(text))
    assert "image, text" in take_weights(model, str(file))
    other_tokenizer(tmp_path / "words")
    rows = {**text["options"], "vocab_size": Tokenizer(str(tmp_path / "words")).vocab_size}
    train(tmp_path / "small", {**text, "options": rows})
    shutil.rmtree(tmp_path / "words")
    write_word_tokenizer(WORDS, tmp_path / "words")
    with pytest.raises(
        ConfigError, match="its text tower was trained with another tokenizer.*set that to text/ of its run"
    ):
        take_weights(build_model(model_of({**text, "options": rows})), str(tmp_path / "small"))
