"""Set-up of the server that reading processes are forked from: imported by it alone, first of all (below ``workers``).

A reader that is being forked while its run ends finds the run's semaphores gone. Whoever ended the run knows; nobody
needs the traceback.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

_SERVER, _STARTER = os.getpid(), os.getppid()


def starter_has_ended() -> bool:
    """Whether the training process is gone: its children have got another parent then, also before it is reaped."""
    if os.getpid() != _SERVER and os.getppid() != _SERVER:
        return True  # the server has ended, which it does after the training process
    status = Path(f"/proc/{_SERVER}/status")
    parents = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("PPid:")]
    return parents != [str(_STARTER)]


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    try:
        ended = starter_has_ended()
    except OSError:  # no /proc: then it is told
        ended = False
    if not ended:
        sys.__excepthook__(kind, error, trace)


if "multiprocessing.forkserver" in sys.modules and sys.argv[:1] == ["-c"]:  # as that server is started
    sys.excepthook = _say
