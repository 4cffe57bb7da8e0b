"""``python -m cloc embed``: embeddings of pictures, boxes and texts as files, for searching one's own data.

Beside ``suite``: no metric. The work is cut into pieces of whole batches that ranks share; a piece that is already
there is not made again, so that an interrupted run goes on where it stopped. The rows are in the order of the data.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from rich.console import Console

from cloc.console import Bar, print_line, progress
from cloc.contracts import BadSample, Sample
from cloc.data.convert.formats.coco import COCO_BOXES, coco_object, file_name, read_coco
from cloc.data.convert.records import normalize_regions, stated_size
from cloc.data.decode import decode_rgb, upright_size
from cloc.data.sample import IMAGE_EXTENSIONS, parse_object
from cloc.data.shards.index import load_manifest
from cloc.data.shards.reader import ShardReader
from cloc.encoder import Encoder
from cloc.evaluation.cache import digest_of, model_digest
from cloc.evaluation.reduce import Ranks, jointly
from cloc.files import make_folder, read_file, write_file, write_json
from cloc.loading import load
from cloc.models.devices import AUTO, DType, find_device, measuring_dtype
from cloc.models.sanity import check_embedded
from cloc.usage import print_next

FORMATS = ("npz", "parquet")
KINDS = ("images", "regions", "texts")
PLAN, PIECES = "plan.json", "pieces"
BATCH, PIECE = 32, 8  # pictures a forward pass, batches a piece


@dataclass(frozen=True, slots=True)
class EmbedInput:
    """Pictures to embed.

    Attributes:
        read: index → sample with its picture's bytes; raises ``BadSample``.
        count: of pictures.
        digest: changes with the data.
    """

    read: Callable[[int], Sample]
    count: int
    digest: str


def embed(
    run: str,
    data: Path,
    out: Path,
    kind: str = "npz",
    source: str = "",
    device: str = "auto",
    images: Path | None = None,
    trusted: Sequence[type] = (),
    precision: DType = AUTO,
) -> dict[str, int]:
    """Embed pictures, their boxes and their texts, on the processes that a launcher started.

    Args:
        run: the model, as :func:`cloc.loading.load` takes it.
        data: folder of shards, folder of pictures (read with those below it), or a COCO annotation file.
        out: folder of the results. ``images.EXT`` (key, width, height, embedding), ``regions.EXT`` (key, box, text,
            embedding) and ``texts.EXT`` (key, text, kind, embedding).
        kind: ``npz`` or ``parquet`` (needs pyarrow).
        source: of the boxes' embeddings; empty takes the Prompter, or RoI-Align for a model without, or crops.
        device: ``auto`` or PyTorch's name.
        images: folder of the pictures that a COCO file names; None for its own.
        trusted: classes besides ours that the model may name (see :func:`cloc.loading.load`).
        precision: of the weights, see :func:`cloc.models.devices.measuring_dtype`; the embeddings are float32.

    Returns:
        Rows of each file, and ``skipped``.

    Raises:
        ValueError: an unknown format, source or data; an ``out`` that holds something else; no picture.
        FileNotFoundError: no such model or data.
        ImportError: Parquet without pyarrow.
    """
    if kind not in FORMATS:
        raise ValueError(f"format {kind!r}: give one of {FORMATS}")
    if kind == "parquet":
        _arrow()

    def work(ranks: Ranks, own: str) -> dict[str, int]:
        place = find_device(own)
        encoder = load(run, place, trusted=trusted, dtype=measuring_dtype(precision, place))
        return _embed(encoder, open_source(data, images), out, kind, source or encoder.sources[0], ranks)

    return jointly(work, device)


def _embed(encoder: Encoder, pictures: EmbedInput, out: Path, kind: str, source: str, ranks: Ranks) -> dict[str, int]:
    if source not in encoder.sources:
        raise ValueError(f"source {source!r}: {encoder.name} has {', '.join(encoder.sources)}")
    plan = {"model": model_digest(encoder), "data": pictures.digest, "source": source, "piece": BATCH * PIECE}
    if ranks.first:
        _claim(out, plan)
    ranks.all(True)  # no rank writes before the folder is claimed
    if not (out / PLAN).is_file():
        raise FileNotFoundError(
            f"{out}: process 0 has made it, process {ranks.rank} does not see it; name a folder of all"
        )
    _make_pieces(encoder, pictures, source, out / PIECES, ranks)
    ranks.all(True)  # all pieces are there
    counts = _join(out / PIECES, out, pictures.count, kind) if ranks.first else {}
    if ranks.first:
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        print_line(Console(), f"wrote {told}: {out}")
        print_next(_look_at(out, kind))
    return ranks.collect(counts)[0]


def _look_at(out: Path, kind: str) -> str:
    """The command that reads the pictures' embeddings."""
    file = json.dumps(str(out / f"images.{kind}"), ensure_ascii=False)
    read = f"import pandas; print(pandas.read_parquet({file}))"
    if kind == "npz":
        read = f'import numpy; rows = numpy.load({file}); print(rows["key"][:5], rows["embedding"].shape)'
    return shlex.join(["python", "-c", read])


def open_source(data: Path, images: Path | None = None) -> EmbedInput:
    """Open shards, a folder of pictures, or a COCO annotation file.

    Raises:
        ValueError: none of these, or no picture.
        FileNotFoundError: nothing there.
    """
    if data.is_file() and data.suffix == ".json":
        return _coco(data, images)
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no folder, and no COCO annotation file (.json)")
    if any(data.glob("*.tar")):
        manifest = load_manifest(data)
        reader = ShardReader(manifest)
        places = manifest.places()

        def read_packed(index: int) -> Sample:
            return reader.read_sample(places[index], data.name)[0]

        return EmbedInput(read_packed, len(places), manifest.digest)
    files = sorted(file for file in data.rglob("*") if file.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS)
    if not files:
        raise ValueError(f"{data}: neither shards (*.tar) nor pictures ({', '.join(IMAGE_EXTENSIONS)})")
    stamps = [(str(file.relative_to(data)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    def read(index: int) -> Sample:
        file = files[index]
        return Sample(str(file.relative_to(data)), read_file(file), file.suffix.lower().lstrip("."))

    return EmbedInput(read, len(files), digest_of(stamps))


def _coco(file: Path, images: Path | None) -> EmbedInput:
    """A COCO annotation file, with the boxes, phrases and captions that ``data convert coco`` finds in it."""
    try:
        found = read_coco([file])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: no COCO annotation file ({type(error).__name__}: {error})") from error
    if not found.images:
        raise ValueError(f"{file}: no COCO annotation file (it has no 'images')")
    numbers = list(found.images)
    folder = images or _coco_folder(file, str(file_name(found.images[numbers[0]])))

    def read(index: int) -> Sample:
        name = str(file_name(found.images[numbers[index]]))
        path = folder / name
        if not path.is_file():
            raise BadSample("no_image", str(path))
        data, extension = read_file(path), path.suffix.lower().lstrip(".")
        record = coco_object(found.of(numbers[index]), Counter())
        size = stated_size(record["width"], record["height"]) or upright_size(data)
        if not record["captions"] and not record["regions"]:
            return Sample(name, data, extension)
        return parse_object(normalize_regions(record, COCO_BOXES, size), data, extension, name, file.stem)[0]

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return EmbedInput(read, len(numbers), digest_of(digest, str(folder)))


def _coco_folder(file: Path, first: str) -> Path:
    """``annotations/instances_val2017.json`` names pictures of ``val2017/`` beside ``annotations/``."""
    split = file.stem.rpartition("_")[2]
    choices = [file.parent, file.parent / "images", file.parent.parent / split, file.parent.parent / "images"]
    found = next((folder for folder in choices if (folder / first).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{file}: its first picture {first!r} is in none of {[str(c) for c in choices]}")
    return found


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Begin, or go on with the same model and data; anything else in the folder is left alone."""
    file = make_folder(out) / PLAN
    if file.is_file():
        try:
            same = json.loads(file.read_bytes()) == plan
        except ValueError:
            same = False
        if not same:
            raise ValueError(
                f"{out}: holds embeddings of another model, data or source, or of another precision; name another one"
            )
        make_folder(out, PIECES)
        return
    if any(out.iterdir()):
        raise ValueError(f"{out}: the folder is not empty; name another one")
    write_json(file, plan)
    make_folder(out, PIECES)


def _piece(pieces: Path, start: int) -> Path:
    return pieces / f"{start:012d}.npz"


def _make_pieces(encoder: Encoder, pictures: EmbedInput, source: str, pieces: Path, ranks: Ranks) -> None:
    mine = ranks.batches(pictures.count, BATCH * PIECE)
    console = Console(quiet=not ranks.first, stderr=True)
    with progress(console, f"embedding with {encoder.name}", sum(map(len, mine)), "pictures") as bar:
        for piece in mine:
            path = _piece(pieces, piece.start)
            if path.is_file():
                bar.advance(len(piece), worked=0)
            else:
                _write(path, _embed_piece(encoder, pictures, source, bar, piece))


def _embed_piece(encoder: Encoder, pictures: EmbedInput, source: str, bar: Bar, piece: range) -> dict[str, np.ndarray]:
    width = encoder.joint_dim
    rows: dict[str, list[Any]] = {name: [] for name in ("key", "size", "region_key", "box", "region_text")}
    rows |= {name: [] for name in ("text_key", "text", "text_kind")}
    image, region, skipped = [torch.zeros(0, width)], [torch.zeros(0, width)], 0
    for start in bar.each(range(piece.start, piece.stop, BATCH), lambda start: min(BATCH, piece.stop - start)):
        read = [_read(pictures, index) for index in range(start, min(start + BATCH, piece.stop))]
        usable = [found for found in read if found is not None]
        skipped += len(read) - len(usable)
        if not usable:
            continue
        seen = encoder.see([picture for _, picture in usable])
        boxes = [torch.tensor([r.box for r in sample.regions]).reshape(-1, 4) for sample, _ in usable]
        image.append(seen.features.pooled.cpu())
        region += [own.cpu() for own in encoder.regions(seen, boxes, source)]
        for sample, picture in usable:
            rows["key"].append(sample.key)
            rows["size"].append((picture.shape[2], picture.shape[1]))
            for found in sample.regions:
                rows["region_key"].append(sample.key)
                rows["box"].append(found.box)
                rows["region_text"].append(found.phrases[0])
            texts = [("caption", text) for text in sample.captions]
            texts += [("phrase", text) for r in sample.regions for text in r.phrases]
            for text_kind, text in dict.fromkeys(texts):
                for name, value in (("text_key", sample.key), ("text", text), ("text_kind", text_kind)):
                    rows[name].append(value)
    embedded = encoder.encode_text(rows["text"]).cpu()
    for what, parts in (("pictures", image), ("boxes", region), ("texts", [embedded])):
        check_embedded(encoder.name, {what: torch.cat(parts)})
    found_rows: dict[str, np.ndarray] = {
        "size": np.array(rows["size"], np.int64).reshape(-1, 2),
        "box": np.array(rows["box"], np.float32).reshape(-1, 4),
        "image": torch.cat(image).numpy(),
        "region": torch.cat(region).numpy(),
        "text_embedding": embedded.reshape(-1, width).numpy(),
        "skipped": np.array(skipped),
    }
    return found_rows | {name: np.array(rows[name], dtype=np.str_) for name in rows if name not in ("size", "box")}


def _read(pictures: EmbedInput, index: int) -> tuple[Sample, torch.Tensor] | None:
    try:
        sample = pictures.read(index)
        return sample, decode_rgb(sample.image)
    except BadSample:  # counted by the caller, and told at the end
        return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    store: Callable[..., None] = np.savez  # typed as if any name could be its own option
    write_file(path, lambda file: store(file, **arrays))


def _join(pieces: Path, out: Path, count: int, kind: str) -> dict[str, int]:
    """Pieces → one file for each kind of row; the pieces stay, for a run that goes on."""
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, count, BATCH * PIECE):
        for name, rows in _read_piece(_piece(pieces, start)).items():
            found.setdefault(name, []).append(rows)
    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    size, box = joined["size"], joined["box"]
    tables = {
        "images": {"key": joined["key"], "width": size[:, 0], "height": size[:, 1], "embedding": joined["image"]},
        "regions": {
            "key": joined["region_key"],
            "box": box,
            "text": joined["region_text"],
            "embedding": joined["region"],
        },
        "texts": {
            "key": joined["text_key"],
            "text": joined["text"],
            "kind": joined["text_kind"],
            "embedding": joined["text_embedding"],
        },
    }
    for name, table in tables.items():
        if kind == "parquet":
            _write_parquet(out / f"{name}.parquet", table)
        else:
            _write(out / f"{name}.npz", table)
    return {name: len(table["key"]) for name, table in tables.items()} | {"skipped": int(joined["skipped"].sum())}


def _read_piece(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: np.atleast_1d(stored[name]) for name in stored.files}
    except (OSError, ValueError, EOFError, AttributeError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run the same command again") from error


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install 'cloc-pretrain[parquet]', or take npz") from error
    return pyarrow


def _write_parquet(path: Path, table: dict[str, np.ndarray]) -> None:
    arrow = _arrow()
    columns = {}
    for name, values in table.items():
        if values.ndim == 2:
            flat = arrow.array(np.ascontiguousarray(values).reshape(-1))
            columns[name] = arrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
        else:
            columns[name] = arrow.array(values.tolist() if values.dtype.kind == "U" else values)
    write_file(path, lambda file: arrow.parquet.write_table(arrow.table(columns), file))
