"""A folder that ``embed`` wrote, opened for reading: its plan, its tables, and how its model is loaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from cloc import __version__
from cloc.encoder import Encoder
from cloc.evaluation.cache import model_digest
from cloc.evaluation.embed.pieces import DAMAGES
from cloc.evaluation.embed.plan import LAYOUT, MADE_BY, PLAN, MadeBy
from cloc.evaluation.embed.tables import INDEXED, SKIPPED, need_arrow
from cloc.files import read_file
from cloc.loading import load
from cloc.models.devices import find_device
from cloc.models.foreign.loading import PREFIX

AGAIN = "run the embed command that made it again"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of an index.

    Attributes:
        key: ``[R]`` names of the pictures.
        embedding: ``[R,D]`` float32, unit norm.
        box: ``[R,4]`` xyxy in 0..1, of regions.
        text: ``[R]`` phrases, of regions; empty where there is none.
        score: ``[R]`` how well boxes fit the phrases that they were found by; NaN for others.
    """

    key: np.ndarray
    embedding: np.ndarray
    box: np.ndarray | None = None
    text: np.ndarray | None = None
    score: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """What ``embed`` wrote.

    Attributes:
        folder: where it lies.
        model: digest of the model that made it.
        data: digest of the data.
        source: how boxes were embedded.
        made_by: where its model and its pictures were; None for one of a version that did not write it.
        tables: ``images`` and ``regions``.
        skipped: numbers of the pictures that have no row, in order.
    """

    folder: Path
    model: str
    data: str
    source: str
    made_by: MadeBy | None
    tables: Mapping[str, Table]
    skipped: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path) -> Index:
        """Read an index.

        Raises:
            FileNotFoundError: no folder, or none that ``embed`` wrote.
            ValueError: it is damaged, unfinished, or of a later version.
        """
        plan = _read_plan(folder)
        made_by = _made_by(folder, plan)
        tables = {name: _read_table(folder, name) for name in INDEXED}
        _check(folder, tables)
        model, data, source = (str(plan[name]) for name in ("model", "data", "source"))
        return cls(folder, model, data, source, made_by, tables, _skipped(folder))

    def load_model(self, run: str = "", device: str = "auto", trusted: Sequence[type] = ()) -> Encoder:
        """Load the model that made the index.

        Args:
            run: where it is now, as :func:`cloc.loading.load` takes it; empty takes where it was.
            device: ``auto`` or PyTorch's name.
            trusted: classes besides ours that it may name.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is another one, or nothing says which it was.
        """
        made_by = self.made_by
        named = run or self._named()
        precision = made_by.precision if made_by else "float32"
        try:
            encoder = load(named, find_device(device), trusted=trusted, dtype=precision)
        except FileNotFoundError as error:
            if run:
                raise
            raise FileNotFoundError(
                f"{self.folder}: its model is not at {named} any more; say where it is by --model ({error})"
            ) from error
        self._check_model(encoder, named)
        return encoder

    def _named(self) -> str:
        """Where the model was; a download is no matter of a folder that may be a stranger's."""
        if self.made_by is None:
            raise ValueError(f"{self.folder}: an earlier version made it and does not say by which model; give --model")
        if self.made_by.run.startswith(f"{PREFIX}hf-hub:"):
            raise ValueError(
                f"{self.folder}: its model {self.made_by.run} may have to be downloaded; allow it by --model "
                f"{self.made_by.run}"
            )
        return self.made_by.run

    def _check_model(self, encoder: Encoder, named: str) -> None:
        version = self.made_by.cloc if self.made_by else __version__
        then = copy.copy(encoder)
        then.info = encoder.info | {"code": version}  # the same weights by another version of the code are the same
        if self.model not in (model_digest(encoder), model_digest(then)):
            raise ValueError(
                f"{named}: not the model that made {self.folder} (its digest is {model_digest(encoder)}, that of the "
                f"index {self.model}, made by cloc {version}); name that one by --model, or embed the pictures again"
            )


def _read_plan(folder: Path) -> dict[str, Any]:
    file = folder / PLAN
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder}: no index ({PLAN} is not there); python -m cloc embed RUN PICTURES {folder} makes one"
        )
    try:
        plan = json.loads(read_file(file))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); embed the pictures again, into another folder") from error
    if not isinstance(plan, dict) or not {"model", "data", "source"} <= plan.keys():
        raise ValueError(f"{file}: not the plan of an index; embed the pictures again, into another folder")
    return plan


def _made_by(folder: Path, plan: Mapping[str, Any]) -> MadeBy | None:
    stored = plan.get(MADE_BY)
    if stored is None:
        return None
    layout = stored.get("layout") if isinstance(stored, dict) else None
    if isinstance(layout, int) and layout > LAYOUT:
        raise ValueError(
            f"{folder}: made by cloc {stored.get('cloc')}, this is {__version__}: pip install -U cloc-pretrain"
        )
    names = {item.name for item in fields(MadeBy)}
    if layout is None or not all(isinstance(stored.get(name), str) for name in names - {"layout"}):
        raise ValueError(f"{folder / PLAN} is damaged ({MADE_BY!r} lacks what it should hold); {AGAIN}")
    return MadeBy(**{name: stored[name] for name in names})


def _read_table(folder: Path, name: str) -> Table:
    columns = ("key", "embedding", "box", "text", "score")
    for ending, read in ((".npz", _read_npz), (".parquet", _read_parquet)):
        file = folder / f"{name}{ending}"
        if file.is_file():
            found = read(file)
            if not {"key", "embedding"} <= found.keys() or len(found["key"]) != len(found["embedding"]):
                raise ValueError(f"{file} is no table of an index; remove it, and {AGAIN}")
            return Table(**{column: found[column] for column in columns if column in found})
    raise FileNotFoundError(f"{folder}: {name}.npz is not there, the work is not finished; {AGAIN}")


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except DAMAGES as error:
        raise ValueError(f"{file} is damaged ({error}); remove it, and {AGAIN}") from error


def _read_parquet(file: Path) -> dict[str, np.ndarray]:
    arrow = need_arrow()
    try:
        table = arrow.parquet.read_table(file)
    except (OSError, ValueError) as error:  # pyarrow's own are these
        raise ValueError(f"{file} is damaged ({error}); remove it, and {AGAIN}") from error
    return {name: _values(table.column(name).combine_chunks()) for name in table.column_names}


def _values(column: Any) -> np.ndarray:
    width = getattr(column.type, "list_size", 0)
    values = column.flatten().to_numpy().reshape(-1, width) if width else column.to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.str_ if values.dtype == object else None)


def _check(folder: Path, tables: Mapping[str, Table]) -> None:
    """Refuse tables that do not belong together."""
    images, regions = tables["images"], tables["regions"]
    widths = {table.embedding.shape[1:] for table in tables.values()}
    boxed = regions.box is not None and regions.box.shape == (len(regions.key), 4)
    if images.embedding.ndim != 2 or len(widths) != 1 or not boxed:
        raise ValueError(f"{folder}: images and regions do not belong to one index; remove both, and {AGAIN}")


def _skipped(folder: Path) -> tuple[int, ...]:
    file = folder / SKIPPED
    if not file.is_file():
        return ()
    try:
        return tuple(int(row["at"]) for row in json.loads(read_file(file))["skipped"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it, and {AGAIN}") from error
