"""What a file of others may say of an architecture: plain numbers, flags and short words. Below ``trust``.

Libraries build more from a configuration than a model: ``auto_map`` names Python files, ``hf_model_name`` and
``attn_implementation`` fetch from a hub, ``checkpoint_path`` unpickles. So the files of others are held to what a tower
needs before a library sees them, and nothing in them reaches a path, a URL or a hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloc import __version__
from cloc.config import ConfigError
from cloc.models.sanity import SanityError
from cloc.models.weights.digests import DamageError, check_file

OPEN_CLIP_CONFIG, HF_CONFIG = "open_clip_config.json", "config.json"
WORD = re.compile(r"[\w.+-]{0,100}", re.ASCII)  # a name of an architecture, an activation, a way to pool
# Fields of open_clip's CLIPVisionCfg, CLIPTextCfg and MultimodalCfg that describe an architecture.
_BLOCK = {
    *("layers", "width", "mlp_ratio", "ls_init_value", "act_kwargs", "norm_kwargs", "pool_type", "final_ln_after_pool"),
    *("block_type", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"),
    "output_tokens",
}
VISION_OPTIONS = _BLOCK | {
    *("head_width", "patch_size", "image_size", "patch_dropout", "attentional_pool", "attn_pooler_queries"),
    *("attn_pooler_heads", "no_ln_pre", "pos_embed_type"),
}
TEXT_OPTIONS = _BLOCK | {
    *("heads", "context_length", "vocab_size", "embed_cls", "pad_id", "eos_id", "no_causal_mask"),
    *("proj_type", "proj_bias"),
}
TIMM_OPTIONS = {"timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias"}
TIMM_OPTIONS |= {"timm_drop", "timm_drop_path"}
_TOKENIZER = {"hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"}
OPEN_CLIP_SECTIONS = {
    "vision_cfg": VISION_OPTIONS | TIMM_OPTIONS,
    "text_cfg": TEXT_OPTIONS | _TOKENIZER | {"hf_model_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"},
    "multimodal_cfg": TEXT_OPTIONS | {"dim_head", "n_queries", "attn_pooler_queries", "attn_pooler_heads"},
}
OPEN_CLIP_TOP = {
    *("embed_dim", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"),
    *("output_dict", "pad_id"),
}
TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language", "additional_special_tokens", "reduction_mask"}
# In transformers' configurations: what would fetch another model, or choose how weights are turned into code.
_FETCHES = ("backbone", "quantization_config", "adapter_config")


# The most that a file of others may say, by the last part of a key; more than any published model has.
_MOST = (
    ({"layers", "depth", "depths", "num_hidden_layers", "num_layers", "n_layers", "adapter_depth"}, 1000),
    ({"context_length"}, 2**14),  # a causal tower has a mask of its square
    ({"image_size", "img_size"}, 2**12),
)
_LARGEST = 2**24
_OWN = {"vision_cfg": {"width": 768, "layers": 12}, "text_cfg": {"width": 512, "layers": 12}}  # open_clip's defaults
_WIDTHS, _DEPTHS = ("width", "hidden_size", "embed_dim"), ("depth", "num_hidden_layers", "layers")
_COUNTED = ("vocab_size", "context_length", "max_position_embeddings", "n_queries", "attn_pooler_queries")
_ROWS = (*_COUNTED, "intermediate_size")
_JOINT = ("joint_dim", "projection_dim")
_LEAST_WIDTH = 64
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


class FolderError(ValueError):
    """A file of others that says more than an architecture; names the file, the key, its value and the remedy."""


@contextmanager
def building(source: str | Path, written: str = "") -> Iterator[None]:
    """While a model of others is built: whatever a library raises becomes a line that names the file.

    Where a count is a text, or negative, a constructor raises what it happens to run into.

    Args:
        source: file or folder of the model.
        written: by which version, for the message.

    Raises:
        ValueError: the values build no model, or the weights are another's. A ConfigError stays one.
    """
    try:
        yield
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        told = isinstance(error, FolderError | DamageError) or (
            isinstance(error, ValueError) and str(source) in str(error)
        )
        if told:
            raise
        if isinstance(error, SanityError):
            raise ValueError(f"{source}: {error}") from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[min(len(lines), 2) - 1] if lines else ""  # of PyTorch's lists, the first entry
        named = "" if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: "
        kind = ConfigError if isinstance(error, ConfigError) else ValueError
        raise kind(
            f"{source}: its weights and configuration do not fit this version; {written}this is {__version__}. "
            f"{named}{reason[:300]}"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """Content of a JSON file.

    Raises:
        ValueError: it is damaged.
    """
    check_file(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); export or download the model again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: holds a {type(found).__name__}, not an object; export or download the model again")
    return found


def check_plain(value: Any, key: str, source: Any, texts: bool = False) -> None:
    """Hold a value to numbers, flags, short words, and lists and objects of them.

    Args:
        value: of a stored configuration.
        key: its name, for messages.
        source: the file, for messages.
        texts: any text may stand there, for a class whose code the caller trusts.

    Raises:
        FolderError: another value; a path, a URL, and an object with a ``_target_`` of its own among them.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == "_target_":
                raise FolderError(f"{source}: {key}._target_={inner!r}: an argument of a part names no class")
            check_plain(inner, f"{key}.{name}", source, texts)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner, key, source, texts)
    elif isinstance(value, int | float):
        check_size(value, key, source)
    elif value is not None and not (texts or is_word(value)):
        raise FolderError(
            f"{source}: {key}={str(value)[:100]!r}: a file of others holds numbers, flags and short words here, no "
            "path, URL or code"
        )


def check_size(value: float, key: str, source: Any) -> None:
    """Hold a number to what an architecture can have, before anything is built from it.

    At most 1000 layers, texts of 16,384 tokens, views of 4096 px, and 2**24 (the largest vocabularies have 2**18) of
    anything else; no number is infinite or NaN.

    Raises:
        FolderError: a larger one; names the key.
    """
    if not abs(value) <= most(key):
        raise FolderError(
            f"{source}: {key}={str(value)[:40]}: no architecture has that; a file of others may say at most "
            f"{most(key):,} here; export or download the model again"
        )


def most(key: str) -> int:
    """The largest number that an architecture can have under a key, by its last part."""
    name = key.rpartition(".")[2]
    return next((limit for names, limit in _MOST if name in names), _LARGEST)


def check_room(config: Mapping[str, Any], held: Path | int | None, source: Any) -> None:
    """Refuse a description of a model that needs far more weights than its file holds, before anything is built.

    Of each part only the obvious matrices are counted, fewer numbers than any transformer of that size has: a square of
    the width for each layer (times ``mlp_ratio`` where it is larger than 1), and a row of that width for each token,
    position and query. They are compared with the bytes of the file, as if a number took one byte. So no real model is
    near the limit, and what passes can be built in a few times the memory of its file.

    Args:
        config: parts of the model within each other, with a joint width of ``joint_dim`` or ``projection_dim``.
        held: bytes of the weights, or the folder of their files; where there is none, nothing is compared.
        source: the file, for the message.

    Raises:
        FolderError: the file is too small.
        DamageError: it is, and it is not what its checksum says.
    """
    check_holds(fewest_weights(config, max(_count(config.get(name)) for name in _JOINT)), held, source)


def check_holds(needed: int, held: Path | int | None, source: Any) -> None:
    """Refuse a model of so many weights, at least, whose file has fewer bytes than that.

    Args:
        needed: number of weights.
        held: as for :func:`check_room`, and so are ``source`` and what is raised.
        source: the file, for the message.
    """
    files = [file for file in held.iterdir() if file.suffix in _WEIGHTS] if isinstance(held, Path) else []
    size = (sum(file.stat().st_size for file in files) or None) if isinstance(held, Path) else held
    if size is not None and needed > size:
        for file in files:
            check_file(file)
        raise FolderError(
            f"{source}: its configuration describes at least {needed:,} weights, its weight file has {size:,} bytes; "
            "one of them is another model's: export or download the model again"
        )


def fewest_weights(config: Mapping[str, Any], joint: int) -> int:
    """Fewest numbers that the weights of a part, and of the parts in it, have, by :func:`check_room`'s count.

    Args:
        config: of the part, with parts within each other.
        joint: D.
    """
    widths, depths, rows = ([_count(config.get(name)) for name in names] for names in (_WIDTHS, _DEPTHS, _ROWS))
    width = max(widths) or (_LEAST_WIDTH if max(depths) else 0)
    own = max(1, *depths) * width * width * max(1, _count(config.get("mlp_ratio"))) + (sum(rows) + joint) * width
    side, patch = _count(config.get("image_size")), _count(config.get("patch_size"))
    own += (side // patch) ** 2 * width if patch else 0
    return own + sum(fewest_weights(inner, joint) for inner in config.values() if isinstance(inner, Mapping))


def _count(value: Any) -> int:
    """A positive number; the largest of a list, as of the stages of a backbone. 0 for what is none."""
    if isinstance(value, list | tuple):
        return max(map(_count, value), default=0)
    return int(value) if isinstance(value, int | float) and 0 < value <= _LARGEST else 0


def is_word(value: Any) -> bool:
    """Whether a value is a short word, such as the name of an architecture."""
    return isinstance(value, str) and WORD.fullmatch(value) is not None


def check_options(options: Any, allowed: Collection[str], key: str, source: Any) -> None:
    """Hold the options of a tower to its architecture.

    Raises:
        FolderError: an option that is not one of the architecture, or a value that is not plain; names the key.
    """
    for name, value in as_object(options, key, source).items():
        if name not in allowed:
            raise FolderError(
                f"{source}: {key}.{name}={str(value)[:100]!r}: not an option of the architecture, so a file of others "
                "cannot set it"
            )
        check_plain(value, f"{key}.{name}", source)


def as_object(value: Any, key: str, source: Any) -> dict[str, Any]:
    """A stored value that must have keys.

    Raises:
        FolderError: it has none.
    """
    if not isinstance(value, Mapping):
        raise FolderError(f"{source}: {key}={str(value)[:100]!r}: must be an object of keys and values")
    return dict(value)


def check_open_clip(config: Any, source: Any, hub: bool = False) -> None:
    """Hold open_clip's ``model_cfg`` to an architecture and a tokenizer that lies beside it.

    Args:
        config: ``model_cfg`` of an ``open_clip_config.json``.
        source: its file, for messages.
        hub: the caller named a repository of a hub, so its text tower may be another repository's.

    Raises:
        FolderError: a key that would run code, or ask the network.
    """
    rest = as_object(config, "model_cfg", source)
    for name in OPEN_CLIP_SECTIONS.keys() & rest.keys():
        _check_section(rest.pop(name), name, source, hub)
    check_options(rest, OPEN_CLIP_TOP, "model_cfg", source)
    if isinstance(source, Path):
        towers = {name: config[name] for name in OPEN_CLIP_SECTIONS if name in config}
        for name, section in towers.items():
            if not section.get("timm_model_name"):  # whose sizes are its own
                towers[name] = {**_OWN.get(name, {}), **section}
        check_room({"joint_dim": config.get("embed_dim"), **towers}, source.parent, source)


def _check_section(section: Any, name: str, source: Any, hub: bool) -> None:
    key = f"model_cfg.{name}"
    rest = as_object(section, key, source)
    check_options(rest.pop("tokenizer_kwargs", None) or {}, TOKENIZER_OPTIONS, f"{key}.tokenizer_kwargs", source)
    rest.pop("hf_tokenizer_name", None)  # only says that there is one: a folder's is the one that lies in it
    fetched = rest.pop("hf_model_name", None)
    if fetched and not hub:
        raise FolderError(
            f"{source}: {key}.hf_model_name={str(fetched)[:100]!r} is fetched from a hub, and a folder asks no "
            "network; name the repository: open_clip:hf-hub:OWNER/NAME"
        )
    check_options(rest, OPEN_CLIP_SECTIONS[name], key, source)


def check_hugging_face(folder: Path) -> None:
    """Hold the ``config.json`` of a folder to what transformers builds without another file or repository.

    Raises:
        FolderError: a key that would fetch a model or code from a hub, or an adapter in place of a model.
    """

    def check(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name in _FETCHES and inner:
                    raise FolderError(f"{folder / HF_CONFIG}: {key}{name}={str(inner)[:100]!r}: {_WHY}")
                if "attn_implementation" in name or "experts_implementation" in name:
                    check_plain(inner, f"{key}{name}", folder / HF_CONFIG)  # a name with a slash is code of a hub
                check(inner, f"{key}{name}.")
        elif isinstance(value, int | float):
            check_size(value, key.rstrip("."), folder / HF_CONFIG)
        elif isinstance(value, list):
            for inner in value:
                check(inner, key)

    if (folder / "adapter_config.json").is_file():
        raise FolderError(f"{folder}: an adapter, which names its model on a hub; merge it into the model first")
    config = read_json(folder / HF_CONFIG)
    check(config, "")
    check_room(config, folder, folder / HF_CONFIG)


_WHY = "it would fetch from a hub or choose code, and a folder does neither; give a plain text encoder or CLIP"
