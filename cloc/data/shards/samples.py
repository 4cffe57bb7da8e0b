"""Goes through the samples of a folder of shards, in their stored order or another: the one loop over them.

Stands above ``reader`` at the start of ``data → models → losses → evaluation → engine``. Serves all that reads a set
once (check, show, conversion, evaluation); training draws its samples by the global order instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cloc.contracts import BadSample, Sample
from cloc.data.sample import parse_sample
from cloc.data.shards.manifest import Place
from cloc.data.shards.reader import ShardReader


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample as it was found in its shard, usable or not.

    Attributes:
        place: its shard and its index there.
        key: its name; empty where not even that could be read.
        members: file contents by extension in lower case; empty where they could not be read.
        sample: what was parsed; None where it cannot be used.
        mended: how many captions and regions were dropped or mended, by reason.
        error: why it cannot be used: a ``BadSample``, or the ``OSError`` of a shard that cannot be read.
    """

    place: Place
    key: str
    members: Mapping[str, bytes] = field(default_factory=dict)
    sample: Sample | None = None
    mended: Counter[str] = field(default_factory=Counter)
    error: BadSample | OSError | None = None

    def need(self) -> Sample:
        """Return the sample.

        Raises:
            BadSample: it cannot be used.
            OSError: its shard cannot be read.
        """
        if self.sample is None:
            assert self.error is not None, "one of the two is there"
            raise self.error
        return self.sample


def each_sample(
    reader: ShardReader, places: Iterable[Place] | None = None, source: str | None = None
) -> Iterator[StoredSample]:
    """Read samples one by one; those that cannot be used are yielded too, with their error.

    Args:
        reader: of the shards.
        places: which samples; all of them, in their stored order, where None.
        source: as for :meth:`ShardReader.read_sample`.
    """
    for place in reader.manifest.places() if places is None else places:
        key = ""
        members: Mapping[str, bytes] = {}
        try:
            key, members = reader.read_members(place)
            sample, mended = parse_sample(members, key, reader.manifest.folder.name if source is None else source)
        except (BadSample, OSError) as error:
            yield StoredSample(place, key, members, error=error)
        else:
            yield StoredSample(place, key, members, sample, mended)


def usable_samples(
    reader: ShardReader,
    left_out: Counter[str],
    places: Iterable[Place] | None = None,
    source: str | None = None,
) -> Iterator[StoredSample]:
    """Read the samples that can be used; as ``each_sample``.

    Args:
        reader: of the shards.
        left_out: receives the reasons of the others.
        places: which samples; all where None.
        source: as for :meth:`ShardReader.read_sample`.

    Raises:
        OSError: a shard cannot be read.
    """
    for stored in each_sample(reader, places, source):
        if isinstance(stored.error, BadSample):
            left_out[stored.error.reason] += 1
        else:
            stored.need()
            yield stored
