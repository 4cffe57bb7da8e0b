"""Pretraining, the first task: it wires model, loss and stream, and computes nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.profiler import record_function

from cloc.config import ConfigError, DataConfig, TrainConfig, check_keys, instantiate, resolve
from cloc.config.nodes import present_name
from cloc.config.terms import Need, idle_parts
from cloc.console import print_line, progress_console
from cloc.contracts import Batch, LossTerms
from cloc.data.frozen.stream import FrozenStream
from cloc.data.stream.batches import READER_MEMORY, Stream, make_loader
from cloc.data.stream.shared_buffers import release_ended_workers
from cloc.data.stream.sources import ShardSources
from cloc.engine import pretrain_data, rehearsal
from cloc.engine.accumulation import accumulated
from cloc.engine.base import follow
from cloc.engine.durable.initial_weights import Start, copy_weights, open_start
from cloc.engine.durable.run_folder import RunFolder
from cloc.engine.durable.settings import After, keys_of
from cloc.engine.frozen.cached import FrozenBatches, FrozenTowers
from cloc.engine.machine import shield_workers
from cloc.engine.readers import readers
from cloc.engine.start import accelerator_of
from cloc.engine.strategy import prepare
from cloc.engine.task import OPTIONAL, Measure, Reading, Task, chosen_metrics
from cloc.engine.teacher import Teacher
from cloc.models.build import build_model
from cloc.models.foreign.base import is_fetched
from cloc.models.limits import check_model
from cloc.models.model import Cloc
from cloc.models.positions.fourier import check_covered
from cloc.models.temperature import clamp_temperatures
from cloc.models.weights.pretrained import complete, with_former_pixels

PARTS = ("image", "text", "prompter", "grounding")


class Pretrain(Task):
    """Contrastive pretraining on pictures, captions and regions: model + loss + stream of one configuration.

    Args:
        config: validated.
        resolved: the same as plain containers.
        weights: take the initial weights that the configuration names; False for a rehearsal.
    """

    schema = TrainConfig
    keys = {
        **dict.fromkeys(("base", "init_from"), After.START),
        **dict.fromkeys(keys_of("model", "joint_dim logit_bias crop_scale frozen_towers"), After.REFUSED),
        **dict.fromkeys(keys_of("model", " ".join(PARTS)), After.PART),
        "loss": After.HOLDS,
        "datasets": After.HOW,
        **dict.fromkeys((f"data.{field.name}" for field in fields(DataConfig)), After.HOLDS),
        "data.streams": After.REFUSED,  # the cursor would stand in another order
        **dict.fromkeys(keys_of("data", "workers batch_timeout max_skip_share"), After.HOW),
        **dict.fromkeys(keys_of("data", "token_cache token_cache_bytes"), After.HOW),
        **dict.fromkeys(
            keys_of("data", "cache_dir cache_bytes timeout redirect_hosts retry_seconds max_requests"), After.HOW
        ),
    }
    peaks = frozenset({READER_MEMORY})
    heeds = frozenset(OPTIONAL)
    config: TrainConfig
    model: Cloc

    def __init__(self, config: TrainConfig, resolved: dict[str, Any], weights: bool = True) -> None:
        super().__init__(config, resolved)
        check_model(resolved["model"])
        self.starts = config.base is not None or config.init_from is not None
        self.fetches = weights  # what a name of another library stands for; a rehearsal does not
        self.model = build_model(resolved["model"], pretrained=weights and not self.starts)
        check_covered(self.model.image)
        self.loss = instantiate(resolved["loss"], "loss")
        self.towers: FrozenTowers | None = None  # where their outputs are kept
        self.stream: Stream | None = None
        self.teacher: tuple[Teacher, ...] = ()  # no module of this one: checkpoints do not hold it
        self.notes = [*idle_parts(config, getattr(self.loss, "terms", ())), *prepare(self.model, config.trainer)]

    @classmethod
    def follow(cls, composed: DictConfig) -> DictConfig:
        """See :func:`cloc.engine.base.follow`."""
        if composed.get("base") is not None:
            check_keys(composed, cls.schema)
        return follow(composed)

    @classmethod
    def complete(cls, resolved: dict[str, Any]) -> None:
        """What initial weights bring: a checkpoint is rebuilt without them."""
        resolved["model"] = complete(resolved["model"])

    @classmethod
    def rehearse(cls, config: TrainConfig, resolved: dict[str, Any]) -> Pretrain:
        """See :meth:`cloc.engine.task.Task.rehearse`; nothing is downloaded for it."""
        return cls(config, resolved, weights=False)

    @classmethod
    def open_data(cls, config: TrainConfig) -> ShardSources:
        """See :func:`cloc.engine.pretrain_data.open_data`."""
        return pretrain_data.open_data(config)

    @classmethod
    def blank_model(cls, resolved: Mapping[str, Any]) -> nn.Module:
        """See :meth:`cloc.engine.task.Task.blank_model`."""
        model = build_model(resolved["model"], pretrained=False)
        check_covered(model.image)
        return model

    @classmethod
    def plan(cls, config: TrainConfig, data: ShardSources, world: int) -> dict[str, str]:
        """What the data holds, and who reads it."""
        return pretrain_data.plan(config, data, world)

    @classmethod
    def check_chosen(cls, config: TrainConfig, chosen: Mapping[str, str]) -> list[str]:
        """By what metrics and sets say of themselves; the sets are not read yet."""
        from cloc.evaluation.metrics.catalog import build_catalog
        from cloc.evaluation.suite import check_chosen

        lacking = ["prompter"] * (config.model.prompter is None) + ["grounded"] * (config.model.grounding is None)
        evaluation = config.evaluation
        return check_chosen(chosen, evaluation, config.datasets, build_catalog(evaluation.metrics), lacking)

    @classmethod
    def store_timeout(cls, config: TrainConfig) -> float:
        """That of the shards."""
        return config.data.timeout

    def open_stream(self, data: ShardSources, rank: int, world: int) -> Stream:
        """The training stream that fits the model: its tokenizer, its view."""
        pretrain_data.check_vocabulary(self.model.text)
        captions = getattr(self.loss, "reads_captions", True)
        stream = pretrain_data.build_stream(self.config, self.model, data, rank, world, captions)
        if self.config.data.token_cache is not None:
            threads = max(1, readers(self.config))
            self.towers = FrozenTowers(self.config, self.resolved["model"], self.model, data, threads)
            self.notes += self.towers.notes
        return stream

    def rates(self, data: ShardSources, stream: Stream, world: int) -> dict[str, str]:
        """See :func:`cloc.engine.rehearsal.rates`."""
        if self.towers is not None:
            return {"reading": "no pictures: what frozen towers make, from data.token_cache"}
        return rehearsal.rates(self, self.config, data, stream, world)

    @contextmanager
    def reading(self, stream: Stream) -> Iterator[Iterable[Batch]]:
        """Batches by reading processes, which are kept out of the signals that stop a run."""
        workers, timeout = readers(self.config), self.config.data.batch_timeout
        shield = shield_workers() if workers else {}
        pinned = accelerator_of(self.config.trainer.accelerator) == "cuda"
        loader = make_loader(stream, workers, timeout, pin_memory=pinned, **shield)
        self.stream = stream
        try:
            yield loader if self.towers is None else FrozenBatches(loader, self.towers)
        finally:
            loader.end()
        release_ended_workers()

    def on_fit_start(self) -> None:
        """Fill the token cache: by now the weights are those of the run, and on their device."""
        super().on_fit_start()
        if self.towers is not None and isinstance(self.stream, FrozenStream):
            print_line(progress_console(), self.towers.prepare(self.stream))

    def step(self, batch: Batch) -> LossTerms:
        """Features, then the objective, in float32 whatever precision the towers run in."""
        parts = self.config.trainer.accumulate
        for teacher in self.teacher:
            batch = teacher.teach(batch, self.model.reads_phrases(batch), parts)
        if parts > 1:
            return accumulated(self.model, self.loss, batch, parts)
        features = self.model(batch)
        with torch.autocast(self.device.type, enabled=False), record_function("losses"):
            terms: LossTerms = self.loss(features, batch)
        return terms

    def after_step(self) -> None:
        """Clamp the temperatures."""
        clamp_temperatures(self.model.log_scales)

    def begin(self) -> None:
        """The weights of ``base`` or ``init_from``."""
        if not self.starts:
            return
        if self._is_left_unfetched:
            self.notes.append(f"weights of {self.config.base}: fetched when the run begins")
        else:
            start = self._start()
            self.notes.append(copy_weights(self.model, start))
            self._learn_from(start)
        self.notes += pretrain_data.formats_of(self.model)

    def go_on(self, info: Mapping[str, Any]) -> None:
        """The teacher, where a term needs one: the model that the run has started from, as it was.

        Raises:
            ConfigError: another model lies there by now.
        """
        if not self._is_taught:
            return
        if self._is_left_unfetched:
            self.notes.append(f"teacher: {self.config.base}, fetched when the run goes on")
            return
        self._learn_from(self._start())
        before = info.get("teacher")
        if before not in (None, self.teacher[0].digest):
            raise ConfigError(
                f"{self._start_name}: its weights are not those that the run has started from, which teach it; give "
                "that model, or loss.distill=0"
            )

    @property
    def _is_left_unfetched(self) -> bool:
        """Whether weights would be downloaded, which a rehearsal does not do."""
        return self.config.base is not None and is_fetched(self.config.base) and not self.fetches

    @property
    def _is_taught(self) -> bool:
        return any(one.needs(Need.TEACHER) for one in getattr(self.loss, "terms", ()))

    @property
    def _start_name(self) -> str:
        key = "base" if self.config.base is not None else "init_from"
        return f"{key}={getattr(self.config, key)}"

    def _start(self) -> Start:
        return open_start(self.config.base, self.config.init_from, self.resolved["model"], self.model.classes)

    def _learn_from(self, start: Start) -> None:
        if self._is_taught:
            self.teacher = (Teacher.of(self.resolved["model"], start),)
            size = self.teacher[0].parameters
            self.notes.append(f"teacher: both towers as they start, {size / 1e6:.1f} M parameters besides, frozen")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every task, with the digest of the teacher."""
        super().on_save_checkpoint(checkpoint)
        for one in self.teacher:
            checkpoint["cloc"]["teacher"] = one.digest

    def save_beside(self, folder: Path) -> None:
        """Tokenizer and architecture of a Hugging Face text tower: run and checkpoints load anywhere."""
        self.beside = pretrain_data.save_text_files(self.model.text, folder)

    def measurement(self) -> Measure | None:
        """A small suite on the sets of ``evaluation.data``."""
        if not self.config.evaluation.data:
            return None
        from cloc.evaluation.suite import TrainingSuite

        return TrainingSuite(self.config.evaluation, self.config.datasets, self.model, chosen_metrics(self.config))

    def next_commands(self) -> list[str]:
        """See :func:`cloc.engine.pretrain_data.next_commands`."""
        return pretrain_data.next_commands(self.config, self.model)

    @classmethod
    def health(cls, parts: Sequence[Reading]) -> dict[str, float]:
        """See :func:`cloc.engine.pretrain_data.data_health`."""
        return super().health(parts) | pretrain_data.data_health(parts)

    @property
    def shown(self) -> dict[str, str]:
        """The terms; the total of an objective that lists none."""
        return {f"loss/{one.name}": one.label for one in getattr(self.loss, "terms", ())} or super().shown

    @property
    def data_name(self) -> str:
        """The shards, by their path."""
        return f"the shards of {self.resolved['data']['train']}"

    @classmethod
    def after(cls, key: str, resolved: Mapping[str, Any]) -> After:
        """As the table says; the name of a Hugging Face tower is the path to its weights."""
        found = super().after(key, resolved)
        path = key == "model.text.name" and resolved["model"]["text"]["_target_"].endswith("HuggingFaceText")
        return After.START if path else found

    @classmethod
    def defaults(cls, resolved: Mapping[str, Any]) -> dict[str, Any]:
        """Of the schema, and of the classes that a command names; none is imported because a checkpoint names it."""
        found = super().defaults(resolved)
        for part in PARTS:
            node = resolved["model"].get(part)
            if node:
                takes = signature(resolve(node, f"model.{part}")[0]).parameters.values()
                found |= {f"model.{part}.{one.name}": one.default for one in takes if one.default is not one.empty}
        return found

    @classmethod
    def completed(cls, stored: Mapping[str, Any], resolved: Mapping[str, Any]) -> Mapping[str, Any]:
        """With the pixel statistics, where it is the same tower, and today's word for the token cache's precision."""
        stored = pretrain_data.with_auto_precision(stored, resolved)
        model, now = stored.get("model") or {}, resolved["model"]["image"]
        own = model.get("image") or {}
        if present_name(own.get("_target_")) != present_name(now["_target_"]):
            return stored
        return {**stored, "model": {**model, "image": with_former_pixels(own, resolve(now, "model.image")[0])}}

    def check_resume(self, folder: RunFolder, changed: Mapping[str, str]) -> None:
        """A tokenizer may lie elsewhere, but a token must stay the same word."""
        pretrain_data.check_tokenizer(self.model.text, folder, changed)
