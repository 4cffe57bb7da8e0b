"""The ablations' recipes compose, and their differences are Student's."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from benchmarks.ablations import BASE, METRICS, RECIPE, VARIANTS, difference, table
from tests.kit.paths import ROOT

CONF = ROOT / "conf"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*RECIPE, *overrides])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_changes_the_recipe_where_it_says(variant: str) -> None:
    base, changed = composed(), composed(*VARIANTS[variant])
    parts = [f"{group}.{key}" for group in ("model", "loss", "data") for key in base[group]]
    differing = {part for part in parts if OmegaConf.select(changed, part) != OmegaConf.select(base, part)}
    assert differing == {override.split("=")[0].replace("/", ".") for override in VARIANTS[variant]}


def test_a_difference_is_paired_by_seed() -> None:
    assert difference([0.3, 0.6], [0.1, 0.4]) == pytest.approx((0.2, 0.0))
    # Differences 1, 2, 3: standard error 1/√3, and t(0.975, 2) = 4.303.
    assert difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5), abs=1e-3)
    assert difference([1.0], [0.5]) == (0.5, float("inf"))


def test_a_clear_difference_is_bold_and_an_unclear_one_is_not() -> None:
    name, metric = next(iter(METRICS.items()))
    base = [{metric: value} for value in (0.5, 0.6, 0.7)]
    lines = table({BASE: base, "less": [{metric: one[metric] - 0.1} for one in base], "none": [{}] * 3})
    assert name in lines[0] and lines[2].startswith(f"| {BASE} | 0.600 ± 0.058 | – ")
    assert "**-0.100 ± 0.000**" in lines[3] and lines[4].startswith("| none | – ")
    assert "**" not in table({BASE: base, "same": base[::-1]})[3]
