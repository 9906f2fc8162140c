"""The data set of a C-STORE request on its way out: from its file, in pieces, as fast as the peer takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from harmonyd.dimse.native import core
from harmonyd.dimse.native.connection import Connection
from harmonyd.dimse.native.files import DataSet, InThread, ReadAhead

_WRITE_BYTES = 128 * 1024
"""At once. A peer that does not take so much within its time is taken for silent."""


class Shorter(Exception):
    """A file has lost bytes since its header was read."""


class Wire(Protocol):
    """An association that objects are sent over, whoever began it."""

    connection: Connection

    def require_open(self) -> None:
        """Raises what is wrong when it is over."""
        ...

    async def writable(self) -> None:
        """Wait until what was sent is mostly gone. Raises as ``require_open``."""
        ...


class ObjectSender:
    """Sends one data set after the other; ``close`` it at last."""

    def __init__(self, in_thread: InThread) -> None:
        self._ahead = ReadAhead(in_thread)

    def begin(self, path: Path, at: int) -> None:
        """Begin to read what is going to be sent next."""
        self._ahead.begin(path, at)

    def close(self) -> None:
        """Forget what was begun."""
        self._ahead.close()

    async def first_of(self, source: DataSet) -> bytes:
        """The first piece: with it there is something to announce. Raises OSError and ``Shorter``."""
        first = await self._ahead.take(source, source.begin)
        if not first and source.begin < source.end:
            raise Shorter("it became shorter")
        return first

    async def send(self, wire: Wire, context: core.Context, source: DataSet, chunk: bytes) -> None:
        """Send all, beginning with ``chunk``. Raises OSError, ``Shorter``, and what ``wire`` raises."""
        connection, at = wire.connection, source.begin
        while True:
            at += len(chunk)
            for start in range(0, len(chunk) or 1, _WRITE_BYTES):
                ends = at >= source.end and start + _WRITE_BYTES >= len(chunk)
                connection.association.send_data(context.id, memoryview(chunk)[start : start + _WRITE_BYTES], ends)
                connection.flush()
                if ends:
                    return
                await wire.writable()
            chunk = await self._ahead.take(source, at)
            if not chunk:
                raise Shorter("it became shorter while it was sent")
            wire.require_open()
