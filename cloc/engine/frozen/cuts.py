"""What the token cache keeps of a tower: all that a frozen one makes, or what the frozen part of a trained one makes.

Of a frozen tower patch tokens, in float16 unless ``data.token_precision`` says otherwise, and the embedding, both made
in float32. Of a frozen part what it makes in the run's own precision, as it is: a step cannot tell it from one without
the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cloc.config import ConfigError, DataConfig
from cloc.contracts import Batch
from cloc.data.frozen.blocks import Rows, Shape
from cloc.data.tokenizer import Tokenizer
from cloc.models.frozen import FrozenPart, frozen_part, is_frozen
from cloc.models.model import Cloc
from cloc.models.protocols import as_module, view

PLACES = ("pretrained", "tokenizer")  # of a tower's node: where something lies says nothing of what it is
STATES = "states"
AUTOCAST = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}


class Cut:
    """Where a tower is cut: what is made of its inputs once, and what decides it.

    Args:
        model: of the run.
        part: frozen, of a tower that is trained; None for one that is frozen whole.
        tower: itself.
        node: of the configuration.
        precision: Lightning's name of that of the run.

    Attributes:
        module: whose weights decide what is kept.
        facts: what else does.
    """

    def __init__(
        self, model: Cloc, part: FrozenPart | None, tower: Any, node: Mapping[str, Any], precision: str
    ) -> None:
        self.model, self.part = model, part
        self.autocast = AUTOCAST.get(precision) if part is not None else None
        self.module: nn.Module = as_module(tower) if part is None else part.module
        own = {key: value for key, value in node.items() if key not in PLACES}
        self.facts: list[Any] = [own] if part is None else [type(tower).__qualname__, part.facts, str(self.autocast)]

    @property
    def device(self) -> torch.device:
        """Of the model's weights."""
        return self.model.mean.device

    @torch.no_grad()
    def _in_its_precision(self, function: Callable[[Tensor], Any], inputs: Tensor) -> Any:
        enabled = self.autocast is not None
        with torch.autocast(self.device.type, self.autocast, enabled=enabled):
            return function(inputs.to(self.device))


class ImageCut(Cut):
    """Of the image tower.

    Raises:
        ConfigError: nothing of it is frozen up to a point that it declares.
    """

    def __init__(self, model: Cloc, node: Mapping[str, Any], config: DataConfig, precision: str) -> None:
        whole = model.frozen_towers or is_frozen(model.image)
        part = None if whole else frozen_part(model.image)
        if part is None and not whole:
            raise ConfigError(
                f"data.token_cache={config.token_cache}: the image tower is trained, and towers that are trained make "
                f"other tokens at each step; {_remedy(model.image)}or data.token_cache=null"
            )
        super().__init__(model, part, model.image, node, precision)
        seen = view(model.image)
        self.config, self.size = config, seen.size
        self.own_dtype: torch.dtype | None = None  # of what a frozen part makes
        self.view_facts = repr((seen.size, tuple(seen.mean), tuple(seen.std), seen.resize))

    def shape(self) -> Shape:
        """What is kept of a picture; a frozen part is asked with an empty one."""
        asked = {"float16": torch.float16, "float32": torch.float32}.get(self.config.token_precision)
        if self.part is None:
            image, (rows, columns) = self.model.image, self.model.grid
            tokens = Rows("tokens", (rows * columns, image.width), asked or torch.float16)
            return Shape((tokens, Rows("pooled", (image.joint_dim,), torch.float32)))
        states = self.made_of(torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8))[STATES]
        self.own_dtype = states.dtype
        return Shape((Rows(STATES, tuple(states.shape[1:]), asked or states.dtype),))

    def made_of(self, pictures: Tensor) -> dict[str, Tensor]:
        """Views ``[B,3,S,S]`` uint8 → what is kept of each, by name, as it is made."""
        if self.part is None:
            found = self._in_its_precision(self.model.encode_images, pictures)
            return {"tokens": found.tokens, "pooled": found.pooled.float()}
        first = self.part.first
        return {STATES: self._in_its_precision(lambda images: first(self.model.pixels(images)), pictures)}

    def put(self, batch: Batch, rows: Mapping[str, Tensor]) -> None:
        """Give a batch what is kept of its pictures."""
        if self.part is None:
            batch.tokens, batch.pooled = rows["tokens"], rows["pooled"]
        else:
            batch.image_states = self.as_made(rows[STATES])

    def as_made(self, states: Tensor) -> Tensor:
        """What is kept of a frozen part, in the precision in which the rest of the tower takes it."""
        return states if self.own_dtype is None else states.to(self.own_dtype)

    def check_crops(self, crops: int) -> None:
        """Crops pass through the towers alone.

        Raises:
            ConfigError: and nothing of the image tower is trained.
        """
        if crops and self.part is None:
            raise ConfigError(
                f"data.crops={crops}: the image tower is frozen, from which alone crops are read; set data.crops=0 and "
                "loss.crops=0"
            )


class TextCut(Cut):
    """Of the text tower. ``is_kept`` is False where all of it is trained: texts then pass through it at each step."""

    def __init__(self, model: Cloc, node: Mapping[str, Any], precision: str) -> None:
        whole = model.frozen_towers or is_frozen(model.text)
        part = None if whole else frozen_part(model.text)
        super().__init__(model, part, model.text, node, precision)
        self.is_kept = whole or part is not None
        self.tokenizer = Tokenizer.of(model.text)

    def made_of(self, tokens: Tensor) -> Tensor:
        """Token ids ``[T,L]`` → what is kept of each text, ``[T,…]``."""
        made: Tensor = self._in_its_precision(self.model.encode_texts if self.part is None else self.part.first, tokens)
        return made

    def put(self, batch: Batch, of: Callable[[Tensor], Tensor], captions: bool) -> None:
        """Give a batch what is kept of its texts.

        Args:
            batch: without.
            of: what is kept of texts by their ids.
            captions: whether a loss reads them.
        """
        if self.part is None:
            batch.phrase_embeddings = of(batch.phrase_id)
            batch.caption_embeddings = of(batch.caption_id) if captions else None
        else:
            batch.phrase_states, batch.caption_states = of(batch.phrase_id), of(batch.caption_id)


def _remedy(tower: Any) -> str:
    """What to set so that a tower can be cut."""
    own = "model.image.tune_last=0 (its backbone), " if hasattr(tower, "tune_last") else ""
    return f"set {own}model.frozen_towers=true (all of both towers), "
