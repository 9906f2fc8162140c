"""The protocol-agnostic middle: what a request and its answer look like between endpoint, middleware and backend.

Nothing here knows HTTP or DIMSE. Bodies are streams or files and never whole in memory; results are streams of records.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from harmonyd.permit import Permit
from harmonyd.progress import UNWATCHED, Progress
from harmonyd.subject import OURSELVES, Caller, Subject
from harmonyd.tracing import Trace


class Body(Protocol):
    """A message body: read once, in chunks."""

    length: int | None
    """Size in bytes where known."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body in chunks of bounded size; may be called once."""
        ...

    async def read(self, limit_bytes: int) -> bytes:
        """Return the whole body; raise ``PayloadTooLarge`` beyond ``limit_bytes``."""
        ...

    async def close(self) -> None:
        """Release whatever the body holds; safe to call twice."""
        ...


class Record(Protocol):
    """One item of a result: a matched data set, an instance that arrived, the outcome of one store."""

    @property
    def path(self) -> Path | None:
        """The Part 10 file, for instances; None where the record has no file."""
        ...

    @property
    def name(self) -> str:
        """A safe file name (SOP Instance UID for instances), unique in its result."""
        ...

    async def json(self) -> bytes:
        """The record as JSON text in UTF-8 (DICOM JSON Model, PS3.18 Annex F, for data sets), without bulk data."""
        ...


@runtime_checkable
class ReshapedRecord(Protocol):
    """A ``Record`` whose JSON middleware makes of another one's."""

    @property
    def record(self) -> Record:
        """The other one."""
        ...

    async def reshaped(self, text: bytes) -> bytes:
        """Return what middleware makes of the other one's JSON. Raises what the middleware raises."""
        ...


class ReshapesJson(Protocol):
    """Middleware that makes other JSON of a record's."""

    async def reshaped(self, text: bytes) -> bytes:
        """Return what it makes of ``text``."""
        ...


@dataclass(frozen=True, slots=True)
class ReshapedBy:
    """A ``ReshapedRecord``: ``record`` as ``link`` has it."""

    record: Record
    link: ReshapesJson

    @property
    def path(self) -> Path | None:
        return self.record.path

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def backend(self) -> str | None:
        """Where it comes from, when several backends were asked."""
        return getattr(self.record, "backend", None)

    async def reshaped(self, text: bytes) -> bytes:
        """See ``ReshapedRecord``."""
        return await self.link.reshaped(text)

    async def json(self) -> bytes:
        return await self.reshaped(await self.record.json())


class Results(Protocol):
    """The stream of records an operation produced, and after its end the truth about it.

    Iterate once; iteration raises a ``HarmonydError`` when the operation fails under way.
    """

    operation: str
    """echo, find, get, move or store."""
    media_type: str
    """The negotiated media type of the answer, for example ``application/dicom+json``."""
    items_key: str | None
    """The member that lists the records in the ``application/json`` form: matches, instances; None for echo."""

    def __aiter__(self) -> AsyncIterator[Record]: ...

    def summary(self) -> Mapping[str, Any]:
        """JSON-ready members of the answer beside the records, valid after the iteration ended or failed.

        Always has ``success`` and ``complete`` (bool); ``incomplete_reason`` (str) when ``complete`` is false.
        """
        ...

    async def aclose(self) -> None:
        """End the operation behind the stream, if it still runs, and release what it holds. Safe to call twice."""
        ...


class Occasion:
    """What all questions have in common that are asked for one request of a client, from the first to its answer's end.

    ``marks`` is for middleware: each under its name.
    """

    def __init__(self) -> None:
        self.marks: dict[str, Any] = {}
        self._at_end: list[Callable[[], None]] | None = []

    def at_end(self, call: Callable[[], None]) -> None:
        """Have ``call`` called when it ends; at once when it has."""
        if self._at_end is None:
            call()
        else:
            self._at_end.append(call)

    def end(self) -> None:
        """The answer was given, or nobody wants it any more. Safe to call twice."""
        calls, self._at_end = self._at_end or [], None
        for call in calls:
            call()


@dataclass(slots=True)
class RequestEnvelope:
    """One request on its way through a pipeline.

    ``metadata`` is the string map that middleware may change. Keys with a meaning: ``dimse_op`` (echo, find, get, move,
    store), ``backend`` (name), ``skip_backends`` ("true"), ``path``, ``identifier.KEYWORD`` (a query key that is set or
    replaced).
    """

    protocol: str
    """"http" or "dicom"."""
    method: str
    """HTTP verb, or DIMSE operation such as C-STORE."""
    uri: str
    path: str
    """For HTTP the path after the endpoint's prefix, leading slash, percent-decoded; "/" for the prefix itself."""
    body: Body
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case; repeated fields joined with a comma (RFC 9110 section 5.3)."""
    query: Mapping[str, list[str]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    normalized: Any = None
    """A JSON view for middleware; DICOM JSON for data sets, never bulk data."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Correlation id: the client's ``X-Request-ID`` where given and sane."""
    deadline: float | None = None
    """Seconds on the reactor's clock, after which the work is ended; None: the backend's own limit."""
    operation_id: str | None = None
    """UUID in hex that the operation and its artifact folder are named by; None: the backend makes one."""
    progress: Progress = UNWATCHED
    caller: Caller = OURSELVES
    subject: Subject | None = None
    """Whom middleware found the request's credentials to belong to."""
    trace: Trace | None = None
    """The span that the work for it is part of; from the client's ``traceparent``, or ours."""
    occasion: Occasion | None = None
    """None: this one question, until its answer is closed."""
    permit: Permit | None = None
    """What the request may do; None: nobody limits it. Held to where it is performed."""
    challenges: tuple[str, ...] = ()
    """Of the credentials that were looked for and not found: values for WWW-Authenticate."""
    consumed: frozenset[str] = frozenset()
    """Names of header fields that held credentials for us: they are not passed on."""

    def part(self, **changes: Any) -> RequestEnvelope:
        """Return a request of its own on behalf of this one: its own metadata and artifacts, and ``changes``."""
        return replace(self, **{"metadata": dict(self.metadata), "operation_id": None, **changes})


@dataclass(slots=True)
class ResponseEnvelope:
    """One answer on its way back. Either ``results`` (records, serialised by the endpoint) or ``body`` (bytes)."""

    status: int = 200
    """An HTTP status; other protocols map it."""
    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    body: Body | None = None
    results: Results | None = None
    normalized: Any = None
    occasion: Occasion | None = None
    """That ends when this is closed."""

    async def close(self) -> None:
        """Release what is behind the answer, whether or not it was read."""
        try:
            if self.results is not None:
                await self.results.aclose()
            if self.body is not None:
                await self.body.close()
        finally:
            if self.occasion is not None:
                self.occasion.end()
