"""``python -m cloc search``: what an index that ``embed`` wrote has that is like a text, a picture or a box."""

from cloc.evaluation.search.finding import Finder, Hit
from cloc.evaluation.search.index import Index
from cloc.evaluation.search.job import Options, search
from cloc.evaluation.search.queries import Query, parse_box

__all__ = ["Finder", "Hit", "Index", "Options", "Query", "parse_box", "search"]
