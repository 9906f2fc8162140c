"""The two halves of a service type, and the registry's shape.

An endpoint half turns its protocol into a ``RequestEnvelope`` and a ``ResponseEnvelope`` back; a backend half turns a
``RequestEnvelope`` into a ``ResponseEnvelope``. A new service type is one module here and one line in
``harmonyd.services.registry``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from harmonyd.bodies import EmptyBody
from harmonyd.envelope import Body, RequestEnvelope, ResponseEnvelope
from harmonyd.permit import Permit
from harmonyd.subject import Caller, Subject
from harmonyd.tracing import Trace


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What the HTTP front end hands to an endpoint; no Twisted type in it."""

    id: str
    """Correlation id."""
    method: str
    uri: str
    path: str
    """Percent-decoded path after the endpoint's prefix, "/" for the prefix itself."""
    prefix: str
    headers: Mapping[str, str]
    query: Mapping[str, list[str]]
    body: Body
    caller: Caller
    is_secure: bool = False
    """Whether it came over TLS, as far as we end it."""
    trace: Trace | None = None
    """The span that the work for it is part of."""
    subject: Subject | None = None
    """Whom the middleware of the network found the credentials to belong to."""
    permit: Permit | None = None
    """What that middleware lets the request do."""
    consumed: frozenset[str] = frozenset()
    """See ``RequestEnvelope``."""
    shown: tuple[str, ...] = ()
    """Names of header fields that the configuration chose for credentials."""

    def identify(self, envelope: RequestEnvelope) -> None:
        """Let a question that is asked on behalf of this request say who asks, and what for."""
        envelope.caller = self.caller
        envelope.trace = self.trace
        envelope.subject = self.subject
        envelope.permit = self.permit
        envelope.consumed = self.consumed

    def without_body(self) -> RequestEnvelope:
        """Return the request for middleware that looks at its head, and decides who asks."""
        envelope = RequestEnvelope(
            protocol="http",
            method=self.method,
            uri=self.uri,
            path=self.path,
            body=EmptyBody(),
            headers={name.lower(): value for name, value in self.headers.items()},
            query=self.query,
            metadata={"path": self.path},
            id=self.id,
        )
        self.identify(envelope)
        return envelope


@dataclass(slots=True)
class HttpAnswer:
    """What an endpoint hands back to the HTTP front end.

    ``chunks`` yields the body; when it raises after the first byte, the front end cuts the connection so that the
    client cannot take the body for whole.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    chunks: AsyncIterator[bytes] | None = None
    length: int | None = None


class HttpEndpoint(Protocol):
    """The endpoint half of a service that clients reach over HTTP."""

    name: str
    path_prefix: str
    methods: tuple[str, ...]

    def request(self, request: HttpRequest) -> RequestEnvelope:
        """Protocol → envelope. Cheap and synchronous; the body stays a stream."""
        ...

    async def answer(self, request: RequestEnvelope, response: ResponseEnvelope) -> HttpAnswer:
        """Envelope → protocol. May raise a ``HarmonydError``, which becomes a problem detail."""
        ...


Ask = Callable[[RequestEnvelope], Awaitable[ResponseEnvelope]]
"""Passes one question through the pipeline. The response is closed at the end of the request.

Who closes its results before sets them to None.
"""


@runtime_checkable
class AskingEndpoint(Protocol):
    """An endpoint half whose requests take no question to its pipeline, one, or several."""

    name: str
    path_prefix: str
    methods: tuple[str, ...]

    async def serve(self, request: HttpRequest, ask: Ask) -> HttpAnswer:
        """Protocol → envelopes → protocol. May raise a ``HarmonydError``, which becomes a problem detail."""
        ...

    def common_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the fields of every answer to a request with ``headers``, errors included (CORS, for one)."""
        ...


@runtime_checkable
class RunsLong(Protocol):
    """An endpoint half some of whose requests may be answered later (``Prefer: respond-async``, RFC 7240)."""

    public_prefix: str
    """What stands before the paths of its resources in the URLs of answers."""

    def may_run_long(self, request: HttpRequest) -> bool:
        """Tell whether this request may. Raises what is wrong with its path."""
        ...


@runtime_checkable
class ChoosesBackend(Protocol):
    """An endpoint half whose clients may name a backend."""

    def choose(self, request: HttpRequest) -> HttpRequest:
        """Return the request with its backend as ``?backend=``. Raises ``BadRequest``."""
        ...


class Lifecycle(Protocol):
    """Something that runs: started once with the daemon, stopped once."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Backend(Lifecycle, Protocol):
    """The backend half of a service."""

    name: str

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        """Perform the request. Raises a ``HarmonydError`` when it fails before there is anything to answer."""
        ...
