"""An association that we ask for: its events as messages, and what goes wrong as errors that say whose fault it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError, TimeoutError, UserError
from twisted.internet.protocol import Factory

from harmonyd.dimse import failures
from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import DimseError, NonsenseAnswer
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.connection import Connection, Silence
from harmonyd.dimse.native.core.reasons import REASONS, RESULTS, SOURCES
from harmonyd.dimse.waiting import until
from harmonyd.errors import DeadlinePassed

MAX_MESSAGE_BYTES = 10_000_000
"""An identifier is a few kilobytes of text; it is in memory as a whole."""
MAX_CONTEXTS = 128
_RELEASE_SECS = 5.0


class ClientAssociation:
    """An accepted association. One operation uses it at a time."""

    def __init__(self, reactor: Any, connection: Connection, remote: RemoteNode, accepted: core.Accepted) -> None:
        self.remote = remote
        self.contexts = accepted.contexts
        self.peer_max_pdu = accepted.peer_max_pdu
        self.was_idle = False
        """It has waited in a pool, where its peer may have ended it without our knowing."""
        self.connection = connection
        self._reactor = reactor
        self._message_id = 0

    @property
    def is_open(self) -> bool:
        """Another operation may use it."""
        return self.connection.association.established and not self.connection.has_events

    @property
    def closed(self) -> Deferred[None]:
        """Fires when its transport connection is gone."""
        closed: Deferred[None] = Deferred()
        self.connection.closed.addBoth(lambda _: closed.callback(None))
        return closed

    def has_all(self, needed: Sequence[tuple[str, Sequence[str]]]) -> bool:
        """Whether a context was accepted for each abstract syntax, in one of the transfer syntaxes named with it."""
        wanted: dict[str, list[str]] = {}
        for abstract_syntax, transfer_syntaxes in needed:
            wanted.setdefault(abstract_syntax, []).extend(transfer_syntaxes)
        return all(self.contexts.find(uid, *syntaxes) is not None for uid, syntaxes in wanted.items())

    def next_message_id(self) -> int:
        """A Message ID (0000,0110) that is not in use."""
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id

    def context(self, abstract_syntax: str, *transfer_syntaxes: str) -> core.Context:
        """The accepted context for a service. Raises ``NoPresentationContext``."""
        found = self.contexts.find(abstract_syntax, *transfer_syntaxes)
        if found is None:
            raise failures.no_context(self.remote)
        return found

    def send(self, context_id: int, command: core.Command, data: bytes | None = None) -> None:
        """Send a whole message. Raises ``DimseError`` when the association is over."""
        if not self.connection.association.established:
            raise failures.aborted(self.remote, accepted=True)
        self.connection.send(context_id, command, data)

    async def receive(self) -> core.CommandReceived | core.DataReceived:
        """The next part of a message.

        Raises a ``DimseError`` or ``DimseTimeout`` when none comes any more, and what ``interrupt`` was given.
        """
        try:
            event = await self.connection.receive()
        except Silence:
            self.connection.abort()
            raise failures.silence(self.remote, accepted=True) from None
        if isinstance(event, core.CommandReceived | core.DataReceived):
            return event
        if isinstance(event, core.ReleaseRequested):
            self.connection.respond_release()
        raise error_for(event, self.remote, accepted=True)

    async def response(self, message_id: int) -> tuple[core.Command, bytes]:
        """The next response to a request of ours, with its data set (empty without one). Raises as ``receive`` does."""
        event = await self.receive()
        if not isinstance(event, core.CommandReceived):
            raise self.nonsense("a data set came before its command")
        command = event.command
        if not command.is_response or command.message_id_being_responded_to != message_id or command.status is None:
            raise self.nonsense(f"{command.name} is no answer to message {message_id}")
        return command, await self.data_set(command)

    async def data_set(self, command: core.Command) -> bytes:
        """The data set that belongs to a command, as a whole; for identifiers, not for objects."""
        if not command.has_data:
            return b""
        pieces: list[bytes | memoryview] = []
        size = 0
        while True:
            event = await self.receive()
            if not isinstance(event, core.DataReceived):
                raise self.nonsense("a command came before the end of a data set")
            size += len(event.fragment)
            if size > MAX_MESSAGE_BYTES:
                self.abort()
                raise NonsenseAnswer(
                    f"The PACS sent a response of more than {MAX_MESSAGE_BYTES} bytes", hint="Its vendor can say why."
                )
            pieces.append(event.fragment)
            if event.last:
                return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def nonsense(self, text: str) -> NonsenseAnswer:
        """Abort, and return the error for a message that cannot be."""
        self.abort()
        return failures.nonsense(self.remote, text, accepted=True)

    def interrupt(self, error: Exception) -> None:
        """Abort; whoever uses it gets ``error``."""
        self.connection.interrupt(error)

    def abort(self) -> None:
        """A-ABORT. Safe at any time, twice too."""
        self.connection.abort()

    async def release(self) -> None:
        """End it in good order, within a few seconds; returns when its connection is gone. Never raises."""
        try:
            self.connection.release()
            await until(
                self._reactor,
                self._reactor.seconds() + _RELEASE_SECS,
                Deferred.fromCoroutine(self._released()),
                DeadlinePassed("no answer to the release"),
            )
        except (DeadlinePassed, Silence, core.NotAllowed):
            self.abort()
        await self.closed

    async def _released(self) -> None:
        ends = (core.Released, core.Aborted, core.ConnectionLost)
        while not isinstance(await self.connection.receive(), ends):
            pass


def error_for(event: core.Event, remote: RemoteNode, *, accepted: bool) -> DimseError:
    """The error that an event is which brings no message: the end of an association, or what must not come."""
    match event:
        case core.Rejected(result, source, reason):
            return failures.rejected(
                remote,
                RESULTS.get(result, f"Result {result}"),
                SOURCES.get(source, f"Source {source}"),
                REASONS.get((source, reason), f"Reason {reason}"),
            )
        case core.Aborted(text=text, by_peer=False):
            return failures.nonsense(remote, text, accepted=accepted)
        case _:
            return failures.aborted(remote, accepted=accepted)


async def open_association(
    reactor: Any,
    remote: RemoteNode,
    proposed: Sequence[tuple[str, Sequence[str]]],
    deadline: float,
    roles: Sequence[core.RoleSelection] = (),
) -> ClientAssociation:
    """Connect, and negotiate a presentation context for each (abstract syntax, transfer syntaxes).

    Raises ``RemoteUnreachable``, ``AssociationRejected``, ``AssociationAborted``, ``NonsenseAnswer``; ``DimseTimeout``,
    whose ``timeout`` is "connect" or "association"; ``DeadlinePassed`` when the operation's time (reactor seconds) is
    over before.
    """
    connection = await _connect(reactor, remote, association_request(remote, proposed, roles), deadline)
    try:
        event = await until(reactor, deadline, Deferred.fromCoroutine(connection.receive()), deadline_passed())
    except Silence:
        connection.abort()
        raise failures.silence(remote, accepted=False) from None
    except BaseException:
        connection.abort()
        raise
    if not isinstance(event, core.Accepted):
        raise error_for(event, remote, accepted=False)
    return ClientAssociation(reactor, connection, remote, event)


def deadline_passed() -> DeadlinePassed:
    """The error for an operation whose time is over."""
    return DeadlinePassed(
        "The operation did not end within its time; it was cancelled",
        hint="Ask for less at once, or raise operation_timeout_ms.",
        timeout="operation",
    )


def association_request(
    remote: RemoteNode, proposed: Sequence[tuple[str, Sequence[str]]], roles: Sequence[core.RoleSelection] = ()
) -> core.AssociateRequest:
    """What we ask a node for: (abstract syntax, transfer syntaxes) of each context; what is above 128 is left out."""
    contexts = tuple(
        core.ProposedContext(2 * number + 1, abstract, tuple(transfer))
        for number, (abstract, transfer) in enumerate(proposed[:MAX_CONTEXTS])
    )
    info = core.UserInformation(
        max_pdu=remote.max_pdu,
        implementation_class_uid=names.IMPLEMENTATION_CLASS_UID,
        implementation_version_name=names.IMPLEMENTATION_VERSION_NAME,
        roles=tuple(roles),
    )
    return core.AssociateRequest(remote.aet, remote.local_aet, contexts, info)


async def _connect(reactor: Any, remote: RemoteNode, request: core.AssociateRequest, deadline: float) -> Connection:
    """A TCP connection, over IPv4 or IPv6, whichever answers first (RFC 8305)."""

    def build() -> Connection:
        return Connection(reactor, core.Association.requestor(request), remote.association_timeout_secs)

    now = reactor.seconds()
    by, error = min(
        (now + remote.connect_timeout_secs, failures.connect_timeout(remote)),
        (deadline, deadline_passed()),
        key=lambda limit: limit[0],
    )
    endpoint: Any = HostnameEndpoint(reactor, remote.host, remote.port, timeout=remote.connect_timeout_secs + 1)
    try:
        connection: Connection = await until(reactor, by, endpoint.connect(Factory.forProtocol(build)), error)
    except (DNSLookupError, UnicodeError, ValueError):
        raise failures.unknown_host(remote) from None
    except ConnectingCancelledError:
        raise CancelledError from None
    except (TimeoutError, UserError):
        raise failures.connect_timeout(remote) from None
    except ConnectError as refused:
        raise failures.unreachable(remote, _why(refused)) from None
    return connection


def _why(error: ConnectError) -> str:
    number = error.osError
    text = os.strerror(number) if isinstance(number, int) and number > 0 else str(error)
    return text.removesuffix(".")
