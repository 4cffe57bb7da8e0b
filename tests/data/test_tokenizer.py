"""Texts → ids: bounded time whatever the text, cleaned as the tower's training cleaned them."""

from __future__ import annotations

import json
import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from torch import nn

import cloc
from cloc.config import ConfigError, resolve
from cloc.data.bpe import quicken
from cloc.data.tokenizer import Tokenizer, open_tokenizer, shorten
from cloc.data.word_tokenizer import write_word_tokenizer
from cloc.models.build import build_model
from cloc.models.foreign.towers import FixedTokenizer
from cloc.models.text import ClipText
from cloc.models.weights.exported import open_clip_nodes
from cloc.models.weights.pretrained import complete, siglip_cleaning

WORDS = ["Petri dish", "petri dish", "petri dish.", "  PETRI-  dish!?", "petri\ndish"]
ALPHABETS = ("ab", "ha", "o", "abcdefghijklmnopqrstuvwxyz", "😂", "😂😍❤️🇺🇸", "中文字符测试图", "éèüñß", "-_=~.", "1a-")


@pytest.fixture(scope="module")
def plain() -> SimpleTokenizer:
    return SimpleTokenizer()


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer("open_clip", 77)


def random_text(rng: random.Random, most: int = 400) -> str:
    """A few long words of one alphabet each, some with spaces between them."""
    parts = (
        "".join(rng.choice(letters) for _ in range(rng.randint(1, most)))
        for letters in rng.choices(ALPHABETS, k=rng.randint(1, 3))
    )
    return rng.choice(("", " ", "\n")).join(parts)


def test_long_words_have_the_ids_of_open_clip(plain: SimpleTokenizer) -> None:
    rng, quick = random.Random(0), quicken(SimpleTokenizer())
    for text in (random_text(rng) for _ in range(120)):
        assert quick.encode(text) == plain.encode(text), text


def test_a_pair_of_lower_rank_waits_for_the_pass(plain: SimpleTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a merge makes may be in a pair that was learned before it: all places of the first are merged before."""
    ranks = {("b", "c"): 0, ("a", "bc"): 1, ("abc", "ab"): 2, ("a", "b"): 3, ("ab", "c"): 4}
    word = "x" * 70 + "abc" * 9 + "abab" * 9
    quick = quicken(SimpleTokenizer())
    for tokenizer in (plain, quick):
        monkeypatch.setattr(tokenizer, "bpe_ranks", ranks)
        monkeypatch.setattr(tokenizer, "cache", {})
    assert quick.bpe(word) == plain.bpe(word)


def test_the_cut_changes_no_id(ours: Tokenizer, plain: SimpleTokenizer) -> None:
    rng = random.Random(1)
    for text in (random_text(rng, 200) for _ in range(40)):
        ids, truncated = ours.encode(text)
        expected = plain.encode(text)
        assert list(ids[1:-1]) == expected[:75] and truncated == (len(expected) > 75)


@pytest.mark.parametrize("letters", ["abcdefghijklmnopqrstuvwxyz", "a", "😂😍", "中文字", " ", "- ", "&amp;"])
def test_the_time_of_one_text_is_bounded(letters: str, ours: Tokenizer) -> None:
    rng = random.Random(0)
    text = "".join(rng.choice(letters) if letters != "&amp;" else letters for _ in range(400_000)) + " end"
    fixed = FixedTokenizer(quicken(SimpleTokenizer()))
    ours.encode("warm")
    for encode in (ours.encode, fixed.encode):
        started = time.process_time()
        ids, _ = encode(text)
        assert time.process_time() - started < 5 and len(ids) <= 77
    assert ours.encode(text)[1], "what is cut is truncated"
    if letters.isalpha():
        assert len(ours.encode(text)[0]) == 77


def test_other_tokenizers_are_bounded_too(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_word_tokenizer(["a dog"], tmp_path)
    tokenizer = Tokenizer(str(tmp_path), 8)
    ids, truncated = tokenizer.encode("x" * 300_000 + " a dog")
    assert truncated and len(ids) <= 8
    assert tokenizer.encode("a dog") == (tokenizer.encode("a dog")[0], False)
    assert tokenizer.encode("a dog " * 50)[1]


def test_shortening_leaves_ordinary_texts_alone() -> None:
    text = "a brown dog " * 600
    assert shorten(text, 77) is text
    assert len(shorten(text * 9, 77)) == 8192 and len(shorten(text * 9, 1000)) == 32_000
    assert shorten(" " * 9000 + "a dog", 77) == "a dog"


@pytest.mark.parametrize("clean", ["whitespace", "lower", "canonicalize"])
def test_texts_are_cleaned_as_open_clip_does(clean: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_word_tokenizer(["petri dish a_b é"], tmp_path)
    for name in ("open_clip", str(tmp_path)):
        cleaned, bare = Tokenizer(name, 16, clean), Tokenizer(name, 16, None if name != "open_clip" else "whitespace")
        for text in [*WORDS, "a_b &amp; É", "“quoted”"]:
            assert cleaned.encode(text)[0] == bare.encode(get_clean_fn(clean)(text))[0]
        assert pickle.loads(pickle.dumps(cleaned)).clean == clean


def write_siglip(folder: Path, **tokenizer: Any) -> None:
    """A toy in the layout of SigLIP 2's folders: a tokenizer that knows case and punctuation."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    backend.train_from_iterator(WORDS * 3, trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    stored = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True} | named | tokenizer
    (folder / "tokenizer_config.json").write_text(json.dumps(stored))
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = part | {"vocab_size": 400, "max_position_embeddings": 16, "bos_token_id": 2, "eos_token_id": 1}
    config = transformers.SiglipConfig(text_config=text | {"pad_token_id": 0}, vision_config=part | {"image_size": 32})
    torch.manual_seed(0)
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def test_siglip_2_reads_texts_as_in_its_training(tmp_path: Path) -> None:
    write_siglip(tmp_path / "siglip2", do_lower_case=True)
    model = cloc.load(tmp_path / "siglip2")
    assert model.info["texts"] == "canonicalize"
    embedded = model.encode_text(WORDS)
    for row in embedded:
        torch.testing.assert_close(row, embedded[1])
    assert not torch.allclose(embedded[1], model.encode_text("petri dishes")[0], atol=1e-3)
    node = {"_target_": "cloc.models.text.ClipText", "pretrained": str(tmp_path / "siglip2")}
    image = {"_target_": "cloc.models.image.TimmTower", "name": "vit_tiny_patch16_224", "image_size": 16}
    image["options"] = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    stored = complete({"joint_dim": 16, "image": image, "text": node, "prompter": None, "grounding": None})
    assert stored["text"]["clean"] == "canonicalize"
    ours = build_model(stored).text
    tokenizer = Tokenizer.of(ours)
    assert len({tokenizer.encode(text)[0] for text in WORDS}) == 1
    with torch.no_grad():
        torch.testing.assert_close(
            nn.functional.normalize(ours(tokenizer(WORDS)), dim=-1), embedded, rtol=1e-4, atol=1e-5
        )


def test_a_tokenizer_that_says_that_case_matters_is_left_alone(tmp_path: Path) -> None:
    write_siglip(tmp_path / "cased", do_lower_case=False)
    assert siglip_cleaning(tmp_path / "cased") is None and siglip_cleaning(tmp_path) == "canonicalize"
    embedded = cloc.load(tmp_path / "cased").encode_text(WORDS)
    assert not torch.allclose(embedded[0], embedded[1], atol=1e-3)


def test_open_clips_siglip_2_is_cleaned_wherever_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = open_clip.get_model_config("ViT-B-16-SigLIP2")
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    assert open_clip_nodes(config | {"vision_cfg": vision}, {})[1]["clean"] == "canonicalize"
    node = {
        "_target_": "cloc.models.text.ClipText",
        "name": "ViT-B-16-SigLIP2",
        "pretrained": "webli",
        "tokenizer": "x",
    }
    image = {"_target_": "cloc.models.image.OpenClipTower"}
    done = complete({"joint_dim": 768, "image": image, "text": node})["text"]
    assert done["clean"] == "canonicalize" and done["context_length"] == 64
    assert complete({"joint_dim": 768, "image": image, "text": node | {"clean": "lower"}})["text"]["clean"] == "lower"


def test_a_cleaning_is_one_that_is_known() -> None:
    with pytest.raises(ConfigError, match=r"model\.text\.clean='upper': give whitespace, lower or canonicalize"):
        resolve({"_target_": "cloc.models.text.ClipText", "clean": "upper"}, "model.text")
    tower = ClipText(8, options={"width": 16, "heads": 2, "layers": 1}, clean="canonicalize")
    assert Tokenizer.of(tower).clean == "canonicalize"


# --- threads ----------------------------------------------------------------------------------------------------------


def write_tokenizer(folder: Path, side: str, cuts: bool) -> str:
    """A byte-pair tokenizer with special tokens at both ends; its file may say that texts are cut and padded."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers, processors

    letters = {
        letter: number for number, letter in enumerate(["<pad>", "<s>", "</s>", *pre_tokenizers.ByteLevel.alphabet()])
    }
    fast = Fast(models.BPE(letters, [], unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel()
    ends = [("<s>", letters["<s>"]), ("</s>", letters["</s>"])]
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    fast.post_processor = processors.Sequence([processors.ByteLevel(), template])
    if cuts:
        fast.enable_truncation(5)
        fast.enable_padding(length=9)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "truncation_side": side}
    transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **special).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("side", "cuts"), [("right", False), ("left", False), ("right", True)])
def test_long_texts_are_cut_as_transformers_cuts_them_without_a_switch(side: str, cuts: bool, tmp_path: Path) -> None:
    """The switch is the tokenizer's own: set for a long text, it would cut what other threads encode meanwhile."""
    name = write_tokenizer(tmp_path / "tokenizer", side, cuts)
    ours, theirs = Tokenizer(name, 12), open_tokenizer(name)
    for text in ("", "a dog", "a dog and a cat and two cups of tea", "é" * 50):
        ids, cut = ours.encode(text)
        assert list(ids) == theirs(text, truncation=True, max_length=12)["input_ids"]
        assert cut == (len(theirs(text)["input_ids"]) > 12) and len(ids) <= 12
        inside = ours._backend.backend_tokenizer
        assert inside.truncation is None and inside.padding is None


def test_threads_share_a_tokenizer(tmp_path: Path) -> None:
    name, rng = write_tokenizer(tmp_path / "tokenizer", "right", True), random.Random(0)
    texts = [" ".join(rng.choices(("a", "dog", "umbrella"), k=rng.choice((2, 200)))) for _ in range(200)]
    alone = [Tokenizer(name, 20).encode(text) for text in texts]
    plain = open_tokenizer(name)
    fixed = FixedTokenizer(partial(_padded, plain), 20)
    for _ in range(3):
        shared = Tokenizer(name, 20)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(shared.encode, texts, chunksize=1)) == alone
            for rows in pool.map(fixed, [texts[start::8] for start in range(8)]):
                assert rows.shape[1] == 20
    assert pickle.loads(pickle.dumps(fixed))(texts[:3]).equal(fixed(texts[:3]))


def _padded(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """As open_clip asks a tokenizer of transformers."""
    rows = tokenizer(texts, return_tensors="pt", max_length=20, padding="max_length", truncation=True)["input_ids"]
    assert isinstance(rows, torch.Tensor)
    return rows
