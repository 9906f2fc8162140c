"""``application/zip``: instances in an archive written while they arrive (APPNOTE 6.3, with data descriptors)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import IO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from twisted.internet.threads import deferToThread

from harmonyd.envelope import Record, Results
from harmonyd.services.http import media
from harmonyd.services.http.lookahead import Lookahead
from harmonyd.services.http.parts import Answer, InstanceFile, file_of, first_record, require_whole, unchanged


class _Sink:
    """Where ``ZipFile`` writes to: a file that cannot seek, emptied by ``take``."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._chunks.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """There is nothing behind the sink to flush to."""

    def take(self) -> bytes:
        data = b"".join(self._chunks) if len(self._chunks) != 1 else self._chunks[0]
        self._chunks.clear()
        return data


async def zip_answer(results: Results) -> Answer:
    """One stored (not compressed) entry an instance; the central directory only when the results are whole."""
    records = Lookahead(results, unchanged)
    first = await first_record(records, results)
    return Answer(media.ZIP, _archive(results, records, first), records.aclose)


async def _archive(results: Results, records: Lookahead[Record], first: Record) -> AsyncIterator[bytes]:
    sink = _Sink()
    archive = ZipFile(sink, "w", ZIP_STORED)  # type: ignore[call-overload]  # it needs only write and flush
    record: Record | None = first
    try:
        while record is not None:
            file = InstanceFile(file_of(record))
            try:
                await file.open()
                with _entry(archive, record.name, file) as entry:
                    while chunk := await file.read():
                        entry.write(chunk)
                        yield sink.take()
            finally:
                await file.close()
            record = await records.next()
        require_whole(results)
        # In a thread: the directory of a hundred thousand entries takes long enough to be noticed.
        await deferToThread(archive.close)
        yield sink.take()
    finally:
        # After a failure this writes a directory that nobody takes; without it the archive would be closed by the
        # garbage collector, with a complaint.
        archive.close()


def _entry(archive: ZipFile, name: str, file: InstanceFile) -> IO[bytes]:
    # The format cannot express a time before 1980.
    modified = max(time.localtime(file.modified)[:6], (1980, 1, 1, 0, 0, 0))
    info = ZipInfo(f"{name}.dcm", modified)
    info.file_size = file.size_bytes  # decides whether this entry gets ZIP64 extensions
    return archive.open(info, "w")
