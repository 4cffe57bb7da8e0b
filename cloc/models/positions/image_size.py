"""The same weights for views of another size: a configuration and state of ours, or a trunk of others where it stands.

Serves ``encoder`` and ``foreign``. Tables of positions are resized as initial weights are; what has its size built in
otherwise (windows, relative or rotary positions) is refused, and so is a size that patches do not cover.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cloc.config import ConfigError
from cloc.models.positions.learned import Table, find_table, is_absolute
from cloc.models.positions.resizing import resize_positions

TABLES = ("pos_embed", "positional_embedding")
LEARNED = "prompter.positions"  # of a PaperPrompter


def image_node_at(node: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """``model.image`` for views of another size."""
    options = dict(node.get("options") or {})
    changed = {"options": options | {"img_size": image_size}} if "img_size" in options else {}
    return {**node, "image_size": image_size, **changed}


def fit_tables(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict whose tables of positions, of image tower and Prompter, fit a model built for another size."""
    own = model.state_dict()
    fitted = dict(state)
    for name, rows in state.items():
        is_table = name.startswith("image.") and name.endswith(TABLES) or name == LEARNED
        if is_table and name in own and own[name].shape != rows.shape:
            path, _, _ = name.rpartition(".")
            fitted[name] = _fit(rows, own[name], find_table(model.get_submodule(path)))
    return fitted


def _fit(rows: Tensor, wanted: Tensor, table: Table | None) -> Tensor:
    """Rows of a square grid for the grid of a table, whose prefix is known; without one, by the shapes alone."""
    if table is None:
        return resize_positions(rows, wanted)
    side = math.isqrt(rows.shape[-2] - table.prefix)
    if side * side != rows.shape[-2] - table.prefix:
        return rows  # left to be refused by its shape
    return Table(table.name, rows, (side, side), table.prefix).resized(table.grid)


@torch.no_grad()
def resize_trunk(trunk: Any, image_size: int) -> None:
    """Bring a vision model of timm, open_clip or transformers to another size of views, where it stands.

    Raises:
        ConfigError: its size is built in.
    """
    table = find_table(trunk) if is_absolute(trunk) else None
    if table is not None and hasattr(trunk, "embeddings"):
        _resize_hugging_face(trunk, table, image_size)
    elif table is not None and hasattr(trunk, "conv1"):
        grid = (image_size // trunk.patch_size[0], image_size // trunk.patch_size[1])
        trunk.positional_embedding = _frozen_as(table.rows, table.resized(grid))
        trunk.image_size, trunk.grid_size = (image_size, image_size), grid
    elif table is not None and hasattr(trunk, "set_input_size"):
        trunk.set_input_size(img_size=(image_size, image_size))
    elif not _takes_any(trunk):
        raise ConfigError(f"image_size={image_size}: {type(trunk).__name__} is bound to its size; leave image_size out")


def _resize_hugging_face(trunk: Any, table: Table, image_size: int) -> None:
    parts = trunk.embeddings
    side = image_size // parts.patch_size
    rows = table.resized((side, side))
    parts.position_embedding = nn.Embedding(rows.shape[0], rows.shape[1], _weight=_frozen_as(table.rows, rows))
    parts.position_ids = torch.arange(len(rows), device=rows.device).unsqueeze(0)
    parts.image_size, parts.num_patches, parts.num_positions = image_size, side * side, len(rows)
    trunk.config.image_size = image_size


def _frozen_as(old: Tensor, new: Tensor) -> nn.Parameter:
    return nn.Parameter(new.clone(), requires_grad=old.requires_grad)


def _takes_any(trunk: nn.Module) -> bool:
    """Whether a backbone of timm is made of convolutions alone: it knows no position."""
    patches = getattr(trunk, "patch_embed", None)
    known = hasattr(trunk, "feature_info") and is_absolute(trunk)
    return known and not any(name.endswith("pos_embed") for name, _ in trunk.named_parameters()) and patches is None
