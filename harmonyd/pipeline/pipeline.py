"""A pipeline: middleware in order, then a backend, then middleware in reverse. It knows neither HTTP nor DIMSE."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from harmonyd.envelope import Body, RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, Forbidden, NotFound
from harmonyd.middleware.base import Middleware
from harmonyd.pipeline.errors import DeliveryFailed, DeliveryRefused, UnknownBackend


class Backend(Protocol):
    """What a pipeline needs of a backend (``harmonyd.services.base.Backend`` is one)."""

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope: ...


class Pipeline:
    """Runs requests and inbound objects through one configured chain.

    The caller keeps and closes ``request.body``. A middleware that replaces a response takes over the old one's stream.
    """

    _log = Logger()

    def __init__(self, name: str, middleware: Sequence[Middleware], backends: Mapping[str, Backend]) -> None:
        """``backends`` in the configuration's order: the first is the default."""
        self.name = name
        self.middleware = tuple(middleware)
        self.backends = dict(backends)

    async def handle(self, request: RequestEnvelope) -> ResponseEnvelope:
        """Answer a request from one backend, or from the middleware that answers first.

        Raises what middleware and backend raise, ``Forbidden`` for a ``?backend=`` that is not allowed, ``NotFound``
        when the pipeline has no backend, and ``UnknownBackend`` when middleware names one that is not there.
        """
        passed: list[Middleware] = []
        response = await self._request_side(request, passed)
        if response is None:
            response = await self._ask(request)
        return await self._response_side(request, response, passed)

    async def deliver(
        self, request: RequestEnvelope, body_factory: Callable[[], Body], *, skip: Collection[str] = ()
    ) -> tuple[str, ...]:
        """Deliver an inbound object to every backend that middleware leaves; return their names.

        ``body_factory`` opens the object anew for each of them; middleware sees ``request.body``. Backends in ``skip``
        already have the object. All are tried, in order; ``DeliveryFailed`` tells which of them do not have it.
        """
        passed: list[Middleware] = []
        early = await self._request_side(request, passed)
        if early is not None:
            await _require_success(await self._response_side(request, early, passed))
            return ()
        delivered: list[str] = []
        errors: dict[str, Exception] = {}
        for name in self._left(request):
            try:
                if name not in skip:
                    await self._deliver_to(name, request, body_factory(), passed)
                delivered.append(name)
            except CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever one backend does, the next ones get their turn
                self._log.warn(
                    "pipeline {pipeline}: backend {backend} did not take the object: {error}",
                    pipeline=self.name, backend=name, error=error, request=request.id,
                )  # fmt: skip
                errors[name] = error
        if errors:
            raise DeliveryFailed(tuple(delivered), errors)
        return tuple(delivered)

    async def _request_side(self, request: RequestEnvelope, passed: list[Middleware]) -> ResponseEnvelope | None:
        for middleware in self.middleware:
            response = await middleware.on_request(request)
            if response is not None:
                return response
            passed.append(middleware)
        return None

    async def _response_side(
        self, request: RequestEnvelope, response: ResponseEnvelope, passed: Sequence[Middleware]
    ) -> ResponseEnvelope:
        for middleware in reversed(passed):
            try:
                response = await middleware.on_response(request, response)
            except Exception:
                await response.close()
                raise
        return response

    async def _ask(self, request: RequestEnvelope) -> ResponseEnvelope:
        if not self.backends and not _skips_backends(request):
            raise NotFound(
                f"Pipeline {self.name} has no backend that could answer.",
                hint="Name a backend in the pipeline's `backends`, or let middleware answer.",
            )
        name = self._chosen(request)
        return ResponseEnvelope(status=204) if name is None else await self.backends[name].send(request)

    def _chosen(self, request: RequestEnvelope) -> str | None:
        left = self._left(request)
        asked = request.query.get("backend", [])
        if len(asked) > 1:
            raise BadRequest("The query names more than one backend.", hint="Give `backend` once.")
        if asked and asked[0] not in left:
            # The same answer whether the backend exists or not: names are the operator's business.
            raise Forbidden("This request may not choose that backend.", hint="Leave `backend` out of the query.")
        return asked[0] if asked else next(iter(left), None)

    def _left(self, request: RequestEnvelope) -> tuple[str, ...]:
        if _skips_backends(request):
            return ()
        name = request.metadata.get("backend")
        if name is None:
            return tuple(self.backends)
        if name not in self.backends:
            raise UnknownBackend(
                f"Middleware of pipeline {self.name} chose backend {name!r}, which it does not have.",
                hint=f"Its backends are: {', '.join(self.backends) or 'none'}.",
            )
        return (name,)

    async def _deliver_to(self, name: str, request: RequestEnvelope, body: Body, passed: Sequence[Middleware]) -> None:
        copy = replace(request, body=body, metadata=dict(request.metadata))
        try:
            response = await self.backends[name].send(copy)
            await _require_success(await self._response_side(copy, response, passed))
        finally:
            await body.close()


def _skips_backends(request: RequestEnvelope) -> bool:
    return request.metadata.get("skip_backends") == "true"


async def _require_success(response: ResponseEnvelope) -> None:
    """Read an answer to its end (a store happens only while its results are read); raise unless it says success."""
    try:
        if not 200 <= response.status < 300:
            raise DeliveryRefused(f"The answer has status {response.status}.")
        if response.results is not None:
            async for _ in response.results:
                pass
            summary = response.results.summary()
            if not (summary["success"] and summary["complete"]):
                raise DeliveryRefused(summary.get("incomplete_reason") or "The answer does not say success.")
        if response.body is not None:
            async for _ in response.body.chunks():
                pass
    finally:
        await response.close()
