"""The endpoint half of ``http``: HTTP request to envelope, envelope to HTTP answer."""

from __future__ import annotations

from collections.abc import Mapping

from harmonyd.config.model import HttpEndpointOptions
from harmonyd.envelope import Body, RequestEnvelope, ResponseEnvelope, Results
from harmonyd.services.base import HttpAnswer, HttpRequest
from harmonyd.services.choosing import choose_backend
from harmonyd.services.http.answers import ClosingIterator, serialise
from harmonyd.services.http.headers import end_to_end


class HttpServiceEndpoint:
    """Lets HTTP clients reach a pipeline below ``path_prefix``."""

    def __init__(self, name: str, options: HttpEndpointOptions) -> None:
        self.name = name
        self.path_prefix = self.public_prefix = options.path_prefix
        self.methods = options.methods
        self._options = options

    def choose(self, request: HttpRequest) -> HttpRequest:
        """See ``choose_backend``."""
        return choose_backend(request, self._options)

    def request(self, request: HttpRequest) -> RequestEnvelope:
        """Protocol → envelope. Metadata comes from the configuration only, never from what a client sends."""
        return RequestEnvelope(
            protocol="http",
            method=request.method,
            uri=request.uri,
            path=request.path,
            body=request.body,
            headers={name.lower(): value for name, value in request.headers.items()},
            query=request.query,
            metadata={"path": request.path},
            id=request.id,
        )

    def may_run_long(self, request: HttpRequest) -> bool:
        """Tell whether the request is an operation."""
        return request.method == "POST"

    async def answer(self, request: RequestEnvelope, response: ResponseEnvelope) -> HttpAnswer:
        """Envelope → protocol; waits for the first record of a result.

        Raises what the operation raised before it, ``NotAcceptable`` and ``IncompleteAnswer``. The chunks release the
        response when they end, fail or are closed.
        """
        headers = end_to_end(response.headers)
        if response.results is not None:
            return await _records(response.status, headers, response.results, request.id)
        if response.body is not None:
            return _passed_through(response.status, headers, response.body)
        return HttpAnswer(response.status, headers, length=0)


async def _records(status: int, headers: Mapping[str, str], results: Results, request_id: str) -> HttpAnswer:
    answer = await serialise(results, request_id)
    # What is in an archive about a patient is not for a cache on the way (RFC 9111 section 5.2.2.5).
    ours = {"content-type": answer.content_type, "cache-control": "no-store"}
    return HttpAnswer(status, {**headers, **ours}, answer.chunks, answer.length)


def _passed_through(status: int, headers: dict[str, str], body: Body) -> HttpAnswer:
    return HttpAnswer(status, headers, ClosingIterator(body.chunks(), body.close), body.length)
