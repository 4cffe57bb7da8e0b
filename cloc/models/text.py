"""Text towers: trimmed token ids → joint-space embedding (``image, text → prompter → grounding``).

Captions, region phrases and class names all pass through the same tower. Batches arrive trimmed to their longest text;
each tower here takes that without a change of its result, and a test proves it in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

from cloc.config.domains import ConfigError, Interval, OneOf, TextLength, Width
from cloc.data.downloads import from_hub
from cloc.data.tokenizer import CLEANINGS, refusing_code, without_code
from cloc.models.frozen import FrozenPart
from cloc.models.registration import registered
from cloc.models.trust.values import check_hugging_face
from cloc.models.weights.class_token import activation
from cloc.models.weights.digests import check_folder
from cloc.models.weights.files import TEXT_LENGTH
from cloc.models.weights.open_clip_towers import open_clip_tower
from cloc.models.weights.other_formats import reasons_of_clip_text

Cleaning = Annotated[str, OneOf(*CLEANINGS)]
WHENCE = ("_name_or_path", "transformers_version")  # of a configuration: says nothing of what an encoder makes
MEMORY = 400_000  # texts of a frozen encoder that are remembered: 600 MB at width 384


@registered("text")
class ClipText(nn.Module):
    """The text transformer of CLIP or SigLIP as open_clip builds it.

    CLIP's pools at the end-of-text token under a causal mask, so what follows that token changes nothing and trimming
    is exact, once the position table and the mask are cut to the text's length (open_clip's own ``encode_text`` does
    neither). SigLIP's looks at its padding: its texts are padded here to the whole length again.

    Args:
        joint_dim: D.
        name: open_clip architecture whose text configuration is taken.
        pretrained: None, an open_clip tag, a local file, or a folder of open_clip or of a Hugging Face CLIP or SigLIP
            (see :mod:`cloc.models.weights.pretrained`).
        quick_gelu: CLIP's approximate GELU.
        tokenizer: see :class:`cloc.data.tokenizer.Tokenizer`.
        context_length: longest text in tokens; positions of pretrained weights are stretched as Long-CLIP's, or cut.
            None for the weights' own number, or 77.
        options: overrides of open_clip's text configuration (``width``, ``heads``, ``layers``, ``vocab_size``, …).
        frozen: keep the whole tower as it is, projection included.
        clean: of texts, see :class:`cloc.data.tokenizer.Tokenizer`.

    Raises:
        ConfigError: a tower with a class token, whose place depends on the padding.
    """

    tower: Any  # open_clip's, which has no types
    tokenizer: str
    context_length: int
    joint_dim: int
    vocab_size: int
    frozen: bool

    def __init__(
        self,
        joint_dim: Width,
        name: str = "ViT-B-16",
        pretrained: Literal[False] | str | None = None,
        quick_gelu: bool = False,
        tokenizer: str = "open_clip",
        context_length: TextLength | None = None,
        options: Mapping[str, Any] | None = None,
        frozen: bool = False,
        clean: Cleaning | None = None,
    ) -> None:
        super().__init__()
        self.clean = clean
        self.tower = open_clip_tower(
            "text", name, joint_dim, pretrained or None, quick_gelu, None, dict(options or {}), context_length
        )
        if self.tower.cls_emb is not None:
            raise ConfigError(
                f"model.text.name={name!r}: text towers with a class token (CoCa's) are not supported; give "
                "ViT-B-16, or another"
            )
        self.tokenizer, self.context_length, self.joint_dim = tokenizer, self.tower.context_length, joint_dim
        self.vocab_size = self.tower.vocab_size
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> ClipText:
        """As usual, but a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    describes = ("folder", "tag")
    open_length = TEXT_LENGTH

    @property
    def activation(self) -> str:
        """Of its perceptrons, in the words of transformers."""
        return activation(self.tower.transformer.resblocks[0].mlp.gelu)

    def refuses(self, format: str) -> list[str]:
        """See :class:`cloc.models.protocols.Declares`."""
        return reasons_of_clip_text(self, format)

    @property
    def trims(self) -> bool:
        """Whether what follows a text changes nothing."""
        return self.tower.attn_mask is not None and self.tower.pool_type in ("argmax", "eos")

    def forward(self, *groups: Tensor) -> Tensor:
        """Embed texts, all in one pass.

        Args:
            groups: ``[T,L]`` token ids each, trimmed: a step's captions and its phrases, which are much shorter.

        Returns:
            ``[T,D]`` of all groups in their order, not yet of unit norm.
        """
        tower = self.tower
        if not self.trims:
            whole: Tensor = tower(torch.cat([_padded(tokens, self.context_length, tower.pad_id) for tokens in groups]))
            return whole
        rows = Rows(groups, len(tower.attn_mask))
        states = tower.token_embedding(rows.tokens) + embedding(rows.positions, tower.positional_embedding)
        mask = rows.mask(tower.attn_mask, tower.transformer.resblocks[0].attn.num_heads)
        states = tower.transformer(states, attn_mask=mask.to(states.dtype))
        # Without an id of its own, the end-of-text token is the highest.
        found = [torch.eq(t, tower.eos_id).int() if tower.pool_type == "eos" else t for t in groups]
        pooled = tower.ln_final(rows.pick(states, [one.argmax(-1) for one in found]))
        projection = tower.text_projection
        joint: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        return joint


class Rows:
    """Groups of texts laid out in rows that fit the longest: several short ones share a row, and none sees another.

    One pass instead of one a group: parameters are read once, and their gradients are written once. The layout follows
    from the groups' shapes alone, so nothing waits for the device.

    Args:
        groups: ``[T,L]`` token ids each.
        limit: length of the longest row.

    Attributes:
        tokens: ``[R,L]`` token ids of R rows.
        positions: ``[R,L]`` place of each token in its own text.
    """

    def __init__(self, groups: Sequence[Tensor], limit: int) -> None:
        self.widths = [tokens.shape[1] for tokens in groups]
        self.length = self._best_length([(tokens.shape[0], tokens.shape[1]) for tokens in groups], limit)
        self.shared = [self.length // width for width in self.widths]
        self.counts = [-(-tokens.shape[0] // share) for tokens, share in zip(groups, self.shared, strict=True)]
        device = groups[0].device
        rows, positions, places = [], [], []
        for tokens, share, count in zip(groups, self.shared, self.counts, strict=True):
            size, width = tokens.shape
            together = pad(tokens, (0, 0, 0, count * share - size)).view(count, share * width)
            rows.append(pad(together, (0, self.length - share * width)))
            place = torch.arange(self.length, device=device)
            places.append((place // width).expand(count, -1))
            positions.append((place % width).expand(count, -1))
        self.tokens, self.positions, self._text = torch.cat(rows), torch.cat(positions), torch.cat(places)

    @staticmethod
    def _best_length(shapes: Sequence[tuple[int, int]], limit: int) -> int:
        """The length of a row: that of the longest text, or a bit more where that saves a tenth of all tokens.

        Captions of 20 and phrases of 11 tokens: in rows of 20 each phrase would need one of its own, in rows of 22 two
        share one.
        """
        longest = max(width for _, width in shapes)
        if len(shapes) == 1:
            return longest
        lengths = {longest, *(width * -(-longest // width) for _, width in shapes)}
        tokens = {
            length: length * sum(-(-count // (length // width)) for count, width in shapes)
            for length in sorted(lengths)
            if length == longest or length <= limit
        }
        best = min(tokens, key=lambda length: tokens[length])
        return best if tokens[best] < 0.9 * tokens[longest] else longest

    def mask(self, causal: Tensor, heads: int) -> Tensor:
        """What is added to the attention: the causal mask, and -inf between texts.

        Returns:
            ``[L,L]``, or ``[R·heads,L,L]`` where texts share rows.
        """
        causal = causal[: self.length, : self.length]
        if max(self.shared) == 1:
            return causal
        apart = self._text[:, :, None] != self._text[:, None, :]
        return causal.expand(len(apart), -1, -1).masked_fill(apart, -torch.inf).repeat_interleave(heads, 0)

    def pick(self, states: Tensor, ends: Sequence[Tensor]) -> Tensor:
        """States ``[R,L,C]`` and each group's end-of-text places ``[T]`` → ``[T,C]``, in the groups' order."""
        found, first = [], 0
        for end, share, width, count in zip(ends, self.shared, self.widths, self.counts, strict=True):
            text = torch.arange(end.shape[0], device=end.device)
            found.append((first + text // share) * self.length + text % share * width + end)
            first += count
        return states.flatten(0, 1)[torch.cat(found)]


def _most_positions(tower: nn.Module) -> int | None:
    """Longest text of a Hugging Face encoder; None where its positions are relative."""
    for name, table in tower.named_modules():
        if name.endswith(("position_embeddings", "position_embedding", "wpe")) and isinstance(table, nn.Embedding):
            # RoBERTa and its kin begin to count behind the id of the padding.
            return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return None


def _padded(tokens: Tensor, length: int, value: int) -> Tensor:
    return pad(tokens, (0, length - tokens.shape[1]), value=value)


@registered("text")
class HuggingFaceText(nn.Module):
    """Any Hugging Face text encoder, mean-pooled over its unmasked tokens, with a projection to the joint space.

    Args:
        joint_dim: D.
        name: folder or hub name; no Python file of either is run.
        pretrained: load the weights too; False builds the architecture alone.
        frozen: keep the encoder as it is and train the projection only.
        hidden: width of a hidden layer in the projection; 0 for a linear one.
        tokenizer: folder or hub name; None takes ``name``.
        context_length: longest text in tokens.

    Padding is attention-masked, so trimming is exact. A frozen encoder is asked once for each distinct text: its pooled
    states are remembered (up to ``MEMORY`` texts), and later steps pay for the projection alone.

    Raises:
        FileNotFoundError: ``name`` looks like a path and is not there.
        ConfigError: longer texts than the encoder has positions.
    """

    def __init__(
        self,
        joint_dim: Width,
        name: str,
        pretrained: bool = True,
        frozen: bool = False,
        hidden: Annotated[int, Interval(0, 2**16)] = 0,
        tokenizer: str | None = None,
        context_length: TextLength = 77,
    ) -> None:
        super().__init__()
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise FileNotFoundError(f"model.text.name={name!r}: no such folder")
        from transformers import AutoConfig, AutoModel

        folder = Path(name).expanduser()
        if folder.is_dir():
            check_hugging_face(folder)
            check_folder(folder)
        self.tower: Any  # of a class of transformers
        safe = without_code(folder)
        with refusing_code(name), from_hub(f"model.text.name={name!r}", folder):
            config = AutoConfig.from_pretrained(str(folder), **safe)
            if pretrained:
                self.tower = AutoModel.from_pretrained(str(folder), config=config, dtype=torch.float32, **safe)
            else:
                self.tower = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
        if hasattr(self.tower, "encoder") and getattr(self.tower.config, "is_encoder_decoder", False):
            self.tower = self.tower.encoder
        if getattr(self.tower, "pooler", None) is not None:
            self.tower.pooler = None  # unused: parameters that take no part would stop distributed training
        width = self.tower.config.hidden_size
        self.proj: nn.Module
        if hidden:
            self.proj = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, joint_dim))
        else:
            self.proj = nn.Linear(width, joint_dim, bias=False)
        self.frozen = frozen
        self._memory: dict[bytes, Tensor] = {}
        if frozen:
            self.tower.requires_grad_(False)
            self.tower.eval()
        self.tokenizer, self.context_length, self.joint_dim = tokenizer or name, context_length, joint_dim
        self.pad_id = self.tower.config.pad_token_id or 0
        most = _most_positions(self.tower)
        if most is not None and context_length > most:
            raise ConfigError(
                f"model.text.context_length={context_length}: {name} has {most} positions; give at most {most}"
            )
        self.vocab_size = self.tower.config.vocab_size

    def refuses(self, format: str) -> list[str]:
        """See :class:`cloc.models.protocols.Declares`."""
        reasons = {
            "hf": "the text tower is HuggingFaceText and not CLIP's transformer",
            "open_clip": "the text tower is HuggingFaceText, which open_clip builds by a hub name, not from a folder",
        }
        return [reasons[format]] if format in reasons else []

    @property
    def architecture(self) -> Any:
        """The encoder's configuration, without which its weights cannot be loaded."""
        return self.tower.config

    def forward(self, *groups: Tensor) -> Tensor:
        """Groups of ``[T,L]`` token ids → ``[T,D]`` of all in their order, not yet of unit norm."""
        pool = self._remembered if self.frozen else self._pooled
        joint: Tensor = self.proj(torch.cat([pool(tokens) for tokens in groups]))
        return joint

    def frozen_part(self) -> FrozenPart | None:
        """The pooled states of a frozen encoder, float32."""
        config = {key: value for key, value in self.tower.config.to_dict().items() if key not in WHENCE}
        facts = f"{self.pad_id} {sorted(config.items())}"
        return FrozenPart(self.tower, self._encoded, self.proj, facts) if self.frozen else None

    def _encoded(self, tokens: Tensor) -> Tensor:
        return self._pooled(tokens).to(self.tower.dtype)

    def _pooled(self, tokens: Tensor) -> Tensor:
        mask = tokens != self.pad_id
        states = self.tower(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        pooled: Tensor = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        return pooled

    @torch.no_grad()
    def _remembered(self, tokens: Tensor) -> Tensor:
        """Pooled states ``[T,H]``; only texts that were not seen before pass through the encoder."""
        rows = tokens.cpu().numpy()
        keys = [row[row != self.pad_id].tobytes() for row in rows]
        states = {key: self._memory.get(key) for key in keys}  # a copy: other threads may drop what is old meanwhile
        new = [i for i, key in enumerate(keys) if states[key] is None]
        if new:
            # Sorted by length and in small groups: unseen texts are not padded to the longest of the batch.
            new.sort(key=lambda i: len(keys[i]))
            for start in range(0, len(new), 128):
                group = new[start : start + 128]
                length = max(1, max(len(keys[i]) for i in group) // rows.itemsize)
                for i, state in zip(group, self._pooled(tokens[group, :length]).float().cpu(), strict=True):
                    self._memory[keys[i]] = states[keys[i]] = state
        if len(self._memory) > MEMORY:
            for old in list(self._memory)[: len(self._memory) - MEMORY]:
                self._memory.pop(old, None)
        return torch.stack([state for key in keys if (state := states[key]) is not None]).to(
            tokens.device, self.tower.dtype
        )

    def train(self, mode: bool = True) -> HuggingFaceText:
        """As usual, but a frozen encoder stays in evaluation mode (no dropout)."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
        return self
