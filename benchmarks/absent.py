"""Whether the scores of ``ground`` tell phrases that are in a picture from phrases that are not.

    python -m benchmarks.absent RUN SHARDS --pictures 300

Each picture of a folder of shards is asked for its own phrases and for as many of other pictures', none of them of a
class that it shows. Prints the area under the ROC curve of each score (1: every phrase that is there scores above every
one that is not; 0.5: chance), the best cut between them, the share that it gets right and, as its last line, one JSON
object. ``ground`` is what :meth:`cloc.encoder.Encoder.ground` returns; the others are what it could have been.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import cloc
from cloc.contracts import Sample
from cloc.data.decode import decode_rgb
from cloc.encoder import Encoder
from cloc.evaluation.embed import open_source

BATCH = 32


def phrases_of(sample: Sample) -> list[str]:
    """Distinct phrases, in order."""
    return list(dict.fromkeys(phrase for region in sample.regions for phrase in region.phrases))


def absent_phrases(samples: Sequence[Sample], index: int, rng: random.Random) -> list[str]:
    """As many phrases of other pictures as this one has own, of no class or name that it shows."""
    own, found = phrases_of(samples[index]), list[str]()
    shown = {region.category for region in samples[index].regions if region.category} | set(own)
    for _ in range(100 * len(own)):
        region = rng.choice(rng.choice(samples).regions)
        phrase = rng.choice(region.phrases)
        if region.category not in shown and phrase not in shown and phrase not in found:
            found.append(phrase)
        if len(found) == len(own):
            break
    return found


def scores(model: Encoder, pictures: list[Tensor], phrases: list[list[str]]) -> dict[str, Tensor]:
    """``[P]`` of each score, over all (picture, phrase) pairs in order."""
    text = list(model.encode_text([one for own in phrases for one in own]).split([len(own) for own in phrases]))
    seen = model.see(pictures)
    boxes, ground = model.grounded(seen, text, return_scores=True)
    box = [(rows * own).sum(1) for rows, own in zip(model.regions(seen, boxes), text, strict=True)]
    found = {"ground": ground, "box": box}
    found["token"] = [2 * both - one for both, one in zip(ground, box, strict=True)]  # the rest of the mean
    found["picture"] = [own @ row for own, row in zip(text, seen.features.pooled, strict=True)]
    return {name: torch.cat(rows).cpu() for name, rows in found.items()}


def area(values: Tensor, there: Tensor) -> float:
    """Area under the ROC curve; ties count half."""
    high, low = values[there].double(), values[~there].double().sort().values
    below = torch.searchsorted(low, high) + torch.searchsorted(low, high, right=True)
    return float(below.double().mean() / 2 / len(low))


def best_cut(values: Tensor, there: Tensor) -> tuple[float, float]:
    """The cut with the best mean of both shares that are right, and that mean."""
    order = values.argsort()
    hits, misses = there[order].double(), (~there[order]).double()
    right = (1 - (hits.cumsum(0) - hits) / hits.sum() + (misses.cumsum(0) - misses) / misses.sum()) / 2
    place = int(right.argmax())
    return float(values[order[place]]), float(right[place])


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a model with a grounding head, as cloc.load takes it")
    parser.add_argument("shards", type=Path)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model, data, rng = cloc.load(options.run, device="auto"), open_source(options.shards), random.Random(options.seed)
    read = (data.read(index) for index in range(min(options.pictures, data.count)))
    samples = [sample for sample in read if sample.regions]
    found: dict[str, list[Tensor]] = {}
    there: list[bool] = []
    for start in range(0, len(samples), BATCH):
        part = range(start, min(start + BATCH, len(samples)))
        own, absent = [phrases_of(samples[i]) for i in part], [absent_phrases(samples, i, rng) for i in part]
        asked = [one + other for one, other in zip(own, absent, strict=True)]
        there += [index < len(one) for one, both in zip(own, asked, strict=True) for index in range(len(both))]
        for name, rows in scores(model, [decode_rgb(samples[i].image) for i in part], asked).items():
            found.setdefault(name, []).append(rows)
    mask = torch.tensor(there)
    table = Table(title=f"{len(samples)} pictures, {int(mask.sum())} phrases that are there, {int((~mask).sum())} not")
    for column in ("score", "area under ROC", "best cut", "right there"):
        table.add_column(column, justify="left" if column == "score" else "right")
    areas = {}
    for name, parts in found.items():
        values = torch.cat(parts)
        areas[name] = round(area(values, mask), 4)
        cut, right = best_cut(values, mask)
        table.add_row(name, f"{areas[name]:.3f}", f"{cut:.2f}", f"{right:.3f}")
    Console().print(table)
    print(json.dumps(areas))


if __name__ == "__main__":
    main()
