"""What the tests of durable runs train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.resuming import make_squares


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
    return make_squares(tmp_path_factory.mktemp("squares"))
