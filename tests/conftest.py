"""Fixtures that every test may use."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from tests.kit.paths import ROOT

# Test processes share the cores (pytest-xdist), and sums do not depend on how many threads made them.
torch.set_num_threads(1)

# The fork server of a test process imports once what its children need. A server that runs takes no more orders: the
# first test that starts one must not decide for the others.
multiprocessing.set_forkserver_preload(["cloc.engine.run", "transformers"])


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of files too large for the repository: ``CLOC_SHARED``, or ``shared`` beside the clone; skips without."""
    named = os.environ.get("CLOC_SHARED")
    folder = Path(named).expanduser() if named else ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with the large test files; set CLOC_SHARED to where it is")
    return folder
