"""How commands explain themselves: help with examples, usage errors in a line, exit codes, the command that comes next.

Stands below all else, beside ``command``: ``python -m cloc``, ``train.py``, ``eval.py``, the benchmarks and the fuzzer
speak alike. Imports the standard library alone. Results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from cloc.command import told, wants_traceback
from cloc.launchers import LaunchError, is_first, launch

USER_ERROR = 1
"""Exit code of what the user can mend, a command line that cannot be read included."""

EXIT_CODES = "Exit codes: 0 done, 1 an error to mend, 75 stopped: run it again, 130 Ctrl-C"

_PLAIN = re.compile(r"[\w./:+@%-]+", re.ASCII)  # values that Hydra's grammar takes without quotes


def epilog(*examples: str) -> str:
    """What stands below the help of a Typer command: examples, one a line, then the exit codes."""
    return "\n".join([f"Example{'s' * (len(examples) > 1)}:", *(f"  {one}" for one in examples), "", EXIT_CODES])


def leave(message: str, command: str = "") -> NoReturn:
    """Print one line on standard error, where to read on at its end, and exit with :data:`USER_ERROR`."""
    line = " ".join(message.split())
    if command:
        line += f"{'' if line.endswith('?') else ';'} see {command} --help"
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(USER_ERROR)


def meant(name: Any, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ``"; did you mean 'x'?"``; empty where none is like it."""
    found = difflib.get_close_matches(name, list(known), 1) if isinstance(name, str) else []
    return f"; did you mean {found[0]!r}?" if found else ""


class OneLineErrors:
    """Mixed into a command class of Typer: a command line that cannot be read is told in a line, exit code 1."""

    def main(self, *arguments: Any, standalone_mode: bool = True, **options: Any) -> Any:
        """As Typer's own."""
        inherited: Any = super()
        try:
            code = inherited.main(*arguments, standalone_mode=False, **options)
        except Exception as error:
            if not standalone_mode or not hasattr(error, "format_message"):
                raise
            path = getattr(getattr(error, "ctx", None), "command_path", "")
            if type(error).__name__ == "NoArgsIsHelpError":  # its help is printed by now
                leave(f"{path}: name one of its commands")
            leave(_reworded(error), path)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def _reworded(error: Any) -> str:
    """Typer's message, with what was meant where it is near."""
    meant = getattr(error, "possibilities", None)
    if meant:
        return f"{error.message}; did you mean {meant[0]!r}?"
    text: str = error.format_message()
    return text.removesuffix(".")


class Parser(argparse.ArgumentParser):
    """The parser of a script whose help is its module's docstring, which holds the examples.

    Args:
        description: the docstring.
        prog: the command, ``python -m benchmarks.NAME``.
    """

    def __init__(self, description: str | None, prog: str) -> None:
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=_flowed(description or ""), formatter_class=kind, epilog=EXIT_CODES)

    def error(self, message: str) -> NoReturn:
        """One line, and what was meant where an option is misspelled."""
        unknown = re.fullmatch(r"unrecognized arguments: (--[\w-]+).*", message)
        leave(message + (meant(unknown[1], self._option_string_actions) if unknown else ""), self.prog)


def _flowed(text: str) -> str:
    """Paragraphs in lines of 80 columns; those with indented lines or a list stay as they are: they are commands."""
    parts = text.strip("\n").split("\n\n")
    kept = [any(line.startswith((" ", "-")) for line in part.splitlines()) for part in parts]
    return "\n\n".join(
        part if keep else textwrap.fill(part, 80, break_on_hyphens=False)
        for part, keep in zip(parts, kept, strict=True)
    )


def one_line(main: Callable[[], Any]) -> Any:
    """Run a script; what the user can mend is one line on standard error with exit code 1.

    What that is, and how to see its traceback, is :func:`cloc.command.in_a_line`'s matter too.
    """
    try:
        return main()
    except Exception as error:  # noqa: BLE001  (raised again unless it is the user's)
        if wants_traceback(error):
            raise
        of_file = isinstance(error, OSError) and error.filename and error.strerror
        leave(f"{error.filename}: {error.strerror}" if of_file else told(error))  # type: ignore[attr-defined]


def override(key: str, value: str | Sequence[str]) -> str:
    """``KEY=VALUE`` for a shell and for Hydra behind it; quoted for both where the value asks for it.

    Args:
        key: of the configuration.
        value: a text, or several for a list.
    """
    if isinstance(value, str):
        return shlex.quote(f"{key}={_quoted(value)}")
    return shlex.quote(f"{key}=[{','.join(map(_quoted, value))}]")


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    return '"' + re.sub(r'(\\*)("|$)', _escaped, value) + '"'  # Hydra takes other backslashes as they are


def _escaped(found: re.Match[str]) -> str:
    return found[1] * 2 + ("\\" + found[2] if found[2] else "")


def print_next(*commands: str) -> None:
    """Print what to do next, a line each, to be copied: the last lines of a command."""
    for command in commands:
        print(f"next: {command}", flush=True)


def opening(path: Path) -> str:
    """The command that opens a file of this machine in the browser."""
    return shlex.join(["python", "-m", "webbrowser", path.resolve().as_uri()])


def clock(seconds: float) -> str:
    """A duration as ``0:35`` or ``2:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return is_first()


def refuse_several(command: str) -> None:
    """Stop a command that a launcher started several times: each would do all of it, and write to the same files.

    Raises:
        LaunchError: says how to start it; by the first process, the others end without a word.
    """
    found = None
    with suppress(LaunchError):  # half of a launcher's word: a script of sbatch may call this without srun
        found = launch()
    if found is None or found.world == 1:
        return
    if found.rank:
        raise SystemExit(USER_ERROR)
    raise LaunchError(
        f"{command}: {found.launcher} has started {found.world} processes, and each would do all of it; start it once, "
        "by python; in a shell of such a job: env -u WORLD_SIZE -u RANK python …"
    )
