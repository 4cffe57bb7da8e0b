"""Configuration → model. The only place that knows how the parts fit together."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from cloc.config import instantiate, resolve
from cloc.models.model import Cloc
from cloc.models.weights.pretrained import complete


def build_model(
    config: Mapping[str, Any], pretrained: bool = True, known: Mapping[str, Mapping[str, type]] | None = None
) -> Cloc:
    """Build the model of a ``model`` configuration.

    One that a file brings passes :func:`cloc.models.trust.registry.admit` before.

    Args:
        config: ``joint_dim``, the nodes ``image``, ``text``, ``prompter``, ``grounding``, and maybe ``logit_bias``.
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
    towers = {}
    for part in ("image", "text"):
        node = config[part] if pretrained else _bare(config[part], part, known.get(part))
        towers[part] = instantiate(node, f"model.{part}", known.get(part), joint_dim=joint_dim)
    shape = {"width": towers["image"].width, "joint_dim": joint_dim, "grid": towers["image"].grid}
    heads = {
        part: instantiate(config[part], f"model.{part}", known.get(part), **shape) if config.get(part) else None
        for part in ("prompter", "grounding")
    }
    return Cloc(**towers, **heads, logit_bias=config.get("logit_bias"))


def _bare(node: Mapping[str, Any], part: str, known: Mapping[str, type] | None) -> dict[str, Any]:
    """A tower's node without initial weights, whatever its class takes by default."""
    found, _ = resolve(node, f"model.{part}", known)
    takes = "pretrained" in inspect.signature(found).parameters
    return {**node, "pretrained": False} if takes else dict(node)
