"""An HTTP server on 127.0.0.1 whose answers a test writes, and what it was asked."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = Callable[["Request"], bool | None]
"""Takes a request; returns True where it has answered it, else the file itself is sent."""


class Request(BaseHTTPRequestHandler):
    """One request, with the means to answer it wrongly."""

    protocol_version = "HTTP/1.1"
    folder: Path
    answer: Answer
    asked: list[tuple[str, str, dict[str, str]]]
    over: threading.Event

    def do_GET(self) -> None:
        self.asked.append((self.command, self.path, dict(self.headers)))
        if not type(self).answer(self):
            self.send_file()

    do_HEAD = do_GET

    def send_file(self) -> None:
        """The right answer, byte ranges included."""
        path = self.folder / self.path.partition("?")[0].lstrip("/").removeprefix("set").lstrip("/")
        if path.is_dir():
            names = "".join(f'<a href="{child.name}">{child.name}</a>' for child in sorted(path.iterdir()))
            self.reply(200, names.encode(), {"Content-Type": "text/html"})
        elif not path.is_file():
            self.reply(404)
        else:
            data, span = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if span is None:
                self.reply(200, data)
            else:
                start, last = int(span[1]), min(int(span[2]), len(data) - 1)
                said = {"Content-Range": f"bytes {start}-{last}/{len(data)}"}
                self.reply(206, data[start : last + 1], said)

    def reply(self, status: int, body: bytes = b"", headers: dict[str, Any] | None = None) -> bool:
        """Send an answer; a ``Content-Length`` of None leaves it out."""
        headers = {"Content-Length": len(body)} | (headers or {})
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        if headers["Content-Length"] is None:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.send(body)
        return True

    def send(self, body: bytes) -> bool:
        """Write to a client that may have had enough."""
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True
            return False
        return True

    def pour(self, most: int, piece: bytes = bytes(1 << 16), pause: float = 0.0) -> int:
        """Write pieces until the client goes, and return how many bytes went; ``most`` ends it for the test's sake."""
        sent = 0
        while sent < most and not self.over.is_set() and self.send(piece):
            sent += len(piece)
            time.sleep(pause)
        return sent

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def serving(folder: Path, answer: Answer = lambda request: False) -> Iterator[Any]:
    """A server of a folder, also as ``/set``; has ``url``, ``host`` and ``asked``."""
    asked: list[tuple[str, str, dict[str, str]]] = []
    over = threading.Event()
    options = {"folder": folder, "answer": staticmethod(answer), "asked": asked, "over": over}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Asked", (Request,), options))
    server.daemon_threads = True
    server.block_on_close = False
    server.asked, server.host = asked, f"127.0.0.1:{server.server_port}"
    server.url = f"http://{server.host}/set"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        over.set()
        server.shutdown()
        server.server_close()
