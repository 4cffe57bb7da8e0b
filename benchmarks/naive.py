"""CLOC as one would write it down first: the reference that ``benchmarks.step`` measures against.

Every text is padded to the context length, every region's phrase is encoded anew, the Prompter runs once for each box
and once for each phrase, and each loss builds its whole matrix. A test holds that its loss is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, pad

from cloc.contracts import Batch
from cloc.models.model import Cloc


def padded(tokens: Tensor, length: int, pad_id: int) -> Tensor:
    """``[T,L]`` → ``[T,length]``."""
    return pad(tokens, (0, length - tokens.shape[1]), value=pad_id)


def naive_loss(model: Cloc, batch: Batch, pad_id: int = 0) -> Tensor:
    """``L_CLIP + λ (L_CLOC + L_grounding)`` of one process, all weights one, with the exact conflict rule.

    Args:
        model: with a Prompter that takes phrases, and a grounding head.
        batch: its phrases are spread out to one for each region again.
        pad_id: what texts are filled up with.
    """
    length = model.text.context_length
    image = model.encode_images(batch.images)
    text = model.encode_texts(padded(batch.captions, length, pad_id))
    phrases = padded(batch.phrases, length, pad_id)[batch.region_phrase]  # [B,M,77]
    regions, texts, boxes = [], [], []
    for slot in range(batch.boxes.shape[1]):
        memory = model.prompter.memory(image.tokens)
        regions.append(normalize(model.prompter.boxes(memory, batch.boxes[:, slot : slot + 1]).float(), dim=-1))
        texts.append(model.encode_texts(phrases[:, slot]).unsqueeze(1))
        boxes.append(
            model._ground(model.prompter, model.grounding, model.prompter.memory(image.tokens), texts[-1], image.tokens)
        )
    scales = model.scales()
    clip = contrast(image.pooled, text, batch.caption_id, scales["global"])
    valid = batch.region_valid
    factor = valid.any(1).float().mean()
    if not valid.any():
        return clip
    region, phrase = torch.cat(regions, 1)[valid], torch.cat(texts, 1)[valid]
    local = contrast(region, phrase, batch.phrase_id[batch.region_phrase][valid], scales["region"])
    alone = valid & ~batch.phrase_is_shared
    distance = (torch.cat(boxes, 1) - batch.boxes).square().mean(-1)[alone]
    return clip + factor * (local + distance.sum() / alone.sum().clamp(min=1))


def contrast(rows: Tensor, columns: Tensor, ids: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over the whole matrix; other pairs of the same text leave the denominators."""
    logits = scale * rows.float() @ columns.float().T
    same = ids.unsqueeze(1) == ids.unsqueeze(0)
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, float("-inf"))
    target = torch.arange(len(rows), device=rows.device)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
