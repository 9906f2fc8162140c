"""Part 10 files on their way out: read in a thread, ahead of the network, and re-encoded only where they must be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import UID
from twisted.internet.defer import Deferred

from harmonyd.dimse.part10 import read_header

READ_BYTES = 512 * 1024
"""At once; most objects are one piece."""
InThread = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class DataSet:
    """Where the data set lies that is to be sent: in the file itself, or in a temporary one of our own."""

    path: Path
    begin: int
    end: int
    is_ours: bool = False

    def remove(self) -> None:
        """Remove it, if it is ours."""
        if self.is_ours:
            self.path.unlink(missing_ok=True)


class NotConverted(Exception):
    """The object is not such that it can be re-encoded."""


def converted(path: Path, transfer_syntax_uid: str) -> DataSet:
    """An uncompressed object in one of the little endian transfer syntaxes. Blocking.

    Raises OSError and ``NotConverted``.
    """
    number, name = tempfile.mkstemp(suffix=".dcm", dir=path.parent)
    os.close(number)
    target = Path(name)
    try:
        _convert(path, target, UID(transfer_syntax_uid))
        header = read_header(target)
    except OSError:
        target.unlink(missing_ok=True)
        raise
    except Exception as error:
        target.unlink(missing_ok=True)
        raise NotConverted(str(error)) from error
    return DataSet(target, header.data_set_at, header.size_bytes, is_ours=True)


def _convert(source: Path, target: Path, transfer_syntax: UID) -> None:
    ds = dcmread(source)
    if not ds.original_encoding[1]:
        _swap_words(ds)
    ds.file_meta.TransferSyntaxUID = transfer_syntax
    dcmwrite(target, ds, implicit_vr=transfer_syntax.is_implicit_VR, little_endian=True)


def _swap_words(ds: Dataset) -> None:
    """What is bytes for pydicom, and words in the file: to little endian (PS3.5 section 7.3)."""
    for element in ds.iterall():
        size = _WORD_BYTES.get(element.VR)
        if size is not None and isinstance(element.value, bytes):
            value = bytearray(element.value)
            for offset in range(size // 2):
                last = size - 1 - offset
                value[offset::size], value[last::size] = value[last::size], value[offset::size]
            element.value = bytes(value)


_WORD_BYTES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


class ReadAhead:
    """Reads the next piece while the last one is on the wire; one file is open at a time, and one more is begun."""

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread
        self._begun: tuple[Path, int, Deferred[bytes]] | None = None

    def begin(self, path: Path, at: int) -> None:
        """Begin to read the piece that begins there."""
        self._begun = (path, at, Deferred.fromCoroutine(self._read(path, at)))

    async def take(self, path: Path, at: int) -> bytes:
        """The piece that begins there, and begun the one behind it. Raises OSError."""
        piece = await self._piece(path, at)
        if len(piece) == READ_BYTES:
            self.begin(path, at + READ_BYTES)
        return piece

    async def _piece(self, path: Path, at: int) -> bytes:
        begun, self._begun = self._begun, None
        if begun is not None and begun[:2] == (path, at):
            return await begun[2]
        if begun is not None:
            begun[2].addErrback(lambda _: None)
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
        file.seek(at)
        return os.read(file.fileno(), READ_BYTES)
