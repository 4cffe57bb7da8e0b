"""What may be shown and stored of URLs: neither user name, password, token nor signature.

:func:`public` is the one place that decides it. Whatever prints or stores a URL passes it; errors that name URLs pass
their message themselves, and :func:`guard_output` is the net under all that other libraries print. The secrets stay in
memory: a resumed run takes them from its command line again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

HIDDEN = "***"
SECRET_KEYS = frozenset(
    ("password", "passwd", "secret", "token", "api_key", "apikey", "access_key", "secret_key", "session_token")
    + ("access_token", "auth_token", "hf_token", "authorization", "credentials")
)
"""Keys of a configuration whose texts are secrets themselves."""

# A path takes the second slash from a URL.
_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.\-]+://|\b(?:https?|ftp|s3|gs):/)[^\s'\"<>`]*")
_USER = re.compile(r"(:/{1,2})[^/?#]*@")
# Passwords with a slash that nobody escaped: a colon, and behind it no port.
_RAW_USER = re.compile(r"(:/{1,2})[^/?#@\[\]]+:(?!\d{1,5}(?:[/?#]|$)).*@")
# Not credentials: containers, and revisions of repositories.
_NAMED = re.compile(r"(?:abfss?|wasbs?|adl|az|hf)://[^/:?#]*@", re.IGNORECASE)
_VALUE = re.compile(r"([?&;#][^=&;#?]*=)[^&;#]*?(?=[:,.)\]}]*(?:[&;#]|$))")
_BARE_QUERY = re.compile(r"(?<=[?])[^=&;#]+?(?=[:,.)\]}]*(?:[&;#]|$))")
_HEADER = re.compile(
    r"(?i)((?:proxy-)?authorization|(?:set-)?cookie|x-amz-security-token|x-api-key|private-token)(['\"]?\s*[:=]\s*|['\"]\s*,\s*)"
    r"('[^']*'|\"[^\"]*\"|(?:basic|bearer|digest|token)\s+[^\s,'\"]+|[^\s,'\")}]+)"
)


def public(text: str) -> str:
    """Return a text with the credentials in its URLs, and those of HTTP headers, left out.

    User names and passwords vanish; of a query the names stay: ``https://me:pw@host/set?sig=abc`` becomes
    ``https://host/set?sig=***``. Applied twice it changes nothing.
    """
    if ":/" not in text and not _HEADER.search(text):
        return text
    return _HEADER.sub(rf"\1\2{HIDDEN}", _URL.sub(lambda found: _public_url(found[0]), text))


def _public_url(url: str) -> str:
    if not _NAMED.match(url):
        url = _RAW_USER.sub(r"\1", _USER.sub(r"\1", url))
    start = re.search(r"[?#]", url)
    if start is None:
        return url
    path, query = url[: start.start()], url[start.start() :]
    if url.lower().startswith("http"):  # a question mark is an ordinary letter in the names of object stores
        query = _BARE_QUERY.sub(HIDDEN, query)
    return path + _VALUE.sub(rf"\1{HIDDEN}", query)


def public_tree(node: Any) -> Any:
    """Copy plain containers with every text made :func:`public`, and what stands under a secret's name hidden."""
    if isinstance(node, Mapping):
        return {key: HIDDEN if _is_secret(key, value) else public_tree(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(public_tree(value) for value in node)
    if isinstance(node, str) and "://" in node:
        # A whole value is one URL, whatever letters its password has.
        node = re.sub(r"(?<=://)[^/?#]*[\s'\"<>`][^/?#]*@", "", node)
    return public(node) if isinstance(node, str) else node


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and str(key).lower() in SECRET_KEYS


class _PublicStream:
    """A text stream that passes on what is :func:`public`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(public(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_output() -> None:
    """Keep credentials out of all that this process prints: tracebacks, libraries that repeat the command line.

    For programs, at their start and until their end: what ends a program is printed last.
    """
    sys.stdout, sys.stderr = _PublicStream(sys.stdout), _PublicStream(sys.stderr)
