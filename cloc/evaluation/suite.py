"""The suite: one model over one evaluation set → metrics. CLIP and CLOC go through the same lines.

Order of work: read annotations, embed texts and pictures once, then every metric from the embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from rich.progress import Progress
from torch import Tensor

from cloc.config import DatasetConfig, EvaluationConfig
from cloc.contracts import BadSample, Sample
from cloc.data.decode import decode_rgb
from cloc.data.schema import parse_sample
from cloc.data.shards import Manifest, ShardReader, load_manifest, read_sample_members
from cloc.encoder import Encoder
from cloc.evaluation.grounding import grounding_metrics
from cloc.evaluation.relations import relation_metrics
from cloc.evaluation.retrieval import classify, owners, retrieval_metrics
from cloc.models.model import Cloc


@dataclass(slots=True)
class EvalSet:
    """An evaluation set with its annotations in memory; pictures are read when they are needed.

    Attributes:
        name: key in ``datasets``.
        config: its configuration.
        samples: annotations without crowd regions and without pixels.
        places: shard and index of each sample.
        reader: of the shards.
        relations: relation items, with pixels.
        categories: class names; of all the set, so that classes without a box still compete.
        skipped: samples left out, by reason.
    """

    name: str
    config: DatasetConfig
    samples: list[Sample] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    reader: ShardReader | None = None
    relations: list[Sample] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    def pictures(self, indices: range | list[int]) -> list[Tensor]:
        """Decoded pictures ``[3,H,W]`` uint8 of some samples."""
        found = []
        for index in indices:
            key, members = read_sample_members(self.reader.read(*self.places[index]))
            found.append(decode_rgb(parse_sample(members, key, self.name)[0].image))
        return found

    @property
    def counts(self) -> dict[str, int]:
        """What the set holds."""
        regions = [region for sample in self.samples for region in sample.regions]
        return {
            "images": len(self.samples),
            "captions": sum(len(sample.captions) for sample in self.samples),
            "regions": len(regions),
            "phrases": len({phrase for region in regions for phrase in region.phrases}),
            "classes": len(self.categories),
            "relation items": len(self.relations),
        }


def load_eval_set(name: str, config: DatasetConfig, limit: int = 0) -> EvalSet:
    """Read an evaluation set's annotations.

    Args:
        name: for messages and tables.
        config: where its shards are.
        limit: at most so many pictures (and relation items); 0 for all. Evenly spread over the set.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the set is empty.
    """
    result = EvalSet(name, config)
    if config.shards:
        manifest = load_manifest(config.shards)
        result.reader = ShardReader(manifest)
        result.categories = list(manifest.categories)
        for place in _spread(manifest, limit):
            try:
                key, members = read_sample_members(result.reader.read(*place))
                sample, _ = parse_sample(members, key, name)
                decode_rgb(sample.image)  # a picture that cannot be decoded is counted here, not met half-way
            except BadSample as error:
                result.skipped[error.reason] = result.skipped.get(error.reason, 0) + 1
                continue
            regions = tuple(region for region in sample.regions if not region.crowd)
            result.samples.append(replace(sample, image=b"", regions=regions))
            result.places.append(place)
    if config.relations:
        manifest = load_manifest(config.relations)
        result.relations = [sample for sample in _read_all(manifest, limit) if "relation" in sample.extra]
    if not result.samples and not result.relations:
        raise ValueError(f"evaluation set {name!r}: no usable sample in {config.shards or config.relations}")
    return result


def _spread(manifest: Manifest, limit: int) -> list[tuple[int, int]]:
    places = [(shard, i) for shard, info in enumerate(manifest.shards) for i in range(info.samples)]
    if not limit or limit >= len(places):
        return places
    return [places[i * len(places) // limit] for i in range(limit)]


def _read_all(manifest: Manifest, limit: int) -> Iterator[Sample]:
    reader = ShardReader(manifest)
    # Sets of four lie together: a limit takes the first ones.
    for place in _spread(manifest, 0)[: limit or None]:
        key, members = read_sample_members(reader.read(*place))
        yield parse_sample(members, key, manifest.folder.name)[0]


@dataclass(slots=True)
class Embedded:
    """Everything that the metrics of one model on one set are computed from.

    Attributes:
        images: ``[I,D]``.
        regions: source → ``[K,D]``, in the order of the set's regions.
        predicted: grounded box ``[4]`` of each (picture, distinct phrase) pair, in the order of :func:`pairs`.
    """

    images: Tensor
    regions: dict[str, Tensor]
    predicted: list[Tensor]


def pairs(samples: list[Sample]) -> list[list[str]]:
    """Distinct phrases of each picture, in order."""
    return [list(dict.fromkeys(p for region in sample.regions for p in region.phrases)) for sample in samples]


def embed(encoder: Encoder, data: EvalSet, config: EvaluationConfig, progress: Progress | None = None) -> Embedded:
    """Run a model once over the pictures of a set: pooled embedding, every region source, every phrase grounded."""
    sources = [source for source in config.sources if source in encoder.sources]
    phrases = pairs(data.samples)
    index = {text: i for i, text in enumerate(dict.fromkeys(text for own in phrases for text in own))}
    texts = encoder.encode_text(list(index)) if encoder.can_ground else None
    task = progress.add_task(f"{encoder.name} on {data.name}", total=len(data.samples)) if progress else None
    images, predicted = [], []
    regions: dict[str, list[Tensor]] = {source: [] for source in sources}
    for start in range(0, len(data.samples), config.batch_size):
        stop = min(start + config.batch_size, len(data.samples))
        seen = encoder.see(data.pictures(range(start, stop)))
        images.append(seen.features.pooled)
        boxes = [torch.tensor([r.box for r in s.regions]).reshape(-1, 4) for s in data.samples[start:stop]]
        for source in sources:
            regions[source] += encoder.regions(seen, boxes, source)
        if texts is not None:
            own = [texts[[index[text] for text in found]] for found in phrases[start:stop]]
            predicted += [box for rows in encoder.grounded(seen, own) for box in rows.cpu()]
        if progress:
            progress.advance(task, stop - start)
    width = encoder.model.image.joint_dim
    return Embedded(
        torch.cat(images) if images else torch.zeros(0, width),
        {source: torch.cat(rows) if rows else torch.zeros(0, width) for source, rows in regions.items()},
        predicted,
    )


def measure(encoder: Encoder, data: EvalSet, config: EvaluationConfig, embedded: Embedded) -> dict[str, float]:
    """All metrics of the contract that the set and the model allow; one that they do not is absent."""
    values: dict[str, float] = {}
    captions, by_text, by_item = owners([sample.captions for sample in data.samples])
    if captions:
        names = ("image_text/image_to_text", "image_text/text_to_image")
        texts = encoder.encode_text(captions)
        values |= retrieval_metrics(embedded.images, texts, by_text, by_item, names, [1, 5, 10])
    regions = [region for sample in data.samples for region in sample.regions]
    if regions:
        values |= _region_metrics(encoder, data, embedded)
    if embedded.predicted:
        owned = [
            torch.tensor([r.box for r in sample.regions if phrase in r.phrases])
            for sample, phrases in zip(data.samples, pairs(data.samples), strict=True)
            for phrase in phrases
        ]
        values |= grounding_metrics(embedded.predicted, owned)
    return values | relation_metrics(encoder, data.relations, config.batch_size)


def _region_metrics(encoder: Encoder, data: EvalSet, embedded: Embedded) -> dict[str, float]:
    values: dict[str, float] = {}
    regions = [region for sample in data.samples for region in sample.regions]
    phrases, by_text, by_item = owners([region.phrases for region in regions])
    texts = encoder.encode_text(phrases)
    place = {name: i for i, name in enumerate(data.categories)}
    classed = [i for i, region in enumerate(regions) if region.category in place]
    truth = torch.tensor([place[regions[i].category] for i in classed], dtype=torch.int64)
    classes = class_embeddings(encoder, data)
    for source, rows in embedded.regions.items():
        if len(classed):
            scores, _ = classify(rows[classed], classes, truth.to(rows.device))
            values |= {f"region/{source}/{name}": value for name, value in scores.items()}
        names = (f"region/{source}/region_to_text", f"region/{source}/text_to_region")
        values |= retrieval_metrics(rows, texts, by_text, by_item, names, [1, 10])
    return values


def class_embeddings(encoder: Encoder, data: EvalSet) -> Tensor:
    """One embedding a class, ``[Y,D]`` of unit norm: the mean over the set's templates."""
    if not data.categories:
        return torch.zeros(0, encoder.model.image.joint_dim)
    texts = [template.format(name) for name in data.categories for template in data.config.templates]
    embedded = encoder.encode_text(texts).unflatten(0, (len(data.categories), len(data.config.templates)))
    return torch.nn.functional.normalize(embedded.mean(1), dim=-1)


class TrainingSuite:
    """A small suite on the weights in training: the learning curve.

    Args:
        config: which sets, how many pictures.
        datasets: all known sets.
        model: the model in training; its weights are read where they are.
    """

    def __init__(self, config: EvaluationConfig, datasets: dict[str, DatasetConfig], model: Cloc) -> None:
        unknown = [name for name in config.data if name not in datasets]
        if unknown:
            raise ValueError(f"evaluation.data={unknown}: unknown; known sets are {sorted(datasets)}")
        self.config = replace(config, sources=[s for s in config.sources if s != "crop"])
        self.sets = [load_eval_set(name, datasets[name], config.limit) for name in config.data]

    def __call__(self, model: Cloc) -> dict[str, float]:
        """Metrics by ``SET/METRIC``."""
        encoder = Encoder(model, {}, str(next(model.parameters()).device))
        return {
            f"{data.name}/{name}": value
            for data in self.sets
            for name, value in measure(encoder, data, self.config, embed(encoder, data, self.config)).items()
        }
