"""Formats of other people's annotated pictures.

A module of this folder opens one family: a function, registered with :func:`~.registry.register`, takes the source's
path and options and returns a ``RecordSource``, whose records are listed lazily; pictures are opened later, in any
process. All modules are imported here, so a new one needs no other line of code. Serves ``conversion``, at the start
of ``data → models → losses → evaluation → engine``.
"""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
