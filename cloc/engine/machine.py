"""The machine of a process: threads, reading processes, precision; and what a run writes before its weights."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch
import yaml

from cloc.command import shielded
from cloc.config.secrets import public_tree
from cloc.config.versions import versions
from cloc.data.stream.workers import start_server
from cloc.files import make_folder, write_file, write_json
from cloc.models.devices import computes_bfloat16


def prepare_run(folder: Path, resolved: dict[str, Any], data_digest: str) -> None:
    """Write ``config.yaml``, without credentials, and ``versions.json`` into the run folder."""
    make_folder(folder)
    write_file(folder / "config.yaml", yaml.safe_dump(public_tree(resolved), sort_keys=False, allow_unicode=True))
    write_json(folder / "versions.json", versions() | {"data": data_digest})


def shield_workers() -> dict[str, Any]:
    """Keep reading processes out of the signals that stop a run, and from outliving this process.

    Launchers and terminals signal whole process groups. A reader that dies of it would end the run before its
    checkpoint.

    Returns:
        Options of the DataLoader.
    """
    with shielded({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}):
        start_server()  # it inherits the mask, and its children do
    return {"worker_init_fn": end_with_parent}


def end_with_parent(index: int) -> None:
    """End this reading process when the training process is gone, however it went."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        assert parent is not None  # this process was started by another
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def use_threads(count: int) -> None:
    """Limit the CPU threads of this process; 0 leaves PyTorch's choice."""
    if count:
        torch.set_num_threads(count)


def precision_of(name: str, accelerator: str) -> str:
    """Lightning's name of a precision: for ``auto`` bfloat16 where the device computes it, else float32.

    Args:
        name: ``trainer.precision``.
        accelerator: ``trainer.accelerator``.
    """
    if name != "auto":
        return name
    gpu = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
    return "bf16-mixed" if computes_bfloat16(torch.device("cuda" if gpu else "cpu")) else "32-true"
