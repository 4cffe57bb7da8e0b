"""Configuration → model. The only place that knows how the parts fit together."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cloc.config import ConfigError, instantiate, resolve
from cloc.models.model import Cloc
from cloc.models.positions.fourier import check_covered
from cloc.models.positions.image_size import fit_tables, image_node_at
from cloc.models.trust.registry import Admitted
from cloc.models.weights.pretrained import complete, with_former_pixels


def build_model(
    config: Mapping[str, Any], pretrained: bool = True, known: Mapping[str, Mapping[str, type]] | None = None
) -> Cloc:
    """Build the model of a ``model`` configuration.

    One that a file brings passes :func:`cloc.models.trust.registry.admit` before.

    Args:
        config: ``joint_dim``, the nodes ``image``, ``text``, ``prompter``, ``grounding``, and maybe ``logit_bias``,
            ``crop_scale`` and ``frozen_towers``.
        pretrained: False builds the architecture alone, for weights that a checkpoint brings.
        known: by part, the only classes that may be named; None for a user's own configuration, which may name any.

    Raises:
        ConfigError: a node's target or argument is wrong.
        FileNotFoundError: initial weights are not where the configuration says.
        ValueError: initial weights do not fit.
    """
    if pretrained:
        config = complete(config, known)
    known, joint_dim = known or {}, config["joint_dim"]
    towers: dict[str, Any] = {}
    for part in ("image", "text"):
        node = config[part] if pretrained else _bare(config[part], part, known.get(part))
        towers[part] = _held(instantiate(node, f"model.{part}", known.get(part), joint_dim=joint_dim), part)
    shape = {"width": towers["image"].width, "joint_dim": joint_dim, "grid": towers["image"].grid}
    heads: dict[str, Any] = {
        part: _held(instantiate(config[part], f"model.{part}", known.get(part), **shape), part)
        if config.get(part)
        else None
        for part in ("prompter", "grounding")
    }
    frozen, crop_scale = bool(config.get("frozen_towers")), bool(config.get("crop_scale"))
    bias = config.get("logit_bias")
    return Cloc(**towers, **heads, logit_bias=bias, frozen_towers=frozen, crop_scale=crop_scale)


# What the model asks of each part, see cloc.models.protocols.
ASKED = {
    "image": ("image_size", "joint_dim", "width", "grid"),
    "text": ("tokenizer", "context_length", "joint_dim", "vocab_size"),
    "prompter": ("supports_phrases", "memory", "boxes"),
    "grounding": (),
}


def _held(built: Any, part: str) -> Any:
    """A part as it is, if it is one."""
    lacking = [name for name in ASKED[part] if not hasattr(built, name)]
    if lacking or not isinstance(built, nn.Module):
        why = f"has no {', '.join(lacking)}" if lacking else "is no nn.Module"
        raise ConfigError(
            f"model.{part}._target_: {type(built).__name__} {why}; cloc/models/protocols.py says what it must have"
        )
    return built


def build_trained(
    admitted: Admitted, weights: Mapping[str, Tensor], source: Any, image_size: int | None = None
) -> tuple[Cloc, dict[str, Any]]:
    """Build a model with the weights that it was trained to, maybe for views of another size.

    Args:
        admitted: its configuration.
        weights: state dict of the model.
        source: file or folder of both, for messages.
        image_size: side of the views in pixels; None for the model's own.

    Returns:
        The model, and what its configuration then says otherwise.

    Raises:
        ConfigError: its tower cannot take that size.
        RuntimeError: the weights do not fit.
    """
    node = admitted.config["image"]
    node = with_former_pixels(node, admitted.known["image"][node["_target_"]])
    stored = admitted.config | {"image": node}
    if image_size in (None, node.get("image_size")):
        model = build_model(stored, pretrained=False, known=admitted.known)
        model.load_state_dict(weights)
        return model, {}
    if "image_size" not in inspect.signature(admitted.known["image"][node["_target_"]]).parameters:
        raise ConfigError(f"{source}: image_size={image_size}: {node['_target_']} takes none; leave image_size out")
    changed = {"image": image_node_at(node, image_size)}
    try:
        model = build_model(stored | changed, pretrained=False, known=admitted.known)
        check_covered(model.image)
        model.load_state_dict(fit_tables(weights, model))
    except (ValueError, RuntimeError) as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise ConfigError(f"{source}: image_size={image_size}: {reason}") from error
    return model, changed


def _bare(node: Mapping[str, Any], part: str, known: Mapping[str, type] | None) -> dict[str, Any]:
    """A tower's node without initial weights, whatever its class takes by default."""
    found, _ = resolve(node, f"model.{part}", known)
    takes = "pretrained" in inspect.signature(found).parameters
    return {**node, "pretrained": False} if takes else dict(node)
