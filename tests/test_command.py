"""Commands whose user presses Ctrl-C, whose output cannot be written, whose helpers are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.paths import ROOT

HEAD = "import os, signal, subprocess, sys, time\nfrom cloc.command import *\n"
COMMAND = HEAD + "prepare(tell_closed_pipe=True)\ndef main():\n{body}\nrun(main)\n"
PYTHON = [sys.executable, "-B"]


def python(code: str, **options: object) -> subprocess.Popen[str]:
    """Start it with SIGINT as a terminal's shell leaves it: one that starts a suite in the background ignores it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT, "start_new_session": True}
    asked = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen([*PYTHON, "-c", code], **(pipes | options))
    finally:
        signal.signal(signal.SIGINT, asked)


def command(*lines: str) -> str:
    return COMMAND.format(body="\n".join(f"    {line}" for line in lines))


def press(process: subprocess.Popen[str], times: int = 1, pause: float = 0.5) -> tuple[int, str, float]:
    """Send SIGINT when the process has printed a line; its exit code, what it says, and the seconds it takes."""
    process.stdout.readline()
    start = time.monotonic()
    for number in range(times):
        if number:
            time.sleep(pause)
        process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    return process.returncode, told, time.monotonic() - start


READY = "print('ready', flush=True)"
UNWINDING = ["try:", f"    {READY}; time.sleep(60)", "finally:", "    print('put away', file=sys.stderr)"]
# In compiled code no handler of Python runs.
DEAF = [READY, "import hashlib", "hashlib.pbkdf2_hmac('sha256', b'', b'', 1 << 28)"]
FINALIZER = [
    "class Held:",
    f"    def __del__(self): {READY}; time.sleep(60)",
    "held = Held()",
    "del held",
    "time.sleep(60)",
]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (UNWINDING, "put away\ninterrupted; run the same command again\n"),
        (FINALIZER, "interrupted; run the same command again\n"),
        (
            ["try:", f"    {READY}; time.sleep(60)", "except Exception:", "    time.sleep(60)"],
            "interrupted; run the same command again\n",
        ),
    ],
    ids=["unwinds", "in a finalizer", "past a handler of errors"],
)
def test_ctrl_c_ends_a_command_in_one_line(lines: list[str], told: str) -> None:
    assert press(python(command(*lines)))[:2] == (130, told)


def test_sigterm_ends_what_can_be_continued_in_one_line() -> None:
    process = python(command("with continued():", *(f"    {line}" for line in UNWINDING)))
    process.stdout.readline()
    process.terminate()
    told = "put away\nstopped by SIGTERM; run the same command again to continue\n"
    assert (process.communicate(timeout=60)[1], process.returncode) == (told, 75)


def test_sigterm_ends_one_of_several_processes_at_once() -> None:
    lines = command("with continued():", *(f"    {line}" for line in UNWINDING))
    process = python(lines, env=os.environ | {"WORLD_SIZE": "2"})
    process.stdout.readline()
    process.terminate()
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", -signal.SIGTERM)


def test_ctrl_c_during_an_import_that_swallows_it(tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text(
        f"import time\ntry:\n    {READY}; time.sleep(60)\nexcept BaseException: pass\n"
    )
    code = command(f"sys.path.insert(0, {str(tmp_path)!r})", "import slow_import", "time.sleep(60)")
    assert press(python(code))[:2] == (130, "interrupted; run the same command again\n")


def test_ctrl_c_before_the_command_has_begun(tmp_path: Path) -> None:
    code = HEAD + f"prepare()\n{READY}\ntime.sleep(60)\n"
    assert press(python(code))[0] == 130


@pytest.mark.parametrize(
    "lines", [DEAF, ["signal.signal(signal.SIGINT, lambda *_: None)", READY, "while True: time.sleep(1)"]]
)
def test_a_second_ctrl_c_ends_at_once(lines: list[str]) -> None:
    code, told, seconds = press(python(command(*lines)), times=2)
    assert (code, "Traceback" in told) == (130, False) and seconds < 4


def test_one_ctrl_c_ends_a_command_that_does_not_hear_it() -> None:
    code = command(*DEAF).replace("prepare(", "import cloc.command; cloc.command._PATIENCE = 0.2\nprepare(")
    assert press(python(code))[:2] == (130, "interrupted; run the same command again\n")


def test_work_that_goes_on_says_so_and_decides_itself() -> None:
    code = command(
        "heard = []",
        "signal.signal(signal.SIGINT, lambda *_: heard.append(1))",
        "with announced('stops soon'):",
        f"    {READY}",
        "    while not heard: time.sleep(0.01)",
        "    time.sleep(0.3)",
        "sys.exit(7)",
    )
    assert press(python(code))[:2] == (7, "stops soon\n")


def test_a_press_that_comes_twice_is_one() -> None:
    """torchrun passes on what the terminal has sent to every process."""
    lines = [
        "signal.signal(signal.SIGINT, lambda *_: None)",
        "with announced('stops soon'):",
        f"    {READY}; time.sleep(2)",
    ]
    process = python(command(*lines, "sys.exit(7)"), env=os.environ | {"TORCHELASTIC_RUN_ID": "x"})
    assert press(process, times=2)[:2] == (7, "stops soon\n")


def test_helpers_do_not_hear_ctrl_c() -> None:
    code = command(
        "with shielded({signal.SIGINT}):",
        "    helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1)'])",
        "signal.signal(signal.SIGINT, lambda *_: None)",
        READY,
        "sys.exit(helper.wait())",
    )
    process = python(code)
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 0


LINES = ["for _ in range(3): print('x' * 70000, flush=True)", "print('done', file=sys.stderr)"]


def test_output_on_a_full_disk_is_lost_and_nothing_else() -> None:
    with open("/dev/full", "w") as full:
        both = python(command(*LINES), stdout=full)
        assert both.communicate(timeout=60)[1].splitlines() == [
            "standard output cannot be written (No space left on device: make room, or log elsewhere); the command "
            "goes on in silence",
            "done",
        ]
        assert both.returncode == 0
        silent = python(command(*LINES), stdout=full, stderr=full)
        assert silent.wait(60) == 0


def test_what_was_lost_is_told_when_there_is_room_again(tmp_path: Path) -> None:
    code = command(
        "import resource",
        "print('first', flush=True)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6, resource.RLIM_INFINITY))",
        "print('lost', flush=True)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
        "print('last', flush=True)",
    )
    with (tmp_path / "log").open("w") as log:
        assert python(code, stdout=log, stderr=subprocess.STDOUT).wait(60) == 0
    assert (tmp_path / "log").read_text() == "first\n[5 bytes of output lost: File too large]\nlast\n"


def test_a_reader_that_leaves_ends_nothing() -> None:
    process = python(command(*LINES))
    process.stdout.readline()
    process.stdout.close()
    told = process.stderr.read().splitlines()
    assert told == ["standard output cannot be written (its reader has left); nothing more is printed", "done"]
    assert process.wait(60) == 0


@pytest.mark.parametrize(("handler", "code"), [("lambda *_: os._exit(75)", 75), ("signal.SIG_IGN", 0)])
def test_a_reader_that_leaves_stops_who_handles_it(handler: str, code: int) -> None:
    """``nohup`` ignores SIGHUP, and what is not in training has no handler."""
    process = python(command(f"signal.signal(signal.SIGHUP, {handler})", *LINES))
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == code


def test_a_signal_at_the_very_end_does_not_change_the_code() -> None:
    """What was to be put away at the end is, and the modules are not taken apart, which takes seconds."""
    lines = ["import atexit, types", "class Slow:", "    def __del__(self): time.sleep(60)"]
    lines += [
        "module = types.ModuleType('kept'); module.slow = Slow(); sys.modules['kept'] = module",
        "import builtins",
    ]
    lines += [
        "builtins.kept = module.slow",
        "atexit.register(lambda: print('put away', file=sys.stderr))",
        READY,
        "sys.exit(7)",
    ]
    start = time.monotonic()
    process = python(command(*lines))
    assert process.communicate(timeout=60)[1] == "put away\n" and process.returncode == 7
    assert time.monotonic() - start < 30


def test_streams_that_are_closed(tmp_path: Path) -> None:
    """What is opened next must not get the number of standard output: prints would go into a checkpoint."""
    path = tmp_path / "file"
    code = command(
        f"file = open({str(path)!r}, 'w')", "os.write(1, b'stray')", "print('lost')", "sys.exit(file.fileno())"
    )
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *PYTHON, "-c", code]
    assert subprocess.run(closed, cwd=ROOT).returncode > 2
    assert path.read_text() == ""


def test_help_for_a_reader_that_leaves() -> None:
    process = subprocess.Popen(
        [*PYTHON, "-m", "cloc", "data", "check", "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 0


def _kill_this_process(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _do(function: Callable[..., object], *arguments: object) -> object:
    return function(*arguments)


def _stop_this_process(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.distributed
def test_a_worker_that_is_killed_is_told_in_a_line() -> None:
    from cloc.data.jobs.worker_pool import WorkerError, WorkerPool

    with pytest.raises(WorkerError, match=r"^a worker process was killed.*fewer --workers"), WorkerPool(2) as pool:
        list(pool.run(_kill_this_process, [()]))


@pytest.mark.distributed
@pytest.mark.parametrize("task", [time.sleep, _stop_this_process])
def test_workers_are_gone_when_a_command_is_interrupted(task: Callable[[float], None]) -> None:
    import multiprocessing

    from cloc.command import Interrupt
    from cloc.data.jobs.worker_pool import WorkerPool

    before = set(multiprocessing.active_children())
    with pytest.raises(Interrupt), WorkerPool(2) as pool:
        results = pool.run(_do, [(os.getpid,), (task, 600), (task, 600)])
        assert next(results) != os.getpid()
        raise Interrupt
    assert not set(multiprocessing.active_children()) - before
