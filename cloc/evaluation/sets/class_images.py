"""Pictures with one class each, for zero-shot classification: a folder by class, shards, or a set of torchvision."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from cloc.config import ConfigError, DatasetConfig
from cloc.data.decode import decode_rgb
from cloc.data.inputs import Picture
from cloc.data.sample import IMAGE_EXTENSIONS
from cloc.data.shards.index import load_manifest
from cloc.data.shards.reader import ShardReader
from cloc.evaluation.cache import digest_of
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.sets.class_matching import match_folders, match_labels, names_of
from cloc.evaluation.sets.class_names import ClassList, read_classes, read_lines, remarks
from cloc.evaluation.sets.eval_set import EvalSet, ImageSet
from cloc.files import read_file

TORCHVISION = "torchvision:"
UNPICKLED = ("LSUN", "LSUNClass")  # torchvision unpickles their index without a checksum


class ClassImages:
    """``images``: pictures to classify, with ``classes`` where they do not name theirs."""

    def read(self, data: EvalSet, limit: int, ranks: Ranks) -> None:
        """Open the pictures; see :func:`load_images`."""
        data.images = load_images(data.name, data.config, limit)
        data.notes += data.images.notes


def load_images(name: str, config: DatasetConfig, limit: int = 0) -> ImageSet:
    """Open the pictures of a set.

    Args:
        name: of the set, for messages.
        config: with ``images``, and ``classes`` where the set does not name them.
        limit: at most so many pictures, evenly spread; 0 for all.

    Raises:
        ConfigError: an unknown source, no class names, or names that are not those of the labels.
        ValueError: no picture.
    """
    source, key = str(config.images), f"datasets.{name}.images"
    if source.startswith(TORCHVISION):
        found = _torchvision(source, key)
    elif not Path(source).expanduser().is_dir():
        raise ConfigError(f"{key}={source!r}: no such folder; give a folder, or {TORCHVISION}NAME:FOLDER")
    else:
        folder = Path(source).expanduser()
        found = _shards(folder, key, config) if any(folder.glob("*.tar")) else _folder(folder, name, config)
    if not found.labels:
        raise ValueError(f"evaluation set {name!r}: no picture in {source}")
    classes, labels = _classes(name, config, found)
    count = len(found.labels)
    chosen = [i * count // limit for i in range(limit)] if 0 < limit < count else list(range(count))
    read = found.read
    notes, digest = remarks(classes, labels), digest_of(found.digest, chosen)
    return ImageSet(lambda place: read(chosen[place]), [labels[i] for i in chosen], classes.names, digest, notes)


def _classes(name: str, config: DatasetConfig, found: ImageSet) -> tuple[ClassList, list[int]]:
    """The classes that compete, and the number in them of each picture's class."""
    key = f"datasets.{name}.classes"
    if not config.classes:
        classes, labels = ClassList(found.classes), found.labels
    else:
        classes = read_classes(config.classes, key)
        # Folders are joined where they are read: their own names may be numbers or synsets.
        own = match_labels(found.classes, classes, key) if found.classes else range(len(classes.names))
        labels = [own[label] if 0 <= label < len(own) else label for label in found.labels]
    if max(labels) >= len(classes.names) or min(labels) < 0:
        raise ConfigError(f"{key}: {len(classes.names)} names for labels {min(labels)} to {max(labels)}")
    return classes, labels


def _folder(folder: Path, name: str, config: DatasetConfig) -> ImageSet:
    """``FOLDER/CLASS/picture``, by torchvision's own reading; what begins with a dot is no class and no picture."""
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import is_image_file

    class Visible(ImageFolder):  # type: ignore[misc]  # torchvision has no types
        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            names = (path.name for path in Path(directory).iterdir() if path.is_dir())
            own = sorted(name for name in names if not name.startswith(".") and name != "__MACOSX")
            return own, {name: number for number, name in enumerate(own)}

    def wanted(path: str) -> bool:
        return is_image_file(path) and not Path(path).name.startswith(".")

    found = Visible(str(folder), is_valid_file=wanted, allow_empty=True)
    stats = [(path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path, _ in found.samples]
    labels = [label for _, label in found.samples]
    names = [] if config.classes else names_of(found.classes, f"datasets.{name}.images")
    if config.classes and labels:
        key = f"datasets.{name}.classes"
        numbers = match_folders(found.classes, read_classes(config.classes, key), key)
        labels = [numbers[label] for label in labels]
    return ImageSet(lambda i: decode_rgb(read_file(Path(found.samples[i][0]))), labels, names, digest_of(stats))


def _shards(folder: Path, key: str, config: DatasetConfig) -> ImageSet:
    """Webdataset shards of ``jpg|png|webp`` and ``cls``; ``classnames.txt`` beside them, or ``classes``."""
    manifest = load_manifest(folder)
    reader = ShardReader(manifest)
    places, labels = manifest.places(), []
    for shard, index in places:
        name, members = reader.read_members((shard, index))
        if "cls" not in members or not members["cls"].strip().isdigit():
            where = f"sample {name!r} of {manifest.shards.name(shard)}"
            raise ConfigError(f"{key}: {where} has no class number in a 'cls' member")
        labels.append(int(members["cls"]))
    beside = next((f for f in (folder / "classnames.txt", folder.parent / "classnames.txt") if f.is_file()), None)
    if config.classes is None and beside is None:
        raise ConfigError(f"{key}: the shards name no class; set classes=FILE, or put classnames.txt beside them")
    names = read_lines(str(beside), key) if beside else []

    def read(place: int) -> Picture:
        _, members = reader.read_members(places[place])
        return decode_rgb(next((members[kind] for kind in IMAGE_EXTENSIONS if kind in members), b""))

    return ImageSet(read, labels, names, manifest.digest)


def _torchvision(source: str, key: str) -> ImageSet:
    """``torchvision:NAME:FOLDER``: the held-out split of a set that is already on the disk."""
    import torchvision.datasets as sets

    name, _, folder = source.removeprefix(TORCHVISION).partition(":")
    kind = getattr(sets, name, None)
    if name in UNPICKLED:
        raise ConfigError(f"{key}={source!r}: {name} is read through a pickle, which can run code; give a folder of it")
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
