"""The kinds of evaluation sets, and how an entry of ``conf/datasets`` becomes a set.

First step of evaluation (``sets → model_outputs → metrics → suite → report → compare``). An entry names its kind by
the key that says where its files are; ``set`` takes a class of the user's own.
"""

from __future__ import annotations

from collections.abc import Callable

from cloc.config import ConfigError, DatasetConfig, instantiate
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.sets.annotated import AnnotatedShards
from cloc.evaluation.sets.class_images import ClassImages
from cloc.evaluation.sets.class_names import frequencies_of, templates_of
from cloc.evaluation.sets.eval_set import EvalSet, SetReader
from cloc.evaluation.sets.relations import RelationFiles

# Key of an entry → its kind, in the order of reading; an entry may have several.
KINDS: dict[str, Callable[[], SetReader]] = {
    "shards": AnnotatedShards,
    "relations": RelationFiles,
    "images": ClassImages,
}


def readers(name: str, config: DatasetConfig) -> list[SetReader]:
    """The kinds that an entry names.

    Raises:
        ConfigError: it names none, or a class that is no kind of set.
    """
    found = [kind() for key, kind in KINDS.items() if getattr(config, key)]
    if config.set is not None:
        found.append(instantiate(config.set, f"datasets.{name}.set"))
        if not callable(getattr(found[-1], "read", None)):
            raise ConfigError(
                f"datasets.{name}.set._target_={config.set['_target_']!r}: has no method `read`; "
                "see SetReader in cloc/evaluation/sets/eval_set.py"
            )
    if not found:
        raise ConfigError(f"datasets.{name}: names no data; set shards, relations or images")
    return found


def load_eval_set(name: str, config: DatasetConfig, limit: int = 0, ranks: Ranks | None = None) -> EvalSet:
    """Read an evaluation set's annotations.

    Args:
        name: for messages and tables.
        config: where it is.
        limit: at most so many pictures (and relation items); 0 for all. Evenly spread over the set.
        ranks: processes that share the checking of pictures.

    Raises:
        ConfigError: the set's configuration names nothing, or a file that is wrong.
        FileNotFoundError: no such folder.
        ValueError: the set is empty, or does not say when its embeddings are out of date.
    """
    kinds = readers(name, config)
    result = EvalSet(name, config, templates=templates_of(config, name))
    for kind in kinds:
        kind.read(result, limit, ranks or Ranks())
    if config.frequency:
        result.frequency = frequencies_of(config.frequency, f"datasets.{name}.frequency")
    if result.empty:
        source = config.shards or config.relations or (config.set or {}).get("_target_")
        raise ValueError(f"evaluation set {name!r}: no usable sample in {source}; left out: {result.skipped}")
    if (result.samples and not result.digest) or (result.relations and not result.relation_digest):
        raise ValueError(
            f"datasets.{name}: sets no digest (relation_digest) for its pictures, by which embeddings are kept; "
            "give one that changes with their bytes"
        )
    return result
