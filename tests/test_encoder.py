"""A loaded model in use: any picture, boxes of the picture, and files that cannot be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import cloc
from cloc.config import ConfigError
from cloc.config.schema import DEFAULT_SOURCES, SOURCES
from cloc.data.decode import decode_rgb
from cloc.data.preprocess import Preprocess
from cloc.data.transforms import PAD_VALUE, blank_outside, to_view
from cloc.encoder import Encoder, cut, to_tensor
from cloc.loading import load
from cloc.models.build import build_model

CONFIG: dict[str, Any] = {
    "joint_dim": 16,
    "image": {
        "_target_": "cloc.models.image.TimmTower",
        "name": "vit_tiny_patch16_224",
        "image_size": 32,
        "options": {
            "patch_size": 8,
            "embed_dim": 64,
            "depth": 1,
            "num_heads": 2,
            "class_token": False,
            "global_pool": "avg",
        },
    },
    "text": {"_target_": "cloc.models.text.ClipText", "options": {"width": 32, "heads": 2, "layers": 1}},
    "prompter": {"_target_": "cloc.models.prompter.SharedPrompter"},
    "grounding": {"_target_": "cloc.models.grounding.SpatialHead"},
}
CLIP = CONFIG | {"prompter": None, "grounding": None}
BOXES = [[[0.1, 0.2, 0.6, 0.9]], [], [[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.75, 0.75], [0.0, 0.0, 0.2, 0.4]]]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(build_model(CONFIG), {}, name="toy")


@pytest.fixture(scope="module")
def clip() -> Encoder:
    return Encoder(build_model(CLIP), {}, name="toy clip")


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(40, 60), (90, 30), (32, 32)]
    return [torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def assert_unit(rows: Tensor) -> None:
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(len(rows)))


def pil(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def test_pictures_of_any_size_and_texts_have_unit_embeddings(encoder: Encoder, pictures: list[Tensor]) -> None:
    images, texts = encoder.encode_image(pictures), encoder.encode_text(["a chick", "", "a " * 100])
    assert images.shape == texts.shape == (3, 16)
    assert_unit(images)
    assert_unit(texts)
    assert encoder.encode_image([]).shape == encoder.encode_text([]).shape == (0, 16)


def test_a_picture_is_the_same_as_pil_image_and_as_tensor(encoder: Encoder, pictures: list[Tensor]) -> None:
    expected = encoder.encode_image(pictures)
    torch.testing.assert_close(encoder.encode_image([pil(picture) for picture in pictures]), expected)
    gray = Image.new("L", (20, 30), 77)
    torch.testing.assert_close(encoder.encode_image([gray]), encoder.encode_image([gray.convert("RGB")]))


def test_a_pil_image_is_turned_upright(encoder: Encoder, pictures: list[Tensor], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pil(pictures[0]).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        torch.testing.assert_close(encoder.encode_image([turned]), encoder.encode_image(pictures[:1]))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16"])
def test_a_pil_image_looks_as_the_same_file_does_in_training(mode: str, tmp_path: Path) -> None:
    ramp = torch.arange(20 * 30, dtype=torch.int32).reshape(20, 30)
    if mode == "I;16":
        image = Image.fromarray((ramp * 109).numpy().astype("uint16"))
    else:
        image = pil(torch.stack([ramp % 256, ramp // 3, 255 - ramp % 200]).to(torch.uint8)).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(pil((ramp % 256).to(torch.uint8).expand(3, -1, -1)).convert("L"))
    image.save(tmp_path / "picture.png", **({"transparency": 3} if mode == "P" else {}))
    with Image.open(tmp_path / "picture.png") as opened:
        assert to_tensor(opened).equal(decode_rgb((tmp_path / "picture.png").read_bytes()))


def test_a_picture_does_not_depend_on_its_neighbors(encoder: Encoder, pictures: list[Tensor]) -> None:
    together = encoder.encode_image(pictures)
    alone = torch.cat([encoder.encode_image([picture]) for picture in pictures])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_texts_keep_their_order_whatever_the_batch_size(encoder: Encoder) -> None:
    texts = ["a long text of many words", "a chick", "", "a cup of tea", "word"]
    expected = torch.cat([encoder.encode_text([text]) for text in texts])
    for batch_size in (1, 2, 512):
        torch.testing.assert_close(encoder.encode_text(texts, batch_size), expected, rtol=1e-4, atol=1e-5)


def test_dense_tokens_come_with_their_grid(encoder: Encoder, pictures: list[Tensor]) -> None:
    tokens, grid = encoder.encode_dense(pictures)
    assert tokens.shape == (3, 16, 64) and grid == (4, 4)


def test_dense_tokens_of_any_layers(pictures: list[Tensor]) -> None:
    image = CONFIG["image"] | {"options": CONFIG["image"]["options"] | {"depth": 3}}
    deep = Encoder(build_model(CONFIG | {"image": image}), {}, name="toy")
    last, grid = deep.encode_dense(pictures)
    found = deep.encode_dense(pictures, layers=(-1, -2, 0, 2))
    assert isinstance(found, list) and [own for _, own in found] == [grid] * 4
    assert found[0][0].equal(last) and found[3][0].equal(last)
    penultimate, own = deep.encode_dense(pictures, layers=(-2,))
    assert own == grid and penultimate.equal(found[1][0])
    trunk = deep.model.image.trunk
    with torch.inference_mode():
        torch.testing.assert_close(trunk.fc_norm(trunk.norm(trunk.blocks[2](penultimate))), last)
        torch.testing.assert_close(trunk.blocks[1](found[2][0]), penultimate)
    with pytest.raises(ValueError, match="^layer 3 of TimmTower: it has 3; give -3 to 2"):
        deep.encode_dense(pictures, layers=(3,))


@pytest.mark.parametrize("source", ["prompter", "roi_align", "crop", "mask_pool", "native"])
def test_each_picture_gets_as_many_regions_as_it_has_boxes(
    encoder: Encoder, pictures: list[Tensor], source: str
) -> None:
    regions = encoder.encode_regions(pictures, BOXES, source)
    assert [rows.shape for rows in regions] == [(1, 16), (0, 16), (3, 16)]
    for rows in regions:
        assert_unit(rows)
    for i, picture in enumerate(pictures):  # nothing leaks from one picture's boxes to another's
        (alone,) = encoder.encode_regions([picture], [BOXES[i]], source)
        torch.testing.assert_close(alone, regions[i], rtol=1e-4, atol=1e-5)
    assert [len(rows) for rows in encoder.encode_regions(pictures, [[], [], []], source)] == [0, 0, 0]
    as_tensors = encoder.encode_regions(pictures, [torch.tensor(rows).reshape(-1, 4) for rows in BOXES], source)
    torch.testing.assert_close(torch.cat(as_tensors), torch.cat(regions))


def test_boxes_of_the_picture_are_mapped_into_the_padded_view(encoder: Encoder, pictures: list[Tensor]) -> None:
    # 40 rows of 60 columns: the view is padded by a sixth above and below.
    seen = encoder.see(pictures[:1])
    expected = torch.tensor([0.0, 5 / 32, 1.0, 26 / 32])
    torch.testing.assert_close(seen.content[0], expected, rtol=0, atol=1 / 32)
    box = torch.tensor([[0.1, 0.2, 0.6, 0.9]])
    (ours,) = encoder.encode_regions(pictures[:1], [box], "mask_pool")
    by_hand = encoder.model.encode_boxes(seen.features, to_view(box, seen.content[0])[None], "mask_pool")
    torch.testing.assert_close(ours, by_hand[0])


def test_a_crop_is_the_picture_cut_out(encoder: Encoder, pictures: list[Tensor]) -> None:
    (regions,) = encoder.encode_regions(pictures[:1], [[[0.25, 0.5, 0.75, 1.0]]], "crop")
    torch.testing.assert_close(regions, encoder.encode_image([pictures[0][:, 20:40, 15:45]]))
    assert cut(pictures[0], (0.999, 0.999, 1.0, 1.0)).shape == (3, 1, 1)


def test_native_is_the_picture_with_all_around_the_box_blanked(encoder: Encoder, pictures: list[Tensor]) -> None:
    blank = torch.full_like(pictures[0], PAD_VALUE)
    blank[:, 20:40, 15:45] = pictures[0][:, 20:40, 15:45]
    (regions,) = encoder.encode_regions(pictures[:1], [[[0.25, 0.5, 0.75, 1.0]]], "native")
    torch.testing.assert_close(regions, encoder.encode_image([blank]))
    (whole,) = encoder.encode_regions(pictures[:1], [[[0.0, 0.0, 1.0, 1.0]]], "native")
    torch.testing.assert_close(whole, encoder.encode_image(pictures[:1]))
    speck = blank_outside(pictures[0], (0.999, 0.999, 1.0, 1.0))
    assert torch.equal(speck[:, -1, -1], pictures[0][:, -1, -1]) and (speck[:, :, :-1] == PAD_VALUE).all()


def test_native_keeps_what_a_center_crop_would_cut_off(encoder: Encoder, pictures: list[Tensor]) -> None:
    cutting = Encoder(encoder.model, encoder.info, tokenizer=encoder.tokenizer, preprocess=Preprocess("crop"))
    box = [[[0.0, 0.0, 0.15, 1.0]]]  # left of the center of a picture that is wider than high
    (ours,), (padded,) = (one.encode_regions(pictures[:1], box, "native") for one in (cutting, encoder))
    torch.testing.assert_close(ours, padded)


def test_native_is_measured_where_it_is_asked_for_alone(encoder: Encoder, clip: Encoder) -> None:
    assert "native" not in encoder.sources and encoder.every_source == (*encoder.sources, "native")
    assert clip.every_source == ("roi_align", "crop", "mask_pool", "native")
    assert "native" in SOURCES and set(DEFAULT_SOURCES) == set(encoder.sources)


def test_grounded_boxes_lie_in_the_picture(encoder: Encoder, pictures: list[Tensor]) -> None:
    found = encoder.ground(pictures, [["a chick"], [], ["a cup", "a cup", "tea"]])
    assert [boxes.shape for boxes in found] == [(1, 4), (0, 4), (3, 4)]
    for boxes in found:
        assert (boxes >= 0).all() and (boxes <= 1).all()
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
    torch.testing.assert_close(found[2][0], found[2][1])


def test_grounded_boxes_are_mapped_back_from_the_view(
    encoder: Encoder, pictures: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoder.see(pictures[:2]).content
    monkeypatch.setattr(encoder.model, "ground", lambda features, text: whole.unsqueeze(1).clone())
    for boxes in encoder.ground(pictures[:2], [["it"], ["it"]]):
        torch.testing.assert_close(boxes, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("boxes", "told"),
    [
        ([[[10, 20, 200, 300]]], r"boxes\[0\]=.*normalized to 0\.\.1"),
        ([[[-0.2, 0.0, 0.5, 0.5]]], "normalized"),
        ([[[0.0, 0.0, float("nan"), 0.5]]], "finite"),
        ([[[0.6, 0.1, 0.2, 0.9]]], "inverted"),
        ([[[0.1, 0.1, 0.1, 0.9]]], "no area"),
        ([[], []], "1 pictures but 2 lists of boxes"),
    ],
)
def test_wrong_boxes_are_refused(encoder: Encoder, pictures: list[Tensor], boxes: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        encoder.encode_regions(pictures[:1], boxes)


def test_wrong_pictures_and_lists_are_refused(encoder: Encoder, pictures: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="3 pictures but 1 lists of phrases"):
        encoder.ground(pictures, [["a chick"]])
    with pytest.raises(TypeError, match="uint8"):
        encoder.encode_image([pictures[0].float() / 255])
    with pytest.raises(TypeError, match="uint8"):
        encoder.encode_image([pictures[0].permute(1, 2, 0)])
    with pytest.raises(TypeError, match="PIL image or a tensor, got str"):
        encoder.encode_image(["picture.jpg"])


def test_a_clip_has_every_source_but_the_prompter(clip: Encoder, pictures: list[Tensor]) -> None:
    assert clip.sources == ("roi_align", "crop", "mask_pool") and not clip.can_ground
    for source in clip.sources:
        assert [len(rows) for rows in clip.encode_regions(pictures, BOXES, source)] == [1, 0, 3]
    with pytest.raises(ValueError, match="toy clip has no Prompter"):
        clip.encode_regions(pictures, BOXES)
    with pytest.raises(ValueError, match="no grounding head"):
        clip.ground(pictures, [["it"], ["it"], ["it"]])


def test_an_unknown_source_is_named(encoder: Encoder, pictures: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="source='roi'"):
        encoder.encode_regions(pictures, BOXES, "roi")


# --- loading ----------------------------------------------------------------------------------------------------------


def save(folder: Path, stored: Any) -> Path:
    file = folder / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    torch.save(stored, file)
    return file


def checkpoint(encoder: Encoder, **changes: Any) -> dict[str, Any]:
    weights = {f"model.{name}": value for name, value in encoder.model.state_dict().items()}
    info = {"version": "0", "config": {"model": CONFIG | changes}, "cursor": 8, "samples_seen": 8}
    return {"state_dict": weights, "cloc": info, "optimizer_states": []}


def test_a_loaded_run_is_the_model_that_was_saved(encoder: Encoder, pictures: list[Tensor], tmp_path: Path) -> None:
    file = save(tmp_path / "run", checkpoint(encoder))
    for path in (tmp_path / "run", str(tmp_path / "run"), file):
        loaded = cloc.load(path)
        assert loaded.name == "run" and loaded.info["samples_seen"] == 8
        assert not loaded.model.training
        assert loaded.encode_image(pictures).equal(encoder.encode_image(pictures))
        assert loaded.encode_text(["a chick"]).equal(encoder.encode_text(["a chick"]))
        assert loaded.ground(pictures[:1], [["it"]])[0].equal(encoder.ground(pictures[:1], [["it"]])[0])


def test_a_missing_path_and_a_run_without_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no checkpoint"):
        load(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match=r"run: no checkpoint at .*last\.ckpt"):
        load(tmp_path / "run")


@pytest.mark.parametrize("stored", [{"state_dict": {}, "epoch": 3}, {"a": 1, 2: 3}, torch.zeros(2, 3), []])
def test_a_foreign_checkpoint_is_refused(tmp_path: Path, stored: Any) -> None:
    file = save(tmp_path / "run", stored)
    with pytest.raises(ValueError, match="was not written by cloc"):
        load(file)


@pytest.mark.parametrize("data", [b"", b"these are no weights", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "x.ckpt"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.ckpt"):
        load(file)


def test_a_truncated_checkpoint_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    file = save(tmp_path / "run", checkpoint(encoder))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        load(file)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, legacy: bool) -> None:
    file = tmp_path / "evil.ckpt"
    trap = tmp_path / "ran"
    torch.save({"cloc": Malicious(trap)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"evil\.ckpt"):
        load(file)
    assert not trap.exists()


@pytest.mark.parametrize("target", ["os.system", "cloc.models.text.Path", "cloc.data.shards.writer.write_shards"])
def test_a_checkpoint_cannot_choose_what_code_is_called(encoder: Encoder, tmp_path: Path, target: str) -> None:
    file = save(tmp_path / "run", checkpoint(encoder, prompter={"_target_": target}))
    with pytest.raises(ConfigError, match=r"model\.prompter\._target_"):
        load(file)


def test_no_pictures_give_no_answers(encoder: Encoder) -> None:
    assert encoder.encode_regions([], []) == [] and encoder.ground([], []) == []
    assert encoder.encode_dense([])[0].shape == (0, 16, 64)
