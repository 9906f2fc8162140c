"""A TCP connection to a remote node, within its time."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, DNSLookupError, TimeoutError, UserError
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from harmonyd.dimse import failures
from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import DimseError
from harmonyd.dimse.tls_client import ClientCreator
from harmonyd.dimse.tls_failures import handshake_timeout
from harmonyd.dimse.waiting import deadline_passed, until
from harmonyd.errors import DeadlinePassed


class Attempted(Protocol):
    """A protocol that is made for one connection."""

    secured: Deferred[bool] | None
    """Fires once: with True after the TLS handshake, with False when the connection is gone before; None: no TLS."""

    def cut(self) -> None:
        """Close the connection without a word. Safe at any time."""
        ...

    def problem(self, remote: RemoteNode) -> DimseError | None:
        """What is wrong below DICOM, where there is no association; None when nothing is."""
        ...


A = TypeVar("A", bound=Attempted)


async def connect(reactor: Any, remote: RemoteNode, build: Callable[[], A], deadline: float) -> A:
    """Connect over IPv4 or IPv6, whichever answers first (RFC 8305), and secure the connection where the node says so.

    ``build`` makes the protocol. Raises ``RemoteUnreachable``, ``TlsFailed``, ``DimseTimeout`` ("connect"),
    ``EngineFailed`` when our certificates cannot be used, and ``DeadlinePassed`` when the operation's time (reactor
    seconds) is over before.
    """
    endpoint = _way(reactor, remote)
    connect_by = reactor.seconds() + remote.connect_timeout_secs

    def limit(too_late: DeadlinePassed) -> tuple[float, DeadlinePassed]:
        return (deadline, deadline_passed()) if deadline < connect_by else (connect_by, too_late)

    factory: Any = Factory.forProtocol(build)
    factory.noisy = False
    attempt = endpoint.connect(factory)
    by, error = limit(failures.connect_timeout(remote))
    try:
        connection: A = await until(reactor, by, _cancellable(attempt), error)
    except (DNSLookupError, UnicodeError, ValueError):
        raise failures.unknown_host(remote) from None
    except (TimeoutError, UserError):
        raise failures.connect_timeout(remote) from None
    except ConnectError as refused:
        raise failures.unreachable(remote, _why(refused)) from None
    if connection.secured is not None:
        await _secured(reactor, connection, connection.secured, remote, *limit(handshake_timeout(remote)))
    return connection


async def _secured(
    reactor: Any, connection: Attempted, secured: Deferred[bool], remote: RemoteNode, by: float, error: DeadlinePassed
) -> None:
    try:
        is_secured = await until(reactor, by, secured, error)
    except BaseException:
        connection.cut()
        raise
    if not is_secured:
        raise connection.problem(remote) or failures.aborted(remote, accepted=False)


def _way(reactor: Any, remote: RemoteNode) -> Any:
    endpoint = _endpoint(reactor, remote)
    if remote.tls is None:
        return endpoint
    creator: Any = ClientCreator(remote, remote.tls)
    return wrapClientTLS(creator, endpoint)


def _endpoint(reactor: Any, remote: RemoteNode) -> Any:
    """An address needs no resolver, which works in a thread, and no waiting for a second address."""
    host, timeout = remote.host, remote.connect_timeout_secs + 1
    kind: Any = HostnameEndpoint
    if isIPAddress(host):
        kind = TCP4ClientEndpoint
    elif isIPv6Address(host):
        kind = TCP6ClientEndpoint
    return kind(reactor, host, remote.port, timeout)


def _cancellable(attempt: Deferred[A]) -> Deferred[A]:
    """The same, but a cancellation is always a ``CancelledError``: an endpoint tells it in other ways."""

    def cancel(waiting: Deferred[A]) -> None:
        waiting.errback(CancelledError())
        attempt.cancel()

    def connected(connection: A) -> None:
        if outcome.called:
            connection.cut()
        else:
            outcome.callback(connection)

    def failed(failure: Failure) -> None:
        if not outcome.called:
            outcome.errback(failure)

    outcome: Deferred[A] = Deferred(cancel)
    attempt.addCallbacks(connected, failed)
    return outcome


def _why(error: ConnectError) -> str:
    number = error.osError
    text = os.strerror(number) if isinstance(number, int) and number > 0 else str(error)
    return text.removesuffix(".")
