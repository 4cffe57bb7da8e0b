"""What the terms of a loss need, and whether a configuration provides it (beside ``checks``).

A term says it of itself (:class:`cloc.losses.term.Term`); an objective lists its terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from cloc.config.domains import ConfigError
from cloc.config.nodes import instantiate
from cloc.config.schema import TrainConfig


class Need(StrEnum):
    """What a term cannot do without; configuration and engine see to it before a run begins."""

    REGIONS = "regions"  # boxes in the data; the term is weighed by the share of pictures that have any
    PHRASES = "phrases"  # those of all processes, gathered
    PROMPTER = "prompter"  # ``Features.region``
    GROUNDING = "grounding"  # ``Features.grounded``
    TEACHER = "teacher"  # embeddings of the model that the run starts from
    NEGATIVES = "negatives"  # hard negative texts of regions: ``Batch.negatives``
    CROPS = "crops"  # further views of the pictures


class Listed(Protocol):
    """A term as an objective lists it.

    Attributes:
        name: of it and of its metric ``loss/NAME``.
        key: of the configuration that holds its weight.
        weight: at least 0.
        label: on the progress line.
    """

    name: str
    key: str
    weight: float
    label: str

    def needs(self, *any_of: Need) -> bool:
        """Whether it needs one of these."""


# In words, the node of the model that provides it (None where nothing does yet), the remedy.
PROVIDED: dict[Need, tuple[str, str | None, str]] = {
    Need.PROMPTER: ("a Prompter", "prompter", "give weight 0 (CLIP), or choose model/prompter=shared"),
    Need.GROUNDING: ("a head", "grounding", "give weight 0, or choose model/grounding=spatial"),
    Need.TEACHER: ("a teacher", None, "give weight 0, or the model that the run starts from: base, or init_from"),
    Need.NEGATIVES: ("hard negatives", None, "give weight 0, or draw some: data.negatives=10"),
    Need.CROPS: ("further crops of the pictures", None, "give weight 0"),
}

UNUSED = {
    Need.PROMPTER: ("prompter", "model.prompter=null leaves it out"),
    Need.GROUNDING: ("grounding", "model.grounding=null leaves it out"),
}


def terms_of(node: Mapping[str, Any]) -> list[Listed]:
    """The terms that the objective of a ``loss`` node computes; cheap.

    A class of the user's that lists no terms has none: nothing is known of what it needs.

    Raises:
        ConfigError: the objective cannot be built; it knows best what its weights must be.
    """
    return list(getattr(instantiate(node, "loss"), "terms", ()))


def weights_of(terms: Sequence[Listed]) -> str:
    """Keys and weights of terms, for messages."""
    return ", ".join(f"{one.key}={one.weight}" for one in terms)


def check_needs(config: TrainConfig, terms: Sequence[Listed]) -> None:
    """What terms need of the model must be there; what they need of the data is looked at where that is opened.

    Raises:
        ConfigError: names the terms, their weights, and what is missing.
    """
    for need, (what, node, remedy) in PROVIDED.items():
        asking = [one for one in terms if one.needs(need)]
        if asking and not _provided(config, need, node):
            verb, why = "needs" if len(asking) == 1 else "need", f"model.{node} is null" if node else "there is none"
            raise ConfigError(f"{weights_of(asking)} {verb} {what}, but {why}; {remedy}")


def _provided(config: TrainConfig, need: Need, node: str | None) -> bool:
    if need is Need.TEACHER:
        return config.base is not None or config.init_from is not None
    if need is Need.NEGATIVES:
        return config.data.negatives > 0
    return node is not None and getattr(config.model, node) is not None


def idle_parts(config: TrainConfig, terms: Sequence[Listed]) -> list[str]:
    """Parts of the model that no term asks for, in words: they keep their random weights."""
    idle = [
        (node, remedy)
        for need, (node, remedy) in UNUSED.items()
        if terms and getattr(config.model, node) is not None and not any(one.needs(need) for one in terms)
    ]
    return [f"model.{node}: not trained, no term of the loss asks for it; {remedy}" for node, remedy in idle]


def check_negatives(config: TrainConfig, terms: Sequence[Listed]) -> None:
    """Hard negatives are of use to a term that contrasts phrases.

    Raises:
        ConfigError: they are drawn for nothing.
    """
    if config.data.negatives and terms and not any(one.needs(Need.PHRASES) for one in terms):
        raise ConfigError(
            f"data.negatives={config.data.negatives} with loss.region={config.loss.get('region', 0)}: hard negatives "
            "belong to the region loss; set data.negatives=0, or a weight"
        )
