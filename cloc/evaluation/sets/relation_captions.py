"""Candidate captions of relation sets, read: which two things, and how they lie (``sets/relations.py``)."""

from __future__ import annotations

import re

from cloc.evaluation.sets.eval_set import Fact

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above", "front": "behind", "behind": "front"}


# Wording → relation, longest first: "on the left of" must not be read as "on".
WORDINGS = {
    "to the left of": "left",
    "on the left of": "left",
    "at the left side of": "left",
    "left of": "left",
    "to the right of": "right",
    "on the right of": "right",
    "at the right side of": "right",
    "right of": "right",
    "in front of": "front",
    "behind": "behind",
    "at the back of": "behind",
    "on top of": "above",
    "above": "above",
    "over": "above",
    "on": "above",
    "underneath": "below",
    "beneath": "below",
    "under": "below",
    "below": "below",
}


MIRRORED = {  # wording → the wording that says the opposite of the same two things
    "left of": "right of",
    "right of": "left of",
    "at the left side of": "at the right side of",
    "at the right side of": "at the left side of",
    "in front of": "behind",
    "behind": "in front of",
    "above": "below",
    "below": "above",
    "over": "under",
    "under": "over",
    "on top of": "beneath",
    "beneath": "on top of",
}


PLACES = {"left": "left", "right": "right", "top": "above", "bottom": "below"}


_LEAD = re.compile(r"^(?:a|an|the) (?:photo|picture|image) of ", re.IGNORECASE)


_ONE = re.compile(r"^(?P<subject>.+?) (?:on|at) the (?P<place>left|right|top|bottom)$", re.IGNORECASE)


_TWO = re.compile(
    rf"^(?P<subject>.+?) (?:(?:is|are) )?(?P<wording>{'|'.join(WORDINGS)}) (?P<other>.+)$",
    re.IGNORECASE,
)


def parse_fact(caption: str) -> Fact | None:
    """Read a caption of the form "[a photo of] SUBJECT [is] RELATION OTHER" or "… on the left|right|top|bottom"."""
    text = _LEAD.sub("", caption.strip().rstrip("."))
    one = _ONE.match(text)
    if one:
        return Fact(one["subject"].lower(), PLACES[one["place"].lower()], None)
    two = _TWO.match(text)
    if two:
        return Fact(two["subject"].lower(), WORDINGS[two["wording"].lower()], two["other"].lower())
    return None
