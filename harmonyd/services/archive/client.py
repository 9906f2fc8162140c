"""HTTP to one archive: connections that are verified and kept, credentials, redirects within the same origin.

A GET that a kept connection brings nothing of is asked again on a new one (by Twisted's pool); nothing else is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

from OpenSSL import SSL
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.web.client import (
    Agent,
    HTTPConnectionPool,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from harmonyd.bodies import BytesBody
from harmonyd.config.archive_model import ClientCredentials, DicomwebBackendOptions
from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import DimseError, DimseTimeout, NonsenseAnswer, RemoteUnreachable
from harmonyd.dimse.tls_client import ClientCreator, Verdict, tls_problem
from harmonyd.envelope import Body
from harmonyd.errors import DeadlinePassed, HarmonydError
from harmonyd.services.archive.answer import Answer
from harmonyd.services.archive.credentials import (
    MAX_TOKEN_BYTES,
    Credentials,
    FromFile,
    InThread,
    NoCredentials,
    TokenServer,
)
from harmonyd.services.archive.errors import ArchiveBroke
from harmonyd.services.http.upstream import BodyProducer, UpstreamBody
from harmonyd.tls import TlsClient

IDLE_SECS = 30
"""Shorter than what servers commonly keep an idle connection open."""
MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 307, 308})
_FORM = "application/x-www-form-urlencoded"
MakeBody = Callable[[], Body]


class _Creator(ClientCreator):
    """Keeps what was thought of the last certificate, for the words of an error."""

    last: Verdict | None = None

    def clientConnectionForTLS(self, tls_protocol: Any) -> SSL.Connection:
        made = super().clientConnectionForTLS(tls_protocol)
        self.last = tls_protocol.wrappedProtocol.verdict
        return made


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Connections to one host, verified as ``tls`` says."""

    def __init__(self, reactor: Any, remote: RemoteNode, tls: TlsClient, max_idle: int) -> None:
        self.remote = remote
        self._reactor = reactor
        self._tls = tls
        self.creator: _Creator | None = None
        self.pool: Any = HTTPConnectionPool(reactor, persistent=True)  # type: ignore[no-untyped-call]
        self.pool._factory = cast(Any, type("Quiet", (self.pool._factory,), {"noisy": False}))
        self.pool.maxPersistentPerHost = max_idle
        self.pool.cachedConnectionTimeout = IDLE_SECS
        self.agent: Any = Agent.usingEndpointFactory(reactor, self, self.pool)  # type: ignore[no-untyped-call]

    def endpointForURI(self, uri: Any) -> Any:
        host = uri.host.decode("ascii").strip("[]")
        plain: Any = HostnameEndpoint(self._reactor, host, uri.port, timeout=self.remote.connect_timeout_secs)
        if uri.scheme != b"https":
            return plain
        self.creator = _Creator(self.remote, self._tls)
        return wrapClientTLS(cast(Any, self.creator), plain)


class Client:
    """Of one backend. ``remote``: its host, and its timeouts."""

    def __init__(
        self, reactor: Any, name: str, remote: RemoteNode, options: DicomwebBackendOptions, in_thread: InThread
    ) -> None:
        self.name = name
        self._reactor = reactor
        self._remote = remote
        self._url = options.url
        self._endpoints = _Endpoints(reactor, remote, options.tls, remote.max_associations)
        self._token_endpoints: _Endpoints | None = None
        self._credentials = self._credentials_of(options, in_thread)

    def _credentials_of(self, options: DicomwebBackendOptions, in_thread: InThread) -> Credentials:
        given = options.credentials
        if given is None:
            return NoCredentials()
        if not isinstance(given, ClientCredentials):
            return FromFile(self.name, given, in_thread, self._reactor.seconds)
        host = urlsplit(given.token_url)
        port = host.port or (443 if host.scheme == "https" else 80)
        remote = RemoteNode(self.name, "TOKEN-SERVER", host.hostname or "", port, "", self._remote.connect_timeout_secs)
        self._token_endpoints = _Endpoints(self._reactor, remote, given.tls, 1)
        return TokenServer(self.name, given, self._post_for_token, in_thread, self._reactor.seconds)

    async def close(self) -> None:
        """Close the connections that are idle."""
        for endpoints in (self._endpoints, self._token_endpoints):
            if endpoints is not None:
                await endpoints.pool.closeCachedConnections()

    async def get(self, path: str, accept: str, deadline: float, *, gzip: bool = False) -> Answer:
        """``path``: below the URL, encoded, with its query. The answer's header is there; close the answer."""
        url = self._url + path
        for _ in range(MAX_REDIRECTS):
            answer = await self._authorized("GET", url, {"accept": accept}, deadline, gzip=gzip)
            target = urljoin(url, answer.headers.get("location", ""))
            if answer.status not in _REDIRECTS or not _same_origin(url, target) or target == url:
                return answer
            await answer.drop()
            url = target
        raise NonsenseAnswer(f"The archive of backend {self.name} redirects in a circle")

    async def post(self, path: str, kind: str, accept: str, make_body: MakeBody, deadline: float) -> Answer:
        """The same, with a body of type ``kind``, which may be made twice. Redirects are not followed."""
        fields = {"accept": accept, "content-type": kind}
        return await self._authorized("POST", self._url + path, fields, deadline, make_body)

    async def _authorized(
        self,
        method: str,
        url: str,
        fields: dict[str, str],
        deadline: float,
        make_body: MakeBody | None = None,
        *,
        gzip: bool = False,
    ) -> Answer:
        """Asked again, once, where the archive says 401 and there are other credentials by now."""
        fields["accept-encoding"] = "gzip" if gzip else "identity"
        shown = await self._credentials.value(deadline)
        answer = await self._shown(shown, method, url, fields, deadline, make_body)
        if answer.status != 401 or not self._credentials.refused(shown):
            return answer
        try:
            other = await self._credentials.value(deadline)
        except BaseException:
            await answer.close()
            raise
        if other == shown:
            return answer
        await answer.drop()
        return await self._shown(other, method, url, fields, deadline, make_body)

    async def _shown(
        self, value: str, method: str, url: str, fields: dict[str, str], deadline: float, make_body: MakeBody | None
    ) -> Answer:
        sent = {**fields, "authorization": value} if value else fields
        body = make_body() if make_body is not None else None
        return await self._exchange(self._endpoints, method, url, sent, body, deadline)

    async def _post_for_token(self, url: str, form: bytes, authorization: str, deadline: float) -> tuple[int, bytes]:
        assert self._token_endpoints is not None
        fields = {"accept": "application/json", "content-type": _FORM, "authorization": authorization}
        answer = await self._exchange(self._token_endpoints, "POST", url, fields, BytesBody(form), deadline)
        try:
            return answer.status, await answer.read(MAX_TOKEN_BYTES)
        finally:
            await answer.close()

    async def _exchange(
        self, endpoints: _Endpoints, method: str, url: str, fields: dict[str, str], body: Body | None, deadline: float
    ) -> Answer:
        silence = _Silence(self._reactor, self._remote.association_timeout_secs, deadline)
        producer = None if body is None else BodyProducer(_Watched(body, silence))
        headers = Headers({name.encode("ascii"): [value.encode("utf-8")] for name, value in fields.items()})
        headers.setRawHeaders(b"user-agent", [b"harmonyd"])
        try:
            waiting = endpoints.agent.request(method.encode("ascii"), url.encode("ascii"), headers, producer)
            silence.watch(waiting)
            response = await waiting
        except Exception as error:
            if silence.passed:
                raise silence.error(self.name) from None
            raise self._failure(endpoints, error) from error
        finally:
            silence.end()
        if producer is not None:
            producer.abandon()
        upstream = UpstreamBody(response.length, deadline, self._reactor)
        response.deliverBody(upstream)
        found = {
            name.decode("latin-1").lower(): b", ".join(values).decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        idle_secs = self._remote.association_timeout_secs
        return Answer(self.name, response.code, found, upstream, self._reactor, idle_secs)

    def _failure(self, endpoints: _Endpoints, error: Exception) -> Exception:
        remote = endpoints.remote
        where = f"{remote.host}:{remote.port}"
        if isinstance(error, ConnectingCancelledError):
            return CancelledError()
        if isinstance(error, ConnectTimeout):
            return DimseTimeout(
                f"{where} of backend {self.name} accepted no connection in {remote.connect_timeout_secs:g} s",
                hint="Check that it runs, that a firewall lets us through, and the URL.",
                timeout="connect",
            )
        if isinstance(error, ConnectError | DNSLookupError):
            why = str(error).strip().rstrip(".") or type(error).__name__
            hint = "Check that the server runs, and the URL in the configuration."
            return RemoteUnreachable(f"{where} of backend {self.name} cannot be reached: {why}", hint=hint)
        if isinstance(error, RequestGenerationFailed | RequestTransmissionFailed | ResponseFailed):
            return self._broken(endpoints, [failure.value for failure in error.reasons])
        return error

    def _broken(self, endpoints: _Endpoints, reasons: list[BaseException]) -> Exception:
        for reason in reasons:
            if isinstance(reason, CancelledError | HarmonydError | OSError):
                return reason
        verdict = endpoints.creator.last if endpoints.creator is not None else None
        if verdict is not None:
            lost = next((reason for reason in reasons if isinstance(reason, SSL.Error)), None)
            problem: DimseError | None = tls_problem(endpoints.remote, verdict, lost, is_secured=verdict.is_good)
            if problem is not None:
                if problem.extra.get("tls") == "peer_speaks_plain":
                    problem.hint = "The URL begins with https, and the server speaks plain HTTP: change one of them."
                return problem
        return ArchiveBroke(
            f"The archive of backend {self.name} broke off before it answered, or sent what is not HTTP",
            hint="Its log says why; does url begin with the right one of http and https?",
        )


class _Silence:
    """Ends a wait in which nothing happens for too long, or at the deadline."""

    def __init__(self, reactor: Any, idle_secs: float, deadline: float) -> None:
        self.passed = ""
        self._reactor = reactor
        self._idle_secs = idle_secs
        self._deadline = deadline
        self._last = reactor.seconds()
        self._waiting: Any = None
        self._timer: Any = None

    def watch(self, waiting: Any) -> None:
        self._waiting = waiting
        self._look()

    def touch(self) -> None:
        """Something happens."""
        self._last = self._reactor.seconds()

    def end(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def error(self, name: str) -> Exception:
        if self.passed == "deadline":
            return DeadlinePassed(f"The archive of backend {name} did not answer before the deadline")
        hint = "idle_timeout_ms of the backend says how long a silence may be; a narrower question is answered sooner."
        return DimseTimeout(f"The archive of backend {name} did not answer in time", hint=hint, timeout="dimse")

    def _look(self) -> None:
        now = self._reactor.seconds()
        silent_at = self._last + self._idle_secs
        if now >= self._deadline or now >= silent_at:
            self.passed = "deadline" if now >= self._deadline else "silence"
            self._waiting.cancel()
            return
        self._timer = self._reactor.callLater(min(self._deadline, silent_at) - now, self._look)


class _Watched:
    """A body whose progress counts."""

    def __init__(self, body: Body, silence: _Silence) -> None:
        self._body = body
        self._silence = silence
        self.length = body.length

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._body.chunks():
            self._silence.touch()
            yield chunk

    async def read(self, limit_bytes: int) -> bytes:
        return await self._body.read(limit_bytes)

    async def close(self) -> None:
        await self._body.close()


def _same_origin(one: str, other: str) -> bool:
    first, second = urlsplit(one), urlsplit(other)
    return (first.scheme, first.netloc.lower()) == (second.scheme, second.netloc.lower())
