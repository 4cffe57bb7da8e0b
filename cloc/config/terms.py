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
    CROPS = "crops"  # regions cut out as further views, ``Features.crop``, and their phrases of all processes


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


# In words, why it is lacking, the remedy.
PROVIDED: dict[Need, tuple[str, str, str]] = {
    Need.PROMPTER: ("a Prompter", "model.prompter is null", "give weight 0 (CLIP), or choose model/prompter=shared"),
    Need.GROUNDING: ("a head", "model.grounding is null", "give weight 0, or choose model/grounding=spatial"),
    Need.TEACHER: (
        "a teacher",
        "there is none",
        "give weight 0, or the model that the run starts from: base, or init_from",
    ),
    Need.NEGATIVES: ("hard negatives", "data.negatives is 0", "give weight 0, or draw some: data.negatives=10"),
    Need.CROPS: ("crops of the regions", "data.crops is 0", "give weight 0, or data.crops=2"),
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
    for need, (what, why, remedy) in PROVIDED.items():
        asking = [one for one in terms if one.needs(need)]
        if asking and not _provided(config, need):
            verb = "needs" if len(asking) == 1 else "need"
            raise ConfigError(f"{weights_of(asking)} {verb} {what}, but {why}; {remedy}")


def _provided(config: TrainConfig, need: Need) -> bool:
    return {
        Need.PROMPTER: config.model.prompter is not None,
        Need.GROUNDING: config.model.grounding is not None,
        Need.TEACHER: config.base is not None or config.init_from is not None,
        Need.NEGATIVES: config.data.negatives > 0,
        Need.CROPS: config.data.crops > 0,
    }[need]


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
    users = [one for one in terms if one.needs(Need.PHRASES, Need.CROPS, Need.NEGATIVES)]
    if config.data.negatives and terms and not users:
        raise ConfigError(
            f"data.negatives={config.data.negatives} with loss.region={config.loss.get('region', 0)}: hard negatives "
            "belong to the region loss; set data.negatives=0, or a weight"
        )


def check_crops(config: TrainConfig, terms: Sequence[Listed]) -> None:
    """Regions are cut out for a term that compares them, of those that are drawn, and for towers that learn of them.

    Raises:
        ConfigError: they are cut out for nothing, or are more than the drawn ones.
    """
    data, model = config.data, config.model
    wanted = not terms or any(one.needs(Need.CROPS) for one in terms)
    if data.crops and not wanted:
        raise ConfigError(
            f"data.crops={data.crops} with loss.crops={config.loss.get('crops', 0)}: no term of the loss reads crops; "
            "set data.crops=0, or a weight"
        )
    if data.crops and model.frozen_towers:
        raise ConfigError(
            f"data.crops={data.crops} with model.frozen_towers=true: crops pass through the towers alone, which stay "
            "as they are; set data.crops=0 and loss.crops=0"
        )
    if model.crop_scale and not data.crops:
        raise ConfigError(
            "model.crop_scale=true with data.crops=0: no crop is compared, the temperature would not be trained; set "
            "model.crop_scale=false, or data.crops"
        )
