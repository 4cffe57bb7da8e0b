"""What files of others may do: nothing of them runs, and none of them asks the network. The user's own word holds."""

from __future__ import annotations

import ast
import builtins
import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cloc
from cloc.config import ConfigError, DatasetConfig, EvalConfig, find_class, instantiate, validate
from cloc.data.tokenizer import Tokenizer
from cloc.data.word_tokenizer import write_word_tokenizer
from cloc.evaluation.sets.class_images import load_images
from cloc.models.build import build_model
from cloc.models.image import TimmTower
from cloc.models.prompter import SharedPrompter
from cloc.models.text import HuggingFaceText
from cloc.models.trust.registry import name_of, parts, timm_arguments
from cloc.models.trust.values import FolderError
from cloc.models.weights.pretrained import complete
from tests.kit.exporting import OPEN_CLIP, SHARED, SPATIAL, TEXT, TIMM, make_run, save, stored
from tests.kit.resuming import configure, make_squares

HUB = "stranger/model"
TEXT = TEXT | {"options": TEXT["options"] | {"vocab_size": 512}}
TOWERS = {"image": OPEN_CLIP, "text": TEXT, "prompter": SHARED, "grounding": SPATIAL}


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What was asked of a network, or of whoever sits at the keyboard; nothing at the end of every test."""
    found: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        found.append(arguments)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(builtins, "input", lambda *arguments: found.append(arguments) or "yes")
    yield found
    assert not found


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model({"joint_dim": 32, **TOWERS}).state_dict()


@pytest.fixture
def checkpoint(weights: dict[str, torch.Tensor], tmp_path: Path) -> Callable[..., Path]:
    """A run folder whose checkpoint has other nodes."""

    def write(**changes: Any) -> Path:
        save(tmp_path / "run/checkpoints/last.ckpt", stored(weights, {"joint_dim": 32, **TOWERS, **changes}))
        return tmp_path / "run"

    return write


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that can be imported, and leaves a file when it is."""
    ran = tmp_path / "RAN"
    lines = [
        f"open({str(ran)!r}, 'w')",
        "from cloc.models.prompter import SharedPrompter as Base",
        "class Mine(Base): pass",
    ]
    (tmp_path / "trap_of_tests.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap_of_tests", raising=False)
    yield ran
    sys.modules.pop("trap_of_tests", None)


def refused(path: Path, match: str, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind, match=match) as caught:
        cloc.load(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- which classes a file may name ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", parts())
@pytest.mark.parametrize(
    "target",
    [
        "cloc.engine.durable.run_folder.RunFolder",
        "cloc.data.shards.cache.Remote",
        "cloc.evaluation.cache.Cache",
        "cloc.models.image.Adapter",
        "cloc.models.model.Cloc",
        "cloc.models.text.Path",
        "cloc.data.shards.writer.write_shards",
        "torch.nn.Linear",
        "os.system",
        "trap_of_tests.Mine",
        None,
        7,
    ],
)
def test_a_checkpoint_names_parts_of_the_registry_only(
    checkpoint: Callable[..., Path], trap: Path, part: str, target: Any
) -> None:
    refused(checkpoint(**{part: {"_target_": target, "location": "http://127.0.0.1/"}}), rf"model\.{part}\._target_")
    assert not trap.exists()


@pytest.mark.parametrize("node", [[], "cloc.models.prompter.SharedPrompter", {}, 1])
def test_a_node_that_is_no_node_is_refused(checkpoint: Callable[..., Path], node: Any) -> None:
    refused(checkpoint(prompter=node), r"model\.prompter")


def test_a_part_stands_at_its_own_place(checkpoint: Callable[..., Path]) -> None:
    for part, (cls, *_) in parts().items():
        other = "text" if part != "text" else "image"
        refused(checkpoint(**{other: {"_target_": name_of(cls)}}), rf"model\.{other}\._target_")


def test_no_class_is_named_deeper_down(checkpoint: Callable[..., Path]) -> None:
    inner = {"_target_": "cloc.engine.durable.run_folder.RunFolder", "location": "x"}
    refused(checkpoint(prompter=SHARED | {"heads": inner}), r"model\.prompter\.heads\._target_")
    options = TEXT["options"] | {"norm_kwargs": {"eps": inner}}
    refused(checkpoint(text=TEXT | {"options": options}), r"model\.text\.options\.norm_kwargs\.eps\._target_")


class OwnPrompter(SharedPrompter):
    """A Prompter that a user wrote."""


def test_the_caller_passes_a_class_of_his_own(checkpoint: Callable[..., Path]) -> None:
    for target in (name_of(OwnPrompter), "where.it.was.before.OwnPrompter"):
        path = checkpoint(prompter={"_target_": target})
        assert "trusted=[OwnPrompter]" in refused(path, "OwnPrompter", ConfigError)
        assert type(cloc.load(str(path), trusted=[OwnPrompter]).model.prompter) is OwnPrompter
    inner = {"_target_": "os.system"}
    path = checkpoint(prompter={"_target_": name_of(OwnPrompter), "heads": inner})
    with pytest.raises(ValueError, match=r"heads\._target_"):
        cloc.load(str(path), trusted=[OwnPrompter])


def test_an_export_names_parts_of_the_registry_only(tmp_path: Path) -> None:
    from cloc.export.pipeline import export

    folder = export("open_clip", make_run(tmp_path / "run", prompter=SHARED, grounding=SPATIAL), tmp_path / "out")
    content = json.loads((folder / "cloc.json").read_text())
    content.pop("sha256")  # a stranger's checksums would fit what he wrote
    for change in (
        {"prompter": {"_target_": "cloc.engine.durable.run_folder.RunFolder", "location": "http://127.0.0.1/"}},
        {"grounding": {"_target_": "cloc.models.grounding.MlpHead", "grid": {"_target_": "os.system"}}},
        {"resize": "https://127.0.0.1/"},
    ):
        (folder / "cloc.json").write_text(json.dumps(content | change))
        refused(folder, next(iter(change)))


def test_a_name_of_a_folder_becomes_no_source(tmp_path: Path) -> None:
    """``export regions`` writes a Python file, and imports it to prove it."""
    from cloc.export.regions import write

    witness = tmp_path / "RAN"
    name = 'run"""\nfrom pathlib import Path\nPath("RAN").touch()\n"""'
    encoder = cloc.load(str(make_run(tmp_path / name, text=TEXT, prompter=SHARED, grounding=SPATIAL)))
    assert encoder.name == name
    write(encoder, tmp_path)
    found = ast.parse((tmp_path / "regions.py").read_text())
    assert isinstance(found.body[1], ast.ImportFrom) and found.body[1].module == "__future__"
    assert not any(isinstance(node, ast.Expr) for node in found.body[1:]) and not witness.exists()


# --- a user's own configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("os.system", "must name a class"),
        ("clock.models.x", "No module named 'clock'"),
        ("cloc.models.image.Timm", "no attribute 'Timm'"),
        ("cloc", "with its module"),
        ("cloc..models", "invalid format"),
        (None, "with its module"),
    ],
)
def test_a_name_that_is_no_class_is_told_in_a_line(name: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        find_class(name, "model.image._target_")
    assert str(caught.value).startswith("model.image._target_=") and "\n" not in str(caught.value)


def test_a_users_configuration_names_any_class(trap: Path) -> None:
    node = {"_target_": "trap_of_tests.Mine"}
    model = build_model({"joint_dim": 32, **TOWERS, "prompter": node})
    assert trap.exists() and [cls.__name__ for cls in model.classes][2] == "Mine"


@pytest.mark.slow
def test_a_run_of_a_users_class(trap: Path, tmp_path: Path) -> None:
    """Trained, resumed and loaded: by the command's word, and by the class that the caller passes."""
    from cloc.engine import run

    squares = make_squares(tmp_path / "squares", 24)
    own = "model.prompter._target_=trap_of_tests.Mine"
    config = configure(squares, tmp_path / "run", own, "samples=16")
    assert validate(config).model.prompter["_target_"] == "trap_of_tests.Mine" and trap.exists()
    run.train(config)
    run.train(configure(squares, tmp_path / "run", own, "samples=24"))
    trap.unlink()
    sys.modules.pop("trap_of_tests")
    refused(tmp_path / "run", r"trusted=\[Mine\]", ConfigError)
    assert not trap.exists()
    mine = find_class("trap_of_tests.Mine", "trusted")
    encoder = cloc.load(str(tmp_path / "run"), trusted=[mine])
    assert type(encoder.model.prompter) is mine and encoder.info["samples_seen"] == 24
    more = configure(squares, tmp_path / "tuned", own, "samples=8", f"init_from={tmp_path / 'run'}")
    assert (run.train(more) / "checkpoints/last.ckpt").exists()


def test_a_set_that_is_read_through_a_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LSUN is read through a pickle"):
        load_images("x", DatasetConfig(images=f"torchvision:LSUN:{tmp_path}"))


def test_known_classes_are_the_only_ones() -> None:
    known = {"a.B": TimmTower}
    with pytest.raises(ConfigError, match="model.image._target_='cloc.models.image.TimmTower': known are a.B"):
        instantiate({"_target_": "cloc.models.image.TimmTower", "name": "x"}, "model.image", known, joint_dim=1)


def test_the_evaluation_and_the_commands_take_classes_by_name(trap: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from cloc.__main__ import app

    config = validate({"checkpoint": "x", "data": [], "trusted": ["trap_of_tests.Mine"]}, EvalConfig)
    assert config.trusted == ["trap_of_tests.Mine"]
    for command in (["embed", "x", "y", "z"], ["export", "torch", "x", "y"]):
        found = CliRunner().invoke(app, [*command, "--trust", "os.system"])
        assert "--trust='os.system'" in str(found.exception)


# --- options ----------------------------------------------------------------------------------------------------------

TIMM_OPTIONS = [
    *("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only"),
    *("scriptable", "exportable", "pretrained_strict", "pretrained_filter_fn", "pretrained_custom_load", "url"),
    *("hf_hub_id", "file", "pruned", "feature_cfg", "kwargs_filter", "model_cfg"),
]


@pytest.mark.parametrize("name", TIMM_OPTIONS)
def test_options_of_timm_from_a_file_are_its_architecture(checkpoint: Callable[..., Path], name: str) -> None:
    refused(
        checkpoint(image=TIMM | {"options": TIMM["options"] | {name: "weights"}}), rf"model\.image\.options\.{name}="
    )
    assert name not in timm_arguments("tf_efficientnet_lite0") | timm_arguments("swin_tiny_patch4_window7_224")


@pytest.mark.parametrize(
    ("part", "node", "option"),
    [
        ("image", OPEN_CLIP, {"timm_model_name": "hf-hub:stranger/model"}),
        ("image", OPEN_CLIP, {"timm_model_pretrained": True}),
        ("image", OPEN_CLIP, {"pool_type": "https://127.0.0.1/"}),
        ("text", TEXT, {"hf_model_name": HUB}),
        ("text", TEXT, {"hf_tokenizer_name": HUB}),
        ("text", TEXT, {"tokenizer_kwargs": {"trust_remote_code": True}}),
        ("text", TEXT, {"weights": "x"}),
        ("image", TIMM, {"norm_layer": "/tmp/layer.py"}),
        ("image", TIMM, {"act_layer": ["x", {"y": "a:b"}]}),
    ],
)
def test_other_options_from_a_file_are_refused(
    checkpoint: Callable[..., Path], part: str, node: dict[str, Any], option: dict[str, Any]
) -> None:
    path = checkpoint(**{part: node | {"options": node["options"] | option}})
    refused(path, rf"model\.{part}\.options\.{next(iter(option))}")


def test_a_user_names_weights_by_pretrained_not_by_an_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"options\.checkpoint_path: give the file as model\.image\.pretrained"):
        TimmTower(8, "test_vit", options={"checkpoint_path": str(tmp_path / "x.pt")})


def test_options_of_a_folder_of_timm_are_its_architecture(tmp_path: Path) -> None:
    config = {"architecture": "test_vit", "model_args": {"checkpoint_path": "x.pt"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    node = {"_target_": "cloc.models.image.TimmTower", "name": "test_vit", "pretrained": str(tmp_path)}
    with pytest.raises(ValueError, match=r"model\.image\.options\.checkpoint_path"):
        complete({"joint_dim": 8, "image": node, "text": TEXT})
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "hf-hub:stranger/model"}))
    with pytest.raises(ValueError, match=r"model\.image\.name='hf-hub:stranger/model'"):
        complete({"joint_dim": 8, "image": node, "text": TEXT})


@pytest.mark.parametrize("options", ["timm_model_name", ["timm_model_name"], 7, "x", [], [["width", 64]]])
@pytest.mark.parametrize(("part", "node"), [("image", TIMM), ("image", OPEN_CLIP), ("text", TEXT)])
def test_options_from_a_file_are_an_object(
    checkpoint: Callable[..., Path], part: str, node: dict[str, Any], options: Any
) -> None:
    path = checkpoint(**{part: node | {"options": options}})
    refused(path, rf"model\.{part}\.options=.*must be an object", FolderError)


@pytest.mark.parametrize(
    ("part", "node"),
    [
        ("image", {"_target_": TIMM["_target_"], "name": "vit_7b_patch16_dinov3"}),
        ("image", {"_target_": OPEN_CLIP["_target_"], "name": "ViT-gopt-16-SigLIP2-384", "image_size": 384}),
        ("image", {"_target_": OPEN_CLIP["_target_"], "name": "EVA02-E-14-plus"}),
        ("image", OPEN_CLIP | {"options": {"timm_model_name": "eva02_enormous_patch14_clip_224"}}),
        ("text", {"_target_": TEXT["_target_"], "name": "ViT-bigG-14"}),
    ],
)
def test_a_small_file_that_names_a_giant_is_refused_before_it_is_built(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, part: str, node: dict[str, Any]
) -> None:
    monkeypatch.setattr("cloc.loading.build_trained", lambda *_: pytest.fail("is built"))
    refused(checkpoint(**{part: node}), r"describes at least [\d,]{9,} weights, its weight file has", FolderError)


def test_folders_of_other_libraries_that_name_a_giant_are_refused(
    tmp_path: Path,
) -> None:
    giant, told = "vit_7b_patch16_dinov3", r"describes at least [\d,]{9,} weights, its weight file has"
    folder = open_clip_folder(tmp_path / "clip", vision_cfg={"timm_model_name": giant})
    refused(folder, told, FolderError)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": giant}))
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    node = {"_target_": TIMM["_target_"], "name": giant, "pretrained": str(tmp_path)}
    with pytest.raises(FolderError, match=told):
        complete({"joint_dim": 8, "image": node, "text": TEXT})


# --- names that reach a hub -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", [HUB, "https://127.0.0.1/tokenizer", "bert-base-uncased", "/no/folder", "data/openmoji/tokenizer", 3]
)
def test_a_tokenizer_of_a_file_is_a_folder_that_is_here(
    checkpoint: Callable[..., Path], place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the demo leaves a folder of one of these names
    refused(checkpoint(text=TEXT | {"tokenizer": place}), r"model\.text\.tokenizer=.*never asks a hub", ConfigError)


@pytest.mark.parametrize("name", [HUB, "bert-base-uncased", "http://127.0.0.1/"])
def test_an_encoder_of_a_file_is_a_folder_that_is_here(checkpoint: Callable[..., Path], name: str) -> None:
    text = {"_target_": name_of(HuggingFaceText), "name": name}
    refused(checkpoint(text=text), r"model\.text\.name=.*never asks a hub", ConfigError)


@pytest.mark.parametrize(
    "name", ["hf-hub:stranger/model", "local-dir:/tmp/x", "hf_hub:a/b", "http://127.0.0.1/x", "nowhere"]
)
@pytest.mark.parametrize(("part", "node"), [("image", TIMM), ("image", OPEN_CLIP), ("text", TEXT)])
def test_an_architecture_of_a_file_is_one_of_the_library(
    checkpoint: Callable[..., Path], part: str, node: dict[str, Any], name: str
) -> None:
    refused(checkpoint(**{part: node | {"name": name}}), name)


def test_a_text_tower_that_a_library_fetches_is_refused(checkpoint: Callable[..., Path]) -> None:
    refused(checkpoint(text={"_target_": TEXT["_target_"], "name": "roberta-ViT-B-32"}), "hf_model_name='roberta-base'")
    refused(
        checkpoint(image=OPEN_CLIP | {"name": "ViT-B-16-SigLIP"}), "has no such option"
    )  # a ViT's, of a trunk of timm


@pytest.mark.parametrize("pretrained", [True, "laion2b_s34b_b88k", "/no/file.pt", "hf-hub:stranger/model"])
def test_initial_weights_are_not_fetched_again(checkpoint: Callable[..., Path], pretrained: Any) -> None:
    path = checkpoint(image=OPEN_CLIP | {"pretrained": pretrained}, text=TEXT | {"pretrained": pretrained})
    assert cloc.load(str(path)).model.image.joint_dim == 32


# --- folders of other libraries ---------------------------------------------------------------------------------------

CODE = (
    "from pathlib import Path\nPath({ran!r}).touch()\nfrom transformers import {base}\nclass Stranger({base}): pass\n"
)


def plant(folder: Path, base: str = "PreTrainedTokenizer") -> Path:
    """A Python file in a folder that leaves ``RAN`` when it is run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stranger.py").write_text(CODE.format(ran=str(folder / "RAN"), base=base))
    return folder / "RAN"


def tokenizer_of_code(folder: Path) -> Path:
    ran = plant(folder)
    content = {"tokenizer_class": "Stranger", "auto_map": {"AutoTokenizer": ["stranger.Stranger", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return ran


def open_clip_folder(folder: Path, **changes: dict[str, Any]) -> Path:
    """A small model of open_clip; ``changes`` go into the sections of its configuration."""
    import open_clip
    from safetensors.torch import save_file

    part = {"width": 64, "layers": 1}
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "head_width": 64, **part},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "heads": 1, **part},
    }
    model = open_clip.model.CLIP(**{k: dict(v) if isinstance(v, dict) else v for k, v in config.items()})
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items() if name != "attn_mask"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "open_clip_model.safetensors")
    for section, change in changes.items():
        config[section] = {**config[section], **change} if isinstance(config.get(section), dict) else change
    view = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash", "size": [32, 32]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": view}))
    return folder


@pytest.mark.parametrize("named", ["FOLDER", "open_clip:local-dir:FOLDER"])
def test_a_tokenizer_of_an_open_clip_folder_runs_no_code(named: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = open_clip_folder(tmp_path / "stranger", text_cfg={"hf_tokenizer_name": "x"})
    ran = tokenizer_of_code(folder)
    with pytest.raises(ValueError, match="no code of a folder or repository is run"):
        cloc.load(named.replace("FOLDER", str(folder)))
    write_word_tokenizer(["a chick"], folder)  # the tokenizer that lies in the folder, whatever name is given
    assert cloc.load(named.replace("FOLDER", str(folder))).encode_text(["a chick"]).shape == (1, 16)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("text_cfg", {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}),
        ("text_cfg", {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"tokenizer_file": "/etc/passwd"}}),
        ("text_cfg", {"hf_model_name": HUB}),
        ("vision_cfg", {"timm_model_name": "hf-hub:stranger/model"}),
        ("vision_cfg", {"timm_model_name": "local-dir:/tmp/x"}),
        ("vision_cfg", {"checkpoint_path": "x"}),
        ("text_cfg", {"_target_": "os.system"}),
        ("trust_remote_code", True),
        ("multimodal_cfg", {"hf_model_name": HUB}),
    ],
)
def test_an_open_clip_folder_says_an_architecture_and_no_more(section: str, change: Any, tmp_path: Path) -> None:
    ran = tokenizer_of_code(tmp_path / "stranger")
    folder = open_clip_folder(tmp_path / "stranger", **{section: change})
    told = next(reversed(change)) if isinstance(change, dict) else section
    refused(folder, rf"open_clip_config\.json: model_cfg.*{told}")
    for part, target in (("image", OPEN_CLIP), ("text", TEXT)):  # as initial weights, the folder is a stranger's too
        nodes = {"image": OPEN_CLIP, "text": TEXT} | {part: {"_target_": target["_target_"], "pretrained": str(folder)}}
        with pytest.raises(ValueError, match=told):
            complete({"joint_dim": 16, **nodes})
    assert not ran.exists()


def test_a_repository_is_fetched_by_the_callers_word_and_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub stands for itself here: open_clip asks it for a configuration, which names code."""
    import open_clip

    monkeypatch.setattr("cloc.data.downloads.unreachable", lambda url: None)  # it is not looked for
    own = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    for text, told in ((own, "trust_remote_code"), ({"hf_model_name": str(tmp_path)}, "no code of a folder")):
        config = {"embed_dim": 16, "vision_cfg": {}, "text_cfg": text}
        monkeypatch.setattr(open_clip, "get_model_config", lambda name, config=config: config)
        ran = plant(tmp_path, "PreTrainedModel")
        auto = {"auto_map": {"AutoConfig": "stranger.Stranger"}, "model_type": "stranger"}
        (tmp_path / "config.json").write_text(json.dumps(auto))
        with pytest.raises(ValueError, match=told):
            cloc.load("open_clip:hf-hub:stranger/model")
        assert not ran.exists()


def hugging_face_folder(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    part = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = write_word_tokenizer(["a chick"], folder)
    text = part | {"vocab_size": size, "max_position_embeddings": 8, "eos_token_id": 3, "bos_token_id": 2}
    vision = part | {"image_size": 32, "patch_size": 16}
    transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=vision, text_config=text | {"pad_token_id": 0}, projection_dim=16)
    ).save_pretrained(folder)
    processor = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_a_hugging_face_folder_is_loaded_without_its_code(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "clip")
    ran = plant(folder, "CLIPModel")
    config = json.loads((folder / "config.json").read_text())
    auto = {
        "AutoConfig": "stranger.Stranger",
        "AutoModel": "stranger.Stranger",
        "AutoTokenizer": ["stranger.Stranger", None],
    }
    named = {"auto_map": auto, "_name_or_path": HUB, "custom_code": True}
    (folder / "config.json").write_text(json.dumps(config | named))
    assert cloc.load(str(folder)).encode_text(["a chick"]).shape == (1, 16)
    assert not ran.exists()
    for key, value in (
        ("_attn_implementation", HUB),
        ("attn_implementation", {"vision_config": HUB}),
        ("quantization_config", {"quant_method": "x"}),
        ("backbone", "resnet50"),
    ):
        for changed in (config | {key: value}, config | {"vision_config": config["vision_config"] | {key: value}}):
            (folder / "config.json").write_text(json.dumps(changed))
            refused(folder, rf"config\.json: .*{key}")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": HUB}))
    refused(folder, "adapter")


def test_a_run_brings_a_tokenizer_and_an_encoder_but_no_code(checkpoint: Callable[..., Path]) -> None:
    pytest.importorskip("transformers")
    path = checkpoint(text=TEXT | {"tokenizer": "where/it/was"})
    ran = tokenizer_of_code(path / "text")
    with pytest.raises(ValueError, match="no code of a folder or repository is run"):
        cloc.load(str(path)).encode_text(["a chick"])
    (path / "text/config.json").write_text(
        json.dumps({"model_type": "stranger", "auto_map": {"AutoConfig": "stranger.Stranger"}})
    )
    refused(checkpoint(text={"_target_": name_of(HuggingFaceText), "name": HUB}), "no code of a folder or repository")
    (path / "text/config.json").write_text(json.dumps({"model_type": "bert", "_attn_implementation": HUB}))
    refused(path, "_attn_implementation")
    assert not ran.exists()


def test_a_users_own_folder_runs_no_code_either(tmp_path: Path) -> None:
    """What a user names by his own configuration may still be a stranger's."""
    pytest.importorskip("transformers")
    ran = tokenizer_of_code(tmp_path)
    with pytest.raises(ValueError, match="no code of a folder or repository is run") as caught:
        Tokenizer(str(tmp_path)).encode("a chick")
    assert "\n" not in str(caught.value)
    auto = {"AutoConfig": "stranger.Stranger", "AutoModel": "stranger.Stranger"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "stranger", "auto_map": auto}))
    for pretrained in (True, False):
        with pytest.raises(ValueError, match="no code of a folder or repository is run"):
            HuggingFaceText(8, str(tmp_path), pretrained=pretrained)
    assert not ran.exists()


def test_a_damaged_configuration_is_told_in_a_line(tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path / "x")
    for content in ("{", "[]", '"x"', '{"model_cfg": 3}', "[" * 100_000):
        (folder / "open_clip_config.json").write_text(content)
        refused(folder, r"open_clip_config\.json")
