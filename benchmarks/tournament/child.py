"""Programs that the tournament starts: their output in a file, their time counted, their end with the tournament's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STOPPED = 75
"""Exit code of a training that was asked to stop, and can be continued."""

# Linux kills the program when the thread that started it ends, so that a killed tournament leaves nothing that holds a
# run folder. Set by the child itself before it becomes the program: after a fork in a process with threads, Python may
# not run.
_BOUND = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        code: exit code; negative for a signal.
        seconds: by the clock.
        processor: seconds of user and system, of it and of what it started and waited for.
        text: what it printed.
    """

    code: int
    seconds: float
    processor: float
    text: str

    @property
    def reason(self) -> str:
        """The program's last word about an error, or else its last line."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        told = [line for line in lines if re.match(r"(error: |\w*(Error|Exception)\b)", line)]
        last = (told or lines or ["no output"])[-1]
        how = f"signal {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        return f"{last} ({how})"

    def tail(self, count: int = 12) -> str:
        """The last lines."""
        return "\n".join(self.text.splitlines()[-count:])


class Children:
    """Programs that run now, to be stopped together."""

    def __init__(self) -> None:
        self.stopping = False
        self._running: set[int] = set()
        self._lock = threading.RLock()  # a second signal comes while the first is answered

    def run(self, command: Sequence[str], folder: Path, log: Path, environment: dict[str, str]) -> Ended:
        """Run a program to its end; blocks.

        Args:
            command: its arguments, the program first.
            folder: that it runs in.
            log: both its outputs are appended there.
            environment: beside the tournament's own.
        """
        started = time.perf_counter()
        with log.open("ab") as out:
            begin = out.tell()
            with self._lock:
                if self.stopping:
                    return Ended(STOPPED, 0.0, 0.0, "")
                child = subprocess.Popen(
                    _bound(command), cwd=folder, env=os.environ | environment, stdout=out, stderr=subprocess.STDOUT
                )
                self._running.add(child.pid)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)  # else Popen would wait for it, too
        with self._lock:
            self._running.discard(child.pid)
        text = log.read_bytes()[begin:].decode(errors="replace")
        processor = used.ru_utime + used.ru_stime
        return Ended(child.returncode, time.perf_counter() - started, processor, text)

    def stop(self) -> None:
        """Ask all to end, and start no other."""
        with self._lock:
            self.stopping = True
            for pid in self._running:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGTERM)


def _bound(command: Sequence[str]) -> list[str]:
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-c", _BOUND, str(os.getpid()), *command]
