"""The Lightning module: it wires model, loss and optimizer, and computes nothing itself."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.profiler import record_function

from cloc import __version__
from cloc.config import ConfigError, TrainConfig, instantiate
from cloc.config.secrets import public_tree
from cloc.contracts import Batch, LossTerms
from cloc.engine.accumulation import accumulated
from cloc.engine.nonfinite import clip, flag_nonfinite
from cloc.engine.optim import build_optimizer, optim_config, rate, rearranged, set_rate
from cloc.engine.strategy import is_sharded, prepare, shard
from cloc.models.build import build_model
from cloc.models.model import MAX_SCALE
from cloc.models.positions.fourier import check_covered


class Pretrain(lightning.LightningModule):
    """Model + loss + optimizer of one configuration.

    Args:
        config: validated.
        resolved: the same as plain containers, stored in every checkpoint, without credentials.
    """

    def __init__(self, config: TrainConfig, resolved: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.resolved = config, public_tree(resolved)
        self.model = build_model(resolved["model"], pretrained=config.init_from is None)
        check_covered(self.model.image)
        self.loss = instantiate(resolved["loss"], "loss")
        self.samples_seen = 0
        self.cursor = 0
        self.counters: dict[str, float] = {}
        self.terms: dict[str, Tensor] = {}  # of the last step
        self.skipped = False  # whether it was left out
        self.notes = prepare(self.model, config.trainer)

    def configure_model(self) -> None:
        """Shard the model where the strategy asks for it; Lightning calls this in every process."""
        if self.config.trainer.strategy == "fsdp" and not is_sharded(self.model):
            shard(self.model, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Refuse a trainer that adds up gradients of parts.

        Raises:
            ConfigError: each part would see its own negatives alone, which is another loss.
        """
        parts = self.trainer.accumulate_grad_batches
        if parts != 1:
            raise ConfigError(
                f"accumulate_grad_batches={parts}: each part would be contrasted with itself alone; set "
                f"trainer.accumulate={parts}, whose loss sees the whole batch"
            )

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Features, terms, and a log line every ``trainer.log_every`` steps."""
        terms = self._terms(batch)
        for name, value in batch.stats.items():
            self.counters[name] = self.counters.get(name, 0.0) + value
        if (self.global_step + 1) % self.config.trainer.log_every == 0:  # the step at whose end Lightning writes
            self._log(terms.total, terms.terms, terms.stats)
        self.terms = {f"loss/{k}": v for k, v in terms.terms.items()} | {"loss": terms.total.detach()}
        return flag_nonfinite(terms.total)

    def _terms(self, batch: Batch) -> LossTerms:
        if self.config.trainer.accumulate > 1:
            return accumulated(self.model, self.loss, batch, self.config.trainer.accumulate)
        features = self.model(batch)
        # Logits and losses in float32, whatever precision the towers run in.
        with torch.autocast(self.device.type, enabled=False), record_function("losses"):
            return self.loss(features, batch)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip. A step whose gradient is not finite is skipped: optimizers leave alone what has no gradient."""
        self.skipped = not math.isfinite(clip(self.parameters(), gradient_clip_val or 0.0))
        if self.skipped:
            optimizer.zero_grad(set_to_none=True)

    def _log(self, total: Tensor, terms: dict[str, Tensor], stats: dict[str, Tensor]) -> None:
        values = {"loss": total.detach()} | {f"loss/{k}": v for k, v in terms.items()}
        values |= {f"train/{k}": v for k, v in stats.items()}
        values |= {f"data/{k}": v for k, v in self.counters.items()}
        values["samples"] = float(self.samples_seen + self.config.batch_size)
        values["lr"] = self.optimizers().param_groups[0]["lr"]
        self.log_dict({name: torch.as_tensor(value, dtype=torch.float32) for name, value in values.items()})
        self.counters = {}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        """One asynchronous copy a tensor."""
        return batch.to(device, non_blocking=True)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Set the rates from the samples seen so far."""
        optim = self.config.optim
        factor = rate(self.samples_seen, self.config.samples, optim.warmup, optim.final)
        set_rate(self.optimizers(use_pl_optimizer=False), factor)

    def advance(self, batch: Batch) -> None:
        """Advance the cursor after a step: only a batch that was trained counts, never one that was prefetched."""
        with torch.no_grad():  # a temperature beyond the clamp would have no gradient to come back by
            for value in self.model.log_scales.values():
                value.clamp_(max=math.log(MAX_SCALE))
        self.samples_seen += self.config.batch_size
        self.cursor = batch.cursor

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """See :func:`cloc.engine.optim.build_optimizer`."""
        return build_optimizer(self.model, self.config.optim)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what a loader needs, as plain containers."""
        checkpoint["cloc"] = {
            "version": __version__,
            "config": self.resolved,
            "cursor": self.cursor,
            "samples_seen": self.samples_seen,
            "counters": self.counters,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue where the stored batch ended, with the settings of this configuration."""
        if not is_sharded(self.model):  # FSDP2 has read weights and optimizer by now, through its strategy
            self.adopt(checkpoint)
        self.cursor = checkpoint["cloc"]["cursor"]
        self.samples_seen = checkpoint["cloc"]["samples_seen"]
        self.counters = dict(checkpoint["cloc"]["counters"])

    def adopt(self, checkpoint: dict[str, Any]) -> None:
        """Bring a checkpoint into the form that this configuration continues from, before it is loaded.

        A run that goes on without a moving average takes the weights in training, not their average; the optimizer's
        moments go to the groups in which this configuration has their parameters.
        """
        if not self.config.trainer.ema and "current_model_state" in checkpoint:
            checkpoint["state_dict"] = checkpoint.pop("current_model_state")
        before = optim_config(checkpoint["cloc"]["config"])
        checkpoint["optimizer_states"] = [
            rearranged(state, self.model, before, self.config.optim) for state in checkpoint["optimizer_states"]
        ]
