"""The last bytes of a stream, for those who ask later and those who follow."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock


class RingBuffer:
    """The last ``size_bytes`` of a stream. Any thread may write."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._data = bytearray()
        self._lock = Lock()
        self._watchers: list[Callable[[], None]] = []
        self.total_bytes = 0
        """Everything ever written: the position of the end of the buffer in the stream."""

    def __len__(self) -> int:
        """How many bytes are kept now."""
        return len(self._data)

    def resize(self, size_bytes: int) -> None:
        """Keep this much from now on."""
        with self._lock:
            self._size_bytes = size_bytes
            self._shorten()

    def write(self, data: bytes) -> None:
        """Append, and tell those who watch, on the thread of the caller."""
        with self._lock:
            self._data += data[-self._size_bytes :] if self._size_bytes else b""
            self.total_bytes += len(data)
            self._shorten()
        for watcher in list(self._watchers):
            watcher()

    def tail(self, length_bytes: int) -> bytes:
        """The last bytes, at most ``length_bytes``."""
        with self._lock:
            return self._tail(length_bytes)

    def since(self, position: int) -> bytes:
        """What was written from ``position`` of the stream on, as far as it is still here."""
        return self.read(position)[0]

    def read(self, position: int) -> tuple[bytes, int]:
        """``since``, and the position to go on from."""
        with self._lock:
            return self._tail(self.total_bytes - position), self.total_bytes

    def clear(self) -> None:
        """Forget what is kept; positions go on."""
        with self._lock:
            self._data.clear()

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` after each write, until the function that is returned is called."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def _shorten(self) -> None:
        if len(self._data) > self._size_bytes:
            del self._data[: len(self._data) - self._size_bytes]

    def _tail(self, length_bytes: int) -> bytes:
        return bytes(self._data[-length_bytes:]) if length_bytes > 0 else b""
