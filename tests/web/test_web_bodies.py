"""Bodies in memory and in files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from harmonyd.bodies import CHUNK_BYTES, BytesBody, EmptyBody, FileBody
from harmonyd.errors import PayloadTooLarge
from harmonyd.web.spool import MEMORY_BYTES, Spool


def in_file(path: Path, data: bytes) -> FileBody:
    path.write_bytes(data)
    return FileBody(path.open("rb"))


@pytest_twisted.ensureDeferred
async def test_a_file_is_read_in_chunks_of_bounded_size(tmp_path: Path) -> None:
    """The chunks together are the file, and none is larger than the bound."""
    data = bytes(range(256)) * 3000
    body = in_file(tmp_path / "f", data)
    chunks = [chunk async for chunk in body.chunks()]
    assert b"".join(chunks) == data
    assert max(map(len, chunks)) == CHUNK_BYTES
    assert body.length == len(data)
    await body.close()


@pytest_twisted.ensureDeferred
async def test_a_body_is_read_up_to_a_limit(tmp_path: Path) -> None:
    """A body of exactly the limit is returned, one byte more is PayloadTooLarge."""
    for body in (in_file(tmp_path / "f", b"12345"), BytesBody(b"12345")):
        assert await body.read(5) == b"12345"
        with pytest.raises(PayloadTooLarge):
            await body.read(4)
        await body.close()


@pytest_twisted.ensureDeferred
async def test_an_empty_body() -> None:
    """Nothing has length 0 and no chunks."""
    body = EmptyBody()
    assert (body.length, await body.read(0), [c async for c in body.chunks()]) == (0, b"", [])


@pytest_twisted.ensureDeferred
async def test_close_is_safe_twice_and_while_a_read_was_cancelled(tmp_path: Path) -> None:
    """A read whose waiter was cancelled never meets a closed file."""
    body = in_file(tmp_path / "f", b"x" * CHUNK_BYTES * 4)
    reading = Deferred.fromCoroutine(body.read(CHUNK_BYTES * 4))
    reading.cancel()
    reading.addErrback(lambda _: None)
    await body.close()
    await body.close()
    assert [chunk async for chunk in body.chunks()] == []


@pytest_twisted.ensureDeferred
async def test_a_spool_moves_to_a_file_when_it_grows(tmp_path: Path) -> None:
    """Up to the bound a body is in memory; beyond it, it is in a file without a name."""
    spool = Spool(tmp_path, 1_000_000)
    spool.write(b"a" * MEMORY_BYTES)
    assert spool._file is None
    spool.write(b"b")
    assert spool._file is not None
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - pathlib's is refused in a coroutine
    body = spool.take()
    assert await body.read(1_000_000) == b"a" * MEMORY_BYTES + b"b"
    await body.close()


@pytest_twisted.ensureDeferred
async def test_a_spool_takes_no_more_than_its_limit(tmp_path: Path) -> None:
    """The byte that would be too many is refused."""
    spool = Spool(tmp_path, 10)
    spool.write(b"x" * 10)
    with pytest.raises(PayloadTooLarge):
        spool.write(b"x")
    spool.discard()
    assert (await spool.take().read(10)) == b""
