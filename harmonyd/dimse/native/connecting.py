"""A TCP connection to a remote node, within its time."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError, DNSLookupError, TimeoutError, UserError
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from harmonyd.dimse import failures
from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.native import core
from harmonyd.dimse.native.connection import Connection
from harmonyd.dimse.waiting import until
from harmonyd.errors import DeadlinePassed


async def connect(reactor: Any, remote: RemoteNode, request: core.AssociateRequest, deadline: float) -> Connection:
    """Connect over IPv4 or IPv6, whichever answers first (RFC 8305).

    Raises ``RemoteUnreachable``, ``DimseTimeout`` ("connect"), and ``DeadlinePassed`` when the operation's time
    (reactor seconds) is over before.
    """

    def build() -> Connection:
        return Connection(reactor, core.Association.requestor(request), remote.association_timeout_secs)

    now = reactor.seconds()
    by, error = min(
        (now + remote.connect_timeout_secs, failures.connect_timeout(remote)),
        (deadline, deadline_passed()),
        key=lambda limit: limit[0],
    )
    attempt = _endpoint(reactor, remote).connect(Factory.forProtocol(build))
    try:
        return await until(reactor, by, _cancellable(attempt), error)
    except (DNSLookupError, UnicodeError, ValueError):
        raise failures.unknown_host(remote) from None
    except (TimeoutError, UserError):
        raise failures.connect_timeout(remote) from None
    except ConnectError as refused:
        raise failures.unreachable(remote, _why(refused)) from None


def _endpoint(reactor: Any, remote: RemoteNode) -> Any:
    """An address needs no resolver, which works in a thread, and no waiting for a second address."""
    host, timeout = remote.host, remote.connect_timeout_secs + 1
    kind: Any = HostnameEndpoint
    if isIPAddress(host):
        kind = TCP4ClientEndpoint
    elif isIPv6Address(host):
        kind = TCP6ClientEndpoint
    return kind(reactor, host, remote.port, timeout)


def _cancellable(attempt: Deferred[Connection]) -> Deferred[Connection]:
    """The same, but a cancellation is always a ``CancelledError``: an endpoint tells it in other ways."""

    def cancel(waiting: Deferred[Connection]) -> None:
        waiting.errback(CancelledError())
        attempt.cancel()

    def connected(connection: Connection) -> None:
        if outcome.called:
            connection.cut()
        else:
            outcome.callback(connection)

    def failed(failure: Failure) -> None:
        if not outcome.called:
            outcome.errback(failure)

    outcome: Deferred[Connection] = Deferred(cancel)
    attempt.addCallbacks(connected, failed)
    return outcome


def _why(error: ConnectError) -> str:
    number = error.osError
    text = os.strerror(number) if isinstance(number, int) and number > 0 else str(error)
    return text.removesuffix(".")


def deadline_passed() -> DeadlinePassed:
    """The error for an operation whose time is over."""
    return DeadlinePassed(
        "The operation did not end within its time; it was cancelled",
        hint="Ask for less at once, or raise operation_timeout_ms.",
        timeout="operation",
    )
