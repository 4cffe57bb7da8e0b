"""Spatial relations after What'sUp: the same two things in four arrangements, four captions each.

Scored two ways: by image-text similarity, as for any CLIP; and by grounding both things and comparing their boxes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from cloc.contracts import Sample
from cloc.data.decode import decode_rgb
from cloc.encoder import Encoder

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def relation_metrics(encoder: Encoder, samples: Sequence[Sample], batch_size: int = 64) -> dict[str, float]:
    """Score a model on relation items.

    Args:
        encoder: the model.
        samples: each with ``extra["relation"]``: ``set``, ``subject``, ``object``, ``relation`` (left, right, above or
            below), ``candidates`` (captions) and ``answer`` (index of the true one).
        batch_size: pictures a forward pass.

    Returns:
        ``relations/SCORING/accuracy|pair|set4`` for SCORING ``similarity``, and ``grounded`` where the model grounds.
        ``pair``: both pictures of two opposite relations right; ``set4``: all four of a set right (What'sUp, Sec. 3).
    """
    items = [sample.extra["relation"] for sample in samples]
    if not items:
        return {}
    right: dict[str, list[bool]] = {"similarity": []}
    if encoder.can_ground:
        right["grounded"] = []
    for start in range(0, len(samples), batch_size):
        block, own = samples[start : start + batch_size], items[start : start + batch_size]
        seen = encoder.see([decode_rgb(sample.image) for sample in block])
        candidates = encoder.encode_text([text for item in own for text in item["candidates"]])
        offsets = [len(item["candidates"]) for item in own]
        for image, texts, item in zip(seen.features.pooled, candidates.split(offsets), own, strict=True):
            right["similarity"].append(int((texts @ image).argmax()) == item["answer"])
        if encoder.can_ground:
            texts = encoder.encode_text([text for item in own for text in (item["subject"], item["object"])]).split(2)
            for boxes, item in zip(encoder.grounded(seen, texts), own, strict=True):
                right["grounded"].append(relation_of(boxes[0].tolist(), boxes[1].tolist()) == item["relation"])
    return {
        f"relations/{scoring}/{name}": value
        for scoring, flags in right.items()
        for name, value in _summary(items, flags).items()
    }


def relation_of(subject: Sequence[float], other: Sequence[float]) -> str:
    """Which of left, right, above, below fits two boxes: the axis along which their centers differ most."""
    dx = (subject[0] + subject[2]) - (other[0] + other[2])
    dy = (subject[1] + subject[3]) - (other[1] + other[3])
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _summary(items: list[dict[str, Any]], right: list[bool]) -> dict[str, float]:
    sets: dict[str, dict[str, bool]] = defaultdict(dict)
    for item, flag in zip(items, right, strict=True):
        sets[item["set"]][item["relation"]] = flag
    pairs = [
        own[relation] and own[OPPOSITE[relation]]
        for own in sets.values()
        for relation in ("left", "above")
        if relation in own and OPPOSITE[relation] in own
    ]
    fours = [all(own.values()) for own in sets.values() if len(own) == 4]
    mean = {"accuracy": right, "pair": pairs, "set4": fours}
    return {name: float(torch.tensor(flags, dtype=torch.float64).mean()) for name, flags in mean.items() if flags}
