"""WADO-RS answers to files: each instance is checked, and counts, as soon as its part has ended."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO

from harmonyd.dimse.accept import Intake
from harmonyd.dimse.engine import Instance
from harmonyd.dimse.errors import NonsenseAnswer
from harmonyd.errors import BadRequest
from harmonyd.mediatypes import MediaType, parse_media_type
from harmonyd.multipart import MultipartParser, PartBegin, PartEnd
from harmonyd.services.archive.answer import Answer
from harmonyd.services.archive.credentials import InThread
from harmonyd.services.archive.errors import ArchiveBroke

DICOM = "application/dicom"
_BATCH_BYTES = 1024 * 1024
"""What is gathered before a thread writes it, but for the end of the answer."""
_MAX_BOUNDARY_CHARACTERS = 256
"""RFC 2046 has 70, and not every archive minds."""


class _Whole:
    """An answer that is one object: the events of a multipart of one."""

    def __init__(self) -> None:
        self._has_begun = False

    def feed(self, data: bytes) -> list[PartBegin | bytes | PartEnd]:
        events: list[PartBegin | bytes | PartEnd] = [] if self._has_begun else [PartBegin({})]
        self._has_begun = True
        return [*events, data] if data else events

    def close(self) -> list[PartBegin | bytes | PartEnd]:
        return [PartEnd()]


class PartFiles:
    """Writes parts to files in ``folder`` and takes them in. Its methods block; called in threads, one at a time."""

    def __init__(self, name: str, media: MediaType | None, folder: Path, intake: Intake, max_bytes: int) -> None:
        """Raises ``NonsenseAnswer`` for a type that instances do not come in."""
        self._name = name
        self._parser = _parser(name, media)
        self._folder = folder
        self._intake = intake
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._path = folder
        self._size = 0
        self._count = 0
        self._is_over = False
        self._lock = threading.Lock()
        """Whoever waits for ``feed`` may leave before it is done."""

    def feed(self, chunks: list[bytes]) -> list[Instance]:
        """The instances that are whole now. Raises ``NonsenseAnswer`` and OSError."""
        with self._lock:
            if self._is_over:
                return []
            try:
                return self._taken(self._parser.feed(b"".join(chunks)))
            except BadRequest as error:
                raise self._nonsense(error.detail) from error

    def finish(self) -> list[Instance]:
        """The answer has ended. Raises ``ArchiveBroke`` when it is not whole."""
        with self._lock:
            try:
                return self._taken(self._parser.close() or [])
            except BadRequest as error:
                raise ArchiveBroke(
                    f"The archive of backend {self._name} ended an answer that is not whole: {error.detail}"
                ) from error

    def discard(self) -> None:
        """Nothing more comes; what is not whole goes."""
        with self._lock:
            self._is_over = True
            if self._file is not None:
                self._file.close()
                self._file = None
                self._path.unlink(missing_ok=True)

    def _taken(self, events: list[PartBegin | bytes | PartEnd]) -> list[Instance]:
        instances: list[Instance] = []
        for event in events:
            if isinstance(event, PartBegin):
                self._begin(event.headers.get("content-type", DICOM))
            elif isinstance(event, PartEnd):
                instances += self._end()
            elif self._file is not None:
                self._size += len(event)
                if self._size > self._max_bytes:
                    raise self._nonsense(f"an instance has more than {self._max_bytes} bytes (max_instance_gb)")
                self._file.write(event)
        return instances

    def _begin(self, kind: str) -> None:
        media = parse_media_type(kind)
        if media is None or media.essence != DICOM:
            raise self._nonsense(f"a part is {kind[:80]!r}, not {DICOM}")
        self._count += 1
        self._size = 0
        self._path = self._folder / f"part-{self._count:06}"
        self._file = self._path.open("wb")

    def _end(self) -> list[Instance]:
        assert self._file is not None
        self._file.close()
        self._file = None
        return self._intake.take([self._path])

    def _nonsense(self, why: str) -> NonsenseAnswer:
        return NonsenseAnswer(f"The archive of backend {self._name} sent a retrieve wrongly: {why}")


def _parser(name: str, media: MediaType | None) -> MultipartParser | _Whole:
    if media is not None and media.essence == DICOM:
        return _Whole()
    boundary = media.parameters.get("boundary", "") if media is not None else ""
    is_dicom = media is not None and media.parameters.get("type", DICOM).lower() == DICOM
    usable = 0 < len(boundary) <= _MAX_BOUNDARY_CHARACTERS and boundary.isascii() and boundary.isprintable()
    if media is None or media.essence != "multipart/related" or not is_dicom or not usable:
        kind = media.essence[:80] if media is not None else "something without a type"
        raise NonsenseAnswer(
            f"The archive of backend {name} answered a retrieve with {kind}, or without a boundary",
            hint="It has to be multipart/related of application/dicom. Check url and wado_prefix.",
        )
    return MultipartParser(boundary)


async def instances(answer: Answer, files: PartFiles, in_thread: InThread) -> AsyncGenerator[Instance, None]:
    """As they come. Raises what reading raises, ``NonsenseAnswer``, ``ArchiveBroke`` and OSError."""
    batch: list[bytes] = []
    size = 0
    try:
        async with aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                batch.append(chunk)
                size += len(chunk)
                if size >= _BATCH_BYTES:
                    for instance in await in_thread(files.feed, batch):
                        yield instance
                    batch, size = [], 0
        for instance in await in_thread(files.feed, batch):
            yield instance
        for instance in await in_thread(files.finish):
            yield instance
    except ArchiveBroke:
        # What had come before the end is whole, as far as its parts are.
        for instance in await in_thread(files.feed, batch):
            yield instance
        raise
    finally:
        await in_thread(files.discard)
