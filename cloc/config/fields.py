"""How the keys of a group reach the parts that they are for: by their names, so that a key is written down once."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import OmegaConf

from cloc.config.schema import DataConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Part = TypeVar("Part", bound="DataclassInstance")


def from_fields(part: type[Part], config: Any, **more: Any) -> Part:
    """Make a dataclass of the values that a configuration holds under the names of its fields; lists become tuples.

    Args:
        part: the dataclass.
        config: a dataclass of ``schema``.
        more: its other fields.
    """
    named = {field.name for field in fields(part)}
    given = {name: value for name, value in asdict(config).items() if name in named}
    return part(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}, **more)


def register_defaults() -> None:
    """Let ``conf/data/*.yaml`` begin with the defaults of the schema: ``defaults: [/schema/data@_here_]``.

    Not in the group ``data``: ``eval.py`` has a key of that name, and Hydra would take it for a choice of file.
    """
    from hydra.core.config_store import ConfigStore  # Hydra is of the extra `train`

    defaults = OmegaConf.to_container(OmegaConf.structured(DataConfig))
    ConfigStore.instance().store(group="schema", name="data", node=defaults)
