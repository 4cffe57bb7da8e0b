"""The one way to what a library downloads: where it cannot be had, that is told within seconds, in a line.

Libraries try again for a minute where nothing answers, and end with a page of their own frames. Here a server is looked
for first; where there is none, what lies in the library's cache is taken, and for what does not the command is named
that brings it. Serves the tokenizer, and the weights and configurations of ``models``.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE = 5.0  # seconds for a server to be found, names and proxies included
_ATTEMPT = 2.0  # for one of its addresses
_KNOWN = 60.0  # for which an answer holds
_PORTS = {"http": 80, "https": 443}
_LIBRARIES = (
    "httpx",
    "httpcore",
    "requests",
    "urllib3",
    "huggingface_hub",
    "urllib",
)  # whose errors are those of a network
_LOG_IN = "correct the name, or `hf auth login` where it is private"
_ABSENT = {  # errors of the hub's library that no network mends
    "RepositoryNotFoundError": ("the hub has no such repository", _LOG_IN),
    "GatedRepoError": ("its owner asks who reads it", "ask for it on its page, then `hf auth login`"),
    **dict.fromkeys(
        ("RemoteEntryNotFoundError", "EntryNotFoundError"),
        ("the repository lacks a file that is needed", "name one that the library reads"),
    ),
}
_answers: dict[str, tuple[float, str | None]] = {}
_met: set[str] = set()  # servers that have answered
_one_offline = threading.RLock()  # the hub's library has one switch for all threads


class DownloadError(OSError):
    """What is not here cannot be fetched; says what, from where, why, and the command that brings it."""


@contextmanager
def from_hub(what: str, *repositories: str | Path) -> Iterator[None]:
    """While a library reads repositories of the Hugging Face hub, from its cache or its server.

    Args:
        what: names them, in an error.
        repositories: ``OWNER/NAME`` each; a folder that is here asks nobody.

    Raises:
        DownloadError: one is neither here nor to be had.
    """
    wanted = [str(one) for one in repositories if not Path(one).expanduser().is_dir()]
    if not wanted:
        yield
        return
    from huggingface_hub import constants

    _check_names(what, wanted)
    reason = _offline(constants)
    with _told(what, reason, _remedy(wanted, constants)), _switched_off(constants) if reason else nullcontext():
        yield


@contextmanager
def from_url(what: str, url: str, kept: Path) -> Iterator[None]:
    """While a library reads what it downloads from a URL.

    Args:
        what: names it, in an error.
        url: of the file.
        kept: where the library keeps it.

    Raises:
        DownloadError: it is neither here nor to be had.
    """
    if kept.is_file():
        yield
        return
    remedy = f"on a machine with a network run `curl -L -O {url}`, then copy the file to {kept} here"
    with _told(what, None, remedy):
        reason = unreachable(url)
        if reason:
            raise ConnectionError(reason)
        yield


def refuse_unreachable(url: str) -> None:
    """Tell at once that shards on the hub (``hf://…``) cannot be had. Later, its server may be silent for a while.

    Raises:
        DownloadError: nothing answers there.
    """
    from huggingface_hub import constants

    if constants.ENDPOINT in _met:
        return
    if reason := _offline(constants):
        kind, _, rest = url.removeprefix("hf://").partition("/")
        kinds = {"datasets": " --repo-type dataset", "spaces": " --repo-type space"}
        parts = (rest if kind in kinds else f"{kind}/{rest}").split("/")
        command = f"hf download {'/'.join(parts[:2])}{kinds.get(kind, '')} --local-dir FOLDER"
        raise DownloadError(
            f"{url} cannot be read ({reason}); on a machine with a network run `{command}`, and give the folder"
        )
    _met.add(constants.ENDPOINT)


def unreachable(url: str) -> str | None:
    """Why nothing answers at a URL's server, or at the proxy on the way to it; None where something does."""
    place = _asked(url)
    when, answer = _answers.get(place, (0.0, None))
    if not when or time.monotonic() - when > _KNOWN:
        answer = _probed(place)
        _answers[place] = time.monotonic(), answer
    return answer


def _asked(url: str) -> str:
    """URL of whom a connection is opened to."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if proxy and "://" in proxy and not proxy_bypass(parts.hostname or "") else url


def _probed(url: str) -> str | None:
    """As :func:`unreachable`. In a thread: looking up a name has no limit of its own."""
    parts, found = urlsplit(url), ["no answer in time"]
    origin = f"{parts.scheme}://{(parts.netloc).rpartition('@')[2]}"

    def connect() -> None:
        try:
            addresses = socket.getaddrinfo(
                parts.hostname, parts.port or _PORTS.get(parts.scheme, 443), 0, socket.SOCK_STREAM
            )
            found[0] = _first_answer(addresses)
        except (OSError, ValueError) as error:
            found[0] = getattr(error, "strerror", None) or str(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return f"{origin} cannot be reached: {found[0]}" if found[0] else None


def _first_answer(addresses: Sequence[Any]) -> str:
    """Empty where one of a server's addresses takes a connection, else why the last one does not."""
    said = "it has no address"
    for family, kind, protocol, _, address in sorted(addresses, key=lambda one: one[0] != socket.AF_INET):
        try:
            with socket.socket(family, kind, protocol) as connection:
                connection.settimeout(_ATTEMPT)
                connection.connect(address)
                return ""
        except OSError as error:
            said = error.strerror or str(error)
    return said


def _offline(constants: Any) -> str | None:
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)


@contextmanager
def _switched_off(constants: Any) -> Iterator[None]:
    """The hub's library asks no server and takes what lies in its cache; nobody logs what will be told in a line."""
    with _one_offline:
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        logged = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before
            logging.disable(logged)


def _check_names(what: str, wanted: list[str]) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is public all the same

    for name in wanted:
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            said = f"{what}: {name[:200]} is no folder here, and no repository of a hub has such a name"
            raise FileNotFoundError(said) from error


def _remedy(wanted: list[str], constants: Any) -> str:
    from huggingface_hub.file_download import repo_folder_name

    commands = " && ".join(f"hf download {name}" for name in wanted)
    folders = ", ".join(repo_folder_name(repo_id=name, repo_type="model") for name in wanted)
    return (
        f"on a machine with a network run `{commands}`, then copy {folders} from its cache to "
        f"{constants.HF_HUB_CACHE} here (HF_HOME names another place)"
    )


@contextmanager
def _told(what: str, reason: str | None, remedy: str) -> Iterator[None]:
    """Turn what a library raises where it could not download into one line."""
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:
        cause = _of_network(error)
        if cause is None and not (reason and _is_missing(error)):
            raise
        if type(cause).__name__ in _ABSENT:
            reason, remedy = _ABSENT[type(cause).__name__]
        said = reason or " ".join(str(cause).split())[:200]
        raise DownloadError(f"{what} cannot be fetched ({said}); {remedy}") from error


def _is_missing(error: Exception) -> bool:
    """Whether a library that was told to ask nobody says that it lacks a file, in whichever way."""
    return isinstance(error, OSError) or "could not be loaded" in str(error) or "Failed" in str(error)


def _of_network(error: BaseException | None) -> BaseException | None:
    """The error of a network, or of a cache without one, that an error comes from; None where there is none."""
    while error is not None:
        library = type(error).__module__.partition(".")[0].rstrip("0123456789")
        if isinstance(error, ConnectionError | TimeoutError | socket.gaierror) or library in _LIBRARIES:
            return error
        error = error.__cause__ or error.__context__
    return None
