"""An HTTP server for the tests of the ``http`` backend: slow, cut and endless answers on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

CHUNK = bytes(64 * 1024)


class Upstream(ThreadingHTTPServer):
    """``base_url`` is what a backend names.

    ``left`` is set when a client closed in the middle of ``/endless``, ``began`` when the first piece of a request's
    body is there, ``cut`` when a body broke off.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.left = threading.Event()
        self.began = threading.Event()
        self.cut = threading.Event()
        self.released = threading.Event()
        """Lets answers of ``/slow`` go on."""
        self.requests: list[str] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/base"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that close in the middle are what is tested."""


@contextmanager
def upstream() -> Iterator[Upstream]:
    """A running server."""
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        parts = urlsplit(self.path)
        name = parts.path.rpartition("/")[2]
        getattr(self, f"_{name}", self._echo)(parse_qs(parts.query))

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815 - the base class's names

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _echo(self, query: dict[str, list[str]]) -> None:
        members = {
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": self._body_digest(),
        }
        status = int(query.get("status", ["200"])[0])
        self._answer(json.dumps(members).encode() if status != 304 else b"", status)

    def _body_digest(self) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        try:
            for data in self._chunks() if "Transfer-Encoding" in self.headers else self._pieces():
                digest.update(data)
                size += len(data)
                self.server.began.set()
        except OSError:
            self.server.cut.set()
            raise
        return {"size": size, "sha256": digest.hexdigest()}

    def _pieces(self) -> Iterator[bytes]:
        left = int(self.headers.get("Content-Length", 0))
        while left:
            yield (data := self._some(min(left, len(CHUNK))))
            left -= len(data)

    def _chunks(self) -> Iterator[bytes]:
        while left := int(self.rfile.readline() or b"-1", 16):
            while left:
                yield (data := self._some(left))
                left -= len(data)
            self.rfile.readline()
        self.rfile.readline()

    def _some(self, size: int) -> bytes:
        data = self.rfile.read1(size) if size > 0 else b""
        if not data:
            raise ConnectionResetError("the body broke off")
        return data

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Upstream", "yes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _download(self, query: dict[str, list[str]]) -> None:
        size = int(query["bytes"][0])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for _ in range(size // len(CHUNK)):
            self.wfile.write(CHUNK)

    def _cut(self, query: dict[str, list[str]]) -> None:
        """Half of an answer: with a length, or in chunks."""
        self.send_response(200)
        if "chunked" in query:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
        else:
            self.send_header("Content-Length", str(2 * len(CHUNK)))
            self.end_headers()
            self.wfile.write(CHUNK)
        self.close_connection = True

    def _slow(self, _query: dict[str, list[str]]) -> None:
        self.server.released.wait(30)
        self._answer(b"{}")

    def _stall(self, _query: dict[str, list[str]]) -> None:
        """A head and some bytes, and then silence."""
        self.send_response(200)
        self.send_header("Content-Length", str(2 * len(CHUNK)))
        self.end_headers()
        self.wfile.write(CHUNK)
        self.wfile.flush()
        self.server.released.wait(30)

    def _endless(self, _query: dict[str, list[str]]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while not self.server.released.is_set():
                self.wfile.write(b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
        except OSError:
            self.server.left.set()
            raise

    def _nonsense(self, _query: dict[str, list[str]]) -> None:
        self.wfile.write(b"this is not HTTP at all\r\n\r\n")
        self.close_connection = True
