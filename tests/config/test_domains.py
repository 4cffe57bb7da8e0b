"""Every leaf says which values it may have, and others are refused with its key before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from omegaconf import OmegaConf

from cloc.config import ConfigError, DataConfig, EvalConfig, TrainConfig, check_keys, resolve, validate
from cloc.config.domains import Path
from cloc.config.values import check_arguments, check_value
from cloc.losses.objective import ClocLoss
from cloc.models.image import OpenClipTower, TimmTower
from cloc.models.prompter import SharedPrompter
from cloc.models.text import ClipText, HuggingFaceText

RUN = {"name": "toy", "run_dir": "runs/toy", "samples": 64, "batch_size": 8, "data": {"train": "nowhere"}}
TRIAL = {"checkpoint": "runs/toy", "data": ["openmoji"]}
NODES = {
    "model": {
        "image": {"_target_": "cloc.models.image.TimmTower", "name": "vit_tiny_patch16_224"},
        "text": {"_target_": "cloc.models.text.ClipText"},
        "prompter": {"_target_": "cloc.models.prompter.SharedPrompter"},
        "grounding": {"_target_": "cloc.models.grounding.MlpHead"},
    },
    "loss": {"_target_": "cloc.losses.objective.ClocLoss", "global": 1.0, "region": 1.0, "grounding": 1.0},
}
MAY_BE_NEGATIVE = {"model.logit_bias", "trainer.devices", "image.tune_last", "image.mean", "loss.threshold"}
PARTS = [
    ("image", TimmTower),
    ("image", OpenClipTower),
    ("text", ClipText),
    ("text", HuggingFaceText),
    ("loss", ClocLoss),
]


def leaves(schema: type, path: str = "") -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(schema, include_extras=True)
    for field in fields(schema):
        if is_dataclass(hints[field.name]):
            yield from leaves(hints[field.name], f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", hints[field.name]


def is_number(hint: Any) -> bool:
    """Whether it is an int, a float, what may also be null, or a list of them."""
    inner = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_args(inner):
        return any(is_number(choice) for choice in get_args(inner))
    return inner in (int, float)


def has_domain(hint: Any) -> bool:
    return get_origin(hint) is Annotated or any(has_domain(inner) for inner in get_args(hint))


NUMBERS = [
    (schema, key, "list" in str(hint))
    for schema in (TrainConfig, EvalConfig)
    for key, hint in leaves(schema)
    if is_number(hint)
]


def test_every_number_has_a_domain() -> None:
    assert len(NUMBERS) > 40
    assert [
        key
        for schema in (TrainConfig, EvalConfig)
        for key, hint in leaves(schema)
        if is_number(hint) > has_domain(hint)
    ] == []


@pytest.mark.parametrize(("schema", "key", "many"), NUMBERS, ids=lambda value: str(getattr(value, "__name__", value)))
def test_what_is_no_number_or_negative_is_refused_by_key(schema: type, key: str, many: bool) -> None:
    bad = [math.nan, math.inf, -math.inf] + ([] if key in MAY_BE_NEGATIVE else [-1])
    for value in bad:
        config = OmegaConf.create(RUN if schema is TrainConfig else TRIAL)
        OmegaConf.update(config, key, [value] * {"betas": 2, "jitter": 4}[key.split(".")[-1]] if many else value)
        with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
            check_keys(config, schema)


@pytest.mark.parametrize(("path", "part"), PARTS)
def test_numbers_of_parts_are_refused_by_key(path: str, part: type) -> None:
    hints = {key: hint for key, hint in get_type_hints(part.__init__, include_extras=True).items() if is_number(hint)}
    assert hints and all(has_domain(hint) for hint in hints.values())
    for key, hint in hints.items():
        name = f"{path}.{key.rstrip('_')}"
        for value in (math.nan, math.inf, *([] if name in MAY_BE_NEGATIVE else [-1])):
            node = {"_target_": f"{part.__module__}.{part.__name__}", key.rstrip("_"): value}
            if "Sequence" in str(hint):
                node[key] = [value] * 3
            with pytest.raises(ConfigError, match=rf"{name}(\[0\])?={value}"):
                resolve(node, path)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("optim.clip_grad", -1, "must be at least 0"),
        ("optim.lr", 0, "must be above 0"),
        ("optim.betas", [0.9, 1.0], r"betas\[1\]=1.0: must be at least 0 and below 1"),
        ("optim.betas", [0.9], "give 2 numbers"),
        ("optim.final", 1.5, "at most 1"),
        ("optim.layer_decay", 0, "above 0 and at most 1"),
        ("trainer.log_every", 0, "at least 1"),
        ("trainer.checkpoint_every", 0, "at least 1"),
        ("trainer.devices", 0, "at least 1"),
        ("trainer.devices", "all", "at least 1"),
        ("trainer.precision", "bf16mixed", "give 32-true, "),
        ("trainer.accelerator", "cuda:0", "give auto, cpu"),
        ("trainer.ema", 1, "below 1"),
        ("data.crop", 0, "above 0"),
        ("data.jitter", [0.4, 0.4, 0.4], "give 4 numbers"),
        ("data.jitter", [0.4, 0.4, 0.4, 0.6], "at most 0.5"),
        ("data.max_skip_share", 1.1, "at most 1"),
        ("data.choice", "scores", "give uniform or score"),
        ("evaluation.sources", ["roi"], r"sources\[0\]='roi': give prompter, "),
        ("seed", 2**32, "at most"),
        ("loss.region", math.nan, r"loss\.region=nan"),
        ("loss.grounding", -0.5, r"loss\.grounding=-0.5: must be at least 0"),
        ("loss.global", -1, r"loss\.global=-1: must be at least 0"),
        ("loss.global", "much", r"loss\.global='much'"),
        ("loss", {"global": 0, "region": 0, "grounding": 0}, "all weights are zero"),
        ("model.joint_dim", 0, "at least 1"),
        ("model.image.image_size", 0, r"model\.image\.image_size=0"),
        ("model.text.context_length", 2, r"context_length=2: must be at least 3"),
        ("model.image.std", [0.5, 0.0, 0.5], r"model\.image\.std\[1\]=0.0: must be above 0"),
        ("model.image.options", {"init_values": math.nan}, r"options\.init_values=nan"),
    ],
)
def test_the_domain_is_told(key: str, value: Any, told: str) -> None:
    config = OmegaConf.create(RUN | NODES)
    OmegaConf.update(config, key, value, force_add=True)
    with pytest.raises(ConfigError, match=told) as caught:
        validate(config)
    assert "\n" not in str(caught.value) and key.split(".")[-1] in str(caught.value)


def test_what_may_be_is_not_refused() -> None:
    config = OmegaConf.create(RUN | NODES)
    fine = {
        "optim.clip_grad": 0,
        "optim.weight_decay": 0,
        "optim.warmup": 10**9,
        "data.crop": 1,
        "data.jitter": [0, 0, 0, 0.5],
        "trainer.devices": [0, 1],
        "evaluation.bootstrap": 0,
        "loss.global": 0,
        "model.image.tune_last": -1,
        "model.image.mean": [0.5, 0.5, 0.5],
    }
    for key, value in fine.items():
        OmegaConf.update(config, key, value, force_add=True)
    validate(config)
    for devices in (1, -1, "auto", "0,1", "2", "1,", "0, 1"):
        OmegaConf.update(config, "trainer.devices", devices)
        check_keys(config, TrainConfig)
    for devices in (",", "1,,2", "1,1", "-1,"):
        OmegaConf.update(config, "trainer.devices", devices)
        with pytest.raises(ConfigError, match=r"trainer\.devices="):
            check_keys(config, TrainConfig)


def test_a_pattern_of_many_shards_is_as_long_as_it_is() -> None:
    names = "d/{" + ",".join(f"{i:05}" for i in range(2000)) + "}.tar"
    config = OmegaConf.create(RUN)
    OmegaConf.update(config, "data.train", names)
    check_keys(config, TrainConfig)
    for wrong in ("", "  ", "a\0b"):
        OmegaConf.update(config, "data.train", wrong)
        with pytest.raises(ConfigError, match=r"data\.train="):
            check_keys(config, TrainConfig)


@pytest.mark.parametrize("name", ["\u7d75\u3000\u753b", "1\u202f000", "a\xa0b", "\U0001f468\u200d\U0001f469", "a\xadb"])
def test_a_path_has_any_letter_and_space(name: str) -> None:
    check_value(Path, f"runs/{name}", "run_dir")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("a\nb", r"it holds the control character '\\n'"),
        ("a\x1bb", "control character"),
        (" ", "it is empty"),
        ("a" * 300, "it has 300 bytes between slashes"),
        ("a/" * 3000, "it has 6,000 bytes"),
    ],
)
def test_a_path_that_is_refused_says_why(value: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_value(Path, value, "run_dir")


def test_a_group_by_itself_has_its_name_in_front() -> None:
    with pytest.raises(ConfigError, match=r"data\.flip=2\.0: must be at least 0 and at most 1"):
        validate({"train": "x", "flip": 2}, DataConfig)


def test_losses_and_heads_refuse_by_themselves() -> None:
    with pytest.raises(ConfigError, match=r"loss\.region=nan"):
        ClocLoss(region=math.nan)
    with pytest.raises(ConfigError, match="all weights are zero"):
        ClocLoss(0.0, 0.0, 0.0)
    for wrong in ({"heads": 0}, {"heads": -2}, {"mlp_ratio": math.nan}, {"mlp_ratio": 0}):
        with pytest.raises(ValueError, match=rf"model\.prompter\.{next(iter(wrong))}="):
            SharedPrompter(8, 8, (2, 2), **wrong)


def test_a_value_of_two_kinds_has_no_domain_of_its_own() -> None:
    check_value(bool | str, False, "key")
    check_value(str | None, None, "key")
    with pytest.raises(ConfigError, match=r"key\.a\[1\]=inf"):
        check_value(Any, {"a": [1, math.inf]}, "key")


class Theirs:
    """A part with annotations that ours have not."""

    def __init__(
        self,
        pair: tuple[int, float] = (1, 0.5),
        many: tuple[int] = (1,),
        names: list[int] | list[str] | None = None,
        act: Literal["relu", None] = "relu",
        level: Literal["a", 1] = "a",
        table: Iterable[str] = (),
        wrong: int = "auto",  # type: ignore[assignment]
    ) -> None: ...


def test_annotations_of_a_users_class_are_read_as_they_are_meant() -> None:
    right: list[dict[str, Any]] = [{"pair": [1, 0.5]}, {"many": [1, 2, 3]}, {"names": ["a"]}, {"names": [1]}]
    right += [{"act": None}, {"act": "relu"}, {"level": 1}, {"level": "a"}, {"table": {"a": 1}}, {"wrong": "auto"}]
    for arguments in right:
        check_arguments(Theirs, arguments, "model.image")
    wrong: list[tuple[str, Any]] = [("pair", [0.5, 1]), ("names", [1, "a"]), ("act", "gelu"), ("level", True)]
    for key, value in [*wrong, ("level", 2), ("many", [1, "x"]), ("wrong", "none")]:
        with pytest.raises(ConfigError, match=rf"^model\.image\.{key}"):
            check_arguments(Theirs, {key: value}, "model.image")
