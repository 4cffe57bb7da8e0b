"""Steps that must not be taken: losses and gradients that are not finite (beside ``module`` and ``callbacks``).

The gradient's norm is needed for clipping anyway, and all processes hold the same gradient. So its norm alone decides,
without communication: every process skips the same step. A process whose loss is not finite although its gradient
is makes its gradient NaN first, which the sum over processes carries to the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor, nn

from cloc.contracts import Batch
from cloc.engine.durable.run_folder import RunFolder
from cloc.engine.process_group import gather_objects
from cloc.engine.trainer_state import is_log_step
from cloc.files import append

console = Console(soft_wrap=True)  # a message is a line, however long its paths are


def flag_nonfinite(loss: Tensor) -> Tensor:
    """The same loss, with a gradient of NaN where it is not finite; no synchronization with the device."""
    detached = loss.detach()
    return loss * torch.where(torch.isfinite(detached), 1.0, torch.nan).to(detached.dtype)


def clip(parameters: Iterable[nn.Parameter], largest: float) -> float:
    """Clip gradients to a norm (0 for none).

    Returns:
        The norm before. Reading it waits for the device once a step, after backward; a decision on the device would
        need a masked copy of every gradient and optimizer state, which costs more.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    if largest:
        norm = nn.utils.clip_grad_norm_(parameters, largest)
    else:
        norm = nn.utils.get_total_norm([grad for parameter in parameters if (grad := parameter.grad) is not None])
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # sharded gradients: of all shards


def trained_values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the statistics of batch norms, by name. Other buffers are constants: a mask holds -inf."""
    yield from model.named_parameters()
    yield from (item for item in model.named_buffers() if item[0].endswith(("running_mean", "running_var")))


def not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds a NaN or an infinite number; None where there is none.

    All tensors are reduced together, so that a whole model costs one wait for the device. Of sharded tensors this
    process's shards are looked at.
    """
    local = ((name, value.to_local() if hasattr(value, "to_local") else value) for name, value in named)
    found = [(name, value.detach()) for name, value in local if value.is_floating_point() and value.numel()]
    if _all_finite([value for _, value in found]):
        return None
    return next(name for name, value in found if not _all_finite([value]))


def _all_finite(values: list[Tensor]) -> bool:
    return math.isfinite(float(nn.utils.get_total_norm(values, math.inf)))


class FiniteGuard(Callback):
    """Report and count the steps that :meth:`cloc.engine.task.Task.configure_gradient_clipping` skipped.

    Args:
        folder: ``skipped.jsonl`` in it lists the keys of every skipped batch.
        limit: stop after so many skipped steps in a row.
    """

    def __init__(self, folder: RunFolder, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.total = self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        """Counts go on in a resumed run."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Batch, index: int
    ) -> None:
        """All processes come here with the same verdict."""
        if module.skipped:
            self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
            self._report(trainer, module, batch)
        else:
            self.in_a_row = 0
        if is_log_step(trainer):
            module.log("train/skipped_steps", float(self.total))

    def _report(self, trainer: lightning.Trainer, module: Any, batch: Batch) -> None:
        terms = [name for name, value in module.terms.items() if not torch.isfinite(value).all()]
        reports = gather_objects({"terms": terms, "keys": batch.keys})
        # Where some losses are not finite, the samples of the others are not to blame.
        guilty = [report for report in reports if report["terms"]] or reports
        names = sorted({name for report in guilty for name in report["terms"]}) or ["gradient"]
        keys = [key for report in guilty for key in report["keys"]]
        shown = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more, see skipped.jsonl" if len(keys) > 8 else "")
        step = trainer.global_step
        if trainer.is_global_zero:
            text = f"step {step}: {', '.join(names)} not finite; step skipped ({self.in_a_row} in a row); keys: {shown}"
            console.print(f"[bold red]{text}[/]")
            line = json.dumps({"step": step, "not_finite": names, "keys": keys}) + "\n"
            append(self.folder.local / "skipped.jsonl", line)
        if self.in_a_row >= self.limit:
            raise FloatingPointError(
                f"step {step}: {', '.join(names)} not finite, {self.in_a_row} steps in a row "
                f"(trainer.max_skipped_steps={self.limit}); keys of the last: {shown}. Lower optim.lr, set "
                "optim.clip_grad, or use trainer.precision=32-true; the same command continues from the last checkpoint"
            )
