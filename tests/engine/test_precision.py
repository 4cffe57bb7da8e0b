"""``trainer.precision=auto``: bfloat16 where the device computes it, never where it would be imitated."""

from __future__ import annotations

import pytest
import torch

from cloc.engine.machine import precision_of


@pytest.mark.parametrize(
    ("gpu", "computed", "accelerator", "expected"),
    [
        (False, True, "auto", "bf16-mixed"),
        (False, False, "auto", "32-true"),
        (True, False, "gpu", "32-true"),
        (True, True, "auto", "bf16-mixed"),
    ],
)
def test_auto_asks_the_device(
    gpu: bool, computed: bool, accelerator: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: computed)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: computed)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: computed, raising=False)
    assert precision_of("auto", accelerator) == expected


@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_name_is_taken_as_it_is(name: str) -> None:
    assert precision_of(name, "auto") == name
