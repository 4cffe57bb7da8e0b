"""What the report shows of a set: its parts by class and size, and pictures with what the models say about them.

Stands between ``compare.py``, after all metrics of a set and on the same embeddings, and ``page.py``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad
from torchvision.transforms.v2 import functional as tv

from cloc.encoder import PAD, Encoder
from cloc.evaluation.metrics.classification import class_embeddings, classify
from cloc.evaluation.model_outputs import ModelOutputs
from cloc.evaluation.report.example_choice import Evaluated, choose, picture_scores
from cloc.evaluation.report.metrics_file import Entry
from cloc.evaluation.report.report_data import Answer, Case, DatasetReport, Gallery, Heat
from cloc.evaluation.report.splits import by_class, by_size
from cloc.evaluation.sets.eval_set import pairs

SHOWN_BOXES = 8
HEAT_PICTURES, HEAT_PHRASES = 3, 2
HEAT_GRID = 96  # cells of a map's side before it is cut to the picture


def dataset_report(found: Evaluated, entry: Entry, pictures: int, samples: int, seed: int) -> DatasetReport:
    """All that the report shows of a set.

    Args:
        found: the models on the set.
        entry: of ``metrics.json``.
        pictures: in the galleries: a third each of random, best and worst ones.
        samples: resamples behind the intervals by class and size; 0 for none.
        seed: of the draws and of the random pictures.
    """
    data = found.data
    report = DatasetReport(data.name, data.config.description, entry)
    if not any(own.regions for own in data.samples):
        return report
    report.classes = by_class(data, found.outcomes, found.best, found.catalog, _said(found), samples, seed)
    report.sizes = by_size(data, found.outcomes, found.best, found.catalog, samples, seed)
    scores = picture_scores(found)
    chosen = choose(scores, [len(own.regions) for own in data.samples], pictures, seed)
    indices = sorted({index for own in chosen.values() for index in own})
    cases = dict(zip(indices, _cases(found, indices), strict=True))
    model = found.models[0].encoder.name
    words = {
        "random": "Drawn by seed, before any model was asked.",
        "best": f"The pictures that {model} does best on.",
        "worst": f"The pictures that {model} does worst on.",
    }
    titles = {"random": "Random pictures", "best": "Best pictures", "worst": "Worst pictures"}
    report.galleries = [
        Gallery(titles[kind], words[kind], [cases[index] for index in own]) for kind, own in chosen.items() if own
    ]
    if chosen["random"]:
        mean = float(np.nanmean(scores)) if np.isfinite(scores).any() else 0.0
        few = [index for index in chosen["random"] if len(data.samples[index].regions) <= SHOWN_BOXES]
        typical = min(few or chosen["random"], key=lambda index: abs(np.nan_to_num(scores[index]) - mean))
        report.typical = cases[typical]
        report.heats = _heats(found, [cases[index] for index in chosen["random"][:HEAT_PICTURES]])
    return report


def _gallery_texts(found: Evaluated, outputs: ModelOutputs) -> tuple[list[str], Tensor]:
    """What a box can be called: the classes, or all phrases of the set where there are none."""
    data = found.data
    if data.categories:
        return data.categories, class_embeddings(outputs, data.categories, data.templates)
    phrases = sorted({phrase for sample in data.samples for region in sample.regions for phrase in region.phrases})
    return phrases, outputs.texts(phrases)


def _said(found: Evaluated) -> list[str]:
    """What the first model calls each box that has a class, in the order of the set."""
    outputs, own, data = found.models[0], found.embedded[0], found.data
    source = found.source(outputs.encoder.name)
    if source is None or not data.categories:
        return []
    texts, gallery = _gallery_texts(found, outputs)
    classes = set(texts)
    regions = [region for sample in data.samples for region in sample.regions]
    classed = [index for index, region in enumerate(regions) if region.category in classes]
    return [texts[i] for i in classify(own.regions[source][classed].to(gallery.device), gallery)[:, 0].tolist()]


def _named(found: Evaluated, chosen: Sequence[int]) -> dict[str, dict[int, list[str]]]:
    """Model label → picture → what it calls each box."""
    starts = np.cumsum([0, *(len(sample.regions) for sample in found.data.samples)])
    labels: dict[str, dict[int, list[str]]] = defaultdict(dict)
    for outputs, own in zip(found.models, found.embedded, strict=True):
        source = found.source(outputs.encoder.name)
        if source is None:
            continue
        texts, gallery = _gallery_texts(found, outputs)
        for index in chosen:
            rows = own.regions[source][starts[index] : starts[index + 1]].to(gallery.device)
            nearest = (rows @ gallery.T).argmax(1).tolist()
            labels[f"{outputs.encoder.name} · {source}"][index] = [texts[i] for i in nearest]
    return labels


def _cases(found: Evaluated, chosen: Sequence[int]) -> list[Case]:
    """Pictures with every model's names for the boxes and places for the phrases."""
    data = found.data
    named = _named(found, chosen)
    starts = np.cumsum([0, *(len(own) for own in pairs(data.samples))])
    cases = []
    for index, picture in zip(chosen, data.pictures(list(chosen)), strict=True):
        sample = data.samples[index]
        regions, phrases = sample.regions[:SHOWN_BOXES], pairs([sample])[0]
        places = [starts[index] + phrases.index(region.phrases[0]) for region in regions]
        cases.append(
            Case(
                key=sample.key,
                image=tv.to_pil_image(picture),
                boxes=[region.box for region in regions],
                phrases=[region.phrases[0] for region in regions],
                named={
                    label: [
                        Answer(text, text == region.category or text in region.phrases)
                        for text, region in zip(names[index], regions, strict=False)
                    ]
                    for label, names in named.items()
                },
                grounded={
                    outputs.encoder.name: [tuple(own.predicted[place].tolist()) for place in places]
                    for outputs, own in zip(found.models, found.embedded, strict=True)
                    if len(own.predicted)
                },
                more=len(sample.regions) - len(regions),
            )
        )
    return cases


def _heats(found: Evaluated, cases: Sequence[Case]) -> list[Heat]:
    heats = []
    for case in cases:
        phrases = list(dict.fromkeys(case.phrases))[:HEAT_PHRASES]
        maps: list[dict[str, np.ndarray]] = [{} for _ in phrases]
        for outputs in found.models:
            if not getattr(outputs.encoder.model.image, "dense", True):
                continue
            label, rows = similarity_maps(outputs.encoder, case.image, outputs.texts(phrases))
            for own, row in zip(maps, rows, strict=True):
                own[label] = row
        for phrase, own in zip(phrases, maps, strict=True):
            boxes = [box for box, text in zip(case.boxes, case.phrases, strict=True) if text == phrase]
            if own:
                heats.append(Heat(case.key, case.image, phrase, boxes, own))
    return heats


@torch.no_grad()
def similarity_maps(encoder: Encoder, image: Any, texts: Tensor) -> tuple[str, list[np.ndarray]]:
    """Cosine of every place of a picture to each text: patch tokens in the joint space · text.

    Args:
        encoder: a model with patch tokens.
        image: a PIL image.
        texts: ``[T,D]`` of unit norm.

    Returns:
        A label that says how tokens reached the joint space (as the Prompter reads a single token, or by the
        projection of the whole picture's embedding), and a map ``[h,w]`` over the picture without its padding for each
        text.
    """
    model = encoder.model
    tower: Any = model.image  # any module with a tower's methods, of which nn.Module knows none; as the Prompter
    prompter: Any = model.prompter
    preprocess = encoder.preprocess if encoder.preprocess.whole else PAD
    view, content = preprocess(tv.pil_to_tensor(image), encoder.image_size)
    tokens = model.encode_images(view[None].to(encoder.device)).tokens
    if getattr(prompter, "local", None) is not None:
        local, how = prompter.local(prompter.memory(tokens)), "prompter"
    else:
        local, how = tower.project_tokens(tokens), "projection"
    cosines = (normalize(local.float(), dim=-1)[0] @ texts.to(local.device).T).T.unflatten(-1, tuple(model.grid))
    fine = interpolate(
        cosines[:, None], size=[round(HEAT_GRID * model.covered)] * 2, mode="bilinear", align_corners=False
    )
    unseen = max(0, HEAT_GRID - fine.shape[-1])  # a border behind the last token shows what that one shows
    fine = pad(fine, (0, unseen, 0, unseen), mode="replicate")[:, 0]
    left, top, right, bottom = (round(value * HEAT_GRID) for value in content.tolist())
    cut = fine[:, top : max(bottom, top + 1), left : max(right, left + 1)].cpu()
    return f"{encoder.name} · {how}", [own.numpy() for own in cut]
