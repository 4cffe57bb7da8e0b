"""The suite: one model over one evaluation set → metrics. CLIP and CLOC go through the same lines.

Third step of evaluation (``sets → model_outputs → suite → compare``): every metric from the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cloc.config import DatasetConfig, EvaluationConfig
from cloc.contracts import Region
from cloc.encoder import Encoder
from cloc.evaluation.metrics.average_precision import precision_outcomes
from cloc.evaluation.metrics.classification import (
    FREQUENCIES,
    NAMES_ONLY,
    SIZES,
    box_sizes,
    class_texts,
    classification_outcomes,
    classify,
    split_outcomes,
)
from cloc.evaluation.metrics.grounding import comprehension_outcome, grounding_outcomes, hard_negative_outcome
from cloc.evaluation.metrics.outcome import Outcomes, values
from cloc.evaluation.metrics.relations import relation_outcomes
from cloc.evaluation.metrics.retrieval import owners, retrieval_outcomes
from cloc.evaluation.model_outputs import Embedded, ModelOutputs
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.sets.annotated import EvalSet, load_eval_set
from cloc.models.model import Cloc


def measure(outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> Outcomes:
    """All metrics that the set and the model allow; one that they do not is absent, or has no question."""
    found: Outcomes = {}
    if len(embedded.classified):
        found |= _zero_shot(outputs, data, embedded.classified)
    if len(embedded.images):
        captions, by_text, by_item = owners([sample.captions for sample in data.samples])
        names = ("image_text/image_to_text", "image_text/text_to_image")
        texts, group = outputs.texts(captions), range(len(data.samples))
        images = embedded.images.to(texts.device)
        if captions:
            found |= retrieval_outcomes(images, texts, by_text, by_item, group, names, [1, 5, 10], outputs.ranks)
    if embedded.regions and any(sample.regions for sample in data.samples):
        found |= _regions(outputs, data, embedded)
    if len(embedded.predicted):
        owned = [
            torch.tensor([region.box for region in sample.regions if phrase in region.phrases])
            for sample, phrases in zip(data.samples, data.phrases, strict=True)
            for phrase in phrases
        ]
        group = torch.repeat_interleave(torch.arange(len(data.samples)), _lengths(data.phrases))
        found |= grounding_outcomes(embedded.predicted, owned, group)
        found |= precision_outcomes(embedded.predicted, embedded.scores, owned, group)
    if len(embedded.relation_images):
        texts = [outputs.texts(item.candidates).cpu() for item in data.relations]
        found |= relation_outcomes(data.relations, embedded.relation_images, texts, embedded.placed)
    return found


def class_embeddings(outputs: ModelOutputs, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One embedding a class, ``[Y,D]`` of unit norm: the mean over templates."""
    return class_texts(outputs.texts, names, templates) if names else torch.zeros(0, outputs.width)


def class_wordings(data: EvalSet) -> dict[str, list[str]]:
    """Suffix of the metrics → templates: a set with templates is also measured by names alone."""
    alone = {} if data.templates == NAMES_ONLY else {"_names": NAMES_ONLY}
    return {"": data.templates} | alone


def _zero_shot(outputs: ModelOutputs, data: EvalSet, rows: Tensor) -> Outcomes:
    usable = ~rows.isnan().any(1)
    truth, group = torch.tensor(data.images.labels)[usable], torch.arange(len(rows))[usable]
    found: Outcomes = {}
    for suffix, templates in class_wordings(data).items():
        classes = class_embeddings(outputs, data.images.classes, templates)
        ranked = classify(rows[usable].to(classes.device), classes)
        found |= classification_outcomes(ranked, truth, group, "image/zero_shot_", suffix)
    return found


def _regions(outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> Outcomes:
    regions = [region for sample in data.samples for region in sample.regions]
    group = torch.repeat_interleave(torch.arange(len(data.samples)), _lengths([s.regions for s in data.samples]))
    phrases, by_text, by_item = owners([region.phrases for region in regions])
    texts = outputs.texts(phrases)
    found: Outcomes = {}
    for source, kept in embedded.regions.items():
        rows, prefix = kept.to(texts.device), f"region/{source}/"
        found |= _named(outputs, data, regions, group, rows, prefix)
        names = (f"{prefix}region_to_text", f"{prefix}text_to_region")
        found |= retrieval_outcomes(rows, texts, by_text, by_item, group.tolist(), names, [1, 10], outputs.ranks)
        hard = [i for i, region in enumerate(regions) if region.negatives]
        negatives = [outputs.texts(regions[i].negatives) for i in hard]
        positive = outputs.texts([regions[i].phrases[0] for i in hard])
        found |= hard_negative_outcome(
            rows[hard].cpu(), positive.cpu(), [n.cpu() for n in negatives], group[hard], prefix
        )
        found |= _comprehension(outputs, data, rows, prefix)
    return found


def _named(
    outputs: ModelOutputs, data: EvalSet, regions: list[Region], group: Tensor, rows: Tensor, prefix: str
) -> Outcomes:
    """Classes of boxes: of all, by box size, and by frequency."""
    place = {name: i for i, name in enumerate(data.categories)}
    classed = [i for i, region in enumerate(regions) if region.category in place]
    found: Outcomes = {}
    if not classed:
        return found
    truth = torch.tensor([place[regions[i].category] for i in classed])
    sizes = box_sizes(data.samples)
    for suffix, templates in class_wordings(data).items():
        classes = class_embeddings(outputs, data.categories, templates)
        ranked = classify(rows[classed].to(classes.device), classes)
        found |= classification_outcomes(ranked, truth, group[classed], prefix, suffix)
        if suffix:
            continue
        found |= split_outcomes(ranked, truth, group[classed], [sizes[i] for i in classed], SIZES, prefix)
        if data.frequency:
            often = [data.frequency.get(regions[i].category) for i in classed]
            found |= split_outcomes(ranked, truth, group[classed], often, list(FREQUENCIES.values()), prefix)
    return found


def _comprehension(outputs: ModelOutputs, data: EvalSet, rows: Tensor, prefix: str) -> Outcomes:
    regions = rows.split([len(sample.regions) for sample in data.samples])
    owned = [
        torch.tensor([[phrase in region.phrases for region in sample.regions] for phrase in phrases])
        .reshape(len(phrases), len(sample.regions))
        .bool()
        for sample, phrases in zip(data.samples, data.phrases, strict=True)
    ]
    return comprehension_outcome(regions, [outputs.texts(own) for own in data.phrases], owned, prefix)


def _lengths(rows: Sequence[Sequence[object]]) -> Tensor:
    return torch.tensor([len(row) for row in rows])


class TrainingSuite:
    """A small suite on the weights in training: the learning curve. Ranks that train share it.

    Args:
        config: which sets, how many pictures.
        datasets: all known sets.
        model: the model in training; its weights are read where they are.

    Raises:
        ValueError: an unknown set.
    """

    def __init__(self, config: EvaluationConfig, datasets: dict[str, DatasetConfig], model: Cloc) -> None:
        unknown = [name for name in config.data if name not in datasets]
        if unknown:
            raise ValueError(f"evaluation.data={unknown}: unknown; known sets are {sorted(datasets)}")
        self.config = replace(config, sources=[s for s in config.sources if s != "crop"])
        self.sets = [load_eval_set(name, datasets[name], config.limit) for name in config.data]

    def __call__(self, model: Cloc) -> dict[str, float]:
        """Metrics by ``SET/METRIC``."""
        outputs = ModelOutputs(Encoder(model, {}, str(next(model.parameters()).device)), Ranks())
        return {
            f"{data.name}/{name}": value
            for data in self.sets
            for name, value in values(measure(outputs, data, outputs.embed(data, self.config))).items()
        }
