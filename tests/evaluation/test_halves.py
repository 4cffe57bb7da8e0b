"""Thing and color of a named box, apart."""

from __future__ import annotations

import torch

from cloc.data.openmoji.scenes import Scenes
from cloc.evaluation.metrics.classification import RegionNaming, half_outcomes

NAMES = ["a red chick", "a blue chick", "a red orange", "a blue orange"]


def test_thing_and_color_are_counted_apart() -> None:
    truth, named = torch.tensor([0, 0, 0, 0, 3]), torch.tensor([[0], [1], [2], [3], [3]])
    found = half_outcomes(named, truth, torch.arange(5), NAMES, "p/")
    assert found["p/top1_thing"].values.tolist() == [1, 1, 0, 0, 1]
    assert found["p/top1_color"].values.tolist() == [1, 0, 1, 0, 1]


def test_only_where_classes_are_things_in_colors() -> None:
    truth, named = torch.tensor([0]), torch.tensor([[0]])
    for names in (
        ["a chick", "an orange"],
        ["a black bear", "a white shark"],
        ["person", "a red car"],
    ):
        assert half_outcomes(named, truth, torch.arange(1), names, "") == {}
    plain, colors = (list(Scenes(held_out=kind).cast.categories) for kind in (None, "colors"))
    assert half_outcomes(named, truth, torch.arange(1), plain, "") == {}
    assert set(half_outcomes(named, truth, torch.arange(1), colors, "")) == {"top1_color", "top1_thing"}


def test_the_metric_says_what_they_are() -> None:
    metric = RegionNaming()
    names = [name for name in metric.names(["crop"]) or () if name.endswith(("_thing", "_color"))]
    assert names == ["region/crop/top1_thing", "region/crop/top1_color"]
    assert all((told := metric.describe(name)) is not None and told.protocol for name in names)
