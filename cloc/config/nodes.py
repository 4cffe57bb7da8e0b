"""Exchangeable parts: a ``_target_`` node → a class with its arguments.

A user's own configuration may name any class that Python can import. What a file of others says is held to the classes
that ``known`` lists, and nothing is imported for it.
"""

from __future__ import annotations

import inspect
import pkgutil
import traceback
from collections.abc import Mapping
from typing import Any

from cloc.config.domains import ConfigError
from cloc.config.values import check_arguments, written
from cloc.usage import meant

# Where classes went that configurations and checkpoints of earlier versions name; names of ours alone.
MOVED = {f"cloc.engine.sweep{part}.SweepFolder": "cloc.engine.sweep.hook.SweepFolder" for part in ("", ".report")}


def present_name(target: Any) -> Any:
    """Today's name of a class that a ``_target_`` names; whatever is not in :data:`MOVED` as it is."""
    return MOVED.get(target, target) if isinstance(target, str) else target


def moved_class(module: str, name: str) -> type:
    """A class that has left a module, for its ``__getattr__``: Hydra imports a user's callbacks by itself.

    Args:
        module: where it was.
        name: of the class.

    Raises:
        AttributeError: no class of that name has moved from there.
    """
    old = f"{module}.{name}"
    if present_name(old) == old:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    found: type = pkgutil.resolve_name(present_name(old))
    return found


def find_class(name: Any, key: str) -> type:
    """Import a class that the user names.

    Args:
        name: dotted, ``mypackage.towers.MyTower``.
        key: of the configuration, for messages.

    Raises:
        ConfigError: it cannot be imported, or is no class.
    """
    if not isinstance(name, str) or "." not in name:
        raise ConfigError(f"{key}={written(name)}: must name a class with its module, such as mypackage.towers.MyTower")
    try:
        found = pkgutil.resolve_name(present_name(name))
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ConfigError(
            f"{key}={written(name)}: {error}; is its folder on PYTHONPATH, or its package installed?"
        ) from error
    if not inspect.isclass(found):
        raise ConfigError(f"{key}={written(name)}: a {type(found).__name__}; must name a class")
    return found


def resolve(node: Mapping[str, Any], path: str, known: Mapping[str, type] | None = None) -> tuple[type, dict[str, Any]]:
    """Find a node's target and check its keys.

    Args:
        node: has ``_target_``, the dotted name of a class, and the target's arguments.
        path: of the node, for messages.
        known: the only classes that may be named; None for a user's own configuration, which may name any.

    Returns:
        The class, and the arguments.

    Raises:
        ConfigError: no target, one that is not known or cannot be imported, an argument that it does not take, or one
            outside of its domain.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path}={written(node)}: must be a node, with a _target_ and the arguments of that class")
    target = present_name(node.get("_target_"))
    if known is None:
        found = find_class(target, f"{path}._target_")
    elif isinstance(target, str) and target in known:
        found = known[target]
    else:
        raise ConfigError(f"{path}._target_={target!r}: known are {', '.join(known)}")
    arguments = {str(key): value for key, value in node.items() if key != "_target_"}
    try:
        parameters = inspect.signature(found).parameters
    except (ValueError, TypeError) as error:  # a class of C
        raise ConfigError(f"{path}._target_={target!r}: {error}; give a class of Python") from error
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        check_arguments(found, arguments, path)
        return found, arguments
    for key in arguments:
        # `global` is a Python keyword; its argument is spelled `global_`.
        if key not in parameters and f"{key}_" not in parameters:
            hint = meant(key, parameters) or f"; it takes {', '.join(parameters)}"
            raise ConfigError(f"{path}.{key}: {target} has no such argument{hint}")
    arguments = {key if key in parameters else f"{key}_": value for key, value in arguments.items()}
    check_arguments(found, arguments, path)
    return found, arguments


def instantiate(node: Mapping[str, Any], path: str, known: Mapping[str, type] | None = None, **context: Any) -> Any:
    """Build a node's target with its own arguments and those of the context (``joint_dim``, …).

    Raises:
        ConfigError: as :func:`resolve`, or the class cannot be built with these arguments.
        OSError, ImportError: a file, or a package, that it needs is missing.
        MemoryError, torch.OutOfMemoryError: no room for it.
        Exception: a fault in the code of a class that is none of ours, or of a part in it; with its traceback.
    """
    found, arguments = resolve(node, path, known)
    parameters = inspect.signature(found).parameters
    given = {key: value for key, value in context.items() if key in parameters} | arguments
    try:
        return found(**given)
    except (OSError, ImportError):
        raise
    except Exception as error:  # of whatever library the part is built by
        if type(error).__module__.startswith("cloc.") or not _is_of_values(error, found):  # ours say what and where
            raise
        reason = " ".join(str(error).split()) or "it cannot be built with these arguments"
        kind = "" if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: "
        place = "" if reason.startswith(path) else f"{path}: {node['_target_'].rpartition('.')[2]}: {kind}"
        raise ConfigError(f"{place}{reason[:500]}") from error


def _is_of_values(error: Exception, found: type) -> bool:
    """Whether a part cannot be built for the values that it was given, and not for a fault in a user's own code.

    Libraries below our parts raise almost anything at a value that they were not written for.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's
        return False
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if sum(frame.f_code is instantiate.__code__ for frame in frames) > 1:  # judged where a part in this one was built
        return False
    ours = found.__module__.startswith("cloc.")
    usual = isinstance(error, ValueError | TypeError | RuntimeError | AssertionError)
    return ours or (usual and not isinstance(error, RecursionError | NotImplementedError))
