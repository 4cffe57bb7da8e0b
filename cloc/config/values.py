"""Is a value of the type and domain that its annotation asks for (beside ``domains``).

Numbers without a domain must be finite, no number is larger than :data:`cloc.config.domains.LARGEST`, and texts are
what files can hold. A truth value is no number; a whole number is a float as well.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from cloc.config.domains import LARGEST, ConfigError, Interval, Line
from cloc.usage import meant

SHOWN = 80  # characters of a value in a message


def check_schema(config: Any, path: str = "") -> None:
    """Check all leaves of a dataclass of ``schema``.

    Args:
        config: a dataclass.
        path: of it, with its dot, for messages.

    Raises:
        ConfigError: a value outside of its domain; names key, value and domain.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        check_value(hints[field.name], getattr(config, field.name), f"{path}{field.name}")


def check_arguments(part: Any, arguments: Mapping[str, Any], path: str) -> None:
    """Check the arguments of a part against the types and domains in its signature.

    Args:
        part: a class.
        arguments: by name.
        path: of its node, for messages.

    Raises:
        ConfigError: as :func:`check_schema`.
    """
    parameters = inspect.signature(part).parameters
    try:
        hints = get_type_hints(part.__init__, include_extras=True)
    except Exception:  # noqa: BLE001  (annotations of a user's class that only a type checker can resolve)
        hints = {}
    for name, value in arguments.items():
        if name not in parameters:
            continue
        default = parameters[name].default
        if type(value) is type(default) and value == default:  # `heads: int = None`, as it was once written
            continue
        check_value(hints.get(name, Any), value, f"{path}.{name.rstrip('_')}")


def check_value(hint: Any, value: Any, key: str) -> None:
    """Check one value, and all that it holds.

    Args:
        hint: its annotation.
        value: of the leaf.
        key: for messages.

    Raises:
        ConfigError: as :func:`check_schema`.
    """
    if is_dataclass(value):
        check_schema(value, f"{key}.")
        return
    if get_origin(hint) in (Union, UnionType):
        _check_choices(get_args(hint), value, key)
        return
    domains, hint = (hint.__metadata__, get_args(hint)[0]) if get_origin(hint) is Annotated else ((), hint)
    _check_plain(value, key)
    for domain in domains:
        if value not in domain:
            raise ConfigError(f"{key}={written(value)}: {_told(domain, value)}")
    if (wanted := kind_of(hint)) is not None and not _is_a(wanted, value):
        raise ConfigError(f"{key}={written(value)}: must be {KINDS[wanted]}")
    if get_origin(hint) is Literal and not any(value == one and type(value) is type(one) for one in get_args(hint)):
        raise ConfigError(f"{key}={written(value)}: give {' or '.join(map(written, get_args(hint)))}")
    if isinstance(value, Mapping):
        held = get_args(hint)[1] if wanted is dict and len(get_args(hint)) == 2 else Any
        for name, own in value.items():
            check_value(held, own, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for i, own in enumerate(value):
            check_value(_held(hint, i), own, f"{key}[{i}]")


def _held(hint: Any, place: int) -> Any:
    """Annotation of an entry of a list: of ``tuple[int, float]`` by its place, of ``tuple[int]`` the same for all."""
    kinds = get_args(hint) if kind_of(hint) is list else ()
    if get_origin(hint) is tuple and len(kinds) > 1 and kinds[1] is not Ellipsis:
        return kinds[place] if place < len(kinds) else Any
    return kinds[0] if kinds else Any


def _check_choices(choices: Sequence[Any], value: Any, key: str) -> None:
    """One of several kinds: any that takes it. Where none does, the first of the value's kind says why."""
    if value is None and type(None) in choices:
        return
    choices = [choice for choice in choices if choice is not type(None)]
    fitting = [choice for choice in choices if _is_a(kind_of(choice) or object, value)]
    if len(choices) > 1 and not fitting:
        kinds = " or ".join(KINDS.get(kind_of(choice) or object, str(choice)) for choice in choices)
        raise ConfigError(f"{key}={written(value)}: must be {kinds}")
    first, *more = fitting or choices
    for choice in more:
        with suppress(ConfigError):
            check_value(choice, value, key)
            return
    check_value(first, value, key)


KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a node, keys with their values",
    object: "a value",
}
"""Kinds of values that are told apart, in words."""


def kind_of(hint: Any) -> type | None:
    """Which of :data:`KINDS` an annotation asks for; None for one that says nothing of it, or of no such kind."""
    if get_origin(hint) is Annotated:
        return kind_of(get_args(hint)[0])
    if get_origin(hint) is Literal:
        kinds = {kind_of(type(one)) for one in get_args(hint)}
        return kinds.pop() if len(kinds) == 1 else None
    plain = get_origin(hint) or hint
    if plain in (bool, int, float, str):
        return cast(type, plain)
    if plain in (list, tuple, Sequence):
        return list
    return dict if plain in (dict, Mapping) else None


def _is_a(kind: type, value: Any) -> bool:
    if kind is object:
        return True
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float)
    if kind is list:
        return isinstance(value, list | tuple)
    return isinstance(value, Mapping if kind is dict else kind)


def _check_plain(value: Any, key: str) -> None:
    """What no value of any key may be."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: {Interval()}")
    if isinstance(value, int | float) and abs(value) > LARGEST and not isinstance(value, bool):
        raise ConfigError(f"{key}={written(value)}: larger than any number that is counted here; give a smaller one")
    if isinstance(value, str) and not _is_text(value):
        raise ConfigError(f"{key}={written(value)}: holds a character that no file can hold (NUL, half a surrogate)")


def _is_text(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _told(domain: Any, value: Any) -> str:
    """A domain in words, with the name that was meant."""
    name = value.get("name") if isinstance(value, Mapping) else value
    fault = domain.fault(value) if isinstance(domain, Line) and isinstance(value, str) else ""
    return f"{domain}{f'; {fault}' if fault else ''}{meant(name, getattr(domain, 'names', ()))}"


def written(value: Any) -> str:
    """A value for a message: on one line, texts in quotes, no longer than :data:`SHOWN` characters."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"(a number of {value.bit_length()} bits)"  # Python writes out none of some thousands of digits
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = " ".join((repr(value) if isinstance(value, str) else str(value)).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
