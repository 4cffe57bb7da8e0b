"""Open_clip models and Hugging Face CLIP and SigLIP folders, loaded as they are (``encoder`` puts them on trial).

What would silently give wrong numbers is refused: weights of another resolution or activation, a preprocessing that is
not known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import pad

from cloc.data.bpe import quicken
from cloc.data.downloads import from_hub
from cloc.data.preprocess import Preprocess, from_hugging_face, from_open_clip
from cloc.data.tokenizer import Tokenizer, refusing_code, without_code
from cloc.models.foreign.towers import (
    FixedTokenizer,
    ForeignImage,
    HuggingFaceImage,
    HuggingFaceJointText,
    OpenClipImage,
    OpenClipTimm,
    OpenClipViT,
    PaddedText,
    TrimmedText,
)
from cloc.models.model import Cloc
from cloc.models.positions.fourier import check_covered
from cloc.models.positions.image_size import resize_trunk
from cloc.models.protocols import TextTower
from cloc.models.trust.named_sizes import trunk_weights
from cloc.models.trust.values import (
    HF_CONFIG,
    OPEN_CLIP_CONFIG,
    check_holds,
    check_hugging_face,
    check_open_clip,
    read_json,
)
from cloc.models.weights.digests import EXTRA_CONFIG, check_file, check_folder
from cloc.models.weights.downloads import open_clip_weights
from cloc.models.weights.files import read_state
from cloc.models.weights.pretrained import siglip_cleaning

PREFIX = "open_clip:"
KINDS = {"clip": "CLIP", "siglip": "Siglip"}  # transformers' names of their classes begin so
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Foreign:
    """A foreign model ready for :class:`cloc.encoder.Encoder`.

    Attributes:
        model: towers behind our interface; no Prompter.
        tokenizer: of the text tower.
        preprocess: of its pictures.
        name: short, for tables.
        info: what there is to say about it.
    """

    model: Cloc
    tokenizer: Any
    preprocess: Preprocess
    name: str
    info: dict[str, Any]


def is_foreign(folder: Path) -> bool:
    """Whether an exported folder was not written by cloc and is loaded by its own library."""
    if (folder / EXTRA_CONFIG).is_file():
        return False
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return True
    return read_json(folder / HF_CONFIG).get("model_type") in KINDS


def load_open_clip(name: str, image_size: int | None = None) -> Foreign:
    """Load a model of open_clip. What it names of its own (another text tower, a tokenizer) runs no code.

    Args:
        name: ``open_clip:ARCHITECTURE:WEIGHTS``, WEIGHTS a tag of open_clip (downloaded) or a local file; or
            ``open_clip:local-dir:FOLDER`` (asks no network), ``open_clip:hf-hub:REPOSITORY``.
        image_size: side of other views than its own; see :mod:`cloc.models.positions.image_size`.

    Raises:
        FolderError: a folder or repository whose configuration holds more than an architecture and a tokenizer.
        ValueError: an unknown architecture or tag, no weights, or weights of another resolution or activation.
        FileNotFoundError: no such file.
    """
    import open_clip

    rest = name.removeprefix(PREFIX)
    architecture, _, weights = rest.partition(":")
    if architecture == "local-dir":
        check_folder(Path(weights))
    if architecture in ("local-dir", "hf-hub"):
        _check_configuration(rest)
        with open_clip_weights(rest):
            model = open_clip.create_model(rest, require_pretrained=True, weights_only=True)
        identity, title = rest, weights.rstrip("/").rpartition("/")[2]
    else:
        quick = check_named_weights(architecture, weights, name)
        custom = {"force_custom_text": True, "force_quick_gelu": quick, "weights_only": True}
        with open_clip_weights(architecture, weights):
            model = open_clip.create_model(architecture, pretrained=weights, require_pretrained=True, **custom)
        stem = Path(weights).name.rsplit(".", 1)[0] if Path(weights).is_file() else weights
        identity, title = architecture, f"{architecture}/{stem}"
    model = model.eval().requires_grad_(False)
    if hasattr(model, "text_decoder"):
        model.text_decoder = nn.Identity()  # of CoCa: it writes captions
    preprocess = open_clip.get_model_preprocess_cfg(model)
    width = _joint_dim(identity, model)
    own = _side(preprocess["size"])
    size = _resized(getattr(model.visual, "trunk", model.visual), own, image_size)
    image = _open_clip_image(model.visual, size, width, preprocess)
    if size != own:
        check_covered(image)
    text, tokenizer = _open_clip_text(model, _open_clip_tokenizer(identity), width)
    info = {"version": f"open_clip {open_clip.__version__}", "file": name, "samples_seen": 0}
    if identity == architecture:
        quick = quick or bool(open_clip.get_model_config(architecture).get("quick_gelu", False))
        info["activation"] = "quick_gelu" if quick else "gelu"
    return Foreign(Cloc(image, text), tokenizer, from_open_clip(preprocess), title, info)


def _resized(trunk: nn.Module, own: int, image_size: int | None) -> int:
    """Bring a trunk to the views that are asked for; returns their side."""
    if image_size in (None, own):
        return own
    resize_trunk(trunk, image_size)
    return image_size


def _check_configuration(identity: str) -> None:
    """Hold what a folder or repository says to an architecture and a tokenizer.

    The text tower of a repository may be another one's, which is fetched by the caller's word; its code is not run.
    """
    import open_clip

    schema, _, place = identity.partition(":")
    if schema == "local-dir":
        file = Path(place) / OPEN_CLIP_CONFIG
        stored = read_json(file).get("model_cfg", {})
        check_open_clip(stored, file)
        check_holds(trunk_weights(stored), file.parent, file)
        return
    with open_clip_weights(identity):
        config = open_clip.get_model_config(identity)
    check_open_clip(config, identity, hub=True)
    name = config.get("text_cfg", {}).get("hf_model_name")
    if name:
        from transformers import AutoConfig

        with (
            refusing_code(name),
            from_hub(f"{PREFIX}{identity}", name),
        ):  # open_clip opens it without saying that its code is not run
            AutoConfig.from_pretrained(name, **without_code(name))


def _open_clip_tokenizer(identity: str) -> Any:
    """open_clip's tokenizer of a model; of one that transformers reads, no code runs and a folder asks no network."""
    import open_clip

    with open_clip_weights(identity):
        config = open_clip.get_model_config(identity) or {}
    folder, name = identity.removeprefix("local-dir:"), config["text_cfg"].get("hf_tokenizer_name")
    repositories = [name] if name and folder == identity else []
    with refusing_code(identity), from_hub(f"the tokenizer of {PREFIX}{identity}", *repositories):
        return open_clip.get_tokenizer(identity, **without_code(folder) if name else {})


def check_named_weights(architecture: str, weights: str, name: str) -> bool:
    """Refuse what would give wrong numbers; return whether the weights need QuickGELU beyond the architecture's own."""
    import open_clip

    config = open_clip.get_model_config(architecture)
    if config is None:
        raise ValueError(f"{name}: {architecture!r} is not an open_clip architecture; open_clip.list_models() has all")
    quick = bool(config.get("quick_gelu", False))
    if not weights:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise ValueError(f"{name}: no weights are named; give {PREFIX}{architecture}:FILE or one of the tags {tags}")
    tag = open_clip.get_pretrained_cfg(architecture, weights)
    if tag:
        if quick and not tag.get("quick_gelu", False):
            raise ValueError(
                f"{name}: these weights were trained with GELU, the architecture has QuickGELU; use "
                f"{PREFIX}{architecture.removesuffix('-quickgelu')}:{weights}"
            )
        return bool(tag.get("quick_gelu", False))
    file = Path(weights).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"{name}: {weights!r} is neither a file nor a tag of {architecture}; its tags are "
            f"{open_clip.list_pretrained_tags_by_model(architecture)}"
        )
    check_file(file)
    if not quick and ("openai" in str(file).lower() or "quickgelu" in str(file).lower()):
        raise ValueError(
            f"{name}: by its name the file holds weights trained with QuickGELU, which {architecture} has not; use "
            f"{PREFIX}{architecture}-quickgelu:{weights}, or rename the file"
        )
    _check_resolution(file, config, name)
    return False


def _check_resolution(file: Path, config: dict[str, Any], name: str) -> None:
    """A table of positions for another resolution would be interpolated without a word."""
    vision = config["vision_cfg"]
    if file.suffix != ".safetensors" or not isinstance(vision.get("patch_size"), int):
        return
    table = read_state(file).get("visual.positional_embedding")
    wanted = (_side(vision["image_size"]) // vision["patch_size"]) ** 2 + 1
    if table is not None and len(table) != wanted:
        side = round((len(table) - 1) ** 0.5) * vision["patch_size"]
        raise ValueError(
            f"{name}: the weights are for {side} px, the architecture for {_side(vision['image_size'])} px; name the "
            "architecture that fits the weights"
        )


def _side(size: Any) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise ValueError(f"views of {tuple(size)} px are not square; cloc takes square views only")
    return sides.pop()


def _joint_dim(identity: str, model: Any) -> int:
    import open_clip

    schema, _, folder = identity.partition(":")
    if schema == "local-dir":
        return int(read_json(Path(folder) / OPEN_CLIP_CONFIG)["model_cfg"]["embed_dim"])
    if schema == "hf-hub":
        return int(model.text.output_dim if hasattr(model, "text") else model.text_projection.shape[1])
    return int(open_clip.get_model_config(identity)["embed_dim"])


def _open_clip_image(visual: nn.Module, size: int, width: int, preprocess: dict[str, Any]) -> ForeignImage:
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    kind: type[ForeignImage] = OpenClipImage
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type in ("tok", "avg"):
        kind = OpenClipViT
    elif isinstance(visual, TimmModel) and not hasattr(visual.head, "pool"):
        kind = OpenClipTimm
    return kind(visual, size, width, preprocess["mean"], preprocess["std"])


def _open_clip_text(model: Any, tokenizer: Any, width: int) -> tuple[TextTower, Any]:
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transformer import TextTransformer

    tower: Any = getattr(model, "text", None)
    plain = type(tokenizer) is SimpleTokenizer and tokenizer.clean_fn.__name__ == SimpleTokenizer().clean_fn.__name__
    causal = isinstance(tower, TextTransformer) and tower.cls_emb is None and tower.attn_mask is not None
    if plain and causal and tower.pool_type in ("argmax", "eos"):
        return TrimmedText(tower, width), Tokenizer("open_clip", tower.context_length)
    model.visual = nn.Identity()  # encode_text does not need it, and it must not be counted twice
    length = model.context_length
    text = PaddedText(model, _encode_text, length, width)
    encode = quicken(tokenizer) if isinstance(tokenizer, SimpleTokenizer) else tokenizer
    return _as_text_tower(text), FixedTokenizer(encode, length)


def _encode_text(model: Any, tokens: Tensor) -> Tensor:
    rows: Tensor = model.encode_text(tokens)
    return rows


def _as_text_tower(text: PaddedText | HuggingFaceJointText) -> TextTower:
    """A tower that says no ``vocab_size``: only training asks for it, and foreign models are not trained."""
    return cast(TextTower, text)


def load_folder(folder: Path, image_size: int | None = None) -> Foreign:
    """Load a folder of open_clip or of Hugging Face (CLIPModel, SiglipModel) by its own library.

    Args:
        folder: of the model.
        image_size: as for :func:`load_open_clip`.

    Raises:
        ValueError: a model or an image processor that is not known.
        FileNotFoundError: the folder lacks a file.
    """
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return load_open_clip(f"{PREFIX}local-dir:{folder}", image_size)
    return _load_hugging_face(folder, image_size)


def _load_hugging_face(folder: Path, image_size: int | None) -> Foreign:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{folder} needs transformers: pip install 'cloc-pretrain[transformers]'") from error
    check_hugging_face(folder)
    check_folder(folder)
    stored, kind = _processor(folder), KINDS[read_json(folder / HF_CONFIG)["model_type"]]
    safe = without_code(folder)
    config = getattr(transformers, f"{kind}Config").from_pretrained(folder, **safe)
    model = getattr(transformers, f"{kind}Model").from_pretrained(folder, config=config, dtype="float32", **safe)
    model = model.eval().requires_grad_(False)
    vision, siglip = model.config.vision_config, kind == "Siglip"
    own = vision.image_size
    preprocess = from_hugging_face(stored, own)
    size = _resized(model.vision_model, own, image_size)
    preprocess = replace(preprocess, short_side=round(preprocess.short_side * size / own))
    width = vision.hidden_size if siglip else model.config.projection_dim
    if siglip and not getattr(model.vision_model, "use_head", True):
        raise ValueError(f"{folder}: a SigLIP without pooling head has no embedding of a picture")
    projection = None if siglip else model.visual_projection
    mean, std = stored.get("image_mean", [0.5] * 3), stored.get("image_std", [0.5] * 3)
    image = HuggingFaceImage(model.vision_model, size, width, mean, std, projection)
    if size != own:
        check_covered(image)
    length = model.config.text_config.max_position_embeddings
    clean = siglip_cleaning(folder) if siglip else None
    tokenizer: Any = Tokenizer(str(folder.resolve()), length, clean)
    head = None if siglip else model.text_projection
    if siglip:  # trained on texts padded to the full length, without a mask
        tokenizer = FixedTokenizer(partial(_padded, tokenizer, length), length)
    text = HuggingFaceJointText(model.text_model, head, length, width)
    info = {"version": f"transformers {transformers.__version__}", "file": str(folder), "samples_seen": 0}
    info |= {"activation": vision.hidden_act, "texts": clean}
    return Foreign(Cloc(image, _as_text_tower(text)), tokenizer, preprocess, folder.resolve().name, info)


def _processor(folder: Path) -> dict[str, Any]:
    """The image processor's settings; newer releases of transformers keep them inside the whole processor's."""
    for name in PROCESSORS:
        if (folder / name).is_file():
            stored = read_json(folder / name)
            settings: dict[str, Any] = stored.get("image_processor", stored)
            return settings
    raise FileNotFoundError(f"{folder}: none of {PROCESSORS}, so it is not known how the model wants its pictures")


def _padded(tokenizer: Tokenizer, length: int, texts: list[str]) -> Tensor:
    rows = tokenizer(texts)
    return pad(rows, (0, length - rows.shape[1]), value=tokenizer.pad_id)
