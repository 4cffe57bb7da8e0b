"""Kill one of two processes again and again: the other must end, and the run go on to the weights of one left in peace.

    python -m tests.kills --count 20

Each round starts two processes of a tiny run over Gloo, kills one (kill -9 and SIGSTOP in turn, either process, at a
random moment: while they start, train or save), waits for the other, looks at the checkpoints that are left, and starts
both again, to the end. Prints a line for each, and as its last line one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cloc.checkpoints import list_checkpoints
from cloc.engine.durable.checkpoint_file import CheckpointError, inspect
from cloc.engine.liveness import GRACE
from tests.kit.pairs import Pair, as_kubeflow, free_port
from tests.kit.resuming import make_squares, members, newest_step, overrides, weights

TIMEOUT = 15  # seconds: trainer.timeout of the run
START = 60  # seconds that a process may take until it waits for another, where that was killed before it came
READERS = 15  # seconds that the readers of a process may take to notice its end, where other work keeps the cores busy
# Beyond the time-out: what the main thread may take to end by itself, and the naming of who is missing.
SPARE = GRACE + 7
STEPS = 60
OPTIONS = [
    f"samples={8 * STEPS}",
    "trainer.devices=2",
    "trainer.strategy=ddp",
    "trainer.checkpoint_every=32",
    "trainer.keep_last=3",
    "data.workers=1",
    f"trainer.timeout={TIMEOUT}",
]


@dataclass(frozen=True)
class Kill:
    """What became of one round.

    Attributes:
        signal: that was sent.
        rank: of the process that got it.
        at: step of the newest checkpoint then; 0 before the first.
        seconds: until the other process had ended.
        code: exit code of the other.
        line: the last that it said.
        readers: processes of the other's group that were left.
        whole: whether every checkpoint that was left is whole.
        equal: whether the run went on to the weights of the one left in peace.
    """

    signal: str
    rank: int
    at: int
    seconds: float
    code: int
    line: str
    readers: int
    whole: bool
    equal: bool

    @property
    def ended(self) -> bool:
        """Whether the other process ended in time, with an error."""
        limit = TIMEOUT + SPARE + (0 if self.at else START)
        return self.seconds <= limit and self.code not in (0, -signal.SIGKILL) and not self.readers


def start(squares: Path, folder: Path) -> Pair:
    """Both processes of the run in a folder."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    environments = [as_kubeflow(rank, port) for rank in range(2)]
    return Pair(environments, overrides(squares, folder / "run", *OPTIONS), folder)


def finish(squares: Path, folder: Path) -> dict[str, object]:
    """Run to the end, and the weights there."""
    pair = start(squares, folder)
    codes = pair.wait()
    assert codes == [0, 0], pair.said(0)[-2000:] + pair.said(1)[-2000:]
    return dict(weights(folder / "run"))


def kill_one(squares: Path, folder: Path, number: signal.Signals, rank: int, moment: float) -> Kill:
    """One round.

    Args:
        squares: the data.
        folder: of the round.
        number: what is sent.
        rank: to which process.
        moment: below 0.25 while they start, else when the run has come so far.
    """
    pair, run = start(squares, folder), folder / "run"
    target = max(1, int((moment - 0.25) / 0.75 * STEPS * 0.9))
    began = time.monotonic()
    while newest_step(run) < target and all(process.poll() is None for process in pair.processes):
        if moment < 0.25 and time.monotonic() - began > 60 * moment:
            break
        time.sleep(0.002)
    time.sleep(random.Random(moment).uniform(0, 0.2))
    at, other = newest_step(run), pair.processes[1 - rank]
    pair.processes[rank].send_signal(number)
    began = time.monotonic()
    try:
        code = other.wait(TIMEOUT + SPARE + 60)
    except Exception:  # noqa: BLE001  (it hangs: counted as such)
        code = -signal.SIGKILL
    seconds = time.monotonic() - began
    pair.kill()
    end = time.monotonic() + READERS
    while members(other.pid) and time.monotonic() < end:
        time.sleep(0.1)
    said = [line for line in pair.said(1 - rank).splitlines() if line.strip()]
    readers = len(members(other.pid))
    whole = all(_is_whole(run / "checkpoints" / name) for name in list_checkpoints(run / "checkpoints"))
    expected = weights(squares / "peace" / "run")
    found = finish(squares, folder)
    equal = found.keys() == expected.keys() and all(bool((expected[key] == found[key]).all()) for key in expected)
    return Kill(number.name, rank, at, seconds, code, said[-1] if said else "", readers, whole, equal)


def _is_whole(path: Path) -> bool:
    try:
        inspect(path)
    except CheckpointError:
        return False
    return True


def rounds(count: int, seed: int, folder: Path) -> list[Kill]:
    """So many kills, each in a run of its own."""
    squares = make_squares(folder)
    finish(squares, squares / "peace")
    drawn, found = random.Random(seed), []
    for number in range(count):
        which = (signal.SIGKILL, signal.SIGSTOP)[number % 2]
        kill = kill_one(squares, folder / str(number), which, drawn.randrange(2), drawn.random())
        print(
            f"{number:3} {kill.signal:8} process {kill.rank} at step {kill.at:3}: ended after {kill.seconds:5.1f} s "
            f"with {kill.code}, {kill.readers} readers left, whole {kill.whole}, equal {kill.equal}: {kill.line[:90]}",
            flush=True,
        )
        found.append(kill)
    return found


def main() -> None:
    """Parse, kill, count."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20, help="kills (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--json", type=Path, help="file for the single rounds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = rounds(options.count, options.seed, Path(folder))
    if options.json:
        options.json.write_text(json.dumps([asdict(kill) for kill in found]))
    total = {
        "kills": len(found),
        "ended_within_timeout": sum(kill.ended for kill in found),
        "resumed_equal": sum(kill.equal for kill in found),
        "checkpoints_whole": sum(kill.whole for kill in found),
        "slowest_seconds": round(max(kill.seconds for kill in found), 1),
        "timeout": TIMEOUT,
    }
    print(json.dumps(total))


if __name__ == "__main__":
    main()
