"""``plan.json``: what a folder of embeddings is of: it is gone on with, and searched, by the same model alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloc import __version__
from cloc.files import make_folder, read_file, write_json
from cloc.models.foreign.loading import PREFIX

PLAN, PIECES, MADE_BY = "plan.json", "pieces", "made_by"
LAYOUT = 1
"""Raised when an index comes to be read in another way."""


@dataclass(frozen=True, slots=True)
class MadeBy:
    """How an index can be searched: where its model and pictures were. Says nothing of what is in it.

    Attributes:
        layout: ``LAYOUT``.
        cloc: version of the code that made it.
        run: the model, as :func:`cloc.loading.load` takes it.
        precision: of the model's weights.
        data: what was embedded.
        folder: of the pictures that the keys name; empty for shards.
    """

    layout: int
    cloc: str
    run: str
    precision: str
    data: str
    folder: str

    @classmethod
    def now(cls, run: str | Path, precision: str, data: Path, folder: Path | None) -> MadeBy:
        """Of an index that is made here."""
        place = str(folder.absolute()) if folder else ""
        return cls(LAYOUT, __version__, absolute(run), precision, str(data.absolute()), place)


def absolute(run: str | Path) -> str:
    """A model's name that holds from any folder; that of a model of open_clip stays."""
    return str(run) if str(run).startswith(PREFIX) else str(Path(run).absolute())


def claim(out: Path, plan: dict[str, Any], made_by: MadeBy) -> None:
    """Begin, or go on with the same model and data; anything else in the folder is left alone.

    Raises:
        ValueError: the folder holds something else.
    """
    file = make_folder(out) / PLAN
    if file.is_file():
        try:
            found = json.loads(read_file(file))
        except ValueError:
            found = None
        if not isinstance(found, dict) or {name: found[name] for name in found if name != MADE_BY} != plan:
            raise ValueError(
                f"{out}: holds embeddings of another model, data, source or regions, or of another precision; name "
                "another folder"
            )
    elif any(out.iterdir()):
        raise ValueError(f"{out}: the folder is not empty; name another one")
    write_json(file, plan | {MADE_BY: asdict(made_by)})
    make_folder(out, PIECES)
