"""open_clip's byte-pair encoding without its quadratic time in the length of a word (serves ``tokenizer``)."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

SHORT = 64  # bytes of a word up to which open_clip's own loop, with its cache, is faster


def quicken(tokenizer: SimpleTokenizer) -> SimpleTokenizer:
    """Let a tokenizer of open_clip encode long words in time n log n, to the same ids; returns it."""
    tokenizer.bpe = partial(_encode_word, tokenizer, tokenizer.bpe)
    return tokenizer


def _encode_word(tokenizer: SimpleTokenizer, plain: Callable[[str], str], word: str) -> str:
    if len(word) <= SHORT:
        return plain(word)
    return " ".join(merge([*word[:-1], f"{word[-1]}</w>"], tokenizer.bpe_ranks))


def merge(symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Merge neighbors, the pair of the lowest rank first, wherever it stands, from left to right.

    Args:
        symbols: of one word; changed.
        ranks: of the pairs that may be merged.
    """
    count = len(symbols)
    before, after = list(range(-1, count - 1)), list(range(1, count + 1))
    waiting: list[tuple[int, int, tuple[str, str]]] = []

    def look(left: int, found: list[tuple[int, int, tuple[str, str]]]) -> None:
        if left >= 0 and after[left] < count:
            pair = symbols[left], symbols[after[left]]
            if pair in ranks:
                found.append((ranks[pair], left, pair))

    for left in range(count - 1):
        look(left, waiting)
    heapq.heapify(waiting)
    while waiting:
        rank = waiting[0][0]
        made: list[tuple[int, int, tuple[str, str]]] = []
        while waiting and waiting[0][0] == rank:  # a pair that this makes waits, even if its own rank is lower
            _, left, pair = heapq.heappop(waiting)
            right = after[left]
            if right >= count or (symbols[left], symbols[right]) != pair:
                continue  # one of the two is part of something longer
            symbols[left], symbols[right] = pair[0] + pair[1], ""
            after[left] = after[right]
            if after[left] < count:
                before[after[left]] = left
            look(before[left], made)
            look(left, made)
        for entry in made:
            heapq.heappush(waiting, entry)
    return [symbol for symbol in symbols if symbol]
