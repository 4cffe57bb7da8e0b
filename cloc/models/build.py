"""Configuration → model. The only place that knows how the parts fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloc.config import instantiate
from cloc.models.model import Cloc
from cloc.models.pretrained import complete


def build_model(config: Mapping[str, Any], pretrained: bool = True) -> Cloc:
    """Build the model of a ``model`` configuration.

    Args:
        config: ``joint_dim``, the nodes ``image``, ``text``, ``prompter``, ``grounding``, and maybe ``logit_bias``.
        pretrained: False builds the architecture alone, for weights that a checkpoint brings.

    Raises:
        ConfigError: a node's target or argument is wrong.
        FileNotFoundError: initial weights are not where the configuration says.
        ValueError: initial weights do not fit.
    """
    if pretrained:
        config = complete(config)
    image, text = dict(config["image"]), dict(config["text"])
    if not pretrained:
        image |= {"pretrained": False} if image.get("pretrained") else {}
        text |= {"pretrained": False} if "pretrained" in text or "HuggingFace" in text["_target_"] else {}
    towers = {
        "image": instantiate(image, "model.image", joint_dim=config["joint_dim"]),
        "text": instantiate(text, "model.text", joint_dim=config["joint_dim"]),
    }
    shape = {"width": towers["image"].width, "joint_dim": config["joint_dim"], "grid": towers["image"].grid}
    heads = {
        part: instantiate(config[part], f"model.{part}", **shape) if config.get(part) else None
        for part in ("prompter", "grounding")
    }
    return Cloc(**towers, **heads, logit_bias=config.get("logit_bias"))
