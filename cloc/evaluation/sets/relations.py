"""Relation sets: our own shards, and the published files of What'sUp, VSR and SugarCrepe, read as they are.

An item is a picture and some captions, of which one is true. Where a caption says of two things (or of one thing and
the picture) how they lie, it is parsed, so that it can also be judged by where the things are grounded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

from cloc.config import ConfigError, DatasetConfig
from cloc.config.schema import RELATION_FORMATS
from cloc.data.shards.index import load_manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import usable_samples
from cloc.evaluation.cache import digest_of
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.sets.eval_set import EvalSet, RelationItem
from cloc.evaluation.sets.relation_captions import MIRRORED, parse_fact


class StoredRelation(TypedDict):
    """``relation`` of a sample's JSON; see :class:`cloc.evaluation.sets.eval_set.RelationItem`."""

    candidates: list[str]
    answer: int
    set: str
    relation: str | None


class RelationFiles:
    """``relations``: a folder of shards or a published file, by ``relation_format`` and ``pictures``."""

    def read(self, data: EvalSet, limit: int, ranks: Ranks) -> None:
        """Read the items; see :func:`read_relations`."""
        data.relations, left_out = read_relations(data.config, data.name, limit)
        data.skip(left_out)
        rows = [(item.set, item.candidates, item.answer) for item in data.relations]
        data.relation_digest = digest_of(rows, _stamp(data.relations))


def read_relations(config: DatasetConfig, name: str, limit: int = 0) -> tuple[list[RelationItem], Counter[str]]:
    """Read the relation items of a set.

    Args:
        config: with ``relations``.
        name: of the set, for messages.
        limit: at most so many items; 0 for all. Sets of four lie together: the first ones are taken.

    Returns:
        The items, and how many were left out, by reason.

    Raises:
        ConfigError: an unknown format, or no folder of pictures for a published set.
        FileNotFoundError: the file or a picture is not there.
        ValueError: no usable item, or a file of another format.
    """
    left_out: Counter[str] = Counter()
    if config.relation_format not in RELATION_FORMATS:
        raise ConfigError(f"datasets.{name}.relation_format={config.relation_format!r}: give one of {RELATION_FORMATS}")
    if config.relation_format == "shards":
        return list(_shards(str(config.relations), limit, left_out)), left_out
    file = Path(str(config.relations)).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"datasets.{name}.relations={config.relations}: no such file")
    if not config.pictures or not Path(config.pictures).expanduser().is_dir():
        raise ConfigError(f"datasets.{name}.pictures={config.pictures!r}: must be the folder of the set's pictures")
    reader = {"whatsup": _whatsup, "vsr": _vsr, "sugarcrepe": _sugarcrepe}[config.relation_format]
    try:
        items = list(reader(file, Path(config.pictures).expanduser(), left_out))[: limit or None]
    except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
        message = f"{file} is not a file of {config.relation_format} ({type(error).__name__}: {error})"
        raise ValueError(f"{message}; mend datasets.{name}.relation_format") from error
    if not items:
        raise ValueError(f"datasets.{name}.relations={config.relations}: no usable item; left out: {dict(left_out)}")
    missing = [item.image for item in items if isinstance(item.image, Path) and not item.image.is_file()]
    if missing:
        raise FileNotFoundError(
            f"datasets.{name}.pictures: {len(missing)} of {len(items)} pictures are missing, the first is {missing[0]}"
        )
    return items, left_out


def _shards(folder: str, limit: int, left_out: Counter[str]) -> Iterator[RelationItem]:
    manifest = load_manifest(folder)
    for read in usable_samples(ShardReader(manifest), left_out, manifest.places()[: limit or None]):
        sample = read.need()
        stored = sample.extra.get("relation")
        if not _is_relation(stored):
            left_out["no_relation" if stored is None else "bad_relation"] += 1
            continue
        yield _item(sample.image, stored["candidates"], stored["answer"], stored["set"], stored["relation"])


def _is_relation(stored: Any) -> TypeGuard[StoredRelation]:
    """Tell whether a sample's ``relation`` is what it should be: candidates, one of them the answer, and two names."""
    if not isinstance(stored, dict) or not isinstance(candidates := stored.get("candidates"), list):
        return False
    answer, texts = stored.get("answer"), all(isinstance(text, str) for text in candidates)
    names = isinstance(stored.get("set"), str) and isinstance(stored.get("relation"), str | None)
    return texts and names and type(answer) is int and 0 <= answer < len(candidates)


def _item(image: bytes | Path, candidates: list[str], answer: int, name: str, relation: str | None) -> RelationItem:
    return RelationItem(image, tuple(candidates), answer, name, relation, tuple(map(parse_fact, candidates)))


def _whatsup(file: Path, pictures: Path, left_out: Counter[str]) -> Iterator[RelationItem]:
    """``controlled_*_dataset.json`` (four captions, the first true) and ``*_qa_*_obj.json`` (two, the first true)."""
    for number, record in enumerate(_read(file)):
        if isinstance(record, dict):
            image = pictures / Path(record["image_path"]).name
            words = image.stem.split("_")  # THING_RELATION[_of]_THING
            relation = {"in-front": "front", "on": "above", "under": "below"}.get(words[1], words[1])
            yield _item(image, record["caption_options"], 0, f"{words[0]} {words[-1]}", relation)
        else:
            names = [pictures / f"{record[0]}.jpg", pictures / f"{str(record[0]).zfill(12)}.jpg"]
            image = next((path for path in names if path.is_file()), names[-1])
            yield _item(image, record[1:3], 0, str(number), None)


def _vsr(file: Path, pictures: Path, left_out: Counter[str]) -> Iterator[RelationItem]:
    """VSR's JSON lines: a caption that is true or false, set against the same caption with the opposite relation.

    There is no threshold to fit so: the caption is called true where it fits better than its opposite. Relations that
    have no opposite (touching, facing, …) are left out, and counted.
    """
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        record = json.loads(line)
        wording = record["relation"]
        mirrored = MIRRORED.get(wording)
        if mirrored is None or f" {wording} " not in record["caption"]:
            left_out["no_opposite"] += 1
            continue
        other = record["caption"].replace(f" {wording} ", f" {mirrored} ", 1)
        answer = 0 if int(record["label"]) else 1
        yield _item(pictures / record["image"], [record["caption"], other], answer, str(number), None)


def _sugarcrepe(file: Path, pictures: Path, left_out: Counter[str]) -> Iterator[RelationItem]:
    """One of SugarCrepe's files: ``{"0": {"filename", "caption", "negative_caption"}, …}``."""
    stored = _read(file)
    for number, record in stored.items() if isinstance(stored, dict) else enumerate(stored):
        texts = [record["caption"], record["negative_caption"]]
        yield _item(pictures / record["filename"], texts, 0, str(number), None)


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8-sig"))


def _stamp(items: list[RelationItem]) -> list[tuple[str, int, int]]:
    """What says that a picture's file is still the same."""
    return [
        (item.image.name, item.image.stat().st_size, item.image.stat().st_mtime_ns)
        if not isinstance(item.image, bytes)
        else (digest_of(item.image.hex()), len(item.image), 0)
        for item in items
    ]
