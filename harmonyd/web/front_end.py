"""One HTTP network: listens, finds the route of each request, passes it through its pipeline, sends the answer.

The order of events for one request: its head arrives (``admit``: route, method, size); when its body is there, or at
once if it is big, ``process`` starts a coroutine that hands it to endpoint and pipeline and streams the answer. The
coroutine is cancelled when the client leaves; whatever it holds is closed at its end, in every case.
"""

# mypy: allow-untyped-calls
# (most methods of Twisted's classes have no types)

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.config.model import LimitsConfig, NetworkConfig
from harmonyd.envelope import Body, Occasion, RequestEnvelope, ResponseEnvelope
from harmonyd.errors import MethodNotAllowed, NotFound, Unavailable
from harmonyd.services.base import Ask, AskingEndpoint, ChoosesBackend, HttpRequest
from harmonyd.telemetry.health import Health
from harmonyd.tls_port import ServerConnections
from harmonyd.web.access import begin_span, end_span, log_access
from harmonyd.web.compressing import compressed
from harmonyd.web.fields import merged
from harmonyd.web.health import health_routes
from harmonyd.web.listening import listen
from harmonyd.web.network_chain import identified
from harmonyd.web.problem import is_ours, problem
from harmonyd.web.proxies import TrustedProxies
from harmonyd.web.refusing import plain_answer
from harmonyd.web.request import Request
from harmonyd.web.route import Route
from harmonyd.web.router import Router, parse_query, segments_of, split_target
from harmonyd.web.secure import Door, OnRefusal, connections_for
from harmonyd.web.site import Site
from harmonyd.web.stream import ClientStalled, send

__all__ = ["HttpFrontEnd", "Measured", "Route"]

Measured = Callable[[str, int | None, float], None]
"""Told of each request: name of its endpoint ("": none), status (None: the answer did not reach its end), seconds."""

_RETRY_AFTER_SHUTDOWN_SECS = 10
_MAX_BACKLOG = 1024
_FRESH_SECS = 1.0
"""When we stop, a client that has just connected, and was not refused, has this long to say what it wants."""
_LONG_SECS = 3600.0
_CANCEL_SECS = 5.0  # for requests that were cancelled to end and to tell their clients


class _Exchange:
    """What one request holds while it is answered."""

    def __init__(self) -> None:
        self.answering: Deferred[None] | None = None
        self.body: Body | None = None
        self.envelope: RequestEnvelope | None = None
        self.responses: list[ResponseEnvelope] = []
        self.common_headers: dict[str, str] = {}
        self.occasion = Occasion()
        self._waiting: list[Deferred[None]] | None = []

    async def end(self) -> None:
        """Return when the request has been answered, and all it held is closed."""
        if self._waiting is not None:
            waiter: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(waiter)
            await waiter

    def ended(self) -> None:
        """Tell those who wait for the end."""
        waiting, self._waiting = self._waiting or [], None
        for waiter in waiting:
            waiter.callback(None)

    @property
    def operation(self) -> str | None:
        return self.envelope.metadata.get("dimse_op") if self.envelope is not None else None

    def cancel(self) -> None:
        """End the answering, but only once: what is being cleaned up after a first time must not be interrupted."""
        answering, self.answering = self.answering, None
        if answering is not None:
            answering.cancel()

    def asking(self, handle: Ask, request: HttpRequest) -> Ask:
        """A way to the pipeline that keeps hold of what comes back."""

        async def ask(envelope: RequestEnvelope) -> ResponseEnvelope:
            self.envelope = envelope
            request.identify(envelope)
            envelope.occasion = self.occasion
            response = await handle(envelope)
            # What the endpoint has closed and let go of is not kept: a request may ask thousands of questions.
            self.responses = [each for each in self.responses if each.results is not None or each.body is not None]
            self.responses.append(response)
            return response

        return ask

    async def close(self) -> None:
        try:
            while self.responses:
                await self.responses.pop().close()
        finally:
            self.occasion.end()
            if self.body is not None:
                await self.body.close()


class HttpFrontEnd:
    """Serves ``routes``, and the health paths if ``health`` is given, on one network."""

    _log = Logger("harmonyd.web")

    def __init__(
        self,
        reactor: Any,
        network: NetworkConfig,
        routes: Sequence[Route],
        limits: LimitsConfig,
        health: Health | None,
        measured: Measured = lambda endpoint, status, secs: None,
        on_refusal: OnRefusal = lambda address, why: None,
    ) -> None:
        """Raises ``ValueError`` for equal prefixes, ``Unavailable`` when the certificates cannot be used."""
        if network.http is None:
            raise ValueError(f"network {network.name!r} has no HTTP listener")
        self.limits = limits
        self.hsts_max_age_secs = network.hsts_max_age_secs
        self.proxies = TrustedProxies(network.trusted_proxies)
        self.stopping = False
        self._reactor = reactor
        self._measured = measured
        self._network_name = network.name
        self._listener = network.http
        self._router = _router(routes, health)
        self._site = Site(reactor, self)
        self._door = Door(reactor, self._site, plain_answer, on_refusal)
        self._door.use(connections_for(network.tls))
        self._listening: Any = None
        self._grace_is_over = False
        self._refusal = "harmonyd is shutting down."
        self._running: set[_Exchange] = set()
        self._waiting: list[Deferred[None]] = []

    def serve(
        self,
        network: NetworkConfig,
        routes: Sequence[Route],
        limits: LimitsConfig,
        health: Health | None,
        secured: ServerConnections | None = None,
    ) -> None:
        """Answer by these the requests that come from now on. Those that run, and all connections, go on.

        ``secured``: the TLS of connections that come from now on.

        Raises ``ValueError`` for equal prefixes, and changes nothing then.
        """
        self._router = _router(routes, health)
        self._network_name = network.name
        self._door.use(secured)
        self.hsts_max_age_secs = network.hsts_max_age_secs
        self.proxies = TrustedProxies(network.trusted_proxies)
        self.limits = limits
        self._site.timeOut = limits.request_timeout_secs

    @property
    def port(self) -> int:
        """The TCP port that is bound. Raises ``RuntimeError`` before ``start``."""
        if self._listening is None:
            raise RuntimeError("the front end was not started")
        return int(self._listening.getHost().port)

    @property
    def load(self) -> tuple[int, int]:
        """Requests that are being answered, and open connections."""
        return len(self._running), len(self._site.connections)

    async def start(self) -> None:
        """Listen. Raises ``PortTaken`` or ``CannotBind``."""
        backlog = min(self.limits.max_connections, _MAX_BACKLOG)
        self._listening = await listen(self._reactor, self._listener, self._door, backlog)
        where = self._listening.getHost()
        said = "network {name} listens on {host} port {port}" + (" with TLS" if self._door.is_secure else "")
        self._log.info(said, name=self._network_name, host=where.host, port=where.port)

    async def stop_accepting(self) -> None:
        """Listen no more; connections that are open go on. ``start`` listens again."""
        listening, self._listening = self._listening, None
        if listening is not None:
            await listening.stopListening()

    async def drain(self) -> None:
        """Accept nothing new, and return when all that runs has been answered, however long it takes.

        ``stop`` may cut it short.
        """
        self._refusal = "harmonyd does not serve this address any more."
        while not await self._drained_within(_LONG_SECS):
            continue

    async def present_requests_end(self) -> None:
        """Return when each request that runs now has been answered."""
        for exchange in list(self._running):
            await exchange.end()

    async def stop(self, grace_secs: float = 5.0) -> None:
        """Accept nothing new, give running requests ``grace_secs``, cancel the rest; returns when all is closed.

        The first request of a connection that was accepted before is served, too: with a socket from systemd no client
        notices a restart. Safe to call twice.
        """
        done = await self._drained_within(grace_secs)
        self._grace_is_over = True
        if not done:
            for exchange in list(self._running):
                exchange.cancel()
            await self._is_empty_within(_CANCEL_SECS)
        self._site.abort_all()
        while not self._is_empty():
            await self._is_empty_within(_CANCEL_SECS)

    async def _drained_within(self, secs: float) -> bool:
        """Begin to end: new connections are not accepted, idle ones closed. Tell whether all ended by itself."""
        self.stopping = True
        await self.stop_accepting()
        for channel in list(self._site.connections):
            channel.close_when_idle()
        closing = self._reactor.callLater(min(_FRESH_SECS, secs), self._close_silent)
        try:
            return await self._is_empty_within(secs)
        finally:
            if closing.active():
                closing.cancel()

    def _close_silent(self) -> None:
        for channel in list(self._site.connections):
            channel.close_when_silent()

    def _is_empty(self) -> bool:
        return not self._running and self._site.is_empty

    async def _is_empty_within(self, secs: float) -> bool:
        """Wait until no request runs and no connection is open; tell whether that came to be."""
        if self._is_empty():
            return True
        emptied: Deferred[None] = Deferred()
        self._waiting.append(emptied)
        try:
            await emptied.addTimeout(secs, self._reactor)
        except DeferredTimeout:
            return False
        finally:
            self._waiting.remove(emptied)
        return True

    def connection_closed(self) -> None:
        """Take note that there is one connection less (``Front``)."""
        self._tell_if_empty()

    def _ended(self, exchange: _Exchange) -> None:
        self._running.discard(exchange)
        exchange.ended()
        self._tell_if_empty()

    def _tell_if_empty(self) -> None:
        if self._is_empty():
            for emptied in list(self._waiting):
                if not emptied.called:
                    emptied.callback(None)

    def admit(self, request: Request) -> None:
        """Find the route by the head alone, so that a body nobody wants is not received (``Front``)."""
        if self.stopping and (request.channel.asked or self._grace_is_over):
            raise Unavailable(self._refusal, retry_after_secs=_RETRY_AFTER_SHUTDOWN_SECS)
        path, query = split_target(request.uri)
        match = self._router.match(segments_of(path))
        if match is None:
            raise NotFound("Nothing is served at this path.", hint="Compare it with the path_prefix of the endpoints.")
        request.match = match
        method = request.method.decode("ascii")
        if not match.target.allows(method):
            allowed = match.target.allowed_at(match.path)
            raise MethodNotAllowed(f"{method} is not allowed here, only {', '.join(allowed)}.", allow=allowed)
        request.query = parse_query(query)

    def process(self, request: Request) -> None:
        """Answer a request, whose body may still be arriving (``Front``)."""
        # Before the coroutine starts: it may be done, and the request finished, when fromCoroutine returns.
        finished = request.notifyFinish()
        exchange = _Exchange()
        self._running.add(exchange)
        serving = Deferred.fromCoroutine(self._serve(request, exchange))
        serving.addErrback(self._broke, request)
        serving.addBoth(lambda _: self._ended(exchange))
        finished.addErrback(lambda _: exchange.cancel())

    def _broke(self, failure: Failure, request: Request) -> None:
        """Log what even the error handling did not catch, and leave no client waiting."""
        self._log.failure("a request was not answered", failure=failure, request=request.id)
        request.cut(flush=False)

    async def _serve(self, request: Request, exchange: _Exchange) -> None:
        began_at = self._reactor.seconds()
        span = begin_span(request)
        try:
            try:
                exchange.answering = Deferred.fromCoroutine(self._answer(request, exchange))
                await exchange.answering
            except Exception as exc:  # noqa: BLE001 - the boundary: whatever went wrong becomes an answer
                self._failed(request, exc, exchange)
            secs = self._reactor.seconds() - began_at
            log_access(request, secs, exchange.operation)
            endpoint = request.match.target.endpoint.name if request.match is not None else ""
            status = None if request.gone else request.code
            self._measured(endpoint, status, secs)
            end_span(span, request, exchange.operation)
        finally:
            await exchange.close()

    async def _answer(self, request: Request, exchange: _Exchange) -> None:
        match = request.match
        if match is not None and isinstance(match.target.endpoint, AskingEndpoint):
            exchange.common_headers = match.target.endpoint.common_headers(request.fields())
        if request.refusal is not None:
            raise request.refusal
        assert match is not None, "admit sets it or refuses"
        endpoint = match.target.endpoint
        exchange.body = request.take_body()
        asked = await identified(match.target, request.as_http(match, exchange.body), exchange.occasion)
        ask = exchange.asking(match.target.handle, asked)
        if isinstance(endpoint, ChoosesBackend):
            asked = endpoint.choose(asked)
        if isinstance(endpoint, AskingEndpoint):
            if not match.target.compresses:
                asked = replace(asked, headers={**asked.headers, "accept-encoding": "identity"})
            answer = await endpoint.serve(asked, ask)
            answer.headers = merged(answer.headers, exchange.common_headers)
        else:
            exchange.envelope = envelope = endpoint.request(asked)
            answer = await endpoint.answer(envelope, await ask(envelope))
        if match.target.compresses:
            answer = compressed(answer, request.fields())
        limits = self.limits
        at_least = {"stall_secs": limits.request_timeout_secs, "least_bytes": limits.least_bytes}
        await send(request, answer, clock=self._reactor, **at_least)

    def _failed(self, request: Request, exc: Exception, exchange: _Exchange) -> None:
        operation = exchange.operation
        fields: dict[str, Any] = {"request": request.id, "operation": operation}
        if request.gone:
            self._log.info("the client left before its answer was complete", **fields)
            return
        if self.stopping and isinstance(exc, CancelledError):
            exc = Unavailable("harmonyd is shutting down.", retry_after_secs=_RETRY_AFTER_SHUTDOWN_SECS)
        if is_ours(exc) and not isinstance(exc, ClientStalled):
            self._log.failure("failed by our fault", failure=Failure(exc), **fields)
        if request.startedWriting:
            self._log.warn("the answer was cut off: {reason}", reason=exc, **fields)
            request.cut(flush=not isinstance(exc, ClientStalled))
        else:
            status, headers, body = problem(exc, request_id=request.id, operation=operation)
            request.reply(status, merged(headers, exchange.common_headers), body)


def _router(routes: Sequence[Route], health: Health | None) -> Router[Route]:
    router: Router[Route] = Router()
    for path, built_in in (health_routes(health) if health is not None else {}).items():
        router.add_exact(path, built_in)
    for route in routes:
        add = router.add_exact if route.is_exact else router.add_prefix
        add(route.endpoint.path_prefix, route)
    return router
