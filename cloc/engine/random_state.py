"""The state of a process's random generators: read, set, seeded (below ``accumulation`` and ``durable``)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state() -> dict[str, Any]:
    """States of all generators, Python's, NumPy's and PyTorch's, as plain containers and tensors."""
    legacy: Any = np.random.get_state()  # a tuple, in this form
    name, keys, *rest = legacy
    cpu, gpu = generators("cuda" if torch.cuda.is_available() else "cpu")
    state = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": cpu,
    }
    return state if gpu is None else state | {"cuda": gpu}


def set_random_state(state: dict[str, Any]) -> None:
    """Inverse of :func:`random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    with_gpu = "cuda" in state and torch.cuda.is_available()
    set_generators("cuda" if with_gpu else "cpu", (state["torch"], state.get("cuda")))


def seed_generators(seed: int) -> None:
    """Start all generators from one number below 2³²."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def generators(kind: str) -> tuple[Tensor, Tensor | None]:
    """States of PyTorch's generators that a model on a kind of device draws from: the CPU's, and the GPU's or None."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if kind == "cuda" else None


def set_generators(kind: str, state: tuple[Tensor, Tensor | None]) -> None:
    """Inverse of :func:`generators`."""
    torch.set_rng_state(state[0])
    if kind == "cuda" and state[1] is not None:
        torch.cuda.set_rng_state(state[1])
