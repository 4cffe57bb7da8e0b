"""What every command needs of its process: Ctrl-C, output that may fail, helpers that Ctrl-C must not reach, extras.

Stands below all else, beside ``launchers``, and imports the standard library alone: it is in force before anything
heavy is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import errno
import importlib.util
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn

from cloc.launchers import is_alone

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells count."""

STOPPED = 75
"""Exit code of what a signal stopped and the same command continues (EX_TEMPFAIL: run it again)."""

EXTRAS = {
    "train": ("aiohttp", "braceexpand", "fsspec", "hydra", "ijson", "lightning", "webdataset"),
    "eval": ("fsspec", "hydra", "ijson", "jinja2", "matplotlib", "pycocotools"),
    "search": ("usearch",),
    "tensorboard": ("tensorboard",),
    "transformers": ("transformers",),
    "wandb": ("wandb",),
}
"""Modules that extras bring; a loaded model needs none of them."""

LONGEST = 600  # characters of a message: some libraries repeat all that they were given
FULL = "HYDRA_FULL_ERROR"
"""Environment variable that asks for tracebacks, where it is 1."""

_full = os.environ.get(FULL) == "1"
_WORD = "interrupted; run the same command again"
_CONTINUE = "stopped by SIGTERM; run the same command again to continue"
_PATIENCE = 5.0  # seconds until a process whose main thread does not come back from compiled code is ended from outside
# One press may come twice: torchrun passes on what the terminal has already sent to every process, as some wrappers do.
_ONE_PRESS = 2.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.25


class Interrupt(SystemExit):
    """Ctrl-C in a command: unwinds what is open, past all that handles errors, and ends the process with code 130."""

    def __init__(self) -> None:
        super().__init__(INTERRUPTED)


class Stop(SystemExit):
    """SIGTERM in a command that can be continued: unwinds as :class:`Interrupt` does, and ends with code 75."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class _Watch:
    """Hears every Ctrl-C when it comes, also while the main thread is in compiled code and runs no handler.

    Attributes:
        word: said at the first one by work that goes on for a while; None where there is none.
        unwinds: this is a command, which ends at the first one where no ``word`` is to be said.
        first: time of the first one; None before.
        seen: set by the handler, which the main thread runs.
    """

    def __init__(self) -> None:
        self.word: str | None = None
        self.unwinds = False
        self.first: float | None = None
        self.seen = threading.Event()
        self.descriptor, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="interrupts", daemon=True).start()

    def _listen(self) -> None:
        while True:
            if os.read(self.descriptor, 1)[0] == signal.SIGINT and (self.unwinds or self.word is not None):
                self._answer(time.monotonic())

    def _answer(self, now: float) -> None:
        if self.first is not None:
            if now - self.first > _ONE_PRESS:
                os._exit(INTERRUPTED)
            return
        self.first = now
        if self.word is not None:
            print(self.word, file=sys.stderr, flush=True)
            return
        patience = threading.Timer(_PATIENCE, self._end_the_deaf)
        patience.daemon = True
        patience.start()

    def _end_the_deaf(self) -> None:
        if not self.seen.is_set():
            _leave()


_watch: _Watch | None = None


def prepare(*, tell_closed_pipe: bool = False) -> None:
    """Make this process one that Ctrl-C ends in order and that outlives its output. The first thing a command does.

    Args:
        tell_closed_pipe: say on standard error that the reader of the output has left, and pass it on as SIGHUP to who
            handles that (a run that would go on for hours).
    """
    for descriptor in (0, 1, 2):  # a closed one would be the number of the next file that is opened
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # Typeshed calls the dunder names final; libraries that restore the streams take them from there.
    sys.stdout = sys.__stdout__ = _lasting(sys.stdout, 1, tell_closed_pipe)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _lasting(sys.stderr, 2, False)  # type: ignore[misc]
    sys.unraisablehook, threading.excepthook = _unraisable, _thread_failed
    atexit.register(_skip_teardown)  # before any other is registered: called after them
    listen()
    if _watch is not None:
        _watch.unwinds = True
    signal.signal(signal.SIGINT, _unwind)


def listen() -> None:
    """Let a second Ctrl-C end the process at once. Does nothing where that is so, or is another library's matter."""
    global _watch
    if _watch is None and threading.current_thread() is threading.main_thread():
        other = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(other)
        if other == -1:
            _watch = _Watch()


@contextlib.contextmanager
def announced(word: str) -> Iterator[None]:
    """While the block runs, the first Ctrl-C ends nothing: ``word`` is said, and who handles the signal acts on it."""
    if _watch is None:
        yield
        return
    before, _watch.word, _watch.first = _watch.word, word, None
    try:
        yield
    finally:
        _watch.word = before


@contextlib.contextmanager
def continued() -> Iterator[None]:
    """SIGTERM (a time limit) ends the block as Ctrl-C would, with code 75: what is done is kept.

    Of several processes that a launcher started each ends at once: one that waits for the others could not unwind.
    """
    if not is_alone() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends at once
    raise Stop


def require(extra: str) -> None:
    """Leave the process with one line where a module of an extra is missing; imports none of them."""
    if missing := needs(extra):
        sys.exit(f"ImportError: {missing}")


def needs(extra: str) -> str:
    """What to install, in words, where a module of an extra is missing; empty where all are there. Imports none."""
    missing = [module for module in EXTRAS[extra] if not _is_there(module)]
    return _remedy(missing, extra) if missing else ""


def told(error: BaseException) -> str:
    """An error in a line; of a module that an extra brings, with that extra; of Hydra, in the words of this project."""
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    extra = next((name for name, modules in EXTRAS.items() if module in modules), None)
    if extra:
        return _remedy([module], extra)
    if type(error).__module__.startswith("hydra."):
        return _told_by_hydra(error)
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _told_by_hydra(error: Any) -> str:
    """What Hydra says of a command line in several lines, without its links."""
    first, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    override, file = getattr(error, "override", None), getattr(error, "missing_cfg_file", None)
    if override:  # not of its grammar
        key, given, value = override.partition("=")
        reason = next((line for line in more if not line.startswith("See ")), first) if "parsing" in first else first
        remedy = (
            f"a value with = , : or brackets in it is quoted twice: '{key}=\"{value}\"'" if given else "give KEY=VALUE"
        )
        return f"{override!r}: {reason}; {remedy}"
    if file and getattr(error, "options", None) is not None:
        group, _, name = file.rpartition("/")
        close = difflib.get_close_matches(name, error.options, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{group}={name}: no such file; {hint}known are {', '.join(error.options)}"
    lines = [first, *(line for line in more if not line.startswith(("See ", "Config search path", "Set the env")))]
    cause = str(error.__cause__ or "").splitlines()
    return " ".join([f"{line.rstrip('.')}." for line in lines[:4]] + cause[:1])


def wants_traceback(error: BaseException) -> bool:
    """Whether a command lets an error pass as it is: a fault of the program, or any where they are asked for."""
    return _full or not is_users(error)


def is_users(error: BaseException) -> bool:
    """Whether an error is one that the user can mend: of a value, a file, the machine, an extra, the command line.

    What else is raised is a fault of the program, whose traceback is wanted.
    """
    owner = type(error).__module__.partition(".")[0]
    short = type(error).__name__ in ("OutOfMemoryError", "MisconfigurationException")  # PyTorch's and Lightning's
    usual = ValueError | OSError | ImportError | MemoryError | FloatingPointError
    return isinstance(error, usual) or owner in ("cloc", "hydra", "omegaconf", "yaml") or short


@contextlib.contextmanager
def in_a_line() -> Iterator[None]:
    """Leave the process with code 1 and one line where the block fails by what a user can mend.

    With ``HYDRA_FULL_ERROR=1`` its traceback is printed instead.
    """
    before, os.environ[FULL] = os.environ.get(FULL), "1"  # Hydra passes on what it would else print in many lines
    try:
        yield
    except Exception as error:  # noqa: BLE001  (raised again unless it is the user's)
        if wants_traceback(error):
            raise
        sys.exit(line_of(error))
    finally:
        os.environ.pop(FULL)
        os.environ |= {FULL: before} if before is not None else {}


def line_of(error: BaseException) -> str:
    """An error as the last line of a command: its kind, and :func:`told`."""
    kind = "ConfigError" if type(error).__module__.startswith(("hydra.", "omegaconf.")) else type(error).__name__
    return f"{kind}: {told(error)}"


def _remedy(missing: list[str], extra: str) -> str:
    return f"{', '.join(missing)}: not installed; pip install 'cloc-pretrain[{extra}]'"


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # of a finder that refuses it, of a module without a specification
        return False


def run(main: Callable[[], Any]) -> NoReturn:
    """Run a command to its end, and leave the process with its exit code."""
    global _code
    _code = 1
    try:
        main()
        _code = 0
    except SystemExit as end:
        if isinstance(end, Interrupt):
            print(_WORD, file=sys.stderr)
        if isinstance(end, Stop):
            print(_CONTINUE, file=sys.stderr)
        _code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))  # nothing is left to be unwound
    sys.exit(0)


_code: int | None = None


def _skip_teardown() -> None:
    """Leave when all is put away. Taking the modules apart takes seconds, in which a signal would change the code."""
    if _code is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_code)


@contextlib.contextmanager
def shielded(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Processes that are started in the block never see these signals, however the whole group is signaled."""
    from multiprocessing import resource_tracker  # not above: what it leaves to the exit comes before `_skip_teardown`

    resource_tracker.ensure_running()  # it unblocks SIGINT and SIGTERM when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unwind(number: int, frame: FrameType | None) -> None:
    """Raise in the main thread; during imports, which swallow it or make it a traceback, there is nothing to unwind."""
    if _watch is not None and _watch.seen.is_set():
        return
    if _watch is not None:
        _watch.seen.set()
    while frame is not None:
        if "importlib._bootstrap" in frame.f_code.co_filename:
            _leave()
        frame = frame.f_back
    raise Interrupt


def _unraisable(found: Any) -> None:
    """Where Python can only print an exception (a finalizer) and go on, an interrupt ends the process all the same."""
    if isinstance(found.exc_value, Interrupt):
        _leave()
    sys.__unraisablehook__(found)


def _thread_failed(found: threading.ExceptHookArgs) -> None:
    """A writer in the background that has no room says so in a line; who feeds it gets the error as well."""
    if isinstance(found.exc_value, OSError):
        print(f"{found.exc_value} (in the background)", file=sys.stderr)
    else:
        threading.__excepthook__(found)


def _leave() -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, f"{_WORD}\n".encode())
    os._exit(INTERRUPTED)


class _Sink(io.FileIO):
    """A standard stream that does not fail: what cannot be written is counted, and told where and when it can be.

    Args:
        descriptor: 1 or 2.
        tell_closed_pipe: as for :func:`prepare`.
    """

    def __init__(self, descriptor: int, tell_closed_pipe: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.tell_closed_pipe = tell_closed_pipe
        self.lost, self.reason = 0, ""

    def write(self, data: Any, /) -> int:
        try:
            if self.lost:
                super().write(f"[{self.lost} bytes of output lost: {self.reason}]\n".encode())
                self.lost = 0
            return super().write(data)
        except OSError as error:
            if not self.lost:
                self._tell(error)
            self.lost, self.reason = self.lost + len(data), error.strerror or str(error)
            if error.errno == errno.EPIPE and self.tell_closed_pipe and callable(signal.getsignal(signal.SIGHUP)):
                os.kill(os.getpid(), signal.SIGHUP)
            return len(data)

    def _tell(self, error: OSError) -> None:
        if self.fileno() == 2 or (error.errno == errno.EPIPE and not self.tell_closed_pipe):
            return
        said = "its reader has left); nothing more is printed"
        if error.errno != errno.EPIPE:
            said = f"{error.strerror}: make room, or log elsewhere); the command goes on in silence"
        with contextlib.suppress(OSError):
            os.write(2, f"standard output cannot be written ({said}\n".encode())


def _lasting(stream: Any, descriptor: int, tell_closed_pipe: bool) -> io.TextIOWrapper:
    if stream is None:  # closed when Python started; the number may be another file's since
        return _text(_Sink(os.open(os.devnull, os.O_WRONLY), tell_closed_pipe), "utf-8", "backslashreplace", False)
    at_once = descriptor == 2 or stream.line_buffering or stream.write_through
    return _text(_Sink(descriptor, tell_closed_pipe), stream.encoding, stream.errors, at_once)


def _text(sink: _Sink, encoding: str, errors: str, line_buffering: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(sink), encoding, errors, line_buffering=line_buffering)
