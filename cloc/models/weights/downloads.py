"""What timm and open_clip fetch by name, and from where: for :mod:`cloc.data.downloads`, which says what cannot be had.

Serves the towers (``timm_backbone``, ``open_clip_towers``) and whole models of others (``foreign``).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch

from cloc.data.downloads import from_hub, from_url

_HUB = ("hf-hub:", "hf_hub:")
_OPEN_CLIP_CACHE = "~/.cache/clip"


def timm_weights(name: str, pretrained: bool) -> AbstractContextManager[None]:
    """While timm builds a model: with ``pretrained`` its weights are fetched, by a name of a hub the rest too.

    Args:
        name: of ``timm.create_model``.
        pretrained: with its weights.

    Raises:
        DownloadError: on leaving; they are neither here nor to be had.
    """
    what = f"model.image.name={name!r}"
    if name.startswith(_HUB):
        return from_hub(what, name.partition(":")[2].partition("@")[0])
    found: Any = timm.get_pretrained_cfg(name) if pretrained and timm.is_model(name) else None
    if found is None:
        return nullcontext()
    if found.hf_hub_id:
        return from_hub(f"{what} with its weights", found.hf_hub_id.partition("@")[0])
    return from_url(f"{what} with its weights", found.url, _torch_hub(found.url)) if found.url else nullcontext()


def _torch_hub(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name


def open_clip_weights(name: str, weights: str | None = None) -> AbstractContextManager[None]:
    """While open_clip builds a model: the weights of its tag are fetched, and what another library's text tower needs.

    Args:
        name: an architecture, or ``hf-hub:OWNER/NAME``.
        weights: tag or local file.

    Raises:
        DownloadError: on leaving; they are neither here nor to be had.
    """
    import open_clip

    if name.startswith(_HUB):
        return from_hub(f"open_clip:{name}", name.partition(":")[2].partition("@")[0])
    known = open_clip.get_pretrained_cfg(name, weights) if weights else {}
    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    others = [text["hf_model_name"]] if text.get("hf_model_name") else []
    what = f"open_clip's {name} with the weights {weights}"
    if known.get("hf_hub"):  # the name of a file, which may be empty, follows the repository's
        return from_hub(what, known["hf_hub"].rpartition("/")[0], *others)
    if known.get("url"):
        url = known["url"]
        return from_url(what, url, Path(_OPEN_CLIP_CACHE).expanduser() / url.rpartition("/")[2])
    return from_hub(what, *others)
