"""Who opens what a job reads: one process of each host opens and checks, the others take its word (below ``run``)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cloc.engine.process_group import exchange, rank_and_world, together
from cloc.launchers import host_name

T = TypeVar("T")
Share = tuple[int, int]
"""Number of a host among those of the job, and how many there are."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Host:
    """This process's host.

    Attributes:
        share: its number, in the order of the first rank on each, and how many there are.
        leader: the first rank on it.
        first: whether this process is that one.
    """

    share: Share
    leader: int
    first: bool


def find_host() -> Host:
    """Ask all processes where they are. Launchers number processes in different ways: the machine's own name counts."""
    names, (rank, _) = exchange(host_name()), rank_and_world()
    hosts = list(dict.fromkeys(names))
    leader = names.index(names[rank])
    return Host((hosts.index(names[rank]), len(hosts)), leader, leader == rank)


def open_once_a_host(
    open_own: Callable[[Share], T],
    hand_over: Callable[[T], Any],
    take: Callable[[Any], T],
    prepare: Callable[[Share], None] | None = None,
) -> T:
    """Let the first process of each host open something, and the others of that host take it.

    Args:
        open_own: opens and checks, given the host's share of what can be parted.
        hand_over: what the others need to know, as small JSON.
        take: makes the same of it, without looking again. Where it cannot (``ValueError``, ``OSError``: the processes
            of a host may see other file systems), the process opens for itself.
        prepare: the host's share of work that all hosts need and may have in common; done by all before any opens.

    Returns:
        What was opened, in every process.

    Raises:
        ConfigError: another process could not open it; says which, and why. That one raises its own error.
    """
    if rank_and_world()[1] == 1:
        return open_own((0, 1))
    host = find_host()
    if prepare is not None:
        together(lambda: prepare(host.share) if host.first else None)

    def begin() -> tuple[T, Any] | None:
        if not host.first:
            return None
        opened = open_own(host.share)
        return opened, hand_over(opened)

    own = together(begin)
    said = exchange(None if own is None else own[1])[host.leader]

    def end() -> T:
        try:
            return take(said)  # the first one too: what it holds itself would go into each of its readers
        except (ValueError, OSError) as error:
            if own is not None:
                return own[0]
            _LOG.warning("what process %d has opened cannot be taken over: %s; opening it again", host.leader, error)
            return open_own(host.share)

    return together(end)
