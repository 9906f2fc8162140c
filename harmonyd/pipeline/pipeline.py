"""A pipeline: middleware in order, then a backend, then middleware in reverse. It knows neither HTTP nor DIMSE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from twisted.internet.defer import CancelledError, Deferred, DeferredList

from harmonyd.envelope import Occasion, RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, Fault, Forbidden, HarmonydError, NotFound
from harmonyd.middleware.base import Middleware
from harmonyd.permit import holds
from harmonyd.pipeline.errors import DeliveryRefused, MiddlewareRefused, UnknownBackend
from harmonyd.tracing import begin


class Backend(Protocol):
    """What a pipeline needs of a backend (``harmonyd.services.base.Backend`` is one)."""

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope: ...


@runtime_checkable
class TakesMany(Protocol):
    """A backend that delivers several inbound objects together better than one by one."""

    async def send_all(self, requests: Sequence[RequestEnvelope]) -> Sequence[ResponseEnvelope | Exception]:
        """One answer, or what was wrong, for each request, in order. Raises only ``CancelledError``."""
        ...


@runtime_checkable
class HoldsPermits(Protocol):
    """A backend that looks at ``request.permit`` itself, because it knows more about the request."""

    holds_permits: bool


@runtime_checkable
class Identifies(Protocol):
    """Middleware that only finds out who asks and what they may do."""

    identifies: bool


@runtime_checkable
class SeesErrors(Protocol):
    """Middleware that changes what an error of a backend tells the caller."""

    async def on_error(self, request: RequestEnvelope, error: HarmonydError) -> None:
        """Change ``error.extra`` in place."""
        ...


class Together(Protocol):
    """Answers a request from several backends."""

    async def send(self, request: RequestEnvelope, backends: Mapping[str, Any]) -> ResponseEnvelope:
        """Raises a ``HarmonydError`` when there is nothing to answer."""
        ...


class Pipeline:
    """Runs requests and inbound objects through one configured chain.

    The caller keeps and closes ``request.body``. A middleware that replaces a response takes over the old one's stream.
    """

    def __init__(
        self,
        name: str,
        middleware: Sequence[Middleware],
        backends: Mapping[str, Backend],
        together: Together | None = None,
    ) -> None:
        """``backends`` in the configuration's order: the first is the default, unless ``together`` asks them all."""
        self.name = name
        self.middleware = tuple(middleware)
        self.backends = dict(backends)
        self.together = together

    async def handle(self, request: RequestEnvelope) -> ResponseEnvelope:
        """Answer a request from one backend, from all of them together, or from the middleware that answers first.

        Raises what middleware and backend raise, ``Forbidden`` for a ``?backend=`` that is not allowed, ``NotFound``
        when the pipeline has no backend, and ``UnknownBackend`` when middleware names one that is not there.
        """
        if request.occasion is not None:
            return await self._traced(request)
        occasion = request.occasion = Occasion()
        try:
            response = await self._traced(request)
        except BaseException:
            occasion.end()
            raise
        response.occasion = occasion
        return response

    async def _traced(self, request: RequestEnvelope) -> ResponseEnvelope:
        span = begin(f"pipeline {self.name}", request.trace, harmonyd__pipeline=self.name)
        request.trace = span.trace
        try:
            response = await self._handle(request)
        except BaseException as error:
            span.end(type(error).__name__)
            raise
        span.end()
        return response

    async def _handle(self, request: RequestEnvelope) -> ResponseEnvelope:
        passed: list[Middleware] = []
        response = await self._request_side(request, passed)
        if response is None:
            try:
                response = await self._ask(request)
            except HarmonydError as error:
                for middleware in reversed(passed):
                    if isinstance(middleware, SeesErrors):
                        await middleware.on_error(request, error)
                raise
        return await self._response_side(request, response, passed)

    async def admit(self, request: RequestEnvelope, action: str) -> tuple[str, ...]:
        """Pass the request side alone; names of the backends that are left for it.

        For what is answered later, and from more than one backend. None: middleware has answered, with a success.
        Raises what ``handle`` raises, and ``Forbidden`` where ``action`` is not allowed at one of them without limits.
        """
        passed: list[Middleware] = []
        early = await self._request_side(request, passed)
        if early is not None:
            await _require_success(await self._response_side(request, early, passed))
            return ()
        names = self._chosen(request)
        for name in names if request.permit is not None else ():
            assert request.permit is not None
            if request.permit.limits(action, name):
                raise Forbidden("This cannot be held to the attributes that a rule names.")
        return names

    async def deliver(self, backend: str, requests: Sequence[RequestEnvelope]) -> list[Exception | None]:
        """Deliver inbound objects to one backend.

        For each, in order: None when the backend has it, or middleware left the backend out or took the object itself;
        else what was wrong. ``NotTried`` says that an earlier object of the same call was in the way. Each backend gets
        the object through the whole chain, so middleware sees it once for each of them.
        """
        outcomes: list[Exception | None] = [None] * len(requests)
        chosen: dict[int, Sequence[Middleware]] = {}
        for number, request in enumerate(requests):
            try:
                passed = await self._admit(backend, request)
            except CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one object, the others get their turn
                outcomes[number] = error
            else:
                if passed is not None:
                    chosen[number] = passed
        answers = await self._send_all(backend, [requests[number] for number in chosen]) if chosen else []
        for (number, passed), answer in zip(chosen.items(), answers, strict=True):
            outcomes[number] = await self._outcome(requests[number], answer, passed)
        return outcomes

    async def _admit(self, backend: str, request: RequestEnvelope) -> Sequence[Middleware] | None:
        """Pass the request side; the middleware passed, or None when the object is not for this backend.

        Raises ``MiddlewareRefused``, and what else middleware raises.
        """
        passed: list[Middleware] = []
        try:
            early = await self._request_side(request, passed)
            if early is not None:
                await _require_success(await self._response_side(request, early, passed))
                return None
            left = self._left(request)
            if backend in left:
                self._require_permit(backend, request)
                _drop_credentials(request)
        except HarmonydError as error:
            if error.fault is Fault.CALLER or isinstance(error, DeliveryRefused):
                raise MiddlewareRefused(error.detail, hint=error.hint, **error.extra) from error
            raise
        return passed if backend in left else None

    async def _send_all(
        self, name: str, requests: Sequence[RequestEnvelope]
    ) -> Sequence[ResponseEnvelope | Exception]:
        backend = self.backends[name]
        if isinstance(backend, TakesMany):
            return await backend.send_all(requests)
        sends: list[Deferred[Any]] = [Deferred.fromCoroutine(backend.send(request)) for request in requests]
        results: list[tuple[bool, Any]] = await DeferredList(sends, consumeErrors=True)
        answers = [result if success else result.value for success, result in results]
        if any(isinstance(answer, CancelledError) for answer in answers):
            raise CancelledError
        return answers

    async def _outcome(
        self, request: RequestEnvelope, answer: ResponseEnvelope | Exception, passed: Sequence[Middleware]
    ) -> Exception | None:
        if isinstance(answer, Exception):
            return answer
        try:
            await _require_success(await self._response_side(request, answer, passed))
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            return error
        return None

    async def _request_side(self, request: RequestEnvelope, passed: list[Middleware]) -> ResponseEnvelope | None:
        for middleware in self.middleware:
            response = await middleware.on_request(request)
            if response is not None:
                return response
            passed.append(middleware)
        return None

    def _require_permit(self, backend: str, request: RequestEnvelope) -> None:
        """For an inbound object, whose elements are known."""
        if request.permit is None:
            return
        limits = request.permit.limits("store", backend)
        elements = request.normalized if isinstance(request.normalized, Mapping) else {}
        if not holds(limits, elements):
            request.permit.refused("store", backend)
            raise Forbidden("This object is not one of those that its sender may store.")

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
        names = self._chosen(request)
        if not names:
            return ResponseEnvelope(status=204)
        _drop_credentials(request)
        if self.together is not None and len(names) > 1:
            return await self.together.send(request, {name: self.backends[name] for name in names})
        backend = self.backends[names[0]]
        if request.permit is not None and not isinstance(backend, HoldsPermits):
            _require_unlimited(request, getattr(backend, "action", "forward"), names[0])
        return await backend.send(request)

    async def identify(self, request: RequestEnvelope) -> None:
        """Find out who asks, and what they may do, without asking for anything.

        Raises what the middleware for identity raises.
        """
        for middleware in self.middleware:
            if isinstance(middleware, Identifies):
                await middleware.on_request(request)

    def _chosen(self, request: RequestEnvelope) -> tuple[str, ...]:
        """Those that middleware left and, where the client chose, of these the one."""
        left = self._left(request)
        asked = request.query.get("backend", [])
        if len(asked) > 1:
            raise BadRequest("The query names more than one backend.", hint="Give `backend` once.")
        if asked and asked[0] not in left:
            # The same answer whether the backend exists or not: names are the operator's business.
            raise Forbidden("This request may not choose that backend.", hint="Name another one, or none.")
        return (asked[0],) if asked else left

    def _left(self, request: RequestEnvelope) -> tuple[str, ...]:
        if _skips_backends(request):
            return ()
        chosen = request.metadata.get("backend")
        if chosen is None:
            return tuple(self.backends)
        names = tuple(name.strip() for name in chosen.split(","))
        for name in names:
            if name not in self.backends:
                raise UnknownBackend(
                    f"Middleware of pipeline {self.name} chose backend {name!r}, which it does not have.",
                    hint=f"Its backends are: {', '.join(self.backends) or 'none'}.",
                )
        return names


def _require_unlimited(request: RequestEnvelope, action: str, backend: str) -> None:
    """For a backend of which nobody knows what a request to it is about."""
    if request.permit is not None and request.permit.limits(action, backend):
        request.permit.refused(action, backend)
        raise Forbidden(
            "What you may do here is limited to some data, and this backend cannot be held to that.",
            hint="Only dicom backends can: a rule without `only` may allow it.",
        )


def _drop_credentials(request: RequestEnvelope) -> None:
    if request.consumed:
        request.headers = {name: value for name, value in request.headers.items() if name not in request.consumed}


def _skips_backends(request: RequestEnvelope) -> bool:
    return request.metadata.get("skip_backends") == "true"


async def _require_success(response: ResponseEnvelope) -> None:
    """Read an answer to its end (a store happens only while its results are read); raise unless it says success."""
    try:
        if not 200 <= response.status < 300:
            raise DeliveryRefused(f"The answer has status {response.status}.", status=response.status)
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
