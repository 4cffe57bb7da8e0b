"""``evaluation.best`` and ``objective`` name what the evaluation in training measures: checked before a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloc.config import ConfigError, DatasetConfig, EvaluationConfig
from cloc.encoder import Encoder
from cloc.evaluation.metrics.catalog import METRICS, build_catalog
from cloc.evaluation.metrics.metric import listed_names
from cloc.evaluation.metrics.outcome import values
from cloc.evaluation.metrics.retrieval import Retrieval
from cloc.evaluation.model_outputs import ModelOutputs
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.sets.kinds import load_eval_set
from cloc.evaluation.suite import TrainingSuite, check_chosen, measure
from tests.evaluation.test_plugins import HERE, drawn
from tests.kit.evaluating import QUICK, dataset

SETS = {
    "boxes": DatasetConfig(shards="x"),
    "places": DatasetConfig(relations="x"),
    "classes": DatasetConfig(images="x"),
    "own": DatasetConfig(set={"_target_": "mine.Set"}),
    "other": DatasetConfig(shards="x"),
}


def chosen(name: str, *metrics: Any, key: str = "evaluation.best", lacking: Any = (), **changes: Any) -> list[str]:
    config = EvaluationConfig(data=["boxes", "places", "classes", "own"], **changes)
    return check_chosen({key: name}, config, SETS, build_catalog(metrics or list(METRICS)), lacking)


@pytest.mark.parametrize(
    "name",
    [
        "boxes/region/prompter/top1",
        "boxes/region/roi_align/mAcc_small",
        "boxes/image_text/text_to_image_R@5",
        "boxes/grounding/AP50",
        "places/relations/grounded/accuracy",
        "classes/image/zero_shot_top5_names",
        "own/image/zero_shot_top1",  # whose files are not known
        "own/relations/similarity/set4",
    ],
)
def test_what_is_measured_may_be_chosen(name: str) -> None:
    assert chosen(f"val/{name}") == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("region/prompter/top1", "give val/SET/METRIC"),
        ("val/boxes", "give val/SET/METRIC"),
        ("val/boxs/grounding/mIoU", "boxs is not measured in training, .*did you mean val/boxes/grounding/mIoU"),
        ("val/other/grounding/mIoU", "other is not measured in training, evaluation.data has boxes, places"),
        ("val/boxes/region/prompter/top_1", "no metric has that name; did you mean val/boxes/region/prompter/top1"),
        ("val/boxes/region/best/top1", "not measured in training.*did you mean .*val/boxes/region/"),
        ("val/boxes/region/crop/top1", "not measured in training, by the set, the model, .*evaluation.sources"),
        ("val/boxes/image_text/text_to_image_R@7", "not measured in training.*text_to_image_R@5"),
        ("val/boxes/relations/similarity/accuracy", "not measured in training, by the set"),
        ("val/places/region/prompter/top1", "not measured in training, by the set"),
        ("val/classes/image_text/text_to_image_R@1", "not measured in training, by the set"),
    ],
)
@pytest.mark.parametrize("key", ["evaluation.best", "objective"])
def test_what_is_not_measured_is_refused_with_what_is_near(name: str, message: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}='{name}': .*{message}") as told:
        chosen(name, key=key)
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


def test_the_model_and_the_configuration_leave_metrics_out() -> None:
    prompted, grounded = "val/boxes/region/prompter/top1", "val/boxes/grounding/mIoU"
    for name, changes in (
        (prompted, {"lacking": ["prompter"]}),
        (prompted, {"sources": ["roi_align"]}),
        (prompted, {"parts": ["image"]}),
        (grounded, {"lacking": ["grounded"]}),
        (grounded, {"parts": ["region"]}),
    ):
        assert chosen(name) == []
        with pytest.raises(ConfigError, match="not measured in training"):
            chosen(name, **changes)
    with pytest.raises(ConfigError, match="not measured in training"):
        chosen(grounded, "retrieval", "average_precision")


class Wider(Retrieval):
    """A class that measures more than the one whose list of names it inherits."""

    def measure(self, *given: Any) -> Any:
        """Never called here."""
        raise NotImplementedError


def test_a_metric_of_ones_own_is_never_refused() -> None:
    mine = {"_target_": f"{HERE}.CaptionDistance"}
    assert chosen("val/boxes/mine/caption_distance", mine, key="objective") == []
    with pytest.raises(ConfigError, match="less is better of it"):
        chosen("val/boxes/mine/caption_distance", mine)
    (note,) = chosen("val/boxes/mine/other", mine, "grounding")
    assert note.startswith("evaluation.best=val/boxes/mine/other: no metric has that name, unless CaptionDistance")
    assert listed_names(Wider(), []) is None and "image_text/text_to_image_R@3" in (
        listed_names(Retrieval(ks=[3]), []) or ()
    )


def test_all_that_ours_measure_is_listed(data: Path, encoder: Encoder) -> None:
    toy = load_eval_set("toy", dataset(data))
    outputs = ModelOutputs(encoder, Ranks())
    embedded = outputs.embed(toy, QUICK)
    for make in METRICS.values():
        metric = make()
        assert metric.asks(toy) and metric.applies(outputs, toy, embedded)
        found = values(measure(outputs, toy, embedded, [metric]))
        assert found and found.keys() <= set(listed_names(metric, QUICK.sources) or ())


def test_the_set_that_was_read_knows_more(data: Path, encoder: Encoder) -> None:
    """Captions and boxes, and no class of a picture."""
    config = replace(QUICK, data=["toy"], metrics=list(METRICS))
    given = {"toy": dataset(data, images=None), "mine": drawn(pictures=2)}
    for name in ("val/toy/region/prompter/hard_negatives", "val/toy/grounding/pointing"):
        TrainingSuite(config, given, encoder.model, {"objective": name})
    config = replace(config, data=["mine"])
    TrainingSuite(config, given, encoder.model, {"objective": "val/mine/region/mask_pool/top1"})
    for name in ("region/prompter/hard_negatives", "image/zero_shot_top1", "relations/grounded/pair"):
        assert check_chosen({"objective": f"val/mine/{name}"}, config, given, build_catalog(config.metrics)) == []
        with pytest.raises(ConfigError, match="not measured in training, by the set"):
            TrainingSuite(config, given, encoder.model, {"objective": f"val/mine/{name}"})
