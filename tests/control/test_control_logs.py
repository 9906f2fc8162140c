"""Reading, clearing and following logs."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from control_kit import UnixConnection
from hypothesis import given
from hypothesis import strategies as st
from supervisor.xmlrpc import Faults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from harmonyd.control.text import clean, shown
from harmonyd.testing.control import FakeChild, fake_log

NASTY = "\x1b[31mred\x1b[0m \x00\x07\x9b bell \u202eevil\ufffe é 漢\r\n".encode() + b"\xff\xfe broken\n"


def with_file(path: Path, in_file: bytes, in_memory: bytes, size_bytes: int = 10_000) -> FakeChild:
    """A child whose log file has more than its memory."""
    path.write_bytes(in_file)
    return FakeChild(log=fake_log(in_memory, size_bytes, path))


@pytest_twisted.ensureDeferred
async def test_the_end_of_a_log(serve, daemon_in_memory) -> None:
    """A negative offset is the end; more than there is, is all there is."""
    daemon_in_memory.members = [FakeChild(log=fake_log(b"0123456789"))]
    client = await serve()
    assert await client.call("supervisor.readProcessStdoutLog", "storescp:incoming", -4, 0) == "6789"
    assert await client.call("supervisor.readProcessLog", "storescp:incoming", -400, 0) == "0123456789"


@pytest_twisted.ensureDeferred
async def test_the_file_is_read_when_memory_has_too_little(serve, daemon_in_memory, tmp_path) -> None:
    """After a restart of the daemon, tail still shows what an earlier run wrote."""
    daemon_in_memory.members = [with_file(tmp_path / "log", b"earlier\nnow\n", b"now\n")]
    client = await serve()
    assert await client.call("supervisor.readProcessStdoutLog", "storescp:incoming", -10, 0) == "rlier\nnow\n"
    assert await client.call("supervisor.readProcessStdoutLog", "storescp:incoming", -4, 0) == "now\n"
    assert await client.call("supervisor.readProcessStdoutLog", "storescp:incoming", 2, 5) == "rlier"
    assert await client.call("supervisor.readProcessStdoutLog", "storescp:incoming", 0, 0) == "earlier\nnow\n"
    assert await client.call("supervisor.readProcessStdoutLog", "storescp:incoming", 900, 0) == ""


@pytest_twisted.ensureDeferred
async def test_memory_is_read_after_a_rotation(serve, daemon_in_memory, tmp_path) -> None:
    """A file that was just rotated has less than memory."""
    daemon_in_memory.members = [with_file(tmp_path / "log", b"new\n", b"old\nnew\n")]
    client = await serve()
    assert await client.call("supervisor.readProcessStdoutLog", "storescp:incoming", -100, 0) == "old\nnew\n"


@pytest.mark.parametrize(("offset", "length"), [(-5, 1), (0, -1), (-1, -1)])
@pytest_twisted.ensureDeferred
async def test_offsets_that_make_no_sense(serve, daemon_in_memory, offset, length) -> None:
    """BAD_ARGUMENTS, as from supervisord."""
    daemon_in_memory.members = [FakeChild()]
    client = await serve()
    for fault in [
        await client.fault("supervisor.readProcessStdoutLog", "storescp:incoming", offset, length),
        await client.fault("supervisor.readLog", offset, length),
    ]:
        assert fault[0] == Faults.BAD_ARGUMENTS


@pytest_twisted.ensureDeferred
async def test_polling_a_log(serve, daemon_in_memory, tmp_path) -> None:
    """tailProcessStdoutLog gives what came since, and where to go on."""
    daemon_in_memory.members = [with_file(tmp_path / "log", b"0123456789", b"")]
    client = await serve()
    tail = "supervisor.tailProcessStdoutLog"
    assert await client.call(tail, "storescp:incoming", 0, 4) == ["6789", 10, True]
    assert await client.call(tail, "storescp:incoming", 7, 100) == ["789", 10, False]
    assert await client.call(tail, "storescp:incoming", 10, 100) == ["", 10, False]
    assert await client.call(tail, "storescp:incoming", -5, -5) == ["", 10, True]
    assert await client.call("supervisor.tailProcessStderrLog", "storescp:incoming", 0, 4) == ["", 0, False]


@pytest_twisted.ensureDeferred
async def test_bytes_that_break_xml_and_terminals(serve, daemon_in_memory) -> None:
    """Control characters and escape sequences are left out; damaged UTF-8 is replaced; the rest is there."""
    daemon_in_memory.members = [FakeChild(log=fake_log(NASTY))]
    text = await (await serve()).call("supervisor.readProcessStdoutLog", "storescp:incoming", -1000, 0)
    assert text == "red  bell evil é 漢\n\ufffd\ufffd broken\n"


@given(st.binary(max_size=200))
def test_any_bytes_can_be_shown(data: bytes) -> None:
    """No control character but newline and tab is ever shown."""
    text = shown(data)
    assert not any(ord(char) < 32 and char not in "\n\t" for char in text)
    assert clean(text) == text


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_that_was_cut_is_left_out(cut: int) -> None:
    """A tail that begins inside a character does not begin with damage."""
    assert shown("𝄞x".encode()[cut:]) == "x"


@pytest_twisted.ensureDeferred
async def test_clear(serve, daemon_in_memory, tmp_path) -> None:
    """One log, all logs, the main log; a file that cannot be removed is FAILED."""
    one, two = with_file(tmp_path / "1", b"abc", b"abc"), with_file(tmp_path / "2", b"abc", b"abc")
    two.name = "2"
    daemon_in_memory.members = [one, two]
    daemon_in_memory.main_log.ring.write(b"main")
    client = await serve()
    assert await client.call("supervisor.clearProcessLogs", "storescp:incoming") is True
    assert await client.call("supervisor.readProcessStdoutLog", "storescp:incoming", -100, 0) == ""
    results = await client.call("supervisor.clearAllProcessLogs")
    assert [result["status"] for result in results] == [Faults.SUCCESS, Faults.FAILED]
    assert not (tmp_path / "1").exists()
    assert await client.call("supervisor.readLog", -2, 0) == "in"
    assert await client.call("supervisor.clearLog") is True
    assert await client.call("supervisor.readMainLog", -2, 0) == ""


# --- following


class Tail:
    """A follower's end: what it has got so far."""

    def __init__(self, path: Path, target: str, receive_bytes: int | None = None) -> None:
        self._connection = UnixConnection(path)
        self._target = target
        self._receive_bytes = receive_bytes
        self.response: Any = None

    async def open(self) -> None:
        """Ask, and wait for the head of the answer."""
        await deferToThread(self._open)

    def _open(self) -> None:
        self._connection.connect()
        if self._receive_bytes:
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
        self._connection.request("GET", self._target)
        self.response = self._connection.getresponse()

    async def until(self, end: bytes) -> bytes:
        """Read until it ends like this."""
        return await deferToThread(self._until, end)

    def _until(self, end: bytes) -> bytes:
        got = b""
        while not got.endswith(end):
            piece = self.response.read1(65536)
            assert piece, f"ended after {got[-200:]!r}"
            got += piece
        return got

    async def rest(self) -> bytes:
        """Read to the end."""
        return await deferToThread(self.response.read)

    def close(self) -> None:
        """Leave."""
        self.response.close()
        self._connection.close()


@pytest.fixture
def tails() -> Any:
    """Open tails; closed at the end."""
    opened: list[Tail] = []

    def make(*arguments: Any) -> Tail:
        opened.append(Tail(*arguments))
        return opened[-1]

    yield make
    for tail in opened:
        tail.close()


FOLLOW = "/logtail/storescp:incoming/stdout"


@pytest_twisted.ensureDeferred
async def test_follow(serve, daemon_in_memory, tails) -> None:
    """The last 1024 bytes, then each line when it comes, as text that is fit for a terminal."""
    daemon_in_memory.members = [child] = [FakeChild(log=fake_log(b"x" * 2000 + b"\n"))]
    tail = tails((await serve()).path, FOLLOW)
    await tail.open()
    assert tail.response.status == 200
    assert tail.response.getheader("Content-Type").startswith("text/plain")
    assert tail.response.getheader("Transfer-Encoding") == "chunked"
    assert await tail.until(b"\n") == b"x" * 1023 + b"\n"
    child.log.ring.write(b"one\n")
    assert await tail.until(b"one\n") == b"one\n"
    child.log.ring.write(NASTY)
    assert await tail.until(b"broken\n") == "red  bell evil é 漢\n\ufffd\ufffd broken\n".encode()


@pytest_twisted.ensureDeferred
async def test_follow_begins_with_what_the_file_has(serve, daemon_in_memory, tails, tmp_path) -> None:
    """What memory does not have comes from the file, and nothing comes twice."""
    daemon_in_memory.members = [child] = [with_file(tmp_path / "log", b"earlier\nnow\n", b"now\n")]
    tail = tails((await serve()).path, FOLLOW)
    await tail.open()
    assert await tail.until(b"now\n") == b"earlier\nnow\n"
    child.log.ring.write(b"next\n")
    assert await tail.until(b"next\n") == b"next\n"


@pytest_twisted.ensureDeferred
async def test_follow_one_of_many_that_are_chatty(serve, daemon_in_memory, tails, started_reactor) -> None:
    """A follower gets every line of its own child, in order, and none of the five others'."""
    children = [FakeChild(name=f"{number}", log=fake_log(size_bytes=256_000)) for number in range(6)]
    daemon_in_memory.members = children
    tail = tails((await serve()).path, "/logtail/storescp:3/stdout")
    await tail.open()
    reading = tail.until(b"3: end\n")
    for number in range(2000):
        for child in children:
            child.log.ring.write(b"%s: line %d\n" % (child.name.encode(), number))
        if number % 50 == 0:
            await deferLater(started_reactor, 0)
    children[3].log.ring.write(b"3: end\n")
    assert (await reading).splitlines() == [b"3: line %d" % number for number in range(2000)] + [b"3: end"]


@pytest_twisted.ensureDeferred
async def test_a_slow_follower_is_told_what_it_missed(serve, daemon_in_memory, tails, started_reactor) -> None:
    """What does not fit into its buffer is not kept for it; the others and the log go on."""
    daemon_in_memory.members = [child] = [FakeChild(log=fake_log(size_bytes=100_000))]
    tail = tails((await serve()).path, FOLLOW, 4096)
    await tail.open()
    for _ in range(400):
        child.log.ring.write(b"y" * 9_999 + b"\n")
        await deferLater(started_reactor, 0)
    child.log.ring.write(b"end\n")
    got = await tail.until(b"end\n")
    assert b"bytes were not shown <==" in got
    assert len(got) < 2_000_000


@pytest_twisted.ensureDeferred
async def test_follow_ends_with_its_child(serve, daemon_in_memory, tails) -> None:
    """When a once-child has gone, its follower gets the last line, and the end of the connection."""
    daemon_in_memory.members = [child] = [FakeChild(group="findscu", name="abc", is_kept=False)]
    tail = tails((await serve()).path, "/logtail/findscu:abc/stdout")
    await tail.open()
    child.log.ring.write(b"last words\n")
    daemon_in_memory.members = []
    assert await tail.rest() == b"last words\n"


@pytest_twisted.ensureDeferred
async def test_follow_ends_with_the_server(serve, daemon_in_memory, tails) -> None:
    """When the daemon stops, followers get what was said, and the end."""
    client = await serve()
    tail = tails(client.path, "/mainlogtail")
    await tail.open()
    daemon_in_memory.main_log.ring.write(b"stopping\n")
    reading = tail.rest()
    await client.server.stop()
    assert await reading == b"stopping\n"


@pytest_twisted.ensureDeferred
async def test_the_main_log_may_be_written_by_any_thread(serve, daemon_in_memory, tails) -> None:
    """Lines that other threads log reach the follower, too."""
    tail = tails((await serve()).path, "/mainlogtail")
    await tail.open()
    reading = tail.until(b"from a thread\n")
    await deferToThread(daemon_in_memory.main_log.ring.write, b"from a thread\n")
    assert await reading == b"from a thread\n"


@pytest_twisted.ensureDeferred
async def test_a_follower_that_leaves_is_forgotten(
    serve: Any, daemon_in_memory: Any, tails: Callable[..., Tail], started_reactor: Any
) -> None:
    """Nothing watches the log any more."""
    daemon_in_memory.members = [child] = [FakeChild()]
    tail = tails((await serve()).path, FOLLOW)
    await tail.open()
    tail.close()
    while child.log.ring._watchers:
        child.log.ring.write(b"somebody?\n")
        await deferLater(started_reactor, 0.01)
    assert isinstance(tail.response, http.client.HTTPResponse)
