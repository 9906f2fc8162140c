"""A key set over HTTP: from a real server, one that hangs, one that never ends, and one that refuses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from harmonyd.errors import DeadlinePassed, RemoteError
from harmonyd.middleware.auth import fetching

Serve = Callable[[bytes | None], tuple[str, "Deferred[None]"]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``serve(answer)`` answers one request with these bytes, or (None) never.

    It returns the URL, and what fires when the client has closed its connection.
    """
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(answer: bytes | None) -> tuple[str, Deferred[None]]:
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)
        closed: Deferred[None] = Deferred()

        def run() -> None:
            connection, _ = listening.accept()
            sockets.append(connection)
            try:
                connection.recv(4096)
                if answer is not None:
                    connection.sendall(answer)
                connection.recv(1)
            except OSError:
                pass
            reactor.callFromThread(lambda: closed.called or closed.callback(None))

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/jwks.json", closed

    yield start
    for each in sockets:
        each.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest_twisted.ensureDeferred
async def test_what_is_there(serve: Serve) -> None:
    """The body, as it is."""
    url, closed = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    assert await fetching.fetch(reactor, url, b"", 100) == b"{}"
    await closed


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n{}"])
@pytest_twisted.ensureDeferred
async def test_one_that_hangs(serve: Serve, monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> None:
    """It is not waited for longer than a while, and the connection is not kept."""
    monkeypatch.setattr(fetching, "FETCH_SECS", 0.1)
    url, closed = serve(answer)
    with pytest.raises(DeadlinePassed):
        await fetching.fetch(reactor, url, b"", 1000)
    await closed


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, "more than 100 bytes"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", "status 302"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 500\r\n\r\nsorry", "status 404"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_answer(serve: Serve, answer: bytes, expected: str) -> None:
    """Too much, somewhere else, or nothing."""
    url, closed = serve(answer)
    with pytest.raises(RemoteError, match=expected):
        await fetching.fetch(reactor, url, b"", 100)
    await closed
