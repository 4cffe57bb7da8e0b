"""Pictures with one class each, for zero-shot classification: a folder by class, shards, or a set of torchvision."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cloc.config import ConfigError, DatasetConfig
from cloc.data.schema import IMAGE_EXTENSIONS
from cloc.data.shards import ShardReader, load_manifest, read_sample_members
from cloc.encoder import Picture
from cloc.evaluation.cache import digest_of
from cloc.evaluation.classification import read_lines

TORCHVISION = "torchvision:"


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Pictures with their classes.

    Attributes:
        read: index → picture; raises ``OSError`` or ``ValueError`` where it cannot be decoded.
        labels: class index of each.
        classes: their names, also of classes without a picture: they compete too.
        digest: changes with the pictures.
    """

    read: Callable[[int], Picture]
    labels: list[int]
    classes: list[str]
    digest: str


def load_images(name: str, config: DatasetConfig, limit: int = 0) -> ImageSet:
    """Open the pictures of a set.

    Args:
        name: of the set, for messages.
        config: with ``images``, and ``classes`` where the set does not name them.
        limit: at most so many pictures, evenly spread; 0 for all.

    Raises:
        ConfigError: an unknown source, no class names, or fewer names than labels.
        ValueError: no picture.
    """
    source, key = str(config.images), f"datasets.{name}.images"
    if source.startswith(TORCHVISION):
        found = _torchvision(source, key)
    elif not Path(source).expanduser().is_dir():
        raise ConfigError(f"{key}={source!r}: no such folder; give a folder, or {TORCHVISION}NAME:FOLDER")
    else:
        folder = Path(source).expanduser()
        found = _shards(folder, key, config) if any(folder.glob("*.tar")) else _folder(folder)
    classes = read_lines(config.classes, f"datasets.{name}.classes") if config.classes else found.classes
    if not found.labels:
        raise ValueError(f"evaluation set {name!r}: no picture in {source}")
    if max(found.labels) >= len(classes) or min(found.labels) < 0:
        raise ConfigError(
            f"datasets.{name}.classes: {len(classes)} names for labels {min(found.labels)} to {max(found.labels)}"
        )
    count = len(found.labels)
    chosen = [i * count // limit for i in range(limit)] if 0 < limit < count else list(range(count))
    read = found.read
    return ImageSet(
        lambda place: read(chosen[place]), [found.labels[i] for i in chosen], classes, digest_of(found.digest, chosen)
    )


def _folder(folder: Path) -> ImageSet:
    """``FOLDER/CLASS/picture``, by torchvision's own reading; classes in the order of the folders' names."""
    from torchvision.datasets import ImageFolder

    found = ImageFolder(str(folder), allow_empty=True)
    stats = [(path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path, _ in found.samples]
    names = [name.replace("_", " ") for name in found.classes]
    labels = [label for _, label in found.samples]
    return ImageSet(lambda i: _open(Path(found.samples[i][0]).read_bytes()), labels, names, digest_of(stats))


def _shards(folder: Path, key: str, config: DatasetConfig) -> ImageSet:
    """Webdataset shards of ``jpg|png|webp`` and ``cls``; ``classnames.txt`` beside them, or ``classes``."""
    manifest = load_manifest(folder)
    reader = ShardReader(manifest)
    places, labels = [], []
    for shard, info in enumerate(manifest.shards):
        for index in range(info.samples):
            name, members = read_sample_members(reader.read(shard, index))
            if "cls" not in members or not members["cls"].strip().isdigit():
                raise ConfigError(f"{key}: sample {name!r} of {info.name} has no class number in a 'cls' member")
            places.append((shard, index))
            labels.append(int(members["cls"]))
    beside = next((f for f in (folder / "classnames.txt", folder.parent / "classnames.txt") if f.is_file()), None)
    if config.classes is None and beside is None:
        raise ConfigError(f"{key}: the shards name no class; set classes=FILE, or put classnames.txt beside them")
    names = read_lines(str(beside), key) if beside else []

    def read(place: int) -> Picture:
        members = read_sample_members(reader.read(*places[place]))[1]
        return _open(next((members[kind] for kind in IMAGE_EXTENSIONS if kind in members), b""))

    return ImageSet(read, labels, names, manifest.digest)


def _torchvision(source: str, key: str) -> ImageSet:
    """``torchvision:NAME:FOLDER``: the held-out split of a set that is already on the disk."""
    import torchvision.datasets as sets

    name, _, folder = source.removeprefix(TORCHVISION).partition(":")
    kind = getattr(sets, name, None)
    if not inspect.isclass(kind) or not folder:
        raise ConfigError(f"{key}={source!r}: give {TORCHVISION}NAME:FOLDER with a class of torchvision.datasets")
    found = _held_out(kind, folder, key)
    labels = next((getattr(found, a) for a in ("targets", "_labels", "labels") if hasattr(found, a)), None)
    if labels is None:
        labels = [found[i][1] for i in range(len(found))]
    first = [own if isinstance(own, str) else own[0] for own in getattr(found, "classes", [])]
    names = [name.replace("_", " ") for name in first]
    return ImageSet(lambda i: found[i][0], [int(label) for label in labels], names, digest_of(source, len(found)))


def _held_out(kind: type, folder: str, key: str) -> Any:
    known = inspect.signature(kind).parameters
    root = str(Path(folder).expanduser())
    if "train" in known:
        choices: list[dict[str, Any]] = [{"train": False}]
    else:
        choices = [{"split": "test"}, {"split": "val"}] if "split" in known else [{}]
    reasons = []
    for choice in choices:
        try:
            return kind(root, **choice)
        except (RuntimeError, ValueError, FileNotFoundError) as error:
            reasons.append(f"{choice}: {str(error).splitlines()[0]}")
    raise ConfigError(f"{key}: torchvision cannot open {kind.__name__} in {folder} ({'; '.join(reasons)})")


def _open(data: bytes) -> Picture:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture
