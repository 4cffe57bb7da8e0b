"""How much of a source may be left out before the run stops: unusable samples and unreadable shards, counted apart.

Another sample stands in for each (``order``: its substitutes); this says when that is no longer right.
"""

from __future__ import annotations

import logging
from collections import Counter

from cloc.config.secrets import public
from cloc.data.stream.sources import ShardSource

UNREADABLE_SHARD = "unreadable_shard"
"""Reason of samples whose shard is lost: the shard counts, not they."""

_LOG = logging.getLogger(__name__)


class SkipLimitError(RuntimeError):
    """More samples or shards were left out than the configuration allows."""


class SkipLimit:
    """What one reading process left out of a source so far, against ``data.max_skip_share``.

    Args:
        source: that is read.
        max_share: of its samples, and of its shards, that may be unusable.

    Attributes:
        read: samples that were tried.
        skipped: samples that were left out, by reason.
        lost: shards that cannot be read now.
    """

    def __init__(self, source: ShardSource, max_share: float) -> None:
        folder = public(source.manifest.remote) or source.manifest.folder
        self.where = f"data.train {source.name!r} ({folder})"
        self.folder, self.shards, self.max_share = source.manifest.folder, len(source.manifest.shards), max_share
        self.read = 0
        self.skipped: Counter[str] = Counter()
        self.lost: set[int] = set()

    def leave_out(self, reason: str, error: Exception) -> None:
        """Count a sample.

        Raises:
            SkipLimitError: it is one too many.
        """
        self.skipped[reason] += 1
        skipped = self.skipped.total() - self.skipped[UNREADABLE_SHARD]
        # A single bad sample among the first few hundred is no share worth stopping for.
        if skipped > max(3, self.max_share * max(self.read, 500)):
            raise SkipLimitError(
                f"{self.where}: {skipped} of {self.read} samples left out ({dict(self.skipped)}), more than "
                f"data.max_skip_share={self.max_share}; last: {error}. Run `python -m cloc data check {self.folder}`, "
                "or raise data.max_skip_share."
            )

    def lose_shard(self, shard: int, error: Exception) -> None:
        """Count a shard, once however many samples it held: the run goes on while few are lost.

        Raises:
            SkipLimitError: it is one too many.
        """
        if shard in self.lost:
            return
        self.lost.add(shard)
        _LOG.warning("samples of other shards take the places of an unreadable one: %s", error)
        if len(self.lost) > max(1, self.max_share * self.shards):
            raise SkipLimitError(
                f"{self.where}: {len(self.lost)} of {self.shards} shards cannot be read, more than "
                f"data.max_skip_share={self.max_share}; last: {error}. Restore them, or raise the limit."
            )

    def take_back(self, shard: int) -> None:
        """A shard that was lost can be read again: it counts no longer."""
        if shard in self.lost:
            self.lost.remove(shard)
            _LOG.warning("%s: shard %d can be read again", self.where, shard)

    def no_substitute(self, position: int, tried: int) -> SkipLimitError:
        """The error of a position none of whose substitutes can be used."""
        return SkipLimitError(
            f"{self.where}: position {position}: {tried} samples in a row unusable ({dict(self.skipped)})"
        )
