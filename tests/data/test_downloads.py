"""What must be downloaded where there is no network: one line, at once, with the command that brings it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

import cloc
from cloc.data import downloads
from cloc.data.downloads import DownloadError, from_hub, from_url, unreachable
from cloc.data.shards.stores import read_document
from cloc.data.tokenizer import Tokenizer
from cloc.data.word_tokenizer import write_word_tokenizer
from cloc.models.image import OpenClipTower, TimmTower
from cloc.models.text import HuggingFaceText
from cloc.models.weights.downloads import timm_weights

CLOSED = "http://127.0.0.1:9"
pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine without a network and with an empty cache of the hub; returns the cache."""
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(downloads, "_answers", {})
    monkeypatch.setattr(downloads, "_met", set())
    yield tmp_path / "hub"
    assert not constants.HF_HUB_OFFLINE


WAYS: dict[str, tuple[Callable[[], Any], str]] = {
    "a tag of open_clip": (
        lambda: cloc.load("open_clip:ViT-B-32:laion2b_s34b_b79k"),
        "hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ),
    "a repository of open_clip": (lambda: cloc.load("open_clip:hf-hub:a/b"), "hf download a/b"),
    "a tag to train from": (
        lambda: OpenClipTower(512, "ViT-B-32", pretrained="openai"),
        "hf download timm/vit_base_patch32_clip_224.openai",
    ),
    "a backbone": (
        lambda: TimmTower(8, "test_vit", 160, pretrained=True),
        "hf download timm/test_vit.r160_in1k",
    ),
    "a backbone of a repository": (lambda: TimmTower(8, "hf-hub:a/b"), "hf download a/b"),
    "a text encoder": (lambda: HuggingFaceText(8, "a/encoder"), "hf download a/encoder"),
    "a text encoder without its weights": (
        lambda: HuggingFaceText(8, "a/encoder", pretrained=False),
        "hf download a/encoder",
    ),
    "a tokenizer": (lambda: Tokenizer("a/words").encode("x"), "hf download a/words"),
    "shards": (
        lambda: read_document("hf://datasets/a/b@main/manifest.json"),
        "hf download a/b@main --repo-type dataset",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_told_at_once_with_the_command(way: str) -> None:
    load, command = WAYS[way]
    started = time.monotonic()
    with pytest.raises(DownloadError, match=f"127.0.0.1:9 cannot be reached: Connection refused.*`{command}") as caught:
        load()
    assert "\n" not in str(caught.value) and time.monotonic() - started < 20


def test_what_is_switched_off_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(downloads, "unreachable", lambda url: pytest.fail("asked"))
    with pytest.raises(DownloadError, match=r"the tokenizer 'a/words' cannot be fetched \(HF_HUB_OFFLINE is set\)"):
        Tokenizer("a/words").encode("x")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        read_document("hf://datasets/a/b/manifest.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_what_was_brought_is_taken(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = nowhere / "models--a--words"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs/main").write_text("0" * 40)
    write_word_tokenizer(["a chick"], kept / "snapshots" / ("0" * 40))
    (kept / "snapshots" / ("0" * 40) / "config.json").write_text('{"model_type": "bert"}')
    assert Tokenizer("a/words").encode("a chick")[0] == (2, 4, 5, 3)


@pytest.mark.parametrize("name", ["data/openmoji/tokenizer", "no/such/encoder", "two words"])
def test_a_path_that_is_not_there_is_no_name_of_a_hub(name: str) -> None:
    for load in (lambda: Tokenizer(name).encode("x"), lambda: HuggingFaceText(8, name)):
        with pytest.raises(FileNotFoundError, match=f"{name} is no folder here") as caught:
            load()
        assert "\n" not in str(caught.value)


def test_a_url_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "weights.pt"
    with pytest.raises(DownloadError, match=rf"x cannot be fetched.*`curl -L -O {CLOSED}/w.pt`.*{kept}"):
        with from_url("x", f"{CLOSED}/w.pt", kept):
            pytest.fail("the library was called")
    kept.touch()
    with from_url("x", f"{CLOSED}/w.pt", kept):
        pass
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DownloadError, match="`curl -L -O https://.*/gcvit"), timm_weights("gcvit_base.in1k", True):
        raise ConnectionError("x")


def test_other_errors_pass_and_those_of_a_network_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "unreachable", lambda url: None)
    with pytest.raises(ValueError, match="^wrong$"), from_hub("x", "a/b"):
        raise ValueError("wrong")
    with pytest.raises(DownloadError, match=r"x cannot be fetched \(broken pipe\); .*hf download a/b"):
        with from_hub("x", "a/b"):
            try:
                raise ConnectionError("broken\npipe")
            except ConnectionError as error:
                raise RuntimeError("a long story") from error
    missing = type("RepositoryNotFoundError", (ConnectionError,), {})
    with pytest.raises(DownloadError, match="the hub has no such repository.*hf auth login"), from_hub("x", "a/b"):
        raise OSError("a long story") from missing("404")


def test_a_server_is_looked_for_at_the_proxy_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = f"http://u:p@127.0.0.1:{server.getsockname()[1]}"
        assert unreachable(proxy) is None
        monkeypatch.setenv("https_proxy", proxy)
        assert unreachable("https://nowhere.invalid/x") is None
    monkeypatch.setenv("https_proxy", "http://u:p@127.0.0.1:9")
    assert unreachable("https://nowhere.invalid/x") == f"{CLOSED} cannot be reached: Connection refused"
    monkeypatch.delenv("https_proxy")
    monkeypatch.setattr(downloads, "PATIENCE", 0.2)
    monkeypatch.setattr(
        downloads, "socket", SimpleNamespace(**vars(socket) | {"getaddrinfo": lambda *_: time.sleep(1) or []})
    )
    started = time.monotonic()
    assert unreachable("https://slow.invalid") == "https://slow.invalid cannot be reached: no answer in time"
    assert time.monotonic() - started < 2
