"""One damaged bit in weights is noticed by everything that reads them."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import cloc
from cloc.__main__ import app
from cloc.config import DatasetConfig, EvalConfig, EvaluationConfig
from cloc.engine.durable.checkpoint_file import CheckpointError, commit, inspect
from cloc.evaluation.compare import compare
from cloc.export.pipeline import export
from cloc.export.run_weights import Choice
from cloc.export.torch import load_program
from cloc.models.build import build_model
from cloc.models.weights import digests as checksums
from cloc.models.weights.digests import DamageError, check_archive
from cloc.models.weights.files import read_state
from tests.kit.exporting import OPEN_CLIP, SHARED, TEXT, TIMM, make_run, word_text
from tests.kit.landscapes import jpeg, landscape


def flip(file: Path, place: int, bit: int = 6) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def of_a_tensor(file: Path) -> int:
    """Place of the high byte of a float in the largest tensor of an archive or safetensors file."""
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        return len(content) - 1
    with zipfile.ZipFile(file) as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size)
        return content.index(archive.read(member)) + 4 * (member.file_size // 8) + 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    text = word_text(folder / "words")
    return make_run(folder / "run", OPEN_CLIP, text, prompter=SHARED)


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Path:
    """A run whose checkpoint has a flipped bit in a weight."""
    copy = shutil.copytree(source, tmp_path / "run")
    file = copy / "checkpoints" / "last.ckpt"
    flip(file, of_a_tensor(file))
    return copy


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    return {name: export(name, source, folder / name) for name in ("hf", "open_clip")}


def test_pytorch_alone_says_nothing(run: Path) -> None:
    """Why all this is needed."""
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["cloc"]


def test_a_checkpoint(run: Path, source: Path) -> None:
    for path in (run, run / "checkpoints" / "last.ckpt"):
        with pytest.raises(ValueError, match=r"last\.ckpt is damaged: .* does not have its checksum"):
            cloc.load(path)
    cloc.load(source)


@pytest.mark.parametrize(
    "arguments", [["export", "regions", "RUN", "OUT"], ["embed", "RUN", "PICTURES", "OUT", "--device", "cpu"]]
)
def test_commands(arguments: list[str], run: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg(landscape(0)))
    places = {"RUN": str(run), "OUT": str(tmp_path / "out"), "PICTURES": str(tmp_path)}
    result = CliRunner().invoke(app, [places.get(word, word) for word in arguments])
    assert result.exit_code != 0 and isinstance(result.exception, DamageError)
    assert not (tmp_path / "out").exists()


def test_an_evaluation(run: Path) -> None:
    datasets = {"toy": DatasetConfig(shards="nowhere")}
    config = EvalConfig(str(run), data=["toy"], datasets=datasets, evaluation=EvaluationConfig(), device="cpu")
    with pytest.raises(DamageError, match="is damaged"):
        compare(config)


def test_weights_that_are_averaged_or_blended(run: Path, source: Path, tmp_path: Path) -> None:
    whole = source / "checkpoints" / "last.ckpt"
    both = tmp_path / "both" / "checkpoints"
    both.mkdir(parents=True)
    shutil.copy(run / "checkpoints" / "last.ckpt", both / "step-00000001.ckpt")
    for name in ("step-00000002.ckpt", "last.ckpt"):
        shutil.copy(whole, both / name)
    for choice in (Choice(average=2), Choice(base=run, alpha=0.5)):
        with pytest.raises(DamageError, match="is damaged"):
            export("open_clip", both.parent, tmp_path / "out", choice=choice)


def test_initial_weights_of_a_run(run: Path, source: Path) -> None:
    from cloc.engine.durable.initial_weights import take_weights

    model = cloc.load(source).model
    with pytest.raises(DamageError, match="is damaged"):
        take_weights(model, str(run))


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("hf", "model.safetensors"),
        ("hf", "prompter.safetensors"),
        ("hf", "config.json"),
        ("hf", "preprocessor_config.json"),
        ("hf", "tokenizer.json"),
        ("hf", "cloc.json"),
        ("open_clip", "open_clip_model.safetensors"),
        ("open_clip", "open_clip_config.json"),
        ("open_clip", "prompter.safetensors"),
    ],
)
def test_an_export(format: str, name: str, exported: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exported[format], tmp_path / "copy")
    cloc.load(folder)
    content = (folder / name).read_bytes()
    if name.endswith("json"):  # it stays JSON, with another number
        place = next(place for place, byte in enumerate(content) if chr(byte).isdigit())
        flip(folder / name, place, 0)
    else:
        flip(folder / name, len(content) - 1)
    with pytest.raises(DamageError, match=f"{name} is damaged"):
        cloc.load(folder)


@pytest.mark.parametrize(
    ("format", "name"), [("hf", "model.safetensors"), ("open_clip", "open_clip_model.safetensors")]
)
def test_pretrained_folders(format: str, name: str, exported: dict[str, Path], source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported[format], tmp_path / "copy")
    text = cloc.load(source).info["config"]["model"]["text"]
    config: dict[str, Any] = {"joint_dim": 32, "prompter": None, "grounding": None, "text": text}
    config["image"] = OPEN_CLIP | {"pretrained": str(folder)}
    build_model(config)
    flip(folder / name, of_a_tensor(folder / name))
    with pytest.raises(DamageError, match=f"{name} is damaged"):
        build_model(config)


def test_a_pretrained_trunk_and_its_projection(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TIMM)
    folder = export("timm", run, tmp_path / "timm")
    config: dict[str, Any] = {"joint_dim": 32, "prompter": None, "grounding": None, "text": TEXT}
    config["image"] = TIMM | {"pretrained": str(folder)}
    build_model(config)
    for name in ("projection.safetensors", "model.safetensors"):
        flip(folder / name, of_a_tensor(folder / name))
        with pytest.raises(DamageError, match=f"{name} is damaged"):
            build_model(config)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "open_clip_pytorch_model.bin"])
def test_folders_of_others(name: str, exported: dict[str, Path], tmp_path: Path) -> None:
    """Their safetensors hold no checksum, their archives do."""
    kind = "open_clip" if name.startswith("open") else "hf"
    folder = shutil.copytree(exported[kind], tmp_path / "copy")
    (folder / "cloc.json").unlink()
    weights = folder / ("open_clip_model.safetensors" if kind == "open_clip" else "model.safetensors")
    torch.save(load_file(weights), folder / name)
    weights.unlink()
    cloc.load(folder)
    flip(folder / name, of_a_tensor(folder / name))
    with pytest.raises(DamageError, match=f"{name} is damaged"):
        cloc.load(folder)


def test_an_export_of_an_earlier_version_has_no_checksums(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exported["hf"], tmp_path / "copy")
    stored = json.loads((folder / "cloc.json").read_text())
    assert {"model.safetensors", "vision/model.safetensors", "config.json", "cloc.json"} <= set(stored["sha256"])
    del stored["sha256"]
    (folder / "cloc.json").write_text(json.dumps(stored))
    cloc.load(folder)


def test_files_of_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"a": torch.randn(100)}, file)
    read_state(file)
    flip(file, of_a_tensor(file))
    with pytest.raises(DamageError, match=r"weights\.pt is damaged"):
        read_state(file)
    torch.save({"a": torch.ones(3)}, file, _use_new_zipfile_serialization=False)  # it has no checksums
    assert read_state(file)["a"].tolist() == [1, 1, 1]


def test_programs(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(64, 64), (torch.zeros(1, 64),))
    torch.export.save(program, tmp_path / "a.pt2", extra_files={"outputs": '["y"]'})
    load_program(tmp_path / "a.pt2")
    flip(tmp_path / "a.pt2", of_a_tensor(tmp_path / "a.pt2"))
    with pytest.raises(ValueError, match="is damaged"):
        load_program(tmp_path / "a.pt2")


def test_a_sharded_checkpoint(tmp_path: Path) -> None:
    part, path = tmp_path / "part", tmp_path / "step-00000004.ckpt"
    part.mkdir()
    torch.save({"global_step": 4, "cloc": {"cursor": 32}}, part / "meta.pt")
    (part / "__0_0.distcp").write_bytes(b"shard")
    commit(part, path)
    assert inspect(path).step == 4
    flip(path / "__0_0.distcp", 2)
    with pytest.raises(CheckpointError, match="__0_0.distcp does not have its checksum"):
        inspect(path)
    (path / "complete.json").write_text(json.dumps({"__0_0.distcp": 5}))  # as earlier versions wrote it
    assert inspect(path).step == 4
    for garbage in ("[]", "7", "{", ""):
        (path / "complete.json").write_text(garbage)
        with pytest.raises(CheckpointError, match="is damaged"):
            inspect(path)


def test_any_bit_of_a_checkpoint(tmp_path: Path) -> None:
    """Whichever bit is flipped: it is refused, or the weights are those that were written."""
    file = tmp_path / "a.ckpt"
    state = {"a": torch.randn(300), "b": torch.arange(7), "step": 3}
    torch.save(state, file)
    content, draw, refused = file.read_bytes(), random.Random(0), 0
    with zipfile.ZipFile(file) as archive:  # the list of members, and bits anywhere
        places = [*range(archive.start_dir, len(content), 4), *(draw.randrange(len(content)) for _ in range(100))]
    for number, place in enumerate(places):
        file.write_bytes(content)
        flip(file, place, (number + draw.randrange(2)) % 8)
        try:
            check_archive(file)
        except DamageError:
            refused += 1
            continue
        try:
            found = torch.load(file, weights_only=True)
        except Exception:  # noqa: BLE001  (whatever PyTorch says of a header: it says it)
            continue
        assert found["a"].equal(state["a"]) and found["b"].equal(state["b"]) and found["step"] == 3
    assert refused > 100


def test_archives_that_pytorch_does_not_write(tmp_path: Path) -> None:
    """Nobody is kept busy by a small file that unpacks to terabytes."""
    file = tmp_path / "a.ckpt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
    with pytest.raises(DamageError, match="compressed"):
        check_archive(file)
    with zipfile.ZipFile(file, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", b"one")
        archive.writestr("archive/data/0", b"two")
    with pytest.raises(DamageError, match="twice"):
        check_archive(file)
    torch.save({"a": torch.ones(3)}, file)
    content = file.read_bytes()
    flip(file, content.rindex(b"/data/0") - 1 - 46 + 38, 4)  # PyTorch alone returns whatever its memory holds
    with pytest.raises(DamageError, match="marked as a folder"):
        check_archive(file)


def test_truncated_archives(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    torch.save({"a": torch.randn(1000)}, file)
    content = file.read_bytes()
    for length in (4, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(DamageError, match="is damaged"):
            check_archive(file)


def test_a_file_is_read_once(exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = checksums.sha256
    monkeypatch.setattr(checksums, "sha256", lambda file: read.append(file.name) or whole(file))
    cloc.load(exported["hf"])
    assert read.count("model.safetensors") == 1 and "vision/model.safetensors" not in read
