"""What people expect of ``cloc.load``'s models: every public function, however it is called and wherever it runs.

:data:`CALLS` has an entry for each public name; one that is new and has none fails.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import cloc
from cloc.encoder import EncodedPictures, Encoder
from cloc.export.pipeline import export
from cloc.models.devices import find_device, find_dtype
from tests.kit.exporting import MLP, OPEN_CLIP, PAPER, ROI, SHARED, SPATIAL, make_run, word_text
from tests.models.test_foreign import TEXT, VIT, write_hugging_face

KINDS = ("run", "clip", "siglip", "open_clip")
BOXES = [[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 0.5, 0.4]]
PHRASES = ["a chick", "two dogs run left of an umbrella in front of a fence and photo of the number brown " * 4]
IMAGE = {
    "_target_": "cloc.models.image.TimmTower",
    "name": "vit_tiny_patch16_224",
    "image_size": 32,
    "options": {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2},
    "adapter_depth": 1,
    "adapter_width": 64,
}

# How a function is asked: on pictures (one or many) it gets as many boxes and phrases as there are pictures.
Call = Callable[[Encoder, Any, Callable[[Any], Any]], Any]


def source_of(model: Encoder) -> str:
    return model.sources[0]


CALLS: dict[str, Call] = {
    "encode_image": lambda model, pictures, each: model.encode_image(pictures),
    "encode_dense": lambda model, pictures, each: model.encode_dense(pictures, layers=(-1, -2, 0)),
    "encode_regions": lambda model, pictures, each: [
        model.encode_regions(pictures, each(BOXES), source) for source in model.every_source
    ],
    "ground": lambda model, pictures, each: (
        model.can_ground
        and (model.ground(pictures, each(PHRASES)), model.ground(pictures, PHRASES[1], return_scores=True))
    ),
    "see": lambda model, pictures, each: model.see(pictures).features.pooled,
    "regions": lambda model, pictures, each: model.regions(model.see(pictures), each(BOXES), source_of(model)),
    "grounded": lambda model, pictures, each: (
        model.can_ground and model.grounded(model.see(pictures), each(model.encode_text(PHRASES)), return_scores=True)
    ),
}
TEXTS: dict[str, Callable[[Encoder, Any], Any]] = {"encode_text": lambda model, texts: model.encode_text(texts)}
STATED: dict[str, Callable[[Encoder], Any]] = {
    "device": lambda model: model.device.type,
    "dtype": lambda model: str(model.dtype),
    "image_size": lambda model: model.image_size,
    "joint_dim": lambda model: model.joint_dim,
    "sources": lambda model: model.sources,
    "every_source": lambda model: model.every_source,
    "can_ground": lambda model: model.can_ground,
}
MOVES: dict[str, Callable[[Encoder], tuple[Any, torch.dtype]]] = {
    "to": lambda model: (model.to(dtype="bfloat16"), torch.bfloat16),
    "bfloat16": lambda model: (model.bfloat16(), torch.bfloat16),
    "half": lambda model: (model.half(), torch.float16),
    "cpu": lambda model: (model.cpu(), torch.float16),
    "float": lambda model: (model.float(), torch.float32),
}
ELSEWHERE = {"cuda": "test_a_gpu", "cloc.load": "every fixture", "cloc.__version__": "no function"}


def test_every_public_name_has_an_entry() -> None:
    public = {name for name in dir(Encoder) if not name.startswith("_")} | {f"cloc.{name}" for name in cloc.__all__}
    assert public == {*CALLS, *TEXTS, *STATED, *MOVES, *ELSEWHERE}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small random model of each kind, as ``cloc.load`` takes it."""
    room = tmp_path_factory.mktemp("interface")
    make_run(room / "run", IMAGE, word_text(room / "words"), prompter=SHARED, grounding=SPATIAL)
    for kind in ("clip", "siglip"):
        write_hugging_face(room / kind, kind)
    text = TEXT | {"pool_type": "last", "no_causal_mask": True}  # is padded: another way into open_clip than ours
    config = {"embed_dim": 16, "vision_cfg": VIT | {"layers": 2}, "text_cfg": text}
    (room / "toy-interface.json").write_text(json.dumps(config))
    open_clip.add_model_config(room / "toy-interface.json")
    weights = open_clip.create_model("toy-interface").state_dict()
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, room / "toy.safetensors")
    named = {kind: str(room / kind) for kind in KINDS}
    return named | {"open_clip": f"open_clip:toy-interface:{room / 'toy.safetensors'}"}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, folders: dict[str, str]) -> Encoder:
    return cloc.load(folders[request.param])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    rng, room = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    found = [room / f"{index}.png" for index in range(3)]
    for file, size in zip(found, ((40, 60), (50, 32), (32, 32)), strict=True):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(file)
    return found


WAYS = ("picture", "array", "path", "string", "batch", "values")


def ways(files: list[Path]) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """One picture, one path, a batch; and what boxes or phrases of one picture become for it."""
    return {
        "picture": (Image.open(files[0]), lambda own: own),
        "array": (np.asarray(Image.open(files[0])), lambda own: own),
        "path": (files[0], lambda own: own),
        "string": (str(files[0]), lambda own: own),
        "batch": (files, lambda own: [own] * len(files)),
        "values": (dict(enumerate(files)).values(), lambda own: [own] * len(files)),
    }


def tensors(found: Any) -> list[Tensor]:
    """All tensors of a result, in order."""
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, EncodedPictures):
        return [found.features.pooled]
    return [one for part in found for one in tensors(part)] if isinstance(found, tuple | list) else []


def everything(model: Encoder, files: list[Path], asked: tuple[str, ...] = WAYS) -> dict[str, list[Tensor]]:
    """What every public function says, in the ways that are asked for."""
    said = {
        f"{name}({way})": tensors(call(model, pictures, each))
        for name, call in CALLS.items()
        for way, (pictures, each) in ways(files).items()
        if way in asked
    }
    for name, call in TEXTS.items():
        said |= {
            f"{name}({way})": tensors(call(model, texts))
            for way, texts in (("string", PHRASES[1]), ("list", PHRASES), ("generator", (text for text in PHRASES)))
        }
    return said


def assert_same(found: dict[str, list[Tensor]], expected: dict[str, list[Tensor]], **near: float) -> None:
    for name, rows in ((name, expected[name]) for name in found):
        assert len(found[name]) == len(rows), name
        for one, other in zip(found[name], rows, strict=True):
            torch.testing.assert_close({name: one}, {name: other}, **(near or {"rtol": 1e-4, "atol": 1e-5}))


@pytest.fixture(scope="module")
def expected(model: Encoder, files: list[Path]) -> dict[str, list[Tensor]]:
    return everything(model, files)


def test_one_picture_in_any_form_is_that_picture(model: Encoder, expected: dict[str, list[Tensor]]) -> None:
    for name in CALLS:
        lone = expected[f"{name}(picture)"]
        for way in ("array", "path", "string"):
            assert all(one.equal(other) for one, other in zip(expected[f"{name}({way})"], lone, strict=True)), name
        assert_same({"": expected[f"{name}(values)"]}, {"": expected[f"{name}(batch)"]})
    assert expected["encode_image(picture)"][0].shape == (1, model.joint_dim)
    assert_same({"": [expected["encode_image(batch)"][0][:1]]}, {"": expected["encode_image(picture)"]})
    assert expected["encode_text(string)"][0].shape == (1, model.joint_dim)
    assert_same({"": [expected["encode_text(list)"][0][1:]]}, {"": expected["encode_text(string)"]})
    if model.can_ground:
        boxes, long_box, scores = expected["ground(picture)"]
        assert boxes.shape == (2, 4) and long_box.shape == (1, 4) and scores.shape == (1,)
        torch.testing.assert_close(boxes[1:], long_box)


def test_threads_share_a_model(model: Encoder, files: list[Path], expected: dict[str, list[Tensor]]) -> None:
    fresh = copy.deepcopy(model)  # nothing is cached yet
    with ThreadPoolExecutor(8) as pool:
        for said in [pool.submit(everything, fresh, files, ("path", "batch")) for _ in range(8)]:
            assert_same(said.result(), expected)


def test_threads_share_pictures_already_seen(model: Encoder, files: list[Path]) -> None:
    """Of a model that cuts pictures off, the whole ones are encoded when the first thread asks for a box."""
    boxes = [BOXES] * len(files)
    expected, seen = torch.cat(model.encode_regions(files, boxes, source_of(model))), model.see(files)
    with ThreadPoolExecutor(8) as pool:
        for said in [pool.submit(model.regions, seen, boxes, source_of(model)) for _ in range(8)]:
            torch.testing.assert_close(torch.cat(said.result()), expected, rtol=1e-4, atol=1e-5)
    assert (seen.whole is None) == model.preprocess.whole


def test_a_copy_and_a_pickle_say_the_same(model: Encoder, files: list[Path], expected: dict[str, list[Tensor]]) -> None:
    again = pickle.loads(pickle.dumps(model))
    assert_same(everything(again, files), expected)
    for name, state in STATED.items():
        assert state(again) == state(model) == state(copy.deepcopy(model)), name


@pytest.mark.slow
def test_worker_processes_say_the_same(folders: dict[str, str], files: list[Path], tmp_path: Path) -> None:
    """Handed over by spawn: nothing but the pickle arrives. A worker knows none of this process's configurations."""
    run = make_run(tmp_path / "run", OPEN_CLIP, word_text(tmp_path / "words"), prompter=SHARED, grounding=SPATIAL)
    exports = [str(export(format, run, tmp_path / format)) for format in ("hf", "open_clip")]
    models = [cloc.load(name) for name in (*folders.values(), *exports)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for model, said in [(model, pool.submit(everything, model, files)) for model in models]:
            assert_same(said.result(), everything(model, files))


def test_results_are_ordinary_tensors(expected: dict[str, list[Tensor]]) -> None:
    """A probe is trained on them, and they are normalized in place, with or without a gradient."""
    for name, found in expected.items():
        for rows in found:
            assert rows.dtype == torch.float32 and not rows.requires_grad and not rows.is_inference(), name
            rows = rows if rows.ndim > 1 else rows[:, None]
            nn.Linear(rows.shape[-1], 2)(rows).sum().backward()
    for name in ("encode_image(batch)", "encode_text(list)", "encode_regions(batch)", "encode_dense(batch)"):
        rows = expected[name][0]
        rows /= rows.norm(dim=-1, keepdim=True)
        kept = rows.clone()
        rows *= (scale := nn.Parameter(torch.ones(1)))
        rows.sum().backward()
        assert scale.grad is not None
        expected[name][0] = kept


def test_no_picture_and_no_text(model: Encoder) -> None:
    nothing, texts = model.encode_image([]), model.encode_text([])
    assert nothing.shape == texts.shape == (0, model.joint_dim) and nothing.dtype == texts.dtype == torch.float32
    tokens, grid = model.encode_dense([])
    assert tokens.shape == (0, grid[0] * grid[1], model.model.image.width)
    assert [own.shape[0] for own, _ in model.encode_dense([], layers=(0, -1))] == [0, 0]
    seen = model.see([])
    assert len(seen.features.pooled) == len(seen.features.tokens) == len(seen.content) == 0
    assert model.encode_regions([], []) == model.regions(seen, [], source_of(model)) == []
    if model.can_ground:
        assert model.ground([], []) == model.ground([], "it") == model.grounded(seen, []) == []
        assert model.ground([], [], return_scores=True) == model.grounded(seen, [], return_scores=True) == ([], [])
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        model.encode_text(["a chick"], 0)


def test_pictures_already_seen_need_as_many_lists(model: Encoder, files: list[Path]) -> None:
    seen = model.see(files)
    with pytest.raises(ValueError, match="3 pictures but 1 lists of boxes; give one list a picture"):
        model.regions(seen, [BOXES], source_of(model))
    with pytest.raises(ValueError, match="3 pictures but 1 lists of phrases"):
        model.grounded(seen, [model.encode_text(PHRASES)])


# --- scores -----------------------------------------------------------------------------------------------------------


def test_a_score_is_the_mean_of_the_box_s_and_the_best_token_s_cosine(
    folders: dict[str, str], files: list[Path]
) -> None:
    model = cloc.load(folders["run"])
    boxes, scores = model.ground(files, [PHRASES, [], PHRASES[:1]], return_scores=True)
    assert [len(own) for own in boxes] == [len(own) for own in scores] == [2, 0, 1]
    assert all(
        one.equal(other) for one, other in zip(boxes, model.ground(files, [PHRASES, [], PHRASES[:1]]), strict=True)
    )
    (region,) = model.encode_regions(files[0], boxes[0])
    text, prompter = model.encode_text(PHRASES), model.model.prompter
    with torch.no_grad():
        tokens = nn.functional.normalize(prompter.local(prompter.memory(model.see(files[0]).features.tokens)), dim=-1)
    best = torch.stack([max(cosines, key=float) for cosines in text @ tokens[0].T])
    torch.testing.assert_close(scores[0], ((region * text).sum(1) + best) / 2)
    text = model.encode_text(PHRASES)
    pairs = model.grounded(model.see(files[:2]), [text, text[:1]], return_scores=True)[1]
    torch.testing.assert_close(
        torch.cat(pairs), torch.cat([scores[0], model.ground(files[1], PHRASES[:1], True)[1][0]])
    )


# --- precision and device ---------------------------------------------------------------------------------------------


def assert_near(found: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> None:
    """Embeddings and tokens by their cosine, boxes by their corners; unit norms are exact."""
    for name, rows in expected.items():
        for one, other in zip(found[name], rows, strict=True):
            assert one.dtype == torch.float32, name
            if "ground" in name:
                assert (one - other).abs().max() < 0.03, name
                continue
            assert torch.cosine_similarity(one, other, dim=-1).min() > 0.99, name
            if "dense" not in name:
                torch.testing.assert_close(one.norm(dim=-1), torch.ones(len(one)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_says_nearly_the_same(kind: str, dtype: str, folders: dict[str, str], files: list[Path]) -> None:
    whole, half = cloc.load(folders[kind]), cloc.load(folders[kind], dtype=dtype)
    assert half.dtype == getattr(torch, dtype)
    assert {value.dtype for value in half.model.parameters()} == {half.dtype}
    found = everything(half, files, ("path", "batch"))
    assert_near(found, everything(whole, files, ("path", "batch")))
    whole.model.to(half.dtype)  # PyTorch's own way in
    assert_same(everything(whole, files, ("path",)), found, rtol=0, atol=0)


@pytest.mark.parametrize(("prompter", "grounding"), [(PAPER, MLP), (ROI, None)])
def test_every_part_takes_half_precision(prompter: Any, grounding: Any, tmp_path: Path, files: list[Path]) -> None:
    text = {
        "_target_": "cloc.models.text.HuggingFaceText",
        "name": str(tmp_path / "text"),
        "frozen": True,  # remembers what it has read
        "tokenizer": word_text(tmp_path / "words")["tokenizer"],
    }
    transformers = pytest.importorskip("transformers")
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=64, **config)).save_pretrained(tmp_path / "text")
    run = make_run(tmp_path / "run", IMAGE, text, prompter=prompter, grounding=grounding)
    (run / "text").mkdir()
    (run / "text" / "config.json").write_text((tmp_path / "text" / "config.json").read_text())
    model = cloc.load(run)
    expected = everything(model, files, ("batch",))
    for move in ("bfloat16", "half"):
        getattr(model, move)()
        assert_near(everything(model, files, ("batch",)), expected)


def test_biases_that_a_backbone_keeps_do_not_outlive_its_precision(folders: dict[str, str], files: list[Path]) -> None:
    """LeViT, TinyViT and EfficientFormer keep them by device once they have seen a picture."""
    model = cloc.load(folders["run"])
    kept = model.model.image.trunk.blocks[0].attn
    kept.attention_bias_cache = {"cpu": torch.zeros(1)}
    model.bfloat16()
    assert kept.attention_bias_cache == {}


def test_moving_returns_the_model(folders: dict[str, str], files: list[Path]) -> None:
    model = cloc.load(folders["run"], device="auto", dtype="auto")
    assert model.device == find_device("auto") and model.dtype == find_dtype("auto", model.device)
    for name, move in MOVES.items():
        moved, dtype = move(model)
        assert moved is model and model.dtype == dtype, name
    for arguments in (("cpu",), (torch.bfloat16,), ("bfloat16",), ("cpu", "bfloat16"), ("auto", torch.bfloat16)):
        assert model.to(*arguments) is model
    assert model.dtype == torch.bfloat16
    assert model.to("cpu", dtype="auto").dtype == find_dtype("auto", torch.device("cpu"))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"device": "gpu"}, "device='gpu': PyTorch knows no such device; give auto, cpu"),
        ({"device": "cuda:99"}, r"device='cuda:99' cannot be used on this machine \(.*\); give auto, cpu"),
        ({"device": "meta"}, "device='meta' cannot be used"),
        ({"device": None}, "device='None'"),
        ({"dtype": "fp16"}, "dtype='fp16': give auto, float32, bfloat16 or float16"),
        ({"dtype": torch.int8}, r"dtype='torch\.int8': give auto"),
        ({"dtype": 16}, "dtype='16': give auto"),
    ],
)
def test_a_wrong_device_or_precision_is_one_line(asked: dict[str, Any], told: str, folders: dict[str, str]) -> None:
    told = told.replace("give auto, cpu", "give auto(, cpu| or cpu)")
    with pytest.raises(ValueError, match=told) as error:
        cloc.load(folders["run"], **asked)
    assert "\n" not in str(error.value)
    model = cloc.load(folders["run"])
    if asked.get("device", "") is not None:
        with pytest.raises(ValueError, match=told):
            model.to(**asked)
    with pytest.raises(ValueError, match="give the device first"):
        model.to(torch.float16, torch.float16)


def test_numbers_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", IMAGE, word_text(tmp_path / "words"))
    file = run / "checkpoints" / "last.ckpt"
    stored = torch.load(file, weights_only=True)
    stored["state_dict"]["model.image.proj.weight"] += 1e6
    torch.save(stored, file)
    cloc.load(run, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"run in dtype='float16': its numbers do not fit .*'bfloat16' or 'float32'"):
        cloc.load(run, dtype="float16")


def test_a_gpu(folders: dict[str, str], files: list[Path]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    model = cloc.load(folders["run"], device="auto")
    assert model.device.type == "cuda"
    expected = everything(cloc.load(folders["run"]), files)
    for move in (lambda: model, model.bfloat16, model.half):
        found = everything(move(), files)
        assert all(rows.is_cuda for own in found.values() for rows in own)
        assert_near({name: [rows.cpu() for rows in own] for name, own in found.items()}, expected)
    assert model.encode_image([]).is_cuda and model.encode_text([]).is_cuda
    assert model.cpu().device.type == "cpu" and model.cuda() is model and model.device.type == "cuda"
