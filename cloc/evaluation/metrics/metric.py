"""What a metric is: when it applies, how it is measured, and what it says of itself.

Third step of evaluation (``sets → model_outputs → metrics → suite → report → compare``). Suite, tables and report know
metrics by this alone: another one is a class with this interface, named in ``evaluation.metrics``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cloc.evaluation.metrics.outcome import Outcomes
from cloc.evaluation.model_outputs import OUTPUTS, Embedded, ModelOutputs
from cloc.evaluation.sets.eval_set import EvalSet

PERCENT, FRACTION = "%", ""  # units; any other one is a word that stands behind the label
LAST = 99


@dataclass(frozen=True, slots=True)
class Section:
    """A part of table and report: its title, its place (the lowest first), and whether the page folds it away."""

    title: str
    place: int = LAST
    folded: bool = False


IMAGES = Section("Whole images", 0)
NAMING = Section("Naming boxes", 1)
BOXES = Section("Boxes and phrases", 2)
GROUNDING = Section("Grounding", 3)
RELATIONS = Section("Relations", 4)
BY_SIZE = Section("Naming boxes, by size", 5, folded=True)
BY_FREQUENCY = Section("Naming boxes, by frequency of the class", 6, folded=True)
OTHER = Section("Other measurements", LAST + 1, folded=True)


@dataclass(frozen=True, slots=True)
class Chance:
    """What guessing gets: ``hits`` of so many ``among``, which is a key of the set's ``counts``."""

    hits: int
    among: str

    def of(self, counts: Mapping[str, int]) -> float | None:
        """The level on a set; None where the set does not tell, or leaves nothing to guess."""
        count = counts.get(self.among, 0)
        return self.hits / count if count > self.hits else None


@dataclass(frozen=True, slots=True)
class Lead:
    """How a metric opens the page.

    Attributes:
        place: among the metrics that may; the lowest that was measured does, where the set names none.
        sentence: what the model does, ``{}`` for the value: "names {} of the held-out boxes".
        rival: how the other model's value follows in the same sentence.
        tells_chance: whether the chance level is told beside it.
    """

    place: int
    sentence: str
    rival: str = "{}"
    tells_chance: bool = False


@dataclass(frozen=True, slots=True)
class Breakdown:
    """How the report takes a metric of shares apart by box size.

    Attributes:
        place: among the metrics that ask the same; the lowest that was measured is shown.
        title: of the chart.
        asked_of: what there is one question of, in the order of the set: ``boxes``, ``classed boxes``, ``phrases``.
    """

    place: int
    title: str
    asked_of: str


@dataclass(frozen=True, slots=True)
class KeyFact:
    """A key fact of the page: its place among them, and what the value counts ("of phrases get the right box")."""

    place: int
    counts: str


@dataclass(frozen=True, slots=True)
class Shown:
    """Where the page shows a metric besides the table of all numbers; nowhere where nothing is given.

    Attributes:
        lead: in the opening sentence.
        overview: place in the opening chart.
        fact: among the key facts.
        curve: over training.
        curve_sources: of a metric of boxes, those whose curve is drawn; they set ``curve``.
        breakdown: by box size, and by class where it has classes.
        ranks_pictures: whether its value on a picture helps to choose the best and the worst pictures.
    """

    lead: Lead | None = None
    overview: int | None = None
    fact: KeyFact | None = None
    curve: bool = False
    curve_sources: tuple[str, ...] = ()
    breakdown: Breakdown | None = None
    ranks_pictures: bool = False


@dataclass(frozen=True, slots=True)
class Description:
    """What a metric says of one of its names.

    Attributes:
        metric: the name in ``metrics.json``.
        section: of table and report.
        family: title of the rows that share a protocol; empty for none.
        protocol: how it is measured, in plain words.
        row: label of its row, without the unit.
        unit: ``%`` for a share of right answers, empty for a number, else the unit's name.
        higher_is_better: direction.
        chance: what guessing gets, or None where no count of the set gives it.
        order: among the rows of the section, the lowest first.
        shown: where else the page shows it.
    """

    metric: str
    section: Section
    family: str
    protocol: str
    row: str
    unit: str = PERCENT
    higher_is_better: bool = True
    chance: Chance | None = None
    order: tuple[int, ...] = (LAST,)
    shown: Shown = Shown()

    @property
    def label(self) -> str:
        """The row's label, with the unit where its values do not show it."""
        return self.row if self.unit in (PERCENT, FRACTION) else f"{self.row} ({self.unit})"

    @property
    def percent(self) -> bool:
        """Whether values are shown in percent."""
        return self.unit == PERCENT

    @property
    def words(self) -> str:
        """Family and row in one."""
        return f"{self.family}: {self.label}" if self.family else self.label

    def better(self, value: float, other: float) -> bool:
        """Whether a value beats another."""
        return value > other if self.higher_is_better else value < other

    def goodness(self, value: float) -> float:
        """A value to sort by: the better, the larger."""
        return value if self.higher_is_better else -value


@dataclass(frozen=True, slots=True)
class Lack:
    """A part of a model that a metric asks for: its name, and what to say of a model without it."""

    part: str
    why: str


NO_PROMPTER = Lack("Prompter", "There is no Prompter: the model was trained on whole images and captions alone.")
NO_HEAD = Lack("grounding head", "There is no grounding head: the model cannot draw a box for a phrase.")


class Metric(ABC):
    """A metric, or several that one measurement gives.

    Attributes:
        needs: of :data:`cloc.evaluation.model_outputs.OUTPUTS`, what it is made of; what no metric needs is not
            computed.
        pattern: its names, with words in capitals for what varies (``region/SOURCE/hard_negatives``).
    """

    needs: Collection[str] = ()
    pattern: str = ""

    def applies(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> bool:
        """Whether this set and this model allow it.

        Args:
            outputs: the model.
            data: the set.
            embedded: what the model made of the set; empty where it cannot, or was not asked.
        """
        return True

    @abstractmethod
    def measure(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> Outcomes:
        """Measure a model on a set to which it applies.

        Args:
            outputs: the model; its ``texts`` embeds what the questions say, its ``ranks`` share work.
            data: the set.
            embedded: what the model made of the set.

        Returns:
            Name → one value a question, with the picture of each. Equal on all ranks. Names whose questions the set
            does not ask are left out.
        """

    @abstractmethod
    def describe(self, name: str) -> Description | None:
        """What this metric says of a name of ``metrics.json``; None where the name is not one of its own."""

    def asks(self, data: EvalSet) -> bool:
        """Whether a set holds what this asks about, whatever the model; True where only measuring tells."""
        return True

    def names(self, sources: Collection[str]) -> Collection[str] | None:
        """All names that it may give, by which a name in the configuration is checked before a run; None: not listed.

        Args:
            sources: of boxes, those that are measured.
        """
        return None

    def lacks(self, name: str, measured: Collection[str]) -> Lack | None:
        """The part that a model lacks where it has no value for a name of this metric, by all that it has."""
        return None


def listed_names(metric: Metric, sources: Collection[str]) -> Collection[str] | None:
    """:meth:`Metric.names`, where they are of the class that measures: a subclass may measure more than it inherits."""
    for cls in type(metric).__mro__:
        own = vars(cls).keys()
        if own & {"measure", "measure_rows", "names", "measures"}:
            return metric.names(sources) if own & {"names", "measures"} else None
    return None


def check_needs(metric: Metric) -> None:
    """Refuse a metric that asks for what no model makes.

    Raises:
        ValueError: names the metric and what there is.
    """
    unknown = sorted(set(metric.needs) - OUTPUTS.keys())
    if unknown:
        raise ValueError(f"{type(metric).__name__}.needs={unknown}: known are {', '.join(OUTPUTS)}")
