"""A received data set on its way to disk: a Part 10 file with exactly its bytes behind a header that we make.

Fragments are gathered and written in a thread, a megabyte at a time; an object that is smaller is written, closed and
checked in one go. A big one is never in memory as a whole.
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from typing import Any

from harmonyd.dimse.native import names
from harmonyd.dimse.part10 import InstanceHeader, check_complete
from harmonyd.dimse.threads import in_thread

GATHER_BYTES = 1024 * 1024
"""So much of a data set is in memory before it is written."""
_SMALL_BYTES = 2048
"""A shorter fragment is copied: what refers to it would be larger than it."""
_MAX_VECTOR = 512
"""Pieces for one writev(2); the kernel takes twice as many."""
_PREAMBLE = bytes(128) + b"DICM"
_VERSION = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_aet: str) -> bytes:
    """Preamble and File Meta Information (PS3.10 section 7.1), with the Source AE title (0002,0016)."""
    elements = (
        _VERSION
        + _element(0x0002, b"UI", sop_class_uid, "\0")
        + _element(0x0003, b"UI", sop_instance_uid, "\0")
        + _element(0x0010, b"UI", transfer_syntax_uid, "\0")
        + _element(0x0012, b"UI", names.IMPLEMENTATION_CLASS_UID, "\0")
        + _element(0x0013, b"SH", names.IMPLEMENTATION_VERSION_NAME, " ")
    )
    if source_aet:
        elements += _element(0x0016, b"AE", source_aet, " ")
    return _PREAMBLE + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(elements)) + elements


def _element(number: int, vr: bytes, text: str, padding: str) -> bytes:
    value = (text + padding * (len(text) % 2)).encode("latin-1")
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


class ObjectFile:
    """Give it all fragments with ``add``, and ``flush`` when that says so; then ``finish``, or else ``discard``.

    After an error of the disk it takes what still comes and keeps nothing; ``finish`` raises that error.
    """

    def __init__(self, reactor: Any, path: Path, meta: bytes) -> None:
        self.path = path
        self._reactor = reactor
        self._pieces: list[Any] = [meta]
        self._gathered_bytes = 0
        self._fd = -1
        self._made = False
        self._is_over = False
        self._error: OSError | None = None
        self._lock = threading.Lock()
        """A cancelled ``flush`` may still run in its thread when ``discard`` comes."""

    def add(self, fragment: bytes | memoryview) -> bool:
        """Take the next piece of the data set; true when it is time to ``flush``. Its buffer must not change."""
        size = len(fragment)
        if self._error is not None:
            return False
        if size >= _SMALL_BYTES:
            self._pieces.append(fragment)
        elif isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += fragment
        else:
            self._pieces.append(bytearray(fragment))
        self._gathered_bytes += size
        return self._gathered_bytes >= GATHER_BYTES

    async def flush(self) -> None:
        """Write what is there."""
        await in_thread(self._reactor, self._flush, self._taken())

    async def finish(self, *, flush: bool = False) -> InstanceHeader:
        """Write the rest, check it to its last element, and close the file.

        With ``flush`` the file and its name in its folder are on the disk when it returns.

        Raises ``DamagedFile`` and OSError; ``discard`` it then.
        """
        return await in_thread(self._reactor, self._finish, self._taken(), flush)

    async def discard(self) -> None:
        """Leave nothing behind. Safe at any time, but for a file that somebody else has moved to this path."""
        self._pieces.clear()
        await in_thread(self._reactor, self._discard)

    def _taken(self) -> list[Any]:
        pieces, self._pieces, self._gathered_bytes = self._pieces, [b""], 0
        return pieces

    # --- in a thread

    def _flush(self, pieces: list[Any]) -> None:
        with self._lock:
            if self._error is None and not self._is_over:
                try:
                    self._write(pieces)
                except OSError as error:
                    self._error = error

    def _write(self, pieces: list[Any]) -> None:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._made = True
        for start in range(0, len(pieces), _MAX_VECTOR):
            vector = pieces[start : start + _MAX_VECTOR]
            left = sum(map(len, vector)) - os.writev(self._fd, vector)
            if left:
                _write_rest(self._fd, b"".join(vector)[-left:])

    def _finish(self, pieces: list[Any], flush: bool) -> InstanceHeader:
        self._flush(pieces)
        with self._lock:
            if self._error is not None:
                raise self._error
            header = check_complete(self.path)
            if flush:
                os.fsync(self._fd)
                flush_to_disk(self.path.parent)
            self._close()
            if self._error is not None:
                raise self._error
            return header

    def _discard(self) -> None:
        with self._lock:
            self._is_over = True
            self._close()
            if self._made:
                self._made = False
                self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError as error:
                self._error = self._error or error


def flush_to_disk(path: Path) -> None:
    """A file, or the names in a folder. Blocking. Raises OSError."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _write_rest(fd: int, data: bytes) -> None:
    """The kernel took a part: the rest of it fits, or says why not."""
    while data:
        data = data[os.write(fd, data) :]
