"""The model's parts against their references: trimmed text = padded text, towers = open_clip's, prompts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from cloc.contracts import Batch
from cloc.data.tokenizer import Tokenizer, text_id
from cloc.losses.objective import ClocLoss
from cloc.models.build import build_model
from cloc.models.grounding import MlpHead, SpatialHead
from cloc.models.image import OpenClipTower, TimmTower
from cloc.models.model import Cloc
from cloc.models.prompter import PaperPrompter, RoiAlign, SharedPrompter
from cloc.models.region_pooling import mask_tokens, roi_tokens
from cloc.models.text import ClipText, HuggingFaceText, Rows
from cloc.models.view_memory import ViewMemory

TEXTS = ["a chick", "", "a cup of tea to the left of a very small blue teapot", "word " * 200, "a 🐤"]
SMALL_TEXT = {"width": 32, "heads": 2, "layers": 2}
SMALL_VIT = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
POOLED_VIT = SMALL_VIT | {"class_token": False, "global_pool": "avg"}
GRID, WIDTH, DIM = (3, 4), 16, 8


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_trimmed_text_is_padded_text_in_open_clips_own_tower(quick_gelu: bool) -> None:
    text = ClipText(16, quick_gelu=quick_gelu, options=SMALL_TEXT).double().eval()
    tokenizer = Tokenizer(text.tokenizer, text.context_length)
    for texts in (TEXTS, TEXTS[:1], TEXTS[:3]):
        tokens = tokenizer(texts)
        padded = pad(tokens, (0, 77 - tokens.shape[1]))
        assert padded.equal(open_clip.tokenize(texts))
        torch.testing.assert_close(text(tokens), text(padded), rtol=0, atol=1e-12)
        torch.testing.assert_close(text(tokens), text.tower(padded), rtol=0, atol=1e-12)


def test_trimmed_text_has_the_gradients_of_padded_text() -> None:
    text = ClipText(16, options=SMALL_TEXT).double()
    tokens = Tokenizer()(TEXTS[:3])
    weight = torch.randn(3, 16, dtype=torch.float64)
    parameters = list(text.parameters())
    trimmed = torch.autograd.grad((text(tokens) * weight).sum(), parameters)
    padded = torch.autograd.grad((text.tower(pad(tokens, (0, 77 - tokens.shape[1]))) * weight).sum(), parameters)
    for one, other in zip(trimmed, padded, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(7, 5), (1, 5), (2, 16), (61, 3), (5, 4), (4, 21), (40, 9)])
@pytest.mark.parametrize("options", [{}, {"pool_type": "eos", "eos_id": 9}])
def test_captions_and_phrases_in_one_pass_are_those_of_a_pass_each(
    shape: tuple[int, int], options: dict[str, Any]
) -> None:
    """Embeddings and gradients; 16 // 5 = 3 phrases a row with a token to spare, 61 in rows that do not come out."""
    text = ClipText(16, options=SMALL_TEXT | options).double()
    groups = []
    for count, length in ((6, 16), shape):
        tokens = torch.randint(1, 9, (count, length))
        ends = torch.randint(1, length, (count,))
        groups.append(tokens.masked_fill(torch.arange(length) > ends[:, None], 0).scatter(1, ends[:, None], 9))
    together, apart = text(*groups), torch.cat([text(tokens) for tokens in groups])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)
    weight, parameters = torch.randn_like(together), list(text.parameters())
    for one, other in zip(
        torch.autograd.grad((together * weight).sum(), parameters),
        torch.autograd.grad((apart * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_a_row_is_as_long_as_takes_the_fewest_tokens() -> None:
    assert Rows._best_length([(1024, 20), (3000, 11)], 77) == 22
    assert Rows._best_length([(1024, 20), (3000, 11)], 21) == 20, "positions and the mask end there"
    assert Rows._best_length([(64, 23), (200, 6)], 77) == 23, "24 would save a twentieth"
    assert Rows._best_length([(3, 30)], 20) == 30


def test_texts_that_share_a_row_do_not_see_each_other() -> None:
    text = ClipText(16, options=SMALL_TEXT).double().eval()
    captions, phrases = Tokenizer()(["a long caption of a man on a horse by the sea"]), Tokenizer()(TEXTS[:1] * 3)
    before = text(captions, phrases)
    phrases[1, 1] = 7
    changed = (text(captions, phrases) - before).abs().amax(1) > 0
    assert changed.tolist() == [False, False, True, False]


def test_a_text_does_not_depend_on_its_neighbors() -> None:
    text = ClipText(16, options=SMALL_TEXT).double().eval()
    together = text(Tokenizer()(TEXTS))
    for row, own in zip(together, TEXTS, strict=True):
        torch.testing.assert_close(text(Tokenizer()([own]))[0], row, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"no_causal_mask": True}, {"pool_type": "last"}])
def test_towers_that_padding_changes_see_all_of_it(options: dict[str, Any]) -> None:
    text, tokens = ClipText(16, options=SMALL_TEXT | options).double().eval(), Tokenizer()(TEXTS)
    whole = torch.nn.functional.pad(tokens, (0, 77 - tokens.shape[1]))
    torch.testing.assert_close(text(tokens), text.tower(whole), rtol=0, atol=1e-12)


def test_a_text_tower_with_a_class_token_is_refused() -> None:
    with pytest.raises(ValueError, match="class token"):
        ClipText(16, options=SMALL_TEXT | {"embed_cls": True})


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random BERT with its tokenizer."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "chick", "cup", "of", "tea", "word", "left", "the"]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_trimmed_text_is_padded_text_in_a_hugging_face_tower(bert: Path) -> None:
    text = HuggingFaceText(16, str(bert)).double().eval()
    tokenizer = Tokenizer(text.tokenizer, 77)
    tokens = tokenizer(TEXTS[:3])
    assert tokens.shape[1] < 77 and (tokens == tokenizer.pad_id).any()
    padded = pad(tokens, (0, 77 - tokens.shape[1]), value=tokenizer.pad_id)
    torch.testing.assert_close(text(tokens), text(padded), rtol=0, atol=1e-12)
    for row, own in zip(text(tokens), TEXTS[:3], strict=True):
        torch.testing.assert_close(text(tokenizer([own]))[0], row, rtol=0, atol=1e-12)
    assert tokenizer(["word " * 200]).shape == (1, 77)


def test_a_hugging_face_tower_has_its_weights_and_a_frozen_one_keeps_them(bert: Path) -> None:
    text = HuggingFaceText(16, str(bert), frozen=True, hidden=8).train()
    assert text.tower.embeddings.word_embeddings.weight.equal(
        HuggingFaceText(16, str(bert)).tower.embeddings.word_embeddings.weight
    )
    assert not text.tower.training
    text(torch.tensor([[2, 5, 3]])).sum().backward()
    trained = {name for name, value in text.named_parameters() if value.grad is not None}
    assert trained == {"proj.0.weight", "proj.0.bias", "proj.2.weight", "proj.2.bias"}


def test_a_missing_text_folder_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.text\.name='/no/such'"):
        HuggingFaceText(16, "/no/such")
    with pytest.raises(FileNotFoundError, match=r"model\.text\.tokenizer='\./no'"):
        Tokenizer("./no")


# --- image ------------------------------------------------------------------------------------------------------------


def test_the_open_clip_tower_is_open_clips_encode_image() -> None:
    options = {"width": 64, "layers": 2, "patch_size": 8, "head_width": 32}
    tower = OpenClipTower(16, image_size=32, options=options).double().eval()
    reference = (
        open_clip.model.CLIP(16, {"image_size": 32} | options, {"context_length": 8, **SMALL_TEXT}).double().eval()
    )
    reference.visual.load_state_dict(tower.visual.state_dict())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    states: list[Tensor] = []
    tower.visual.ln_post.register_forward_hook(lambda module, inputs, output: states.append(output))
    pooled, tokens = tower(images)
    torch.testing.assert_close(pooled, reference.encode_image(images), rtol=0, atol=1e-12)
    assert (tower.grid, tower.width, tokens.shape) == ((4, 4), 64, (2, 16, 64))
    assert tokens.equal(states[0][:, 1:])  # after the last norm, without the class token
    torch.testing.assert_close(tower.project_tokens(states[0][:, 0]), pooled, rtol=0, atol=1e-12)


TOWERS: dict[str, tuple[dict[str, Any], tuple[int, int], int]] = {
    "vit": ({"name": "vit_tiny_patch16_224", "image_size": 32, "options": POOLED_VIT}, (4, 4), 64),
    "vit with class token": ({"name": "vit_tiny_patch16_224", "image_size": 32, "options": SMALL_VIT}, (4, 4), 64),
    "vit with stem": (
        {
            "name": "vit_tiny_patch16_224",
            "image_size": 48,
            "options": POOLED_VIT,
            "conv_stem": True,
            "positions": "fourier",
            "zero_init": True,
        },
        (6, 6),
        64,
    ),
    "resnet": ({"name": "resnet10t", "image_size": 96}, (3, 3), 512),
    "efficientnet": ({"name": "efficientnet_lite0", "image_size": 64}, (2, 2), 1280),
    "adapter": ({"name": "resnet10t", "image_size": 64, "adapter_depth": 1, "adapter_width": 64}, (2, 2), 64),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_every_timm_backbone_gives_a_pooled_embedding_and_a_token_grid(kind: str) -> None:
    options, grid, width = TOWERS[kind]
    tower = TimmTower(24, **options).eval()
    size = options["image_size"]
    images = torch.randn(2, 3, size, size)
    pooled, tokens = tower(images)
    assert (tower.grid, tower.width, tower.image_size) == (grid, width, size)
    assert pooled.shape == (2, 24)
    assert tokens.shape == (2, grid[0] * grid[1], width)
    assert tower.project_tokens(tokens).shape == (2, grid[0] * grid[1], 24)
    assert not tokens[0].allclose(tokens[1])
    if not kind.startswith("vit"):  # these pool by an average: projecting tokens is projecting the picture
        torch.testing.assert_close(tower.project_tokens(tokens).mean(1), pooled, rtol=1e-4, atol=1e-5)
    if kind == "vit with class token":
        states = tower.trunk.forward_features(images)
        torch.testing.assert_close(tower.proj(states[:, 0]), pooled)
        torch.testing.assert_close(states[:, 1:], tokens)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_tokens_stand_in_reading_order(kind: str) -> None:
    """What changes in the top right corner of the picture changes the token there most."""
    options, (rows, columns), _ = TOWERS[kind]
    tower = TimmTower(24, **options).eval()
    size = options["image_size"]
    plain = torch.zeros(1, 3, size, size)
    dotted = plain.clone()
    dotted[:, :, : size // rows, -(size // columns) :] = torch.randn(size // rows, size // columns)
    change = (tower(plain)[1] - tower(dotted)[1]).norm(dim=-1)[0]
    assert change.argmax() == columns - 1


@pytest.mark.parametrize(("tune_last", "trained"), [(0, set()), (1, {"layer4"}), (2, {"layer3", "layer4"})])
def test_a_frozen_trunk_keeps_its_statistics_and_only_the_last_stages_train(tune_last: int, trained: set[str]) -> None:
    tower = TimmTower(24, "resnet10t", image_size=64, tune_last=tune_last).train()
    before = {name: value.clone() for name, value in tower.trunk.named_buffers()}
    pooled, tokens = tower(torch.randn(2, 3, 64, 64))
    (pooled.sum() + tokens.square().sum()).backward()
    assert all(value.equal(before[name]) for name, value in tower.trunk.named_buffers())
    assert {name.split(".")[0] for name, value in tower.trunk.named_parameters() if value.grad is not None} == trained
    assert tower.proj.weight.grad is not None


def test_a_trained_trunk_updates_its_statistics() -> None:
    """Or the test above would prove nothing."""
    tower = TimmTower(24, "resnet10t", image_size=64).train()
    before = {name: value.clone() for name, value in tower.trunk.named_buffers()}
    tower(torch.randn(2, 3, 64, 64))
    assert not all(value.equal(before[name]) for name, value in tower.trunk.named_buffers())


# --- Prompter ---------------------------------------------------------------------------------------------------------

PROMPTERS = {"shared": SharedPrompter, "paper": PaperPrompter, "roi_align": RoiAlign}
BOXES = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5], [0.1, 0.2, 0.9, 0.8]]]).expand(2, -1, -1)


def make_prompter(kind: str) -> nn.Module:
    prompter = PROMPTERS[kind](WIDTH, DIM, GRID)
    for parameter in prompter.parameters():  # what starts at zero shall not hide anything
        nn.init.normal_(parameter, std=0.3)
    return prompter


@pytest.mark.parametrize("kind", PROMPTERS)
def test_the_prompter_reads_boxes(kind: str) -> None:
    prompter = make_prompter(kind)
    tokens = torch.randn(2, 12, WIDTH, requires_grad=True)
    regions = prompter.boxes(prompter.memory(tokens), BOXES)
    assert regions.shape == (2, 3, DIM)
    assert (regions[:, 0] - regions[:, 1]).norm(dim=-1).min() > 1e-2  # another box, another embedding
    assert (regions[0] - regions[1]).norm(dim=-1).min() > 1e-2  # another picture
    (gradient,) = torch.autograd.grad(regions[0, 0].square().sum(), tokens)
    assert gradient[0].norm() > 0 and (gradient[1] == 0).all()


@pytest.mark.parametrize("kind", PROMPTERS)
def test_prompts_do_not_influence_each_other(kind: str) -> None:
    prompter = make_prompter(kind)
    memory = prompter.memory(torch.randn(2, 12, WIDTH))
    together = prompter.boxes(memory, BOXES)
    for i in range(3):
        torch.testing.assert_close(prompter.boxes(memory, BOXES[:, i : i + 1]), together[:, i : i + 1])
    if prompter.supports_phrases:
        text = torch.randn(2, 3, DIM)
        states = prompter.phrases(memory, text)
        assert states.shape == (2, 3, WIDTH)
        assert (states[:, 0] - states[:, 1]).norm(dim=-1).min() > 1e-2
        torch.testing.assert_close(prompter.phrases(memory, text[:, 1:2]), states[:, 1:2])


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.prompter\.heads=3 does not divide"):
        SharedPrompter(WIDTH, DIM, GRID, heads=3)


def token_box(row: int, column: int) -> list[float]:
    return [column / GRID[1], row / GRID[0], (column + 1) / GRID[1], (row + 1) / GRID[0]]


@pytest.mark.parametrize("pool", [mask_tokens, roi_tokens])
def test_a_box_around_one_token_reads_that_token(pool: Any) -> None:
    tokens = torch.randn(2, 12, WIDTH)
    boxes = torch.tensor([[token_box(row, column) for row in range(3) for column in range(4)]]).expand(2, -1, -1)
    torch.testing.assert_close(pool(tokens, GRID, boxes), tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool", [mask_tokens, roi_tokens])
def test_a_box_around_everything_reads_the_mean(pool: Any) -> None:
    tokens = torch.randn(2, 12, WIDTH)
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]).expand(2, -1, -1)
    torch.testing.assert_close(pool(tokens, GRID, boxes)[:, 0], tokens.mean(1), rtol=0, atol=1e-5)


def test_mask_tokens_weighs_by_overlap() -> None:
    tokens = torch.eye(12)[None]
    # Half of column 0, all of column 1, of row 0.
    weights = mask_tokens(tokens, GRID, torch.tensor([[[0.125, 0.0, 0.5, 1 / 3]]]))[0, 0]
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 2 / 3] + [0.0] * 10), rtol=0, atol=1e-6)


# --- grounding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [MlpHead, SpatialHead])
@pytest.mark.parametrize("prompter", [SharedPrompter, PaperPrompter])
def test_a_grounded_box_is_never_inverted_and_lies_in_the_view(
    head: type[nn.Module], prompter: type[nn.Module]
) -> None:
    model = make_model(prompter, head)
    for parameter in [*model.grounding.parameters(), *model.prompter.parameters()]:
        nn.init.normal_(parameter, std=0.5)
    seen = model.encode_images(torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8))
    texts = nn.functional.normalize(torch.randn(4, 50, 16), dim=-1)
    heard: list[Tensor] = []
    model.grounding.register_forward_hook(lambda module, inputs, output: heard.append(output))
    boxes = model.ground(seen, texts)
    (raw,) = heard
    assert raw.shape == (4, 50, 4)
    assert (raw[..., 2:] >= raw[..., :2]).all()
    assert (boxes >= 0).all() and (boxes <= 1).all()
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert raw.flatten(0, 1).std(0).max() > 1e-3  # it reads its input


@pytest.mark.parametrize("prompter", [None, RoiAlign])
def test_grounding_needs_a_prompter_that_takes_phrases(prompter: type[nn.Module] | None) -> None:
    with pytest.raises(ValueError, match=r"model\.grounding needs a Prompter that takes phrases"):
        make_model(prompter, MlpHead)


# --- the whole model --------------------------------------------------------------------------------------------------


def make_model(prompter: type[nn.Module] | None = SharedPrompter, head: type[nn.Module] | None = SpatialHead) -> Cloc:
    image = TimmTower(16, "vit_tiny_patch16_224", image_size=32, options=POOLED_VIT)
    text = ClipText(16, context_length=16, options={"width": 32, "heads": 2, "layers": 1})
    shape = (image.width, 16, image.grid)
    return Cloc(image, text, prompter(*shape) if prompter else None, head(*shape) if head else None)


def make_batch(phrases: list[list[str]], captions: list[str]) -> Batch:
    """Three regions a picture; an empty phrase is an empty slot."""
    tokenizer = Tokenizer("open_clip", 16)
    distinct = list(dict.fromkeys(text for own in phrases for text in own if text)) or [""]
    valid = torch.tensor([[bool(text) for text in own] for own in phrases])
    boxes = BOXES[:1].expand(len(phrases), -1, -1)
    return Batch(
        images=torch.randint(0, 255, (len(phrases), 3, 32, 32), dtype=torch.uint8),
        content=torch.tensor([0.0, 0, 1, 1]).expand(len(phrases), 4),
        captions=tokenizer(captions),
        caption_id=torch.tensor([text_id(tokenizer.encode(text)[0]) for text in captions]),
        boxes=boxes,
        target_boxes=boxes,
        region_valid=valid,
        phrases=tokenizer(distinct),
        phrase_id=torch.tensor([text_id(tokenizer.encode(text)[0]) for text in distinct]),
        region_phrase=torch.tensor([[distinct.index(t) if t in distinct else 0 for t in own] for own in phrases]),
        phrase_is_shared=torch.zeros_like(valid),
        keys=captions,
        source=torch.zeros(len(phrases), dtype=torch.int64),
        cursor=0,
    )


PHRASES = [["a chick", "a cup", ""], ["a chick", "", ""], ["", "", ""]]
CAPTIONS = ["a chick and a cup", "a chick", "nothing at all"]


def test_features_hold_the_contract() -> None:
    features = make_model()(make_batch(PHRASES, CAPTIONS))
    assert features.image.shape == features.text.shape == (3, 16)
    assert features.region.shape == (3, 3, 16)
    assert features.phrase.shape == (2, 16)
    assert features.grounded.shape == (3, 3, 4)
    for rows in (features.image, features.text, features.region, features.phrase):
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(rows.shape[:-1]))
    assert {name: value.shape for name, value in features.scales.items()} == {"global": (1,), "region": (1,)}


def test_pixels_are_normalized_by_the_towers_own_statistics() -> None:
    model = make_model()
    seen: list[Tensor] = []
    model.image.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    model.encode_images(images)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (model.image.mean, model.image.std))
    torch.testing.assert_close(seen[0], (images / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_trimmed_and_deduplicated_text_gives_the_loss_and_gradients_of_padded_text() -> None:
    model, batch = make_model(), make_batch(PHRASES, CAPTIONS)
    loss = ClocLoss()
    parameters = [value for value in model.parameters() if value.requires_grad]
    lean = loss(model(batch), batch)
    lean_gradients = torch.autograd.grad(lean.total, parameters)
    flat = batch.region_phrase.flatten()  # every slot its own row, as a naive loader would send them
    batch.phrases, batch.phrase_id = batch.phrases[flat], batch.phrase_id[flat]
    batch.region_phrase = torch.arange(len(flat)).view_as(batch.region_phrase)
    batch.phrases, batch.captions = (pad(rows, (0, 16 - rows.shape[1])) for rows in (batch.phrases, batch.captions))
    raw = loss(model(batch), batch)
    for name, value in lean.terms.items():
        torch.testing.assert_close(value, raw.terms[name], rtol=1e-5, atol=1e-6)
    for one, other in zip(lean_gradients, torch.autograd.grad(raw.total, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("regions", [True, False])
@pytest.mark.parametrize(
    ("prompter", "head", "weights"),
    [
        (SharedPrompter, SpatialHead, {}),
        (SharedPrompter, MlpHead, {}),
        (PaperPrompter, SpatialHead, {}),
        (PaperPrompter, MlpHead, {}),
        (SharedPrompter, None, {"grounding": 0.0}),
        (PaperPrompter, None, {"grounding": 0.0}),
        (RoiAlign, None, {"grounding": 0.0}),
        (SharedPrompter, SpatialHead, {"grounding": 0.0}),
        (SharedPrompter, SpatialHead, {"region": 0.0}),
        (None, None, {"region": 0.0, "grounding": 0.0}),
    ],
)
def test_every_trained_parameter_takes_part_with_and_without_regions(
    prompter: type[nn.Module] | None, head: type[nn.Module] | None, weights: dict[str, float], regions: bool
) -> None:
    """Distributed training waits for the gradient of each."""
    model, batch = make_model(prompter, head), make_batch(PHRASES if regions else [[""] * 3] * 3, CAPTIONS)
    ClocLoss(**weights)(model(batch), batch).total.backward()
    trained = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in trained.values())


def test_without_a_prompter_the_model_is_a_clip() -> None:
    model = make_model(None, None)
    batch = make_batch(PHRASES, CAPTIONS)
    features = model(batch)
    assert features.region is features.phrase is features.grounded is None
    assert set(features.scales) == {"global"}
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"image", "text", "log_scales"}
    seen = model.encode_images(batch.images)
    for source in ("roi_align", "mask_pool"):
        assert model.encode_boxes(seen, batch.boxes, source).shape == (3, 3, 16)
    with pytest.raises(ValueError, match="no Prompter"):
        model.encode_boxes(seen, batch.boxes)
    with pytest.raises(ValueError, match="no grounding head"):
        model.ground(seen, torch.zeros(3, 1, 16))


def test_an_unknown_region_source_is_named() -> None:
    model = make_model()
    seen = model.encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="source='roi': give prompter, roi_align"):
        model.encode_boxes(seen, BOXES[:1], "roi")


def test_temperatures_start_at_clips_and_stop_at_one_hundred() -> None:
    model = make_model()
    scales = model.scales()
    assert float(scales["global"].detach()) == pytest.approx(1 / 0.07)
    scales["global"].backward()
    assert model.log_scales["global"].grad != 0  # below the clamp it learns
    assert model.log_scales["region"].grad is None  # alone
    with torch.no_grad():
        model.log_scales["region"].fill_(7.0)
    assert float(model.scales()["region"].detach()) == 100.0


def test_positions_belong_to_the_grid() -> None:
    with pytest.raises(ValueError, match=r"model\.image\.positions='sin'"):
        TimmTower(16, "vit_tiny_patch16_224", image_size=32, options=POOLED_VIT, positions="sin")
    with pytest.raises(ValueError, match="power of two"):
        TimmTower(16, "vit_tiny_patch16_224", image_size=36, options=POOLED_VIT | {"patch_size": 12}, conv_stem=True)


def test_build_model_puts_the_parts_together() -> None:
    config = {
        "joint_dim": 16,
        "image": {"_target_": "cloc.models.image.TimmTower", **TOWERS["vit"][0]},
        "text": {"_target_": "cloc.models.text.ClipText", "options": SMALL_TEXT},
        "prompter": {"_target_": "cloc.models.prompter.PaperPrompter"},
        "grounding": {"_target_": "cloc.models.grounding.MlpHead"},
    }
    model = build_model(config)
    assert isinstance(model.prompter, PaperPrompter) and isinstance(model.grounding, MlpHead)
    clip = build_model(config | {"prompter": None, "grounding": None}, pretrained=False)
    assert clip.prompter is clip.grounding is None
    assert set(clip.state_dict()) < set(model.state_dict())


def test_a_frozen_backbone_is_in_evaluation_mode_before_anybody_calls_train() -> None:
    """Lightning does not call train(): batch norm of a new tower must not take statistics from the first batches."""
    tower = TimmTower(16, "resnet10t", 64, tune_last=0)
    before = {name: value.clone() for name, value in tower.trunk.state_dict().items()}
    tower(torch.randn(4, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in tower.trunk.state_dict().items())


def test_a_remembered_view_is_computed_once_and_the_oldest_leaves_first() -> None:
    asked: list[float] = []

    def double(images: torch.Tensor) -> torch.Tensor:
        asked.extend(images[:, 0, 0, 0].tolist())
        return images * 2

    memory = ViewMemory(3)
    views = torch.arange(1.0, 5.0).view(4, 1, 1, 1).expand(4, 3, 2, 2).contiguous()
    for batch, computed in (([0, 1, 0], [1, 2]), ([1, 0], []), ([2], [3]), ([3, 1], [4]), ([0], [1]), ([1, 3], [2])):
        asked.clear()
        torch.testing.assert_close(memory(views[batch], double), views[batch] * 2)
        assert asked == computed, batch
    with pytest.raises(ValueError, match="remember=3"):
        memory(views, double)
