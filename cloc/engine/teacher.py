"""The frozen model that a run started from, beside the one in training: its embeddings are part of the batch.

For terms that need a teacher (:class:`cloc.losses.distill.Distill`). It is no part of the task's weights: checkpoints
do not hold it, and a run that goes on builds it again from where it started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from cloc.contracts import Batch
from cloc.engine.durable.initial_weights import Start, copy_weights
from cloc.models.build import build_model
from cloc.models.model import Cloc
from cloc.models.weights.digests import weights_digest


class Teacher:
    """Both towers of a model as they were at the start, frozen, in evaluation mode.

    Args:
        model: with its weights.

    Attributes:
        digest: of the weights; a run that goes on must have the same teacher.
        parameters: how many.
    """

    def __init__(self, model: Cloc) -> None:
        self.model = model.eval().requires_grad_(False)
        self.digest = weights_digest(self.model)
        self.parameters = sum(value.numel() for value in model.parameters())

    @classmethod
    def of(cls, model: Mapping[str, Any], start: Start) -> Teacher:
        """The towers that a configuration names, with the weights of a start; no random number is drawn for it.

        Args:
            model: ``model`` of the run's configuration.
            start: what the run has started from.
        """
        with torch.random.fork_rng(devices=[]):
            towers = build_model({**model, "prompter": None, "grounding": None}, pretrained=False)
        copy_weights(towers, start)
        return cls(towers)

    @torch.no_grad()
    def teach(self, batch: Batch, phrases: bool, parts: int = 1) -> Batch:
        """The batch with what the teacher says of it, without gradient.

        Args:
            batch: of this process.
            phrases: whether those are embedded too.
            parts: passes that the pictures and the texts are dealt into: those of a step's micro-batches.
        """
        self.model.to(batch.images.device)
        with record_function("teacher"):
            images = [self.model.encode_images(part).pooled for part in batch.images.chunk(parts)]
            image, text = torch.cat(images), self._texts(batch.captions, parts)
            phrase = self._texts(batch.phrases, parts) if phrases else None
        return replace(batch, teacher_image=image, teacher_text=text, teacher_phrase=phrase)

    def _texts(self, tokens: Tensor, parts: int) -> Tensor:
        return torch.cat([self.model.encode_texts(part) for part in tokens.chunk(parts)])
