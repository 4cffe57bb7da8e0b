"""Credentials of URLs are used, and neither shown nor stored."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from cloc.__main__ import app
from cloc.config import ConfigError, DataConfig
from cloc.config.secrets import _PublicStream, public, public_tree
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.stores import Access, tell
from cloc.data.shards.tars import ShardError
from cloc.data.stream.sources import open_shards, open_sources
from cloc.engine import run
from cloc.engine.sweep import jobs as sweep_jobs
from tests.kit.clocks import skip_pauses
from tests.kit.hostile_http import Request, serving
from tests.kit.paths import ROOT
from tests.kit.resuming import TINY, configure, make_squares, newest_step

SECRETS = ("S3cret", "TOK3N", "dXNlcjpTM2NyZXQ", "Basic ")  # password, token, the Authorization header


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://user:S3cret@host:80/set?token=TOK3N: refused", "http://host:80/set?token=***: refused"),
        ("https://TOK3N@host/a.tar", "https://host/a.tar"),
        ("https://user:S3/cr?et@host/a.tar", "https://host/a.tar"),
        ("s3://KEY:S3+c/ret@bucket/a.tar", "s3://bucket/a.tar"),
        ("sftp://me:S3:cret@host:22/x", "sftp://host:22/x"),
        ("https://h/x.tar?X-Amz-Signature=TOK3N&X-Amz-Date=1", "https://h/x.tar?X-Amz-Signature=***&X-Amz-Date=***"),
        ("https://h/x.tar?TOK3N", "https://h/x.tar?***"),
        ("https://h/x#access_token=TOK3N", "https://h/x#access_token=***"),
        ("gs://b/x?generation=12", "gs://b/x?generation=***"),
        ("zip://a.tar::https://u:S3cret@h/z?k=TOK3N", "zip://a.tar::https://h/z?k=***"),
        ("http:/user:S3cret@host/x: no such folder", "http:/host/x: no such folder"),
        ("['data.train=\"http://u:S3cret@h/x?t=TOK3N\"', 'a=b']", "['data.train=\"http://h/x?t=***\"', 'a=b']"),
        ("headers={'Host': 'h', 'Authorization': 'Basic dXNlcjpTM2NyZXQ=', 'A': 'b'}", None),
        ("<CIMultiDictProxy(('Authorization', 'Bearer TOK3N'))>", None),
        ("Authorization: Bearer TOK3N", "Authorization: ***"),
        ("x-amz-security-token: TOK3N", "x-amz-security-token: ***"),
        *((same, same) for same in ("hf://datasets/a/b@main/x.tar", "abfs://box@account.net/x", "http://h:80/a@v2/x")),
        *((same, same) for same in ("s3://b/shard?.tar", "C:/a@b", "a@b.de", "runs/x?y=z", "http://[::1]:80/x", "")),
        *((same, same) for same in ("open_clip:ViT-B-32:laion", "local-dir:/models@2/x", "file:///a@b/c.tar")),
    ],
)
def test_what_is_public_of_a_text(given: str, shown: str | None) -> None:
    found = public(given)
    assert shown is None or found == shown
    assert not leaks(found) and public(found) == found


def test_what_is_public_of_a_configuration() -> None:
    url = "http://us er:S3'cret@h/x?t=TOK3N"
    tree = {
        "data": {"train": {"a": {"path": url, "weight": 1}}},
        "hf_token": "TOK3N",
        "tokenizer": "words",
        "n": [1, url],
    }
    found = public_tree(tree)
    assert found["data"]["train"]["a"] == {"path": "http://h/x?t=***", "weight": 1}
    assert (found["hf_token"], found["tokenizer"], found["n"]) == ("***", "words", [1, "http://h/x?t=***"])
    assert tree["hf_token"] == "TOK3N"


def test_errors_lose_credentials_by_themselves() -> None:
    for kind in (ConfigError, ShardError):
        assert str(kind("http://u:S3cret@h/x?t=TOK3N: no")) == "http://h/x?t=***: no"
    assert leaks(tell(OSError("url='http://u:S3cret@h',\n headers={'Authorization': 'Basic dXNlcjpTM2NyZXQ='}"))) == []


def test_what_a_program_prints_loses_credentials() -> None:
    file = io.StringIO()
    stream = _PublicStream(file)
    print("http://u:S3cret@h/x", "b", file=stream)
    stream.writelines(["http://u:S3cret@h/y\n"])
    assert file.getvalue() == "http://h/x b\nhttp://h/y\n" and not stream.isatty()


def secret_url(host: str, query: str = "?token=TOK3N", user: str = "user:S3cret") -> str:
    return f"http://{user}@{host}/set{query}"


@pytest.mark.parametrize("status", [401, 403, 404, 302, 500, 200, None])
def test_no_error_shows_credentials(
    status: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the message nor the traceback below it, nor the log at its most talkative."""
    skip_pauses(monkeypatch)

    def answer(request: Request) -> bool:
        if status is None:
            request.close_connection = True
            return True
        return request.reply(status, b"{", {"Location": f"http://u:S3cret@h/{request.path}"})

    with serving(tmp_path, answer) as server, caplog.at_level(logging.DEBUG, "cloc"):
        for path in (secret_url(server.host), secret_url(server.host, "/a-{0..1}.tar?token=TOK3N")):
            for train in (path, {"web": {"path": path}}):
                with pytest.raises((ShardError, FileNotFoundError)) as caught:
                    open_sources(DataConfig(train=train, cache_dir=str(tmp_path / "cache")))
                assert not leaks("".join(traceback.format_exception(caught.value)) + caplog.text)
                assert "\n" not in str(caught.value) and server.host in str(caught.value)
    assert not leaks(" ".join(str(path) for path in tmp_path.rglob("*")))


@pytest.mark.parametrize(
    "path",
    [
        *("foo://u:S3cret@h/x?t=TOK3N", "http://u:S3cret@h/{a.tar?t=TOK3N", "pipe:curl http://u:S3cret@h/x?t=TOK3N"),
        *(
            "http://u:S3/cret@127.0.0.1:9/x?t=TOK3N",
            "zip://a::http://u:S3cret@h/x",
            "http://u:S3cret@h/s-{0..9999999}.tar",
        ),
    ],
)
def test_no_refusal_shows_credentials(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_pauses(monkeypatch)
    for train in (path, {"a": {"path": path, "wieght": 1}}, {"a": path}, [path]):
        with pytest.raises((ConfigError, ShardError)) as caught:
            open_sources(DataConfig(train=train, cache_dir=str(tmp_path)))
        assert not leaks("".join(traceback.format_exception(caught.value)))


def test_a_lost_shard_is_told_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_pauses(monkeypatch)
    folder = make_squares(tmp_path / "squares") / "train"
    with serving(folder, lambda request: ".tar" in request.path and request.reply(500)) as server:
        for limit in (0, 1 << 30):
            cache = ShardCache(tmp_path / "cache", limit, Access(timeout=2))
            away = open_shards(secret_url(server.host), cache)
            assert "S3cret" in away.location(0)
            with pytest.raises(ShardError) as caught:
                ShardReader(away, cache=cache).read(0, 0)
            assert not leaks("".join(traceback.format_exception(caught.value)))


def test_commands_of_local_folders_show_no_credentials() -> None:
    for command in (["data", "check"], ["data", "show"], ["data", "bench"]):
        done = CliRunner().invoke(app, [*command, "http://user:S3cret@host/set?token=TOK3N"])
        assert done.exit_code and not leaks(public(f"{done.output} {done.exception}"))


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
    return make_squares(tmp_path_factory.mktemp("squares"))


def guarded(request: Request) -> bool:
    """Serve those who know the token."""
    return False if request.path.endswith("=TOK3N") and "Authorization" in request.headers else request.reply(403)


def stored_secrets(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and leaks(path.read_bytes().decode("latin-1"))]


def test_a_run_keeps_no_credentials_and_takes_them_again(squares: Path, tmp_path: Path, capsys: Any) -> None:
    """Resumed with other credentials nothing has changed."""
    options = [f"data.cache_dir={tmp_path / 'cache'}", "trainer.checkpoint_every=16", "logger=tensorboard"]
    with serving(squares / "train", guarded) as server:
        for samples, user in ((16, "user:S3cret"), (32, "other:S3cret2")):
            train = f"data.train='{secret_url(server.host, user=user)}'"
            run.train(configure(squares, tmp_path / "run", train, f"samples={samples}", *options))
    assert newest_step(tmp_path / "run") == 4
    assert not stored_secrets(tmp_path)
    shown = f"http://{server.host}/set?token=***"
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["train"] == shown
    stored = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["cloc"]["config"]["data"]["train"] == shown
    output = capsys.readouterr()
    assert not leaks(output.out + output.err)
    assert "samples: 16 → 32" in output.out and "data.train" not in output.out


def test_a_sweep_keeps_no_credentials(tmp_path: Path) -> None:
    overrides = ["data.train='http://user:S3cret@h/x?token=TOK3N'", "seed=1"]
    sweep_jobs.note_overrides(tmp_path / "0", overrides)
    assert (
        sweep_jobs.job_folder(str(tmp_path), 0, [overrides[0].replace("S3cret", "0ther"), "seed=1"]) == f"{tmp_path}/0"
    )
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": overrides}}))
    sweep_jobs.hide_secrets(tmp_path / "multirun.yaml")
    sweep_jobs.hide_secrets(tmp_path / "absent.yaml")
    assert not stored_secrets(tmp_path)
    assert yaml.safe_load((tmp_path / "multirun.yaml").read_text())["hydra"]["overrides"][1] == "seed=1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "full"),
    [
        (["data.train='{url}'", "dry_run=true"], "0"),
        (["data.train={url}"], "0"),  # what Hydra cannot parse
        (["data.trian='{url}'"], "0"),
        (["+data.train.a='{url}'"], "1"),
        (["data.train='{url}'", "-m", "hydra.sweep.dir={folder}", "seed=0,1"], "1"),
    ],
)
def test_no_command_line_is_repeated_with_credentials(given: list[str], full: str, tmp_path: Path) -> None:
    with serving(tmp_path, lambda request: request.reply(403)) as server:
        own = [text.format(url=secret_url(server.host), folder=tmp_path / "sweep") for text in given]
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *TINY, "name=x", f"run_dir={tmp_path}/run", *own],
            **{"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 120},
            env=os.environ | {"PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": full},
        )
    assert done.returncode and not leaks(done.stdout + done.stderr), done.stderr
    assert not stored_secrets(tmp_path)
