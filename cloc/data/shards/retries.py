"""Asks stores until they answer: pauses between attempts, their bound in time, how much is asked for at once.

Stands below ``stores`` at the start of ``data → models → losses → evaluation → engine``. A store that is busy or silent
delays a run and costs no sample; one that stays silent ends the run, which goes on from its checkpoint.
"""

from __future__ import annotations

import errno
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from cloc.config.secrets import public
from cloc.data.shards.tars import ShardReadError

T = TypeVar("T")
MAX_BYTES = 1 << 28
"""Bytes that a process asks for at a time (256 MiB): 16 requests of 16 MiB, more than a sample has."""
OPENING_SECONDS = 60.0
"""A set is opened within so many seconds of retries: a name that is wrong is told before a job has waited for long."""
LONGEST_PAUSE = 30.0
"""Seconds: a thousand readers of a dead store then ask it 66 times a second, all together."""
SAY_AFTER = 30.0
"""Seconds of silence after which a line says so."""
UNASKED = 2 * LONGEST_PAUSE
"""Seconds without a question after which a store no longer counts as silent: nobody knows what it would have said."""
_FIRST_PAUSE = 1.0
_GRACE = 30.0  # seconds of attempts that a call has at least, however long it waited for others before
_POLL = 0.1  # seconds between two looks at whether the run is to end
_DEAF = 60.0  # seconds beyond its own limits after which a request no longer counts as a reason to wait
_NO_USE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_FAULTS: tuple[type[Exception], ...] = (PermissionError, NotADirectoryError, IsADirectoryError, ValueError, TypeError)
_FAULTS += (LookupError, AttributeError, ImportError, NotImplementedError, AssertionError)
_CONFIGURATION = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoRegionError", "ConfigNotFound"}
_BUSY = (408, 425, 429)
_LOG = logging.getLogger(__name__)


class ReadingInterrupted(RuntimeError):
    """The run is to end while a reader waits."""


class StoreSilentError(RuntimeError):
    """Nothing of a store has answered for as long as it may be silent. No shard is to blame, and none is given up."""


class VanishedError(ShardReadError):
    """The store says that there is no such shard."""


class UnansweredError(ShardReadError):
    """No attempt within the bound of time has succeeded."""


@dataclass(slots=True)
class _Silence:
    """A store that has not answered since a moment: until when it is asked, how often; whether a line has said so."""

    since: float
    asked: float
    tries: int = 0
    told: bool = False


class Traffic:
    """What one process asks of stores: how much at a time, what is silent since when, what waiting cost.

    Threads share it. Pickled, it arrives empty: every process has its own.

    Attributes:
        interrupted: the run is to end; who waits stops waiting. Set by a signal handler, so it is no lock.
        horizon: one number in memory that the training process sees: the monotonic time until which this reader has a
            reason to wait. None where nobody looks.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self.horizon: Any = None
        self._free = threading.Condition()
        self._requests = self._bytes = 0
        self._silent: dict[str, _Silence] = {}
        self._counts: Counter[str] = Counter()
        self._pausing, self._paused_since = 0, 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return Traffic, ()

    @contextmanager
    def slot(self, requests: int, size: int) -> Iterator[None]:
        """Be one of so many requests at a time, ``size`` bytes large; waits for the others."""
        size = min(size, MAX_BYTES)
        with self._free:
            while self._requests >= requests or self._bytes + size > MAX_BYTES:
                self.check()
                self._free.wait(_POLL)
            self._requests += 1
            self._bytes += size
        try:
            yield
        finally:
            with self._free:
                self._requests -= 1
                self._bytes -= size
                self._free.notify_all()

    def check(self) -> None:
        """Raise :class:`ReadingInterrupted` where the run is to end."""
        if self.interrupted:
            raise ReadingInterrupted("a reader was waiting for a store")

    def pause(self, seconds: float) -> None:
        """Wait before a store is asked again; the time of all that wait together is counted once."""
        with self._free:
            self._pausing += 1
            self._paused_since = time.monotonic() if self._pausing == 1 else self._paused_since
            self._counts["store_retries"] += 1
        try:
            self.sleep(seconds)
        finally:
            with self._free:
                self._pausing -= 1
                self._count_waiting()

    def sleep(self, seconds: float) -> None:
        """Wait for other processes of the host, until the run is to end."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, _POLL))

    def _count_waiting(self) -> None:
        now = time.monotonic()
        self._counts["store_wait_seconds"] += cast(int, now - self._paused_since)  # a Counter adds any number
        self._paused_since = now

    def take_counts(self) -> dict[str, float]:
        """``store_retries`` and ``store_wait_seconds`` since the last call; nothing where there was none."""
        with self._free:
            if self._pausing:
                self._count_waiting()
            found, self._counts = dict(self._counts), Counter()
        return {name: value for name, value in found.items() if value}

    def expect(self, seconds: float) -> None:
        """Tell the training process that this reader has a reason to wait for so long."""
        if self.horizon is not None:
            self.horizon[0] = max(float(self.horizon[0]), time.monotonic() + seconds)

    def answered(self, store: str) -> None:
        """Note that a store lives."""
        silence = self._silent.pop(store, None)
        if silence is not None and silence.told:
            since = time.monotonic() - silence.since
            _LOG.warning("%s answers again after %.0f s", store, since)

    def failed(self, store: str, begun: float) -> float:
        """Note that a question asked at a moment has failed, and return since when the store has not answered."""
        now, silence = time.monotonic(), self._silent.get(store)
        if silence is None or begun > silence.asked + UNASKED:
            silence = self._silent[store] = _Silence(now, now)
        silence.asked = max(silence.asked, now)
        silence.tries += 1
        return silence.since

    def say(self, store: str, pause: float, reason: str) -> None:
        """Note that a store is asked again after a pause, and tell once of each silence that it lasts."""
        silence = self._silent.get(store)
        if silence is None:
            return
        silence.asked = max(silence.asked, time.monotonic() + pause)
        if silence.told or time.monotonic() - silence.since + pause < SAY_AFTER:
            return
        silence.told = True
        _LOG.warning(
            "%s: nothing usable since %.0f s, tried %d times (%s); next in %.0f s",
            *(store, time.monotonic() - silence.since, silence.tries, reason, pause),
        )


@dataclass(frozen=True, slots=True)
class Access:
    """How stores are reached.

    Attributes:
        timeout: seconds that a store may be silent on one request.
        redirect_hosts: hosts that HTTP redirects may lead to besides the URL's own.
        retry_seconds: seconds for which what fails for a moment is tried again.
        max_requests: of a process, at a time.
        traffic: what this process asks.
    """

    timeout: float = 30.0
    redirect_hosts: tuple[str, ...] = ()
    retry_seconds: float = 600.0
    max_requests: int = 16
    traffic: Traffic = field(default_factory=Traffic, compare=False, repr=False)

    def within(self, seconds: float) -> Access:
        """The same with retries for at most so many seconds."""
        return replace(self, retry_seconds=min(seconds, self.retry_seconds))

    @property
    def at_start(self) -> Access:
        """For opening a set."""
        return self.within(OPENING_SECONDS)


def store_of(url: str) -> str:
    """Protocol and host or bucket of a URL, without credentials: what is silent together."""
    protocol, mark, rest = public(url).partition("://")
    return f"{protocol}{mark}{rest.partition('/')[0].partition('?')[0]}"


def attempt(
    url: str,
    what: str,
    call: Callable[[], T],
    access: Access | None = None,
    *,
    size: int = 1 << 22,
    begun: float | None = None,
    moved: Callable[[], int] = lambda: 0,
) -> T:
    """Call until it succeeds, or has failed for ``access.retry_seconds``.

    Pauses are drawn between 0 and a bound that doubles (full jitter), so that thousands of readers do not come back
    together; where the server says how long to wait, that is waited before. The bound of time counts from the first
    failure of this call, or of its store where nothing of that has answered since: a dead store is waited for once, not
    once a shard.

    Args:
        url: for the message.
        what: for the message: what is not so when all attempts fail.
        call: asks a store.
        access: bounds; those of opening a set by default.
        size: bytes that come at a time.
        begun: monotonic time from which the bound counts, where it is earlier.
        moved: a number that grows while calls get ahead although they fail; then the bound counts anew.

    Raises:
        FileNotFoundError: the store says that there is no such file.
        UnansweredError: no attempt succeeded in time.
        ShardReadError: another attempt is of no use.
        ReadingInterrupted: the run is to end.
    """
    access = Access().at_start if access is None else access
    traffic, store, number, seen, first = access.traffic, store_of(url), 0, moved(), begun
    while True:
        traffic.check()
        number += 1
        asked = time.monotonic()
        failure: Exception | None = None
        try:
            with traffic.slot(access.max_requests, size):
                found = call()
        except (ReadingInterrupted, FileNotFoundError) as error:
            if isinstance(error, ReadingInterrupted):
                raise
        except Exception as error:  # noqa: BLE001  (every backend has exceptions of its own, which mean the same here)
            failure = error
        else:
            traffic.answered(store)
            return found
        if failure is None:  # outside of the handler: the store's own error may hold the URL
            traffic.answered(store)
            raise FileNotFoundError(f"{public(url)}: no such file")
        if not may_pass(failure):
            raise _refused(url, what, number, failure)
        if moved() != seen:
            traffic.answered(store)
            seen, number, first = moved(), 1, None
        # A single attempt is for what has failed before, such as a lost shard: it says nothing of the store.
        silent, now = traffic.failed(store, asked) if access.retry_seconds else asked, time.monotonic()
        if first is None or number == 1:
            grace = min(_GRACE, access.retry_seconds)
            first = now if first is None else max(first, now - access.retry_seconds + grace)
        deadline = min(first, silent) + access.retry_seconds
        if now >= deadline:
            tried = f"{number} attempt{'s' * (number > 1)} in {now - first:.0f} s"
            raise UnansweredError(f"{url}: {what}, {tried} ({tell(failure)})")
        jitter = random.uniform(0, min(LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(number, 10)))  # noqa: S311
        pause = min(asked_to_wait(failure) + jitter, deadline - now)
        traffic.expect(pause + access.timeout + _DEAF)
        traffic.say(store, pause, tell(failure))
        traffic.pause(pause)


def _refused(url: str, what: str, number: int, failure: Exception) -> Exception:
    """Of an attempt after which another is of no use."""
    if getattr(failure, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) and not hasattr(failure, "again"):
        return failure  # of the disk that is written to, not of the store
    return ShardReadError(f"{url}: {what}, {number} attempt{'s' * (number > 1)} ({tell(failure)})")


def may_pass(error: Exception) -> bool:
    """Whether another attempt may fare better."""
    if hasattr(error, "again"):
        return bool(error.again)
    if isinstance(error, TimeoutError):
        return True
    answer = getattr(error, "response", None)
    statuses = [getattr(error, "status", None), getattr(error, "code", None), getattr(answer, "status_code", None)]
    if any(isinstance(status, int) and 400 <= status < 500 and status not in _BUSY for status in statuses):
        return False
    chain = {type(one).__name__ for one in (error, error.__cause__) if one is not None}
    fault = isinstance(error, _FAULTS) or bool(chain & _CONFIGURATION)
    return not fault and getattr(error, "errno", None) not in _NO_USE


def asked_to_wait(error: BaseException | None) -> float:
    """Seconds that a server asks to wait: of :class:`cloc.data.shards.http.AnswerError`, or of a botocore error."""
    while error is not None:
        if (after := getattr(error, "after", None)) is not None:
            return float(after)
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            wait = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
            return float(wait) if str(wait).isdecimal() else 0.0
        error = error.__cause__
    return 0.0


def tell(error: Exception) -> str:
    """An error of a store in one line, without credentials."""
    if isinstance(error, TimeoutError):
        return "nothing came in time; check the store and the network, or raise data.timeout"
    text = " ".join(public(str(error)).split())[:300]
    return text if hasattr(error, "again") else f"{type(error).__name__}: {text}"


def together(calls: Sequence[Callable[[], T]], threads: int, traffic: Traffic) -> list[T | ShardReadError]:
    """Call all, some at a time; what they return, or the error of each that failed for its shard.

    The threads are daemons: a process that ends does not wait for a store.

    Raises:
        ReadingInterrupted: the run is to end.
    """
    found: dict[int, T | BaseException] = {}
    todo, done = iter(enumerate(calls)), SimpleQueue[tuple[int, T | BaseException]]()
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number, call = next(todo, (-1, None))
            if call is None:
                return
            try:
                done.put((number, call()))
            except BaseException as error:  # noqa: BLE001  (raised below, in the thread that waits)
                done.put((number, error))

    for _ in range(min(threads, len(calls))):
        threading.Thread(target=work, daemon=True, name="asking a store").start()
    while len(found) < len(calls):
        number, result = _next(done, traffic)
        found[number] = result
        if isinstance(result, BaseException) and not isinstance(result, ShardReadError):
            raise result
    return [cast("T | ShardReadError", found[number]) for number in range(len(calls))]


def _next(queue: SimpleQueue[T], traffic: Traffic) -> T:
    from queue import Empty

    while True:
        try:
            return queue.get(timeout=2 * _POLL)
        except Empty:
            traffic.check()
