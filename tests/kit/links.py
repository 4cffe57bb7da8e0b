"""Follows the links within a built site: ``python -m tests.kit.links FOLDER`` names those that lead nowhere."""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to and shows, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [link for name in ("href", "src") if (link := given.get(name))]
        self.anchors |= {value for value in (given.get("id"), given.get("name")) if value}


@cache
def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def broken_links(site: Path) -> list[str]:
    """Links of all pages to a file that is not there, or to an anchor that its page has not."""
    site, found = site.resolve(), []
    for path in sorted(site.rglob("*.html")):
        for link in dict.fromkeys(read(path).links):
            scheme, host, place, _, anchor = urlsplit(link)
            if scheme or host:
                continue
            target = (path.parent / unquote(place)).resolve() if place else path
            missing = not target.is_relative_to(site) or not target.exists()
            if not missing and anchor and target.suffix == ".html":
                missing = unquote(anchor) not in read(target).anchors
            if missing:
                found.append(f"{path.relative_to(site)}: {link}")
    return found


if __name__ == "__main__":
    broken = broken_links(Path(sys.argv[1]))
    sys.exit("\n".join([f"{len(broken)} links that lead nowhere:", *broken[:20]]) if broken else 0)
