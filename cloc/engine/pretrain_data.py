"""What pretraining reads: shards, tokenizer, stream, and what is said of them (beside ``module``)."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cloc.config import ConfigError, TrainConfig
from cloc.config.terms import Need, terms_of, weights_of
from cloc.data.frozen.stream import FrozenStream
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.opening import open_shards
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.stream.batches import READER_MEMORY, Stream
from cloc.data.stream.read_plan import check_cache, plan_reading
from cloc.data.stream.region_sampling import make_chooser
from cloc.data.stream.shared_buffers import buffers_needed, check_shared_memory
from cloc.data.stream.sources import ShardSources, index_sources, load_sources, open_sources, save_sources
from cloc.data.stream.workers import prefetched
from cloc.data.tokenizer import Tokenizer
from cloc.engine.durable.run_folder import RunFolder
from cloc.engine.hosts import open_once_a_host
from cloc.engine.process_group import nodes
from cloc.engine.readers import host_share, readers
from cloc.engine.start import planned_world
from cloc.engine.task import Reading
from cloc.files import into_folder
from cloc.models.limits import memory
from cloc.models.model import Cloc
from cloc.models.protocols import architecture, refusals, view
from cloc.models.trust.text_files import DIGEST, FOLDER, KEY, carried
from cloc.usage import override

FORMATS = ("hf", "open_clip", "timm", "torch")  # of export, in the order in which they are proposed


def open_data(config: TrainConfig) -> ShardSources:
    """Open the shards that ``data.train`` names: one process of each host does, and the others take its word.

    Raises:
        ConfigError: a term of the loss needs regions, and there are none; or another process cannot open the shards.
        FileNotFoundError: the shards are not there.
    """
    data = open_once_a_host(
        lambda share: open_sources(config.data, partial(open_shards, share=share)),
        lambda opened: save_sources(config.data, opened),
        lambda paths: load_sources(config.data, paths),
        lambda share: index_sources(config.data, share),
    )
    check_data(config, data)
    return data


def check_data(config: TrainConfig, data: ShardSources) -> None:
    """See :func:`open_data`."""
    check_cache(data, config.seed, config.batch_size, nodes(config.trainer.num_nodes))
    check_patience(config, data)
    wants = [one for one in terms_of(config.loss) if one.weight and one.needs(Need.REGIONS)]
    if wants and data.regions == 0:
        besides = "".join(f"; {name}: {text}" for name, text in data.left_out().items())
        raise ConfigError(
            f"{weights_of(wants)}, but data.train={config.data.train} holds {data.samples} samples and no region"
            f"{besides}; take data with boxes, or set these weights to 0 and model.prompter=null for a CLIP run"
        )
    hard = [one for one in terms_of(config.loss) if one.weight and one.needs(Need.NEGATIVES)]
    if hard and not any(holds_negatives(part.manifest) for part in data.parts):
        raise ConfigError(
            f"{weights_of(hard)}, but the first samples of data.train={config.data.train} hold no hard negatives; "
            "make them: python -m cloc data negatives FOLDER OUT, or set the weight to 0"
        )


def holds_negatives(manifest: Manifest, looked_at: int = 256) -> bool:
    """Whether a region of the first samples has hard negatives; true of remote shards, which are not fetched for it."""
    if manifest.remote or not len(manifest.shards):
        return True
    count = min(looked_at, next(iter(manifest.shards)).samples)
    with contextlib.closing(ShardReader(manifest)) as reader:
        found = (stored.sample for stored in each_sample(reader, [(0, index) for index in range(count)]))
        return any(region.negatives for sample in found if sample is not None for region in sample.regions)


def check_vocabulary(text: Any) -> None:
    """Every token of the tokenizer must have a row in the tower's table.

    Raises:
        ConfigError: the table is too short.
    """
    size, rows = Tokenizer.of(text).vocab_size, text.vocab_size
    if size > rows:
        raise ConfigError(
            f"model.text.tokenizer={text.tokenizer!r} has {size} token ids, the tower's table {rows} rows; "
            f"set model.text.options.vocab_size={size}"
        )


def check_tokenizer(text: Any, folder: RunFolder, changed: Mapping[str, str]) -> None:
    """Compare a tokenizer with the one that the run has kept: another may lie at the same path by now.

    Args:
        text: the text tower.
        folder: of the run.
        changed: keys of the configuration, each with a line that says how.

    Raises:
        ConfigError: it is another one.
    """
    kept, given = folder.local / FOLDER, text.tokenizer
    moved = [changed[key] for key in ("model.text.tokenizer", "model.text.name") if key in changed]
    known = (kept / "tokenizer_config.json").is_file()
    if not moved and (given == "open_clip" or not known):
        return
    same = given != "open_clip" and known and Tokenizer(str(kept)).digest == Tokenizer(given).digest
    if not same:
        how = "; ".join(moved) or f"{given} holds other words than {kept}"
        raise ConfigError(
            f"{folder.location} was trained with another tokenizer ({how}); restore it, or give another run_dir"
        )


def save_text_files(text: Any, folder: Path) -> dict[str, Any]:
    """Keep the tokenizer and architecture of a Hugging Face text tower beside the weights.

    Returns:
        What each checkpoint holds of them, by its keys; of open_clip's tokenizer the digest alone.
    """
    tokenizer, needed = Tokenizer.of(text), architecture(text)
    tokenizer.save(folder / FOLDER)  # nothing for open_clip's own
    if needed is not None:
        with into_folder(folder, FOLDER) as room:
            needed.save_pretrained(room)
    if tokenizer.name == "open_clip" and needed is None:
        return {DIGEST: tokenizer.digest}
    return {KEY: carried(folder / FOLDER), DIGEST: tokenizer.digest}


def with_auto_precision(stored: Mapping[str, Any], resolved: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint's configuration with ``auto`` for float16, where that means the same and the command has it.

    float16 was the default before towers that are frozen in part had a cache, which keeps them as they come.
    """
    data, model = stored.get("data") or {}, stored.get("model") or {}
    in_part = data.get("token_cache") is not None and not model.get("frozen_towers")
    if data.get("token_precision") != "float16" or resolved["data"]["token_precision"] != "auto" or in_part:
        return stored
    return {**stored, "data": {**data, "token_precision": "auto"}}


def check_patience(config: TrainConfig, data: ShardSources) -> None:
    """Refuse readers that wait for a store longer than the other processes wait for theirs: no checkpoint were saved.

    Raises:
        ConfigError: names both keys.
    """
    longest = config.data.retry_seconds + config.data.timeout  # the last attempt begins when the time is up
    remote = any(part.manifest.remote for part in data.parts)
    if remote and longest >= config.trainer.timeout and planned_world(config) > 1:
        raise ConfigError(
            f"data.retry_seconds={config.data.retry_seconds:g}: with data.timeout={config.data.timeout:g} a reader may "
            f"wait {longest:g} seconds for its store, and the other processes wait trainer.timeout="
            f"{config.trainer.timeout:g} for it; give a trainer.timeout above {longest:g}, or fewer data.retry_seconds"
        )


def build_stream(
    config: TrainConfig, model: Cloc, data: ShardSources, rank: int, world: int, captions: bool = True
) -> Stream:
    """The training stream that fits a model: its tokenizer, its view; one that reads no picture with a token cache.

    Raises:
        ConfigError: a batch of pictures does not fit into memory, or those that are read ahead.
        SharedMemoryError: they do not fit into ``/dev/shm``, where this system needs it.
    """
    seen = view(model.image)
    needed = 3 * seen.size**2 * (1 + config.data.crops) * (config.batch_size // world)
    if needed > memory():
        raise ConfigError(
            f"batch_size={config.batch_size}: the pictures{' and crops' * bool(config.data.crops)} of a process, "
            f"{seen.size} px wide, take {needed / 2**30:,.0f} GiB, and this machine has {memory() / 2**30:,.0f}; give "
            "a smaller batch, or more processes"
        )
    workers = readers(config)
    buffers = buffers_needed(workers, prefetched(workers), needed) * host_share().processes
    if buffers > memory():
        raise ConfigError(
            f"data.workers={workers}: the batches that the readers of this host's {host_share().processes} training "
            f"process(es) hold take {buffers / 2**30:,.0f} GiB, and this machine has {memory() / 2**30:,.0f}; give "
            f"{'fewer' if workers > 1 else 'data.workers=0'}, a smaller batch, or more processes on more machines (the "
            "plan of a job is that of its launcher's command with dry_run=true)"
        )
    check_shared_memory(buffers, workers)
    chooser = make_chooser(config.data, seen.size, seen.resize)
    given: dict[str, Any] = {
        "seed": config.seed,
        "rank": rank,
        "world_size": world,
        "max_skip_share": config.data.max_skip_share,
    }
    arguments = (data, Tokenizer.of(model.text), chooser, config.batch_size)
    if config.data.token_cache is not None:
        return FrozenStream(*arguments, **given, captions=captions)
    return Stream(*arguments, **given)


def plan(config: TrainConfig, data: ShardSources, world: int) -> dict[str, str]:
    """What the data holds and who reads it, before a run starts."""
    workers, share = readers(config), host_share()
    who = f"{world} rank(s) × {f'{workers} reader(s)' if workers else 'itself'}"
    return {
        **plan_reading(data, config.seed, config.samples, config.batch_size, nodes(config.trainer.num_nodes)),
        "regions": f"{data.regions:,} in the data, up to {config.data.regions} drawn per image and step",
        **_plan_crops(config),
        **data.left_out(),
        "readers": f"{who} of {share.host_cores} cores, {config.batch_size // world} samples a rank and step",
    }


def _plan_crops(config: TrainConfig) -> dict[str, str]:
    crops, size = config.data.crops, config.batch_size
    if not crops:
        return {}
    return {"crops": f"the first {crops} of those, up to {size * crops:,} further pictures a step beside its {size:,}"}


def data_health(parts: Sequence[Reading]) -> dict[str, float]:
    """What to log of the data: the largest reader, and shares over the batches of all processes."""
    counts = sum((part.counts for part in parts), Counter())
    samples, regions = counts["samples"], counts["regions_drawn"]
    skipped = sum(count for name, count in counts.items() if name.startswith("skipped/"))
    truncated = counts["captions_truncated"] + counts["phrases_truncated"]
    return {
        "reader_memory_mib": max(part.peaks.get(READER_MEMORY, 0.0) for part in parts) / 2**20,
        "data/skipped_share": skipped / max(1, samples + skipped),
        "data/regions_per_image": regions / max(1, samples),
        "data/truncated_share": truncated / max(1, samples + regions),
        "data/duplicate_phrase_share": 1 - counts["phrases_distinct"] / regions if regions else 0.0,
    }


def next_commands(config: TrainConfig, model: Cloc) -> list[str]:
    """Measure the run, and write it for another library that can hold it; empty for one in an object store."""
    run = config.run_dir
    if "://" in run:
        return []
    sets = list(config.evaluation.data) or _sets_beside(config.data.train)
    exported = ["python", "-m", "cloc", "export", next(iter(_fitting(model)), "torch"), run, f"{run}-export"]
    return [f"python eval.py {override('checkpoint', run)} {override('data', sets)}", shlex.join(exported)]


def formats_of(model: Cloc) -> list[str]:
    """Where a model goes when it is trained, and why not elsewhere, in words: known before the run."""
    fitting = _fitting(model)
    refused = [
        f"not to {name} ({'; '.join(why)})"
        for name in FORMATS
        if (why := refusals(model.image, name) + refusals(model.text, name))
    ]
    return [", ".join([f"will export to {', '.join(fitting) or 'no format'}", *refused])]


def _fitting(model: Cloc) -> list[str]:
    return [name for name in FORMATS if not refusals(model.image, name) + refusals(model.text, name)]


def _sets_beside(train: Any) -> list[str]:
    """Folders of shards that lie beside those that were trained on, under the usual names; else a name to fill in."""
    near = [] if not isinstance(train, str) else [Path(train).parent / name for name in ("val", "validation", "test")]
    found = [str(folder) for folder in near if any(folder.glob("*.tar")) and folder != Path(train)]
    return found[:1] or ["FOLDER"]
