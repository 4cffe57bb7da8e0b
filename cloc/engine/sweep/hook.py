"""What Hydra calls around the jobs of ``train.py -m``: their failures are kept and told, and the report comes last.

Above ``report``. Hydra makes this before every run, so that what takes time is imported where it is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsspec.utils import get_protocol
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from cloc.engine.sweep.jobs import (
    FAILURE,
    Failure,
    forget_failure,
    job_folder,
    note_failure,
    refuse_torchrun,
)
from cloc.files import make_folder
from cloc.usage import opening, print_next

console = Console(soft_wrap=True, highlight=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False)


class SweepFolder(Callback):
    """Hydra's hook around a sweep (``hydra.callbacks`` of ``conf/train.yaml``).

    A job that fails does not end a sweep over given values, and does not hide the failures behind it: each is told when
    it happens, kept in the job's folder, and told again at the end, where the exit code is 1. Sweepers that look for
    good values (Optuna) hear of failures themselves and decide.
    """

    def __init__(self) -> None:
        self.given: set[str] = set()  # keys of the command that all jobs have alike
        self.before: dict[Path, tuple[int, int]] = {}  # failures of earlier starts
        self.failed: dict[str, Failure] = {}  # in this process; those of a launcher's processes are found in files

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder, which a sweeper's own storage may need.

        Raises:
            ConfigError: torchrun started several processes, each of which would run the whole sweep.
        """
        refuse_torchrun()
        folder = make_folder(Path(config.hydra.sweep.dir))
        parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        self.given = {own.get_key_element() for own in parsed if not own.is_sweep_override()}
        self.before = _stamps(folder)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget an earlier failure."""
        folder = _folder(config)
        if folder is not None:
            forget_failure(folder)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Keep and tell why a job failed, and let the sweep go on."""
        if config.hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.FAILED:
            return
        number, error = str(config.hydra.job.num), job_return._return_value
        own = [override for override in config.hydra.overrides.task if override.partition("=")[0] not in self.given]
        folder = _folder(config)
        if folder is None:
            failure = Failure(f"{type(error).__name__}: {error}", tuple(own))
        else:
            make_folder(folder.parent)
            failure = note_failure(folder, error, own)
        self.failed[folder.name if folder is not None else number] = failure
        errors.print(_told(number, failure), markup=False)
        if _goes_on(config):
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report on what there is; a sweep of jobs that measure nothing has no table.

        Raises:
            SystemExit: a job failed, code 1.
        """
        from cloc.engine.sweep.report import gather_rows, read_jobs, report, summary, tell_states

        folder = Path(config.hydra.sweep.dir)
        jobs = read_jobs(folder)
        new = {path.parent.name for path, stamp in _stamps(folder).items() if self.before.get(path) != stamp}
        if gather_rows(jobs, ()):
            written = report(folder)
            for path in written:
                console.print(f"wrote {path}", markup=False)
            print_next(opening(written[-1]))
        elif any(job.failure for job in jobs):
            console.print(f"{folder}: {summary(jobs)}", markup=False)
            tell_states(jobs)
        for name, failure in self.failed.items():
            if name not in {job.name for job in jobs}:  # its folder is in a store
                console.print(_told(name, failure), markup=False)
        if _goes_on(config) and (new or self.failed):
            sys.exit(1)


def _told(name: str, failure: Failure) -> str:
    given = f" ({', '.join(failure.overrides)})" if failure.overrides else ""
    return f"job {name}{given} failed: {failure.reason}"


def _folder(config: DictConfig) -> Path | None:
    """Folder of a job of a sweep; None for one in a store, and outside of sweeps."""
    if config.hydra.mode != RunMode.MULTIRUN or get_protocol(config.run_dir) != "file":
        return None
    return Path(job_folder(config.run_dir, config.hydra.job.num, config.hydra.overrides.task))


def _goes_on(config: DictConfig) -> bool:
    """Whether the sweeper would raise the first failure and leave out the others."""
    return str(config.hydra.sweeper.get("_target_")).endswith(".BasicSweeper")


def _stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Which failures are kept, by what changes when one is written anew."""
    found: Sequence[Path] = list(folder.glob(f"*/{FAILURE}"))
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}
