"""Patches that do not divide the view: boxes meet the tokens that show them, and training refuses the unseen border."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from cloc.config import ConfigError
from cloc.data.preprocess import Preprocess
from cloc.encoder import Encoder
from cloc.evaluation.report.example_pictures import similarity_maps
from cloc.export import regions
from cloc.models.build import build_model
from cloc.models.foreign.towers import HuggingFaceImage, OpenClipTimm, OpenClipViT
from cloc.models.image import ConvStem, OpenClipTower, TimmTower
from cloc.models.model import Cloc
from cloc.models.positions.fourier import check_covered, covered_share, onto_grid, onto_view
from cloc.models.prompter import SharedPrompter
from cloc.models.text import ClipText

PATCH = 14
SIZES = (256, 384)  # 18 × 14 = 252, 27 × 14 = 378


class PatchMeans(nn.Module):
    """An image tower whose tokens are the mean colors of their patches, and whose projection is the identity."""

    mean, std, dense, resize = (0.0,) * 3, (1 / 255,) * 3, True, "squash"

    def __init__(self, size: int, patch: int = PATCH) -> None:
        super().__init__()
        self.image_size, self.joint_dim, self.width = size, 3, 3
        self.grid = (size // patch,) * 2
        self.patch, self.covered = patch, covered_share(size // patch, patch, size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = avg_pool2d(images, self.patch).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens

    def project_tokens(self, tokens: Tensor) -> Tensor:
        return tokens


def text() -> ClipText:
    return ClipText(3, options={"width": 16, "heads": 2, "layers": 1})


def encoder(size: int, prompter: nn.Module | None = None, grounding: nn.Module | None = None) -> Encoder:
    return Encoder(Cloc(PatchMeans(size), text(), prompter, grounding), {}, preprocess=Preprocess("squash"))


def painted(size: int, box: tuple[int, int, int, int]) -> Tensor:
    """A green picture with one red box, in pixels."""
    picture = torch.zeros(3, size, size, dtype=torch.uint8)
    picture[1] = 200
    left, top, right, bottom = box
    picture[:, top:bottom, left:right] = torch.tensor([200, 0, 0], dtype=torch.uint8)[:, None, None]
    return picture


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("source", ["mask_pool", "roi_align"])
def test_a_box_over_whole_patches_reads_them_alone(size: int, source: str) -> None:
    """At the far side a map that stretched the grid over the view would be off by the border's width."""
    cells = size // PATCH
    for column, row in ((0, 0), (cells - 1, 2), (cells - 2, cells - 1), (cells // 2, cells - 2)):
        box = (column * PATCH, row * PATCH, (column + 1) * PATCH, (row + 1) * PATCH)
        within = [x / size + inset for x, inset in zip(box, (1e-4, 1e-4, -1e-4, -1e-4), strict=True)]
        (found,) = encoder(size).encode_regions(painted(size, box), within, source)  # one sample of RoI-Align
        torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.0]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_the_prompter_starts_at_the_tokens_of_a_box(size: int) -> None:
    cells = size // PATCH
    prompter = SharedPrompter(4, 3, (cells, cells), heads=1)
    seen: list[Tensor] = []
    prompter._attend = lambda prompt, memory, bias=None: seen.append(bias) or prompt
    model = Cloc(PatchMeans(size), text(), prompter)
    prompter.memory = lambda tokens: tokens
    column, row = cells - 1, cells - 3
    box = torch.tensor([[[column * PATCH, row * PATCH, (column + 1) * PATCH, (row + 1) * PATCH]]]) / size
    model.encode_boxes(model.encode_images(torch.zeros(1, 3, size, size)), box)
    weights = seen[0].flatten().softmax(0)
    assert int(weights.argmax()) == row * cells + column
    assert weights.max() > 0.7 > 100 * weights.topk(2).values[1]


def test_a_grounded_box_is_one_of_the_view() -> None:
    class Prompter(nn.Module):
        supports_phrases = True

        def memory(self, tokens: Tensor) -> Tensor:
            return tokens

        def phrases(self, memory: Tensor, text: Tensor) -> Tensor:
            return text

        local = memory

    class Head(nn.Module):
        def forward(self, *unused: Tensor) -> Tensor:
            return torch.tensor([[[0.5, 0.0, 1.0, 1.0]]])

    model = encoder(256, Prompter(), Head())
    (found,) = model.ground(torch.zeros(3, 256, 256, dtype=torch.uint8), "it")
    torch.testing.assert_close(found, torch.tensor([[126 / 256, 0.0, 252 / 256, 252 / 256]]))


def test_a_box_in_the_border_is_read_at_the_edge() -> None:
    picture = painted(256, (238, 0, 252, 256))
    for source in ("mask_pool", "roi_align"):
        (found,) = encoder(256).encode_regions(picture, [0.99, 0.2, 1.0, 0.8], source)
        torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.0]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_heat_lies_where_the_box_is(size: int) -> None:
    from torchvision.transforms.v2.functional import to_pil_image

    cells = size // PATCH
    box = ((cells - 3) * PATCH, 0, (cells - 1) * PATCH, size)
    _, (heat,) = similarity_maps(encoder(size), to_pil_image(painted(size, box)), torch.tensor([[1.0, 0.0, 0.0]]))
    columns = torch.arange(heat.shape[1]) + 0.5
    weights = torch.from_numpy(heat.copy()).clamp(min=0).mean(0)
    center = float((weights * columns).sum() / weights.sum()) / heat.shape[1]
    assert center == pytest.approx((box[0] + box[2]) / 2 / size, abs=0.008)


def test_maps_are_each_others_inverse_and_nothing_where_patches_divide() -> None:
    boxes = torch.rand(5, 2, 2).sort(1).values.flatten(1) * 0.9
    torch.testing.assert_close(onto_view(onto_grid(boxes, 0.95, 1000), 0.95), boxes)
    assert onto_grid(boxes, 1.0, 4) is boxes and onto_view(boxes, 1.0) is boxes
    outside = onto_grid(torch.tensor([0.97, 0.1, 1.0, 0.2]), 0.95, 10)
    torch.testing.assert_close(outside, torch.tensor([0.95, 0.1 / 0.95, 1.0, 0.2 / 0.95]))
    assert covered_share(18, 14, 256) == 252 / 256 and covered_share(27, 14, 384) == 378 / 384
    assert covered_share(24, 14, 336) == covered_share(37, 14, 518) == 1.0
    assert covered_share(8, 32, 240) == 256 / 240 and covered_share(16, 0, 256) == covered_share(5, 14, 256) == 1.0


def our_tower(kind: str, size: int) -> nn.Module:
    if kind == "open_clip":
        options = {"width": 32, "layers": 1, "head_width": 16, "patch_size": PATCH}
        return OpenClipTower(16, image_size=size, options=options)
    options = {"patch_size": PATCH, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return TimmTower(16, "vit_tiny_patch16_224", size, options=options)


@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_training_refuses_an_unseen_border(kind: str) -> None:
    tower = our_tower(kind, 60)
    assert tower.covered == 56 / 60 and tower.grid == (4, 4)
    with pytest.raises(ConfigError, match=r"model\.image\.image_size=60: patches of 14 px cover 56 px.*give 56 or 70$"):
        check_covered(tower)
    for size in (56, 70):
        check_covered(our_tower(kind, size))


def test_a_convolution_stem_needs_whole_patches() -> None:
    with pytest.raises(ConfigError, match="image_size=36: a convolution stem needs a multiple of 8"):
        ConvStem(36, 8, 3, 32)


def test_convolutions_that_reach_beyond_the_view_are_mapped_too() -> None:
    tower = TimmTower(8, "test_efficientnet", 80)
    assert tower.grid == (3, 3) and tower.covered == 96 / 80
    check_covered(tower)


def test_towers_of_others_say_what_they_cover() -> None:
    transformers = pytest.importorskip("transformers")
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.SiglipVisionConfig(**part, image_size=60, patch_size=PATCH)
    theirs = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision.to_dict(), text_config=part))
    assert HuggingFaceImage(theirs.vision_model, 60, 16, [0.5] * 3, [0.5] * 3).covered == 56 / 60
    config = {"image_size": 60, "width": 32, "layers": 1, "head_width": 16, "patch_size": PATCH}
    visual = open_clip.model._build_vision_tower(16, config)
    assert OpenClipViT(visual, 60, 16, [0.5] * 3, [0.5] * 3).covered == 56 / 60
    timm = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_pool": "", "timm_proj": "linear"}
    trunk = open_clip.model._build_vision_tower(16, timm)
    assert OpenClipTimm(trunk, 224, 16, [0.5] * 3, [0.5] * 3).covered == 1.0


@pytest.mark.parametrize("kind", ["SharedPrompter", "PaperPrompter"])
def test_the_exported_sampler_maps_as_the_model_does(kind: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "joint_dim": 8,
        "image": {
            "_target_": "cloc.models.image.TimmTower",
            "name": "vit_tiny_patch16_224",
            "image_size": 60,
            "options": {"patch_size": PATCH, "embed_dim": 16, "depth": 1, "num_heads": 2},
        },
        "text": {"_target_": "cloc.models.text.ClipText", "options": {"width": 16, "heads": 2, "layers": 1}},
        "prompter": {"_target_": f"cloc.models.prompter.{kind}"},
        "grounding": {"_target_": "cloc.models.grounding.SpatialHead"},
    }
    own = Encoder(build_model(config), {"config": {"model": config}})
    regions.write(own, tmp_path)
    spec = importlib.util.spec_from_file_location("written_regions", tmp_path / regions.FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sampler = module.RegionSampler.load(tmp_path)
    seen = own.model.encode_images(torch.randint(0, 255, (1, 3, 60, 60)))
    boxes = torch.tensor([[[0.8, 0.7, 1.0, 0.95], [0.1, 0.2, 0.4, 0.9]]])
    with torch.no_grad():
        torch.testing.assert_close(sampler.encode_regions(seen.tokens, boxes), own.model.encode_boxes(seen, boxes))
        phrases = torch.randn(1, 2, 8)
        torch.testing.assert_close(sampler.ground(seen.tokens, phrases), own.model.ground(seen, phrases))
