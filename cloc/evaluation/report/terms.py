"""Terms of the report, explained where they first stand: a button that opens a short text, by mouse, touch or keyboard.

Used by ``page.py`` while it fills the template, from top to bottom. On paper the same texts stand at the end.
"""

from __future__ import annotations

import re

from markupsafe import Markup, escape

# Term → (how it is written, what it means). The longer one of two that begin alike stands first.
TERMS = {
    "95 % interval": (
        r"95 % intervals?",
        "The pictures of the set were drawn again and again, with replacement; in 95 of 100 draws the number fell "
        "between these two. It covers the choice of pictures, not another training.",
    ),
    "main questions": (
        r"main questions?",
        "The rows of the chart below “Comparison”: one or two for each thing that a model can be asked.",
    ),
    "points": (r"points", "Percentage points: 40% less 30% are 10 points."),
    "Prompter": (
        r"Prompter",
        "The part that turns a box into an embedding: it asks the patch tokens of the image tower what is in the box.",
    ),
    "RoI-Align": (r"RoI-Align", "A box's embedding without a Prompter: patch tokens interpolated inside the box."),
    "Mask pool": (r"Mask pool", "A box's embedding without a Prompter: the mean of the patch tokens that it covers."),
    "Crop": (r"Crop\b", "A box's embedding without a Prompter: it is cut out and encoded as a picture of its own."),
    "Pointing game": (r"Pointing game", "Whether the center of the drawn box lies in a true box of the phrase."),
    "Average precision": (
        r"Average precision|\bAP\b",
        "COCO's measure of drawn boxes: precision averaged over recall, and over overlaps from 0.5 to 0.95 where none "
        "is named. It rewards a score that is high where the box is right.",
    ),
    "acc@0.5": (r"acc@0\.5", "Share of phrases whose drawn box overlaps a true one with an IoU of 0.5 or more."),
    "IoU": (r"\bIoU\b", "Intersection over union: the area that two boxes share, over all that they cover."),
    "R@k": (r"R@\d+", "Recall: the share of questions with a right answer among the first so many."),
    "Grounding": (r"[Gg]rounding", "From a phrase to a box: the model draws where it sees what the phrase says."),
    "classes weighing alike": (
        r"classes weighing alike|averaged over classes",
        "The mean of the shares by class, so that rare classes count as much as common ones.",
    ),
    "held-out": (r"held-out", "Pictures that no model was trained on."),
    "patch tokens": (r"patch tokens", "What the image tower says of each small square of the picture."),
    "cosine": (r"cosine", "Similarity of two embeddings, from -1 to 1."),
    "embedding": (r"embeddings?\b", "Numbers that stand for a picture, a box or a text; alike things lie near."),
    "standard error": (
        r"standard error",
        "How far the mean of so many runs lies from that of very many, typically: spread of the runs over the root of "
        "their number.",
    ),
    "parameters": (r"parameters", "Numbers that training sets: the size of the model."),
    "warm": (r"\bwarm\b", "Asked once before the clock runs, so that no first-time work is counted."),
}  # fmt: skip
TAG = re.compile(r"(<[^>]*>)")
ANY = re.compile("|".join(f"(?P<t{number}>{pattern})" for number, (pattern, _) in enumerate(TERMS.values())))


class Explainer:
    """Marks each term where it first stands; one for each page.

    Attributes:
        seen: the terms marked so far, in order.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, text: str) -> Markup:
        """A text, or markup whose tags are left alone, with buttons for the terms that are new in it."""
        parts = TAG.split(str(escape(text)))
        marked = (part if index % 2 else ANY.sub(self._mark, part) for index, part in enumerate(parts))
        return Markup("".join(marked))  # noqa: S704 - all of it is escaped, or was markup

    def _mark(self, found: re.Match[str]) -> str:
        term = list(TERMS)[int(str(found.lastgroup)[1:])]
        if term in self.seen:
            return found[0]
        self.seen.append(term)
        button = '<button type="button" class="term" popovertarget="{}" title="{}">{}</button>'
        return str(Markup(button).format(term_id(term), TERMS[term][1], Markup(found[0])))

    def glossary(self) -> list[tuple[str, str, str]]:
        """(id, term, meaning) of those that were marked."""
        return [(term_id(term), term, TERMS[term][1]) for term in self.seen]


def term_id(term: str) -> str:
    """The anchor of a term's text."""
    return "term-" + re.sub(r"[^a-z0-9]+", "-", term.lower()).strip("-")
