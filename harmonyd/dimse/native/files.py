"""Part 10 files on their way out: read in a thread, ahead of the network, and re-encoded only where they must be."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydicom import Dataset, FileDataset, dcmread
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.uid import UID
from twisted.internet.defer import Deferred

READ_BYTES = 1024 * 1024
"""At once; most objects are one piece: a CT has half of that in pixels."""
InThread = Callable[..., Awaitable[Any]]


class NotConvertible(Exception):
    """An object cannot be re-encoded; the text says why."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """Where the data set lies that is to be sent: in the file itself, or in a temporary one of our own."""

    path: Path
    begin: int
    end: int


class Conversion:
    """An uncompressed object in Explicit or Implicit VR Little Endian, in a temporary file; ``remove`` it always.

    The file has no name, so that it is gone with this process at the latest.
    """

    def __init__(self, path: Path, transfer_syntax_uid: str) -> None:
        self._path = path
        self._implicit = UID(transfer_syntax_uid).is_implicit_VR
        self._target: BinaryIO | None = None
        self._is_over = False
        self._lock = threading.Lock()
        """Whoever waits for ``convert`` may leave before it is done."""

    def convert(self) -> DataSet:
        """Blocking. Raises ``NotConvertible``, and OSError."""
        with self._lock:
            if self._is_over:
                raise NotConvertible("nobody waits for it")
            target = self._target = cast("BinaryIO", tempfile.TemporaryFile(dir=self._path.parent))  # noqa: SIM115
            try:
                _convert(self._path, target, self._implicit)
            except OSError:
                raise
            except Exception as error:
                # Without its text, which may quote the object.
                raise NotConvertible(type(error).__name__) from error
            target.flush()
            return DataSet(Path(f"/proc/self/fd/{target.fileno()}"), 0, target.seek(0, os.SEEK_END))

    def remove(self) -> None:
        """Leave nothing behind. Blocking, for as long as ``convert`` takes."""
        with self._lock:
            self._is_over = True
            if self._target is not None:
                self._target.close()


def _convert(path: Path, target: BinaryIO, implicit: bool) -> None:
    """Pixel data have the same bytes in both (PS3.5 sections A.1, A.2), and are never in memory as a whole."""
    with path.open("rb") as file:
        head = dcmread(file, stop_before_pixels=True)
        if _length_at(file, head) is None:
            file.seek(0)
            whole = dcmread(file)
            if not whole.original_encoding[1]:
                _swap_words(whole)
            _write(target, whole, implicit)
            return
        _write(target, head, implicit)
        length = _length_at(file, head) or 0
        target.write(b"\xe0\x7f\x10\x00" + (b"" if implicit else b"OW\0\0") + length.to_bytes(4, "little"))
        file.seek(-length, os.SEEK_END)
        shutil.copyfileobj(file, target, READ_BYTES)


def _write(target: BinaryIO, ds: Dataset, implicit: bool) -> None:
    out = DicomFileLike(target)
    out.is_implicit_VR, out.is_little_endian = implicit, True
    write_dataset(out, ds)


def _swap_words(ds: Dataset) -> None:
    """What is bytes for pydicom, and big endian words in the file: to little endian (PS3.5 section 7.3)."""
    for element in ds.iterall():
        size = _WORD_BYTES.get(element.VR)
        if size is not None and isinstance(element.value, bytes):
            value = bytearray(element.value)
            for offset in range(size // 2):
                last = size - 1 - offset
                value[offset::size], value[last::size] = value[last::size], value[offset::size]
            element.value = bytes(value)


_WORD_BYTES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


def _length_at(file: BinaryIO, head: FileDataset) -> int | None:
    """Of the Pixel Data (7FE0,0010) that follow, if they are all that follows."""
    at, size = file.tell(), os.fstat(file.fileno()).st_size
    header = file.read(8 if head.file_meta.TransferSyntaxUID.is_implicit_VR else 12)
    file.seek(at)
    length = int.from_bytes(header[-4:], "little")
    is_all = header.startswith(b"\xe0\x7f\x10\x00") and at + len(header) + length == size
    return length if is_all else None


class ReadAhead:
    """Reads the next piece while the last one is on the wire; one file is open at a time, and one more is begun."""

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread
        self._begun: tuple[Path, int, Deferred[bytes]] | None = None

    def begin(self, path: Path, at: int) -> None:
        """Begin to read the piece that begins there."""
        self.close()
        self._begun = (path, at, Deferred.fromCoroutine(self._read(path, at)))

    async def take(self, source: DataSet, at: int) -> bytes:
        """The piece of a data set that begins there, and begun the one behind it. Raises OSError."""
        piece = (await self._piece(source.path, at))[: source.end - at]
        if at + len(piece) < source.end and piece:
            self.begin(source.path, at + len(piece))
        return piece

    async def _piece(self, path: Path, at: int) -> bytes:
        if self._begun is not None and self._begun[:2] == (path, at):
            begun, self._begun = self._begun[2], None
            return await begun
        self.close()
        return await self._read(path, at)

    async def _read(self, path: Path, at: int) -> bytes:
        piece: bytes = await self._in_thread(_read, path, at)
        return piece

    def close(self) -> None:
        """Forget what was begun."""
        if self._begun is not None:
            self._begun[2].addErrback(lambda _: None)
            self._begun = None


def _read(path: Path, at: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), READ_BYTES, at)
