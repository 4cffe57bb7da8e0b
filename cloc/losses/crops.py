"""Crops of regions and their phrases as further image-text pairs of the same towers: CLIP + crops, a baseline."""

from __future__ import annotations

from torch import Tensor

from cloc.config.terms import Need
from cloc.contracts import Batch, Features
from cloc.losses.global_batch import GlobalBatch, local_mean
from cloc.losses.region import RegionContrast


class CropContrast(RegionContrast):
    """Contrast of crops and their phrases over the global batch, as :class:`RegionContrast` of regions and theirs.

    A region that was cut out (``data.crops``) is a picture to the image tower; nothing but CLIP's towers is trained.
    Its inverse temperature is its own where the model has one (``model.crop_scale``), else that of the captions.

    Its statistics are ``crops``, their count; ``filtered_crops``; and ``cosine_limit_crops``.

    Args:
        options: of :class:`RegionContrast`.
    """

    needs = frozenset({Need.REGIONS, Need.CROPS})

    def forward(self, features: Features, batch: Batch, gathered: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`cloc.losses.term.Term.forward`."""
        texts, valid = gathered.crop_phrases, batch.crop_valid
        assert texts is not None and features.crop is not None, "a term that needs crops"  # its needs
        name = "crops" if "crops" in features.scales else "global"
        summed, found = self.contrast_regions(name, features.crop[valid], valid, texts, features, batch)
        statistics = {f"{own}_crops": value for own, value in found.items()}
        return local_mean(summed, gathered.crops), {"crops": gathered.crops} | statistics
