"""What a term of an objective is (below ``objective``; one file a term). It says of itself what it needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from cloc.config.domains import ConfigError
from cloc.config.terms import Need
from cloc.contracts import Batch, Features
from cloc.losses.global_batch import GlobalBatch


class Term(nn.Module):
    """One term of an objective. Its name is that of its entry in the configuration, and of its metric ``loss/NAME``.

    A subclass says what it needs and computes :meth:`forward`. Its rows (pictures, regions) are those of this process;
    texts are those of all (:mod:`cloc.losses.global_batch`). So that many processes compute what one does, it returns
    :func:`cloc.losses.global_batch.local_mean`. It has no trained parameters: those belong to the model.

    Attributes:
        needs: what it cannot do without. A term that needs regions is weighed by λ, the share of pictures that have
            any (CLOC, Eq. 4).
        label: on the progress line; empty for its name.
    """

    needs: frozenset[Need] = frozenset()
    label: str = ""

    def forward(self, features: Features, batch: Batch, gathered: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the term.

        Args:
            features: of this process.
            batch: they were made of. That it holds no region at all is a normal case.
            gathered: the global batch; with phrases where a term needs them.

        Returns:
            This process's part of the global mean, a scalar, and statistics worth logging, scalars by name.
        """
        raise NotImplementedError(f"{type(self).__name__}.forward: a term computes its value here")


@dataclass(frozen=True, slots=True)
class Weighted:
    """A term of an objective.

    Attributes:
        name: of it.
        key: of the configuration that holds its weight.
        weight: at least 0.
        term: what computes it.
    """

    name: str
    key: str
    weight: float
    term: Term

    def needs(self, *any_of: Need) -> bool:
        """Whether it needs one of these."""
        return not self.term.needs.isdisjoint(any_of)

    @property
    def label(self) -> str:
        """On the progress line."""
        return self.term.label or self.name


def check_option(key: str, value: str, known: Iterable[str]) -> str:
    """One of a few names.

    Raises:
        ConfigError: another one.
    """
    if value not in known:
        raise ConfigError(f"{key}={value!r}: give one of {', '.join(known)}")
    return value
