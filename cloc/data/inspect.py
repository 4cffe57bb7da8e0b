"""Check a folder of shards sample by sample, and show what is in it.

Stands beside ``shards`` at the start of ``data → models → losses → evaluation → engine``. Training counts what it
leaves out; this says it before training starts, with the keys.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cloc.contracts import BadSample, Sample
from cloc.data.decode import decode_rgb
from cloc.data.schema import parse_sample
from cloc.data.shards import (
    MANIFEST_NAME,
    Manifest,
    ShardError,
    ShardReader,
    index_folder,
    load_manifest,
    read_sample_members,
    write_manifest,
)

_EXAMPLES = 5
_COMMON = 10
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(slots=True)
class Check:
    """What ``check`` found.

    Attributes:
        folder: what was checked.
        samples: samples in the shards.
        usable: those that parse and decode.
        bad: samples that cannot be used, by reason.
        mended: captions and regions dropped or mended within usable samples, by reason.
        examples: keys of the first bad samples of each reason, with the detail.
        duplicates: keys that occur more than once, with their number.
        captions: number of captions of each usable picture, as a histogram.
        regions: number of regions of each usable picture, as a histogram.
        phrases: how often each phrase occurs.
        box_areas: share of the picture that each box covers, 0..1.
        manifest_written: the folder had no manifest, and now has one.
    """

    folder: Path
    samples: int = 0
    usable: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    duplicates: Counter[str] = field(default_factory=Counter)
    captions: Counter[int] = field(default_factory=Counter)
    regions: Counter[int] = field(default_factory=Counter)
    phrases: Counter[str] = field(default_factory=Counter)
    box_areas: list[float] = field(default_factory=list)
    manifest_written: bool = False

    @property
    def ok(self) -> bool:
        """Every sample can be used, there is one, and no key comes twice."""
        return self.usable > 0 and not self.bad and not self.duplicates


def check(folder: Path | str) -> Check:
    """Read, parse and decode every sample; write the manifest where it is missing.

    Args:
        folder: shards.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
        ShardError: a shard is damaged, or does not fit the manifest: no sample of it can be trusted.
    """
    folder = Path(folder)
    result = Check(folder)
    if folder.is_dir() and not (folder / MANIFEST_NAME).is_file():
        manifest = index_folder(folder)
        write_manifest(manifest)
        result.manifest_written = True
    else:
        manifest = load_manifest(folder)
    result.samples = manifest.samples
    keys: Counter[str] = Counter()
    for key, raw in _raw_samples(manifest):
        keys[key] += 1
        _check_sample(key, raw, result)
    result.duplicates.update({key: count for key, count in keys.items() if count > 1})
    return result


def print_check(result: Check, console: Console | None = None) -> None:
    """Print what ``check`` found as a table, on standard output where no console is given."""
    console = console or Console()
    table = Table(title=str(result.folder), show_header=False)
    table.add_row("samples", f"{result.samples:,}")
    table.add_row("usable", f"{result.usable:,}")
    table.add_row("captions a picture", _spread(result.captions))
    table.add_row("regions a picture", _spread(result.regions))
    table.add_row("distinct phrases", f"{len(result.phrases):,}")
    table.add_row("most common", ", ".join(f"{name} {n:,}" for name, n in result.phrases.most_common(_COMMON)))
    if result.box_areas:
        quantiles = np.quantile(result.box_areas, _QUANTILES)
        shown = ", ".join(f"{share:.0%}: {area:.4f}" for share, area in zip(_QUANTILES, quantiles, strict=True))
        table.add_row("box area, quantiles", shown)
    for reason, count in result.mended.most_common():
        table.add_row(f"mended: {reason}", f"{count:,}")
    for reason, count in result.bad.most_common():
        table.add_row(f"bad: {reason}", f"{count:,}: " + "; ".join(result.examples[reason]))
    if result.duplicates:
        shown = ", ".join(f"{key} ×{count}" for key, count in result.duplicates.most_common(_EXAMPLES))
        table.add_row("duplicate keys", f"{len(result.duplicates):,}: {shown}")
    if result.manifest_written:
        table.add_row("written", MANIFEST_NAME)
    table.add_row("verdict", "ok" if result.ok else "not ok")
    console.print(table)


def show(folder: Path | str, out_png: Path | str, count: int = 16, seed: int = 0) -> Path:
    """Draw a sheet of samples with their boxes, phrases and first caption.

    Args:
        folder: shards.
        out_png: file to write.
        count: pictures on the sheet.
        seed: another seed shows other samples.

    Returns:
        The path of the sheet.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
        ShardError: no sample can be shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samples = _some_samples(load_manifest(folder), count, seed)
    if not samples:
        raise ShardError(f"{folder}: holds no sample that can be shown; run python -m cloc data check {folder}")
    columns = min(4, len(samples))
    rows = -(-len(samples) // columns)
    figure = Figure(figsize=(4 * columns, 4.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, pair in itertools.zip_longest(np.atleast_1d(figure.subplots(rows, columns)).flat, samples):
        axes.set_axis_off()
        if pair is not None:
            _draw(axes, *pair)
    out = Path(out_png)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)
    return out


def _raw_samples(manifest: Manifest) -> Iterator[tuple[str, dict[str, bytes]]]:
    reader = ShardReader(manifest, max_open=1)
    for shard_index, shard in enumerate(manifest.shards):
        for sample_index in range(shard.samples):
            yield read_sample_members(reader.read(shard_index, sample_index))
    reader.close()


def _check_sample(key: str, members: dict[str, bytes], result: Check) -> None:
    try:
        sample, mended = parse_sample(members, key, result.folder.name)
        decode_rgb(sample.image)
    except BadSample as error:
        result.bad[error.reason] += 1
        if len(result.examples[error.reason]) < _EXAMPLES:
            result.examples[error.reason].append(f"{key} ({error.detail})")
        return
    result.usable += 1
    result.mended.update(mended)
    result.captions[len(sample.captions)] += 1
    result.regions[len(sample.regions)] += 1
    for region in sample.regions:
        result.phrases.update(region.phrases)
        x0, y0, x1, y1 = region.box
        result.box_areas.append((x1 - x0) * (y1 - y0))


def _some_samples(manifest: Manifest, count: int, seed: int) -> list[tuple[Sample, np.ndarray]]:
    """Choose up to ``count`` samples that decode, each with its picture ``[H,W,3]``."""
    places = [(shard, index) for shard, info in enumerate(manifest.shards) for index in range(info.samples)]
    reader, chosen = ShardReader(manifest), []
    for place in np.random.default_rng(seed).permutation(len(places)):
        try:
            key, members = read_sample_members(reader.read(*places[place]))
            sample, _ = parse_sample(members, key, manifest.folder.name)
            chosen.append((sample, decode_rgb(sample.image).permute(1, 2, 0).numpy()))
        except BadSample:  # a sheet shows what can be shown; check counts the rest
            continue
        if len(chosen) == count:
            break
    reader.close()
    return chosen


def _draw(axes: Any, sample: Sample, picture: np.ndarray) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    height, width = picture.shape[:2]
    axes.imshow(picture, interpolation="nearest" if width < 128 else "antialiased")
    colors = colormaps["tab10"].colors
    for number, region in enumerate(sample.regions):
        x0, y0, x1, y1 = np.array(region.box) * (width, height, width, height) - 0.5
        color = colors[number % len(colors)]
        style = "--" if region.crowd else "-"
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=color, linewidth=2, linestyle=style))
        label = {"facecolor": color, "edgecolor": "none", "pad": 1.2, "alpha": 0.85}
        phrase = _plain(region.phrases[0])[:28]
        axes.text(x0, max(y0, 0), phrase, fontsize=9, color="white", bbox=label, va="bottom", clip_on=True)
    caption = _plain(sample.captions[0]) if sample.captions else sample.key
    axes.set_title(fill(caption, 44, max_lines=2, placeholder=" …"), fontsize=10, loc="left")


def _plain(text: str) -> str:
    """Keep matplotlib from reading ``$`` as mathematics."""
    return text.replace("$", r"\$")


def _spread(histogram: Counter[int]) -> str:
    total = histogram.total()
    if not total:
        return "none"
    mean = sum(value * count for value, count in histogram.items()) / total
    return f"{min(histogram)} to {max(histogram)}, mean {mean:.2f}; none in {histogram[0]:,}"
