"""An endpoint that answers later when it is asked to: ``Prefer: respond-async``, and ``{prefix}/operations/…``.

It stands before another endpoint, which knows nothing of it: all that is not about operations is passed on. An id is a
secret that only who asked has, and nothing lists them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, cast

from harmonyd.errors import Conflict, MethodNotAllowed, NotFound
from harmonyd.operations.events import event_stream, within
from harmonyd.operations.operation import Operation, Owner, cancelled
from harmonyd.operations.prefer import Preferences, parse_prefer
from harmonyd.operations.registry import Operations
from harmonyd.operations.result import kept
from harmonyd.services.base import Ask, AskingEndpoint, ChoosesBackend, HttpAnswer, HttpEndpoint, HttpRequest, RunsLong
from harmonyd.services.dicomweb.cors import preflight
from harmonyd.services.http.answers import ClosingIterator
from harmonyd.subject import Subject
from harmonyd.web.route import Route

__all__ = ["LongRunningEndpoint"]

_SEGMENT = "operations"
_METHODS = ("GET", "HEAD", "DELETE")
_APPLIED = "Preference-Applied"
_OF_THE_FETCH = ("range", "if-")


class LongRunningEndpoint:
    """Implements ``AskingEndpoint``."""

    methods: tuple[str, ...] = ()
    """Each path has its own."""

    def __init__(self, route: Route, operations: Operations) -> None:
        """``route`` leads to the endpoint behind, which is a ``RunsLong``, too."""
        inner = route.endpoint
        self.name = inner.name
        self.path_prefix = inner.path_prefix
        self.owner = Owner(inner.name, inner.path_prefix)
        self._inner = inner
        self._asking = inner if isinstance(inner, AskingEndpoint) else None
        self._route = route
        self._operations = operations
        self._views: Mapping[str, Callable[[Operation, HttpRequest], Awaitable[HttpAnswer]]] = {
            "": self._state,
            "events": self._events,
            "result": self._result,
        }

    def common_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Those of the endpoint behind."""
        return {} if self._asking is None else self._asking.common_headers(headers)

    async def serve(self, request: HttpRequest, ask: Ask) -> HttpAnswer:
        """Answer now, or say where the answer will be. Raises ``HarmonydError``."""
        first, *rest = request.path.strip("/").split("/")
        if first == _SEGMENT:
            is_preflight = request.method == "OPTIONS" and self._asking is not None
            return preflight(request, _allowed(rest)) if is_preflight else await self._about(request, rest)
        if isinstance(self._inner, ChoosesBackend):
            request = self._inner.choose(request)
        if not self._route.allows(request.method):
            allowed = self._route.allowed_at(request.path)
            raise MethodNotAllowed(f"{request.method} is not allowed here, only {', '.join(allowed)}.", allow=allowed)
        preferences = parse_prefer(request.headers.get("prefer"))
        if preferences.respond_async and isinstance(self._inner, RunsLong) and self._inner.may_run_long(request):
            return await self._later(request, preferences)
        return await self._respond(request, ask)

    async def _respond(self, request: HttpRequest, ask: Ask) -> HttpAnswer:
        """As the endpoint behind does."""
        if self._asking is not None:
            return await self._asking.serve(request, ask)
        inner = cast(HttpEndpoint, self._inner)
        envelope = inner.request(request)
        return await inner.answer(envelope, await ask(envelope))

    async def _later(self, request: HttpRequest, preferences: Preferences) -> HttpAnswer:
        """Begin, and answer as soon as the client is not needed any more.

        What is wrong already by then is told at once, as is the result of what ends in the time the client waits.
        """
        who = await self._who(request)
        operation = await self._operations.begin(
            self.owner, _for_later(request), self._respond, self._route.handle, who
        )
        try:
            while not (operation.body.is_taken or operation.has_ended):
                await operation.changed.wait()
            if not operation.has_ended:
                await within(operation.ended.wait(), preferences.wait_secs or 0, self._operations.reactor)
        except BaseException:
            await self._operations.forget(operation)
            raise
        if operation.has_ended and (operation.result is None or preferences.wait_secs):
            return await self._at_once(operation, request)
        headers = {"Location": f"{self._public_prefix}/{_SEGMENT}/{operation.id}", _APPLIED: "respond-async"}
        return _json(operation.document, HTTPStatus.ACCEPTED, headers)

    async def _who(self, request: HttpRequest) -> Subject | None:
        """Who asks, by the pipeline's middleware, which sees nothing of these. Raises what that raises."""
        if self._route.identify is None:
            return request.subject
        envelope = request.without_body()
        await self._route.identify(envelope)
        return envelope.subject

    @property
    def _public_prefix(self) -> str:
        return self._inner.public_prefix if isinstance(self._inner, RunsLong) else self.path_prefix

    async def _at_once(self, operation: Operation, request: HttpRequest) -> HttpAnswer:
        """The answer itself, which is needed once."""

        async def close() -> None:
            try:
                await _close(answer)
            finally:
                self._operations.forget_soon(operation)

        try:
            answer = await self._result(operation, request)
        except BaseException:
            await self._operations.forget(operation)
            raise
        return HttpAnswer(answer.status, answer.headers, ClosingIterator(_chunks(answer), close), answer.length)

    # --- what is asked about operations

    async def _about(self, request: HttpRequest, rest: list[str]) -> HttpAnswer:
        view = self._views.get("/".join(rest[1:]))
        if not rest or not rest[0] or view is None:
            raise NotFound(
                "There is nothing at this path.",
                hint="An operation is at operations/ID, with /events and /result below; none lists them.",
            )
        who = await self._who(request)
        operation = self._operations.get(self.owner, rest[0], who)
        allowed = _allowed(rest)
        if request.method not in allowed:
            raise MethodNotAllowed(f"{request.method} is not allowed here, only {', '.join(allowed)}.", allow=allowed)
        return await view(operation, request)

    async def _state(self, operation: Operation, request: HttpRequest) -> HttpAnswer:
        if request.method != "DELETE":
            return _json(operation.document)
        if operation.has_ended:
            await self._operations.forget(operation)
            return HttpAnswer(HTTPStatus.NO_CONTENT)
        operation.cancel(cancelled("a client asked for that"))
        await operation.end()
        return _json(operation.document)

    async def _events(self, operation: Operation, request: HttpRequest) -> HttpAnswer:
        last = request.headers.get("last-event-id", "").strip()
        return event_stream(operation, self._operations.watchers, last, self._operations.reactor)

    async def _result(self, operation: Operation, request: HttpRequest) -> HttpAnswer:
        if operation.error is not None:
            status, headers, body = operation.problem()
            return HttpAnswer(status, headers, _one(body), len(body))
        if operation.result is None:
            raise Conflict(
                f"There is no result yet: the operation is {operation.state.value}.",
                hint="Ask for its state, or watch its events, until it is complete.",
                state=operation.state.value,
            )
        try:
            return await kept(operation.result, request, self._operations.in_thread)
        except FileNotFoundError:
            raise NotFound("The result has expired, or was removed.", hint="Ask for the operation again.") from None


def _for_later(request: HttpRequest) -> HttpRequest:
    """The request for the whole answer, as it is: parts, conditions and codings are for who fetches the result."""
    kept = {name: value for name, value in request.headers.items() if not name.startswith(_OF_THE_FETCH)}
    return replace(request, headers={**kept, "accept-encoding": "identity"})


def _allowed(rest: list[str]) -> tuple[str, ...]:
    """What can be done with an operation, or with what is below it."""
    return _METHODS if len(rest) == 1 else _METHODS[:2]


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _chunks(answer: HttpAnswer) -> AsyncIterator[bytes]:
    if answer.chunks is not None:
        async for chunk in answer.chunks:
            yield chunk


async def _close(answer: HttpAnswer) -> None:
    closer = getattr(answer.chunks, "aclose", None)
    if closer is not None:
        await closer()


def _json(
    document: Mapping[str, Any], status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> HttpAnswer:
    data = json.dumps(document, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace") + b"\n"
    own = {"Content-Type": "application/json", "Cache-Control": "no-store", **(headers or {})}
    return HttpAnswer(status, own, _one(data), len(data))
