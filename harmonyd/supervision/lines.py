"""Bytes in, lines out: bounded, and cheap for the ten thousand lines of a large query."""

from __future__ import annotations

MAX_LINE_BYTES = 64 * 1024
CONTINUED = b"[continued] "
"""Starts each further piece of an overlong line, so that no piece can pass for a line of its own."""


class LineSplitter:
    """Splits a stream at newlines. Lines come without their newline; a longer one than 64 KiB comes in pieces."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._prefix = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that ``data`` completes. DCMTK writes a line in several pieces."""
        first, *rest = data.split(b"\n")
        self._held.append(first)
        self._held_bytes += len(first)
        if not rest:
            return self._overflow() if self._held_bytes > self._max else []
        rest.insert(0, self._take())
        self._held.append(rest.pop())
        self._held_bytes = len(self._held[0])
        lines = self._whole(rest)
        return lines + self._overflow() if self._held_bytes > self._max else lines

    def flush(self) -> list[bytes]:
        """Return what came after the last newline, at the end of the stream."""
        return self._whole([self._take()]) if self._held_bytes else []

    def _take(self) -> bytes:
        held = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return held

    def _whole(self, lines: list[bytes]) -> list[bytes]:
        """Finish complete lines: the first may end an overlong one, any may be overlong itself."""
        if not self._prefix and max(map(len, lines)) <= self._max:
            return lines
        finished: list[bytes] = []
        for line in lines:
            finished += self._pieces(line)
            finished.append(self._prefix + finished.pop())
            self._prefix = b""
        return finished

    def _overflow(self) -> list[bytes]:
        *full, rest = self._pieces(self._take())
        self._held.append(rest)
        self._held_bytes = len(rest)
        return full

    def _pieces(self, line: bytes) -> list[bytes]:
        """Cut into pieces of the maximum length, the last one (possibly empty) without its prefix."""
        pieces: list[bytes] = []
        while len(line) > self._max:
            pieces.append(self._prefix + line[: self._max])
            self._prefix = CONTINUED
            line = line[self._max :]
        return [*pieces, line]
