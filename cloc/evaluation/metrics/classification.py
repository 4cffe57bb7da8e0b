"""Zero-shot classification of boxes and of pictures: the nearest class text.

Per question (``top1``, ``top5``) and as a mean over classes (``mAcc``); by box size in COCO's bounds, by how common a
class is in LVIS. Class texts are the mean over templates; a set with templates is also measured by names alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cloc.config import ConfigError, DatasetConfig
from cloc.contracts import Sample
from cloc.evaluation.metrics.outcome import Outcomes, outcome
from cloc.evaluation.sets.class_names import read_lines

NAMES_ONLY = ["{}"]
SMALL, LARGE = 32**2, 96**2  # pixels of the picture: COCO's bounds
SIZES = ("small", "medium", "large")
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
CHUNK = 8192


def class_texts(encode: Callable[[list[str]], Tensor], names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One embedding a class, ``[Y,D]`` of unit norm: the mean over templates.

    Args:
        encode: texts → ``[T,D]``.
        names: Y classes.
        templates: each with one ``{}``.
    """
    embedded = encode([template.replace("{}", name) for name in names for template in templates])
    return normalize(embedded.unflatten(0, (len(names), len(templates))).mean(1), dim=-1)


def classify(items: Tensor, classes: Tensor) -> Tensor:
    """The nearest classes of each item, best first: ``[K,min(5,Y)]`` int64."""
    depth = min(5, len(classes))
    blocks = [(block @ classes.T).topk(depth, 1).indices for block in items.split(CHUNK)]
    return torch.cat(blocks).cpu() if blocks else torch.zeros(0, depth, dtype=torch.int64)


def classification_outcomes(ranked: Tensor, truth: Tensor, group: Tensor, prefix: str, suffix: str = "") -> Outcomes:
    """``top1``, ``top5`` (share of items) and ``mAcc`` (mean over the classes that occur).

    Args:
        ranked: of :func:`classify`.
        truth: ``[K]`` class index.
        group: ``[K]`` picture of each item.
        prefix: of the metric names.
        suffix: of the metric names.

    Top-5 is absent where there are no more than five classes: it would be 1 whatever the model.
    """
    hit = ranked == truth[:, None]
    found = {
        f"{prefix}top1{suffix}": outcome(hit[:, 0], group),
        f"{prefix}mAcc{suffix}": outcome(hit[:, 0], group, truth),
    }
    if ranked.shape[1] == 5:
        found[f"{prefix}top5{suffix}"] = outcome(hit.any(1), group)
    return found


def split_outcomes(
    ranked: Tensor, truth: Tensor, group: Tensor, which: Sequence[str | None], order: Sequence[str], prefix: str
) -> Outcomes:
    """``top1_NAME`` and ``mAcc_NAME`` of each part of the items that ``which`` names; None belongs to no part."""
    found: Outcomes = {}
    for name in order:
        mask = torch.tensor([own == name for own in which], dtype=torch.bool)
        if mask.any():
            part = classification_outcomes(ranked[mask], truth[mask], group[mask], prefix, f"_{name}")
            found |= {metric: value for metric, value in part.items() if "top5" not in metric}
    return found


def box_sizes(samples: Sequence[Sample]) -> list[str]:
    """Small, medium or large of every region, by its area in pixels of the picture (COCO's bounds)."""
    names = []
    for sample in samples:
        for region in sample.regions:
            x0, y0, x1, y1 = region.box
            area = (x1 - x0) * sample.width * (y1 - y0) * sample.height
            names.append(SIZES[(area >= SMALL) + (area >= LARGE)])
    return names


def templates_of(config: DatasetConfig, name: str) -> list[str]:
    """Templates of a set.

    Raises:
        ConfigError: none, or one without a place for the name.
    """
    key = f"datasets.{name}.template_file" if config.template_file else f"datasets.{name}.templates"
    if config.template_file == "openai":
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        return [make("{}") for make in OPENAI_IMAGENET_TEMPLATES]
    found = read_lines(config.template_file, key) if config.template_file else list(config.templates)
    wrong = [template for template in found if template.count("{}") != 1]
    if wrong or not found:
        raise ConfigError(f"{key}: {wrong or 'no template'}: each needs one {{}} for the class name")
    return found


def frequencies_of(path: str, key: str) -> dict[str, str]:
    """Class → rare, common or frequent, from LVIS' annotation file or a JSON object.

    Raises:
        ConfigError: no such file, or another content.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"{key}={path!r}: no such file")
    try:
        found: Mapping[str, str] = json.loads(file.read_text(encoding="utf-8-sig"))
        if "categories" in found:
            found = {
                name: category["frequency"]
                for category in found["categories"]
                for name in {category["name"], category["name"].replace("_", " ")}
            }
        wrong = {value for value in found.values() if value not in FREQUENCIES}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{key}={path!r}: neither LVIS' annotations nor an object of r, c or f ({error})") from error
    if wrong:
        raise ConfigError(f"{key}={path!r}: frequencies {sorted(map(str, wrong))}; give r, c or f")
    return {name: FREQUENCIES[value] for name, value in found.items()}
