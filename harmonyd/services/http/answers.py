"""From a stream of records to the bytes of an HTTP answer, in the media type that was negotiated.

Everything that can fail before the first record does so in ``serialise``, where it can still become a problem detail.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from harmonyd.envelope import Results
from harmonyd.services.http import media
from harmonyd.services.http.dicom_answers import multipart_answer, single_answer
from harmonyd.services.http.json_answers import array_answer, lines_answer, object_answer
from harmonyd.services.http.parts import Answer
from harmonyd.services.http.zip_answer import zip_answer

_WRITERS: Mapping[str, Callable[[Results], Awaitable[Answer]]] = {
    media.DICOM_JSON: array_answer,
    media.NDJSON: lines_answer,
    media.MULTIPART_DICOM: multipart_answer,
    media.ZIP: zip_answer,
    media.DICOM: single_answer,
}


class ClosingIterator:
    """An iterator of chunks that releases what is behind it, also when it was never started."""

    def __init__(self, chunks: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        self._chunks = chunks
        self._close = close

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except Exception:
            # At the end, at an error and at a cancellation alike: whoever iterates need not call aclose.
            await self._close()
            raise

    async def aclose(self) -> None:
        """Stop and release. Safe to call twice."""
        closer = getattr(self._chunks, "aclose", None)
        if closer is not None:
            await closer()
        await self._close()


async def serialise(results: Results, request_id: str) -> Answer:
    """Turn ``results`` into an answer of the media type ``results.media_type``, which is one of ``media.OFFERS``.
    ``request_id`` is for the log.

    Waits for the first record. Raises what the operation raised before it, ``NotAcceptable`` when more than one
    instance arrived for ``application/dicom``, and ``IncompleteAnswer`` when nothing arrived that is whole.
    Closes ``results`` then, and at the end of the answer's chunks.
    """
    try:
        if results.media_type == media.JSON:
            answer = await object_answer(results, request_id)
        else:
            answer = await _WRITERS[results.media_type](results)
    except Exception:
        await results.aclose()
        raise
    answer.chunks = ClosingIterator(answer.chunks, answer.close)
    return answer
