"""Exchangeable parts: a ``_target_`` node → a class of this package with its arguments."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from cloc.config.domains import ConfigError, check_arguments


def resolve(node: Mapping[str, Any], path: str) -> tuple[Any, dict[str, Any]]:
    """Find a node's target and check its keys.

    Args:
        node: has ``_target_``, a dotted name inside the ``cloc`` package, and the target's arguments.
        path: of the node, for messages.

    Returns:
        The class, and the arguments.

    Raises:
        ConfigError: no target, one outside this package, an argument that it does not take, or one outside of its
            domain.
    """
    target = node.get("_target_")
    if not isinstance(target, str) or not target.startswith("cloc."):
        # A checkpoint carries its configuration: a free choice of target would let a file run any code.
        raise ConfigError(f"{path}._target_={target!r}: must name a class inside the cloc package")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{path}._target_={target!r}: {error}") from error
    if not inspect.isclass(found) or found.__module__ != module:
        # Nor what a module of the package imported, nor its functions, some of which write and delete files.
        raise ConfigError(f"{path}._target_={target!r}: must name a class inside the cloc package, by its own module")
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    known = inspect.signature(found).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return found, arguments
    for key in arguments:
        # `global` is a Python keyword; its argument is spelled `global_`.
        if key not in known and f"{key}_" not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}"
            raise ConfigError(f"{path}.{key}: {target} has no such argument; {hint}")
    arguments = {key if key in known else f"{key}_": value for key, value in arguments.items()}
    check_arguments(found, arguments, path)
    return found, arguments


def instantiate(node: Mapping[str, Any], path: str, **context: Any) -> Any:
    """Build a node's target with its own arguments and those of the context (``joint_dim``, …)."""
    found, arguments = resolve(node, path)
    known = inspect.signature(found).parameters
    return found(**{key: value for key, value in context.items() if key in known} | arguments)
