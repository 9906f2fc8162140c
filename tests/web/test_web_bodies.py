"""Bodies in memory and in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from harmonyd.bodies import CHUNK_BYTES, BytesBody, EmptyBody, FileBody
from harmonyd.errors import PayloadTooLarge


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
