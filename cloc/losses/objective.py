"""The objectives: Features → LossTerms. CLOC's (Eq. 4), and CLIP's, which is the same with both weights zero.

An objective is a list of terms (``term``) with their weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any

from torch import Tensor, nn

from cloc.config.domains import ConfigError, Interval, OneOf, Weight
from cloc.config.nodes import instantiate
from cloc.config.terms import Need
from cloc.config.values import check_arguments, check_value
from cloc.contracts import Batch, Features, LossTerms, Per, per
from cloc.losses.contrastive import CONTRASTS, GlobalContrast
from cloc.losses.crops import CropContrast
from cloc.losses.distill import Distill
from cloc.losses.global_batch import gather_batch
from cloc.losses.grounding import BOX, SHARED_PHRASE, Grounding
from cloc.losses.region import CONFLICTS, RegionContrast
from cloc.losses.term import Term, Weighted


class ClocLoss(nn.Module):
    """``L = w_g L_CLIP + λ (w_r L_CLOC + w_b L_grounding)``, λ the share of images of the global batch with regions.

    ``λ w_c L_crops`` is added where regions are also cut out (CLIP + crops, or beside CLOC), and ``w_d L_distill``
    where fine-tuning asks for it.

    Args:
        global_: weight of the image-caption contrast, which is measured even where it is 0; null leaves it out, and
            then nothing reads the captions.
        region: weight of the region-phrase contrast; 0 leaves it out.
        grounding: weight of the box distance; 0 leaves it out.
        contrast: ``softmax`` (CLOC), or ``sigmoid`` (SigLIP; needs ``model.logit_bias``), of both contrasts.
        conflicts: ``cosine``, ``exact`` or ``none`` (see :class:`cloc.losses.region.RegionContrast`).
        threshold: of the cosine rule.
        box: ``l2`` (paper) or ``l1_giou``.
        shared_phrase: ``skip``, ``nearest`` or ``union``.
        distill: weight of the distance to the embeddings of the model that the run starts from (``base`` or
            ``init_from``); 0 leaves it out (see :class:`cloc.losses.distill.Distill`).
        crops: weight of the contrast of cut-out regions (``data.crops``) with their phrases; 0 leaves it out (see
            :class:`cloc.losses.crops.CropContrast`).
        terms: further terms by name: each a ``_target_`` that names a :class:`cloc.losses.term.Term`, its arguments,
            and a ``weight`` (1 unless given; 0 leaves it out).

    Attributes:
        terms: those that are computed, in this order.
        reads_captions: whether any of them may look at captions.

    Raises:
        ConfigError: a name that is not known, a weight that is negative or no number, or all of them zero.
    """

    def __init__(
        self,
        global_: Weight | None = 1.0,
        region: Weight = 1.0,
        grounding: Weight = 1.0,
        contrast: Annotated[str, OneOf(*CONTRASTS)] = "softmax",
        conflicts: Annotated[str, OneOf(*CONFLICTS)] = "cosine",
        threshold: Annotated[float, Interval(-1, 1)] = 0.9,
        box: Annotated[str, OneOf(*BOX)] = "l2",
        shared_phrase: Annotated[str, OneOf(*SHARED_PHRASE)] = "skip",
        distill: Weight = 0.0,
        crops: Weight = 0.0,
        terms: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        weights = {"global_": global_, "region": region, "grounding": grounding, "distill": distill, "crops": crops}
        check_arguments(ClocLoss, weights | {"threshold": threshold}, "loss")
        found = [
            Weighted("global", "loss.global", global_ or 0.0, GlobalContrast(contrast)),
            Weighted("region", "loss.region", region, RegionContrast(contrast, conflicts, threshold)),
            Weighted("grounding", "loss.grounding", grounding, Grounding(box, shared_phrase)),
            Weighted("distill", "loss.distill", distill, Distill()),
            Weighted("crops", "loss.crops", crops, CropContrast(contrast, conflicts, threshold)),
        ]
        found += _further(terms or {}, {one.name for one in found})
        if not any(one.weight for one in found):
            weights = {one.name: one.weight for one in found}
            raise ConfigError(f"loss: {weights}: all weights are zero, nothing would be trained; give one above 0")
        self.terms = [one for one in found if one.weight > 0 or (one.name == "global" and global_ is not None)]
        # A term of others' may, and need not say so.
        self.reads_captions = global_ is not None or distill > 0 or bool(terms)
        self.parts = nn.ModuleList([one.term for one in self.terms])  # what terms hold moves with the loss

    def needs(self, what: Need) -> bool:
        """Whether any term needs it."""
        return any(one.needs(what) for one in self.terms)

    @property
    def needs_regions(self) -> bool:
        """Whether any term compares regions."""
        return self.needs(Need.REGIONS)

    def forward(self, features: Features, batch: Batch) -> LossTerms:
        """Compute the terms; a batch without any region is a normal case."""
        gathered = gather_batch(features, batch, self.needs(Need.PHRASES), self.needs(Need.CROPS))
        stats = {f"scale_{name}": value.detach().squeeze(0) for name, value in features.scales.items()}
        share = gathered.with_regions / gathered.pictures
        if self.needs_regions:
            stats["lambda"] = share
        values, weighted = {}, []
        for one in self.terms:
            values[one.name], more = one.term(features, batch, gathered)
            factor = share * one.weight if one.needs(Need.REGIONS) else one.weight
            weighted.append(factor * values[one.name])
            stats |= more
        loss = weighted[0]
        for value in weighted[1:]:
            loss = loss + value
        # What no term asked for still takes part, with gradient zero: distributed training needs all of the model.
        for value in _all_of(features):
            loss = loss + 0.0 * value.sum()
        return LossTerms(loss, {k: v.detach() for k, v in values.items()}, {k: v.detach() for k, v in stats.items()})


def _further(nodes: Mapping[str, Any], taken: set[str]) -> Iterator[Weighted]:
    """The terms that a configuration names."""
    for name, node in nodes.items():
        key = f"loss.terms.{name}"
        if name in taken or not name.isidentifier():
            raise ConfigError(f"{key}: a name of its own is wanted, of letters and digits, none of {sorted(taken)}")
        weight = node.get("weight", 1.0) if isinstance(node, Mapping) else 1.0
        check_value(Weight, weight, f"{key}.weight")
        rest = {k: v for k, v in node.items() if k != "weight"} if isinstance(node, Mapping) else node
        term = instantiate(rest, key)
        if not isinstance(term, Term):
            raise ConfigError(f"{key}._target_={node['_target_']!r}: must name a subclass of cloc.losses.term.Term")
        trained = next((own for own, value in term.named_parameters() if value.requires_grad), None)
        if trained is not None:
            raise ConfigError(f"{key}: {trained} would be trained, but by no optimizer; make it part of the model")
        yield Weighted(name, f"{key}.weight", weight, term)


def _all_of(features: Features) -> Iterator[Tensor]:
    rows = [getattr(features, one.name) for one in fields(features) if per(one) is not Per.BATCH]
    yield from (value for value in rows if value is not None)
    yield from (*features.scales.values(), *features.biases.values())
