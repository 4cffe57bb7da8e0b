"""``python -m cloc embed``: embeddings of pictures, boxes and texts as files, for searching one's own data."""

from cloc.evaluation.embed.inputs import EmbedInput, open_source
from cloc.evaluation.embed.job import embed
from cloc.evaluation.embed.regions import RegionChoice

__all__ = ["EmbedInput", "RegionChoice", "embed", "open_source"]
