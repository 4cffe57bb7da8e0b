"""A tokenizer of whole words for small data sets: a tiny model need not carry an embedding of 49,408 subwords.

Writes an ordinary Hugging Face tokenizer folder, which :class:`cloc.data.tokenizer.Tokenizer` takes by its path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cloc.files import into_folder

SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")  # ids 0 to 3


def write_word_tokenizer(texts: Iterable[str], folder: Path, limit: int = 4096) -> int:
    """Collect the words of some texts and write a tokenizer of them.

    Args:
        texts: captions and phrases.
        folder: where ``tokenizer.json`` and its configuration go.
        limit: at most so many words, the most common ones; the others become ``<unk>``.

    Returns:
        The number of token ids, special ones included.

    Raises:
        ImportError: the extra ``demo`` (which brings ``transformers``) is not installed.
    """
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise ImportError("a word tokenizer needs transformers: pip install 'cloc-pretrain[demo]'") from error
    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    # Ties by the word itself: the same texts give the same ids in any order.
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]
    words = [*SPECIAL, *(word for word, _ in ranked)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    )
    with into_folder(folder.parent, folder.name) as room:
        fast.save_pretrained(str(room))
    return len(words)
