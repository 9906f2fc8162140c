"""One operation that outlives its request: what it is asked to do, how far it is, and what came of it.

The run is the request as it would be handled anyway, with a file in the place of the client's socket.
"""

# mypy: allow-untyped-calls
# (Failure has no types)

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.envelope import Occasion, RequestEnvelope, ResponseEnvelope
from harmonyd.errors import Gone, HarmonydError
from harmonyd.operations.body import WatchedBody
from harmonyd.operations.result import Result
from harmonyd.services.base import Ask, HttpAnswer, HttpRequest
from harmonyd.subject import Subject
from harmonyd.waiters import Waiters
from harmonyd.web.problem import is_ours, problem

__all__ = ["Operation", "Owner", "Respond", "State"]

Respond = Callable[[HttpRequest, Ask], Awaitable[HttpAnswer]]
"""What an endpoint does with a request and a way to its pipeline."""
Write = Callable[[HttpAnswer], Awaitable[Result]]
_TOLD = ("success", "complete", "incomplete_reason", "warnings")
"""Members of a result's summary that are shown with the operation."""


class State(StrEnum):
    """In the order in which they are passed; the last three are final."""

    QUEUED = "queued"
    """It waits for its turn: for a free association to the PACS."""
    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"


_FINAL = (State.COMPLETE, State.FAILED, State.CANCELLED)


@dataclass(frozen=True, slots=True)
class Owner:
    """The endpoint that an operation belongs to; no other shows it."""

    endpoint: str
    path_prefix: str


def subject_key(subject: Subject | None) -> tuple[str, str]:
    """What tells one subject from another; two ways to show who one is have names of their own."""
    return (subject.scheme, subject.name) if subject is not None else ("", "")


class Operation:
    """Implements ``Progress``. ``changed`` fires whenever ``document`` changes, ``ended`` once."""

    _log = Logger("harmonyd.operations")

    def __init__(
        self, id: str, owner: Owner, request: HttpRequest, seconds: Callable[[], float], keep_secs: float
    ) -> None:
        self.id = id
        self.owner = owner
        self.subject = subject_key(None)
        """Who may know of it."""
        self.state = State.QUEUED
        self.version = 0
        """Grows with each change."""
        self.result: Result | None = None
        self.error: BaseException | None = None
        """Why there is no result."""
        self.expires: float | None = None
        self.changed: Waiters[None] = Waiters()
        self.ended: Waiters[None] = Waiters()
        self.body = WatchedBody(request.body, self._tell)
        self.keep_secs = keep_secs
        self.request_id = request.id
        self._method = request.method
        # Without the query, which may hold a patient's name.
        self._path = request.uri.partition("?")[0]
        self._request: HttpRequest | None = replace(request, body=self.body)
        self._seconds = seconds
        self._created = seconds()
        self._started: float | None = None
        self._ended_at: float | None = None
        self._counts: dict[str, int | None] | None = None
        self._records = 0
        self._bytes = 0
        self._outcome: Mapping[str, Any] = {}
        self._envelope: RequestEnvelope | None = None
        self._kind: str | None = None
        self._has_named = False
        self._responses: list[ResponseEnvelope] = []
        self._occasion = Occasion()
        self._running: Deferred[None] | None = None
        self._is_closing = False
        self._why_cancelled: HarmonydError | None = None

    # --- what it is asked

    @property
    def has_ended(self) -> bool:
        return self.state in _FINAL

    @property
    def kind(self) -> str | None:
        """find, get, move or store; None before that is known."""
        return self._envelope.metadata.get("dimse_op") if self._envelope is not None else self._kind

    @property
    def document(self) -> dict[str, Any]:
        """State and counts, as a client gets to see them."""
        shown: dict[str, Any] = {
            "id": self.id,
            "state": self.state.value,
            "operation": self.kind,
            "request": {"id": self.request_id, "method": self._method, "path": self._path},
            "created": _time(self._created),
            "started": _time(self._started),
            "ended": _time(self._ended_at),
            "expires": _time(self.expires),
            "suboperations": self._counts,
            "matches" if self.kind == "find" else "instances": self._records,
            "bytes": self._bytes or self.body.read_bytes if self.kind == "store" else self._bytes,
            **self._outcome,
        }
        if self.result is not None:
            fields = {name.lower(): value for name, value in self.result.headers.items()}
            shown["result"] = {
                "status": self.result.status,
                "content_type": fields.get("content-type"),
                "bytes": self.result.size_bytes,
            }
        if self.error is not None:
            shown["problem"] = json.loads(self.problem()[2])
        return shown

    def problem(self) -> tuple[int, dict[str, str], bytes]:
        """Status, header and body that tell a client of ``error``."""
        assert self.error is not None
        return problem(self.error, request_id=self.request_id, operation=self.kind)

    # --- Progress

    def began(self) -> None:
        """See ``Progress``."""
        if self.state is State.QUEUED:
            self.state = State.RUNNING
            self._started = self._seconds()
            self._tell()

    def arrived(self, size_bytes: int) -> None:
        """See ``Progress``."""
        if not self.has_ended:
            self._records += 1
            self._bytes += size_bytes
            self._tell()

    def counted(self, completed: int | None, failed: int | None, warning: int | None, remaining: int | None) -> None:
        """See ``Progress``."""
        counts = {"completed": completed, "failed": failed, "warning": warning, "remaining": remaining}
        is_told = any(count is not None for count in counts.values())
        if is_told and counts != self._counts and not self.has_ended:
            self._counts = counts
            self._tell()

    def _tell(self) -> None:
        self.version += 1
        self.changed.fire(None)

    # --- its run

    def run(self, respond: Respond, handle: Ask, write: Write) -> None:
        """Begin, once. ``handle`` is the pipeline; ``write`` keeps the answer."""
        request, self._request = self._request, None
        assert request is not None, "it begins once"
        if self._why_cancelled is not None:
            self.drop(self._why_cancelled)
            return
        running = Deferred.fromCoroutine(self._run(request, respond, handle, write))
        if not self._is_closing:
            self._running = running
        running.addErrback(lambda failure: self._log.failure("an operation was not ended", failure=failure))

    async def end(self) -> None:
        """Return when it has ended."""
        if not self.has_ended:
            await self.ended.wait()

    def cancel(self, why: HarmonydError) -> None:
        """End it as if its client had left, once; ``why`` is for those who ask for the result."""
        if self._why_cancelled is None and not self.has_ended:
            self._why_cancelled = why
            if self._running is not None:
                self._running.cancel()

    def drop(self, why: HarmonydError) -> None:
        """Let it end without having begun."""
        self._why_cancelled = why
        self._conclude(None, why)

    async def _run(self, request: HttpRequest, respond: Respond, handle: Ask, write: Write) -> None:
        error: BaseException | None = None
        result: Result | None = None
        try:
            try:
                answer = await respond(request, self._asking(handle, request))
                self.began()
                result = await write(answer)
                self._outcome = self._summary()
            finally:
                await self._close()
        except BaseException as exc:  # noqa: BLE001 - the boundary: whatever went wrong is what came of it
            error = exc
        self._conclude(result, error)

    def _asking(self, handle: Ask, asked: HttpRequest) -> Ask:
        async def ask(envelope: RequestEnvelope) -> ResponseEnvelope:
            self._envelope = envelope
            asked.identify(envelope)
            envelope.progress = self
            envelope.occasion = self._occasion
            # What an endpoint has to find out first has artifacts of its own.
            if not self._has_named and envelope.metadata.get("dimse_op") != "find":
                self._has_named = True
                envelope.operation_id = self.id
            response = await handle(envelope)
            self._responses = [each for each in self._responses if each.results is not None or each.body is not None]
            self._responses.append(response)
            return response

        return ask

    def _summary(self) -> dict[str, Any]:
        found = [response.results.summary() for response in self._responses if response.results is not None]
        return {key: found[-1][key] for key in _TOLD if key in found[-1]} if found else {}

    async def _close(self) -> None:
        # What is being cleaned up must not be interrupted.
        self._is_closing, self._running = True, None
        try:
            while self._responses:
                await self._responses.pop().close()
        finally:
            self._occasion.end()

    def _conclude(self, result: Result | None, error: BaseException | None) -> None:
        self._kind, self._envelope, self._request = self.kind, None, None
        self.body.let_go()
        was_cancelled = self._why_cancelled is not None and result is None
        if error is not None and not was_cancelled and is_ours(error):
            self._log.failure("failed by our fault", failure=Failure(error), request=self.request_id)
        if result is not None:
            # Whole, even if what was behind it could not be closed.
            self.result = result
            self.state = State.COMPLETE if result.status < HTTPStatus.BAD_REQUEST else State.FAILED
        elif was_cancelled:
            self.error, self.state = self._why_cancelled, State.CANCELLED
        else:
            self.error, self.state = error, State.FAILED
        self._ended_at = self._seconds()
        self.expires = self._ended_at + self.keep_secs
        self._log.info(
            "operation {operation_id}: {state}, {ms} ms",
            operation_id=self.id,
            state=self.state.value,
            ms=round((self._ended_at - self._created) * 1000),
            request=self.request_id,
            operation=self.kind,
        )
        self._tell()
        self.ended.fire(None)


def cancelled(why: str) -> Gone:
    """The reason that is given for a result that there will not be."""
    return Gone(f"The operation was cancelled: {why}.", hint="Ask for it again, if it is still wanted.")


def _time(secs: float | None) -> str | None:
    if secs is None:
        return None
    return datetime.fromtimestamp(secs, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
