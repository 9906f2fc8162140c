"""``transform``: makes other JSON of a request's or an answer's, as a JOLT specification says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from twisted.internet.threads import deferToThread

from harmonyd.bodies import BytesBody
from harmonyd.envelope import Record, RequestEnvelope, ReshapedBy, ResponseEnvelope, Results
from harmonyd.jolt import TransformFailed, decode, encode
from harmonyd.middleware.json_view import request_json, response_json, too_large
from harmonyd.middleware.specification import Specification, context_of

_OF_THE_OLD_BODY = ("content-", "etag", "digest", "repr-digest", "last-modified", "accept-ranges")
_NOT_FOR_PARTS = ("accept-encoding", "range", "if-")
"""A piece, or a compressed form, of what is going to be changed means nothing."""


class Transform:
    """Options: those of ``Specification``, and ``per_record``, ``max_bytes``, ``content_type``.

    On the request side the JSON body (``{}`` where there is none) is replaced. Of a received object only the
    normalised view is: the object stays as it is, and so do answers about it. Of a C-FIND, C-GET or C-MOVE it is the
    identifier; the matches of a C-FIND are records like any others.

    On the response side an answer of 2xx is replaced as a whole, up to ``max_bytes``; with ``per_record`` each record
    of an operation by itself, as it arrives. What is not JSON passes.
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self._specification = Specification(name, options)
        self._per_record: bool = options["per_record"]
        self._max_bytes: int = options["max_bytes"]
        self._content_type: str = options["content_type"]

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Raises ``BadRequest``, ``PayloadTooLarge`` and ``TransformFailed``."""
        if self._specification.on_left:
            await self._request(request)
        if self._specification.on_right and request.protocol == "http":
            request.headers = self._asked_for(request.headers)
        return None

    async def _request(self, request: RequestEnvelope) -> None:
        data = await request_json(request, self._max_bytes)
        if data is None and request.body.length != 0:
            return  # neither JSON nor empty
        try:
            result = await self._specification.apply({} if data is None else data, request)
            text = await deferToThread(encode, result)
        except TransformFailed as error:
            self._specification.failed(error, request)
            return
        if data is None and not result:
            return  # there was no body, and the specification has nothing for one
        request.normalized = result
        if request.protocol == "http":
            request.body = BytesBody(text)
            request.headers = {**_without(request.headers, _OF_THE_OLD_BODY), "content-type": "application/json"}

    def _asked_for(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The whole answer has to be JSON. What the client accepts is not passed on; records may go out as it likes."""
        whole = _without(headers, _NOT_FOR_PARTS)
        return whole if self._per_record else {**whole, "accept": "application/json"}

    async def on_response(self, request: RequestEnvelope, response: ResponseEnvelope) -> ResponseEnvelope:
        """Raises ``TransformFailed``, and what reading the answer raises."""
        # What became of a received object is not for anybody to reshape: it decides whether it is kept. And what a
        # C-GET or C-MOVE brings are objects.
        is_answer = request.protocol == "http" or request.method == "C-FIND"
        if not self._specification.on_right or not is_answer or not 200 <= response.status < 300:
            return response
        if self._per_record:
            if response.results is not None:
                response.results = _Reshaped(response.results, self._specification, request, response)
            return response
        await self._whole(request, response)
        return response

    async def _whole(self, request: RequestEnvelope, response: ResponseEnvelope) -> None:
        if response.results is not None:
            await self._results_to_body(response, response.results)
        try:
            data = await response_json(response, self._max_bytes)
            if data is None:
                return
            result = await self._specification.apply(data, request, response)
            text = await deferToThread(encode, result)
        except TransformFailed as error:
            self._specification.failed(error, request)
            return
        response.normalized, response.body = result, BytesBody(text)
        response.headers = {**_without(response.headers, _OF_THE_OLD_BODY), "content-type": self._content_type}

    async def _results_to_body(self, response: ResponseEnvelope, results: Results) -> None:
        """Read all records. What fails under way can still become a problem detail."""
        records: list[bytes] = []
        size = 0
        try:
            async for record in results:
                records.append(await record.json())
                size += len(records[-1]) + 2
                if size > self._max_bytes:
                    raise too_large(self._max_bytes)
            summary = dict(results.summary())
        finally:
            await results.aclose()
        response.results = None
        head = encode({"operation": results.operation, **summary})
        if results.items_key is not None:
            before = encode(results.items_key) + b": ["
            head = head[:-1] + b", " + before + b",\n".join(records) + b"]}"
        response.body = BytesBody(head)
        response.headers = {**response.headers, "content-type": "application/json", "cache-control": "no-store"}


def _without(headers: Mapping[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if not name.lower().startswith(prefixes)}


class _Reshaped:
    """``Results`` each of whose records is transformed when its JSON is asked for."""

    def __init__(
        self, results: Results, specification: Specification, request: RequestEnvelope, response: ResponseEnvelope
    ) -> None:
        self.operation = results.operation
        self.media_type = results.media_type
        self.items_key = results.items_key
        self._results = results
        self._specification = specification
        self._request = request
        self._context = context_of(request, response)

    async def __aiter__(self) -> AsyncIterator[Record]:
        async for record in self._results:
            yield ReshapedBy(record, self)

    def summary(self) -> Mapping[str, Any]:
        """Those of the results behind."""
        return self._results.summary()

    async def aclose(self) -> None:
        """Close the results behind. Safe to call twice."""
        await self._results.aclose()

    async def reshaped(self, text: bytes) -> bytes:
        """Return a record transformed, in a thread: there may be many, and each takes its time.

        Raises ``TransformFailed``.
        """
        try:
            return await deferToThread(self._reshape, text)
        except TransformFailed as error:
            self._specification.failed(error, self._request)
            return text

    def _reshape(self, text: bytes) -> bytes:
        return encode(self._specification.apply_now(decode(text), self._context))
