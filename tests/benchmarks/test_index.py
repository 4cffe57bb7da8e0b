"""The figures of the index benchmark are there, and are those of an index: a small one, and a small job."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import index


def measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["index", *arguments])
    index.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.distributed
def test_the_processes_of_a_host(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(monkeypatch, capsys, "--shards", "70", "--samples", "1000", "--processes", "2", "--lookups", "100")
    assert 8 < found["bytes_per_sample"] < 9
    assert 5 < found["private_mib_per_process"] < 100  # without PyTorch
    assert found["open_seconds"] > 0 and found["lookups_per_second"] > 0


def test_a_job_opens_each_shard_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(monkeypatch, capsys, "--job", "--shards", "640")
    assert found["calls"]["before"] > 512 * 640 * 4 and found["calls"]["now"] < 20_000
    assert found["remote_requests"] == {"before": 512, "now": 192}
