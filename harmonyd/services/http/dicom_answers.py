"""Instances as they are: ``multipart/related`` (RFC 2387) with one part each, or a single ``application/dicom``."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from twisted.internet.threads import deferToThread

from harmonyd.envelope import Record, Results
from harmonyd.errors import NotAcceptable
from harmonyd.services.http import media
from harmonyd.services.http.errors import IncompleteAnswer
from harmonyd.services.http.lookahead import Lookahead
from harmonyd.services.http.parts import Answer, InstanceFile, file_of, first_record, require_whole, unchanged


async def multipart_answer(results: Results) -> Answer:
    """One part an instance, sent while they arrive; the closing boundary only when the results are whole."""
    records = Lookahead(results, unchanged)
    first = await first_record(records, results)
    boundary = f"harmonyd-{secrets.token_hex(16)}"
    chunks = _multipart(results, records, first, boundary)
    return Answer(f"{media.MULTIPART_DICOM}; boundary={boundary}", chunks, records.aclose)


async def single_answer(results: Results) -> Answer:
    """The one instance that was retrieved. Raises ``NotAcceptable`` when there are more.

    Waits for the end of the operation: only then it is known that there is one, and that it is all.
    """
    records = Lookahead(results, unchanged)
    first = await first_record(records, results)
    if await records.next() is not None:
        raise NotAcceptable(
            "More than one instance matched; application/dicom holds exactly one.",
            hint=f"Accept {media.MULTIPART_DICOM} or {media.ZIP}, or ask for one SOP Instance UID.",
            operation=results.operation,
        )
    require_whole(results)
    path = file_of(first)
    length = (await deferToThread(path.stat)).st_size
    return Answer(media.DICOM, _single(path, length), records.aclose, length)


async def _single(path: Path, length: int) -> AsyncIterator[bytes]:
    file = InstanceFile(path)
    try:
        await file.open()
        if file.size_bytes != length:
            raise IncompleteAnswer(f"The file {path.name} changed while it was sent.")
        while chunk := await file.read():
            yield chunk
    finally:
        await file.close()


async def _multipart(
    results: Results, records: Lookahead[Record], first: Record, boundary: str
) -> AsyncIterator[bytes]:
    record: Record | None = first
    delimiter = f"--{boundary}"
    while record is not None:
        file = InstanceFile(file_of(record))
        try:
            await file.open()
            before = _part_header(delimiter, file.size_bytes)
            while chunk := await file.read():
                yield before + chunk
                before = b""
            if before:
                yield before
        finally:
            await file.close()
        delimiter = f"\r\n--{boundary}"
        record = await records.next()
    require_whole(results)
    yield f"{delimiter}--\r\n".encode("ascii")


def _part_header(delimiter: str, size_bytes: int) -> bytes:
    return f"{delimiter}\r\nContent-Type: {media.DICOM}\r\nContent-Length: {size_bytes}\r\n\r\n".encode("ascii")
