"""The Python files of an ``hf`` export, for ``AutoModel.from_pretrained(FOLDER, trust_remote_code=True)``.

Beside ``hf``. ``remote/modeling_cloc.py`` is copied as it is; ``cloc_regions.py`` is the module of ``export regions``,
put together from the model's own parts, or says that there is none. Nothing of cloc runs them but this proof: to
``cloc.load`` they are files like any other.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cloc.encoder import Encoder
from cloc.export import regions
from cloc.export.capabilities import FORMATS
from cloc.export.cloc_files import view_stats
from cloc.export.verify import BOXES, Probe, Row, compare
from cloc.files import read_file, write_file

CODE, REGIONS, CLASS = "modeling_cloc.py", "cloc_regions.py", "ClocModel"
AUTO_MAP = {"AutoModel": f"{Path(CODE).stem}.{CLASS}"}
_PACKAGE = "cloc_exported_code"


def has_regions(encoder: Encoder) -> bool:
    """Whether the model has a Prompter that needs PyTorch alone."""
    return not FORMATS["regions"].refuses(encoder)


def view(encoder: Encoder) -> dict[str, Any]:
    """How the code makes its view; part of ``config.json``."""
    return {"resize": encoder.preprocess.mode, **view_stats(encoder)}


def write(encoder: Encoder, folder: Path) -> None:
    """Write both files."""
    remote = Path(__file__).parent / "remote"
    write_file(folder / CODE, read_file(remote / CODE))
    own = regions.source(encoder) if has_regions(encoder) else read_file(remote / REGIONS)
    write_file(folder / REGIONS, own)


@torch.no_grad()
def rows(encoder: Encoder, probe: Probe, folder: Path, tolerance: float) -> list[Row]:
    """Rows of the code: pictures, texts, boxes and phrases in, by the files of the folder, against the encoder's."""
    with _opened(folder) as module:
        model: Any = getattr(module, CLASS).from_pretrained(folder).eval()
        boxes = [torch.tensor(BOXES)] * len(probe.pictures)
        ours = {"pooled": encoder.encode_image(probe.pictures), "text": encoder.encode_text(probe.texts)}
        theirs = {"pooled": model.encode_image(probe.pictures), "text": model.encode_text(probe.texts)}
        if has_regions(encoder):
            ours["regions"] = torch.cat(encoder.encode_regions(probe.pictures, boxes))
            theirs["regions"] = torch.cat(model.encode_regions(probe.pictures, boxes))
        if has_regions(encoder) and encoder.can_ground:
            phrases = [list(probe.texts)] * len(probe.pictures)
            ours |= _grounded(encoder.ground(probe.pictures, phrases, return_scores=True))
            theirs |= _grounded(model.ground(probe.pictures, phrases, return_scores=True))
    return compare({name: value.cpu() for name, value in ours.items()}, theirs, tolerance, prefix="AutoModel: ")


def _grounded(found: tuple[list[Tensor], list[Tensor]]) -> dict[str, Tensor]:
    return {"grounded": torch.cat(found[0]), "scores": torch.cat(found[1])}


@contextmanager
def _opened(folder: Path) -> Iterator[ModuleType]:
    """The folder's own code, as a package that is forgotten again: transformers would copy it into the user's cache."""
    spec = importlib.machinery.ModuleSpec(_PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no __pycache__ in the folder
    try:
        sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
        yield importlib.import_module(f"{_PACKAGE}.{Path(CODE).stem}")
    finally:
        sys.dont_write_bytecode = written
        for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
            del sys.modules[name]
