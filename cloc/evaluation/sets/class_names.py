"""Class names of a set, and the templates and frequencies that class texts and splits are made of (below the kinds)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloc.config import ConfigError, DatasetConfig

NAMES_ONLY = ["{}"]
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
SYNSET = re.compile(r"n\d{8}")  # of WordNet, as ImageNet's folders are called


@dataclass(frozen=True, slots=True)
class ClassList:
    """Classes in the order of their numbers.

    Attributes:
        names: what the class texts say.
        synsets: WordNet's names of the same classes; empty where the list has none.
    """

    names: list[str]
    synsets: list[str] = field(default_factory=list)

    @property
    def repeated(self) -> list[str]:
        """Names that stand for several classes: a text cannot tell those apart."""
        return [name for name, count in Counter(map(plain, self.names)).items() if count > 1]


def plain(name: str) -> str:
    """A name as it is compared: no case, and one space for any of spaces, underscores and hyphens."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def read_classes(path: str, key: str) -> ClassList:
    """Classes of a file, or ``imagenet`` for open_clip's names with ImageNet's synsets.

    Args:
        path: a text file of one class a line, with or without its synset in front (``n01440764 tench``); or JSON: a
            list of names, or an object of number → [synset, name].
        key: of the configuration, for messages.

    Raises:
        ConfigError: no such file, or another content.
    """
    if path == "imagenet":
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
        from timm.data.imagenet_info import ImageNetInfo

        return ClassList(list(IMAGENET_CLASSNAMES), ImageNetInfo("imagenet-1k").label_names())
    lines = read_lines(path, key)
    split = [line.partition(" ") for line in (" ".join(line.split()) for line in lines)]
    if all(SYNSET.fullmatch(first) and rest for first, _, rest in split):
        return ClassList([rest for *_, rest in split], [first for first, *_ in split])
    return ClassList(lines)


def read_lines(path: str, key: str) -> list[str]:
    """Texts of a file: one a line, or JSON (see :func:`read_classes`).

    Raises:
        ConfigError: no such file, another content, or no text in it.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"{key}={path!r}: no such file")
    try:
        content = file.read_text(encoding="utf-8-sig")
        texts = _of_json(json.loads(content)) if file.suffix == ".json" else content.splitlines()
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{key}={path!r}: not {'JSON' if file.suffix == '.json' else 'UTF-8'} ({error})") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{key}={path!r}: a JSON list of texts is needed, or a text file of one a line")
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise ConfigError(f"{key}={path!r}: the file holds no text")
    return texts


def _of_json(content: Any) -> Any:
    """A list as it is; ImageNet's usual index, number → [synset, name], as lines in the order of the numbers."""
    if isinstance(content, Mapping) and sorted(map(str, content)) == sorted(map(str, range(len(content)))):
        rows = [content[str(number)] for number in range(len(content))]
        return [
            " ".join(row) if isinstance(row, list) and all(isinstance(x, str) for x in row) else row for row in rows
        ]
    return content


def remarks(classes: ClassList, labels: Sequence[int]) -> list[str]:
    """What a reader of the result should know of the classes, in words."""
    said = []
    if classes.repeated:
        shown = ", ".join(repr(name) for name in classes.repeated[:5])
        said.append(f"{len(classes.repeated)} class names come more than once, so no text can tell them apart: {shown}")
    empty = len(classes.names) - len(set(labels))
    if empty and labels:
        said.append(f"{empty} of {len(classes.names)} classes have no picture; they compete all the same")
    return said


def templates_of(config: DatasetConfig, name: str) -> list[str]:
    """Templates of a set's class texts; each has one ``{}``.

    Raises:
        ConfigError: none, or one without a place for the name.
    """
    key = f"datasets.{name}.template_file" if config.template_file else f"datasets.{name}.templates"
    if config.template_file == "openai":
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        return [make("{}") for make in OPENAI_IMAGENET_TEMPLATES]
    found = read_lines(config.template_file, key) if config.template_file else list(config.templates)
    wrong = [template for template in found if template.count("{}") != 1]
    if wrong or not found:
        raise ConfigError(f"{key}: {wrong or 'no template'}: each needs one {{}} for the class name")
    return found


def frequencies_of(path: str, key: str) -> dict[str, str]:
    """Class → rare, common or frequent, from LVIS' annotation file or a JSON object.

    Raises:
        ConfigError: no such file, or another content.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"{key}={path!r}: no such file")
    stored = json.loads(file.read_text(encoding="utf-8-sig"))
    found: Mapping[str, str] = stored
    if "categories" in stored:
        found = {
            name: category["frequency"]
            for category in stored["categories"]
            for name in {category["name"], category["name"].replace("_", " ")}
        }
    wrong = {value for value in found.values() if value not in FREQUENCIES}
    if wrong:
        raise ConfigError(f"{key}={path!r}: frequencies {sorted(map(str, wrong))}; give r, c or f")
    return {name: FREQUENCIES[value] for name, value in found.items()}
