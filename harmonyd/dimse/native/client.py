"""An association that we ask for: its events as messages, and what goes wrong as errors that say whose fault it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred

from harmonyd.dimse import failures
from harmonyd.dimse.connecting import connect
from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import DimseError, NonsenseAnswer
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.connection import Connection, Silence
from harmonyd.dimse.native.core.reasons import REASONS, RESULTS, SOURCES
from harmonyd.dimse.native.secure import SecureConnection
from harmonyd.dimse.tls_client import files_now
from harmonyd.dimse.waiting import deadline_passed, until
from harmonyd.errors import DeadlinePassed, HarmonydError

Proposal: TypeAlias = Sequence[tuple[str, Sequence[str]]]
"""(abstract syntax, transfer syntaxes), one for each presentation context (PS3.8 section 9.3.2.2)."""
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
        self.made_with: tuple[object, ...] = ()
        """Which files secured its connection (``tls_client.files_now``)."""
        self.connection = connection
        self._reactor = reactor
        self._message_id = 0

    @property
    def is_open(self) -> bool:
        """Another operation may use it."""
        association = self.connection.association
        return association.state is core.State.STA6 and not association.sending and not self.connection.has_events

    @property
    def is_established(self) -> bool:
        """Neither side has ended it, as far as we know."""
        return self.connection.association.established

    @property
    def closed(self) -> Deferred[None]:
        """Fires when its transport connection is gone."""
        closed: Deferred[None] = Deferred()
        self.connection.closed.addBoth(lambda _: closed.callback(None))
        return closed

    def has_all(self, needed: Proposal) -> bool:
        """Whether for each (abstract syntax, transfer syntaxes) a context was accepted, in one of these syntaxes."""
        return all(self.contexts.find(uid, *syntaxes) is not None for uid, syntaxes in needed)

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
        """Send a whole message. Raises a ``DimseError`` when the association is over, and what interrupted it."""
        self.require_open()
        self.connection.send(context_id, command, data)

    def require_open(self) -> None:
        """Raises as ``send`` does."""
        self.connection.check()
        if not self.is_established:
            raise failures.aborted(self.remote, accepted=True)

    async def writable(self) -> None:
        """Wait until what was sent is mostly gone. Raises as ``receive`` does.

        A peer that takes nothing more, and has said something, has ended it in its way: that may still be received.
        """
        try:
            await self.connection.writable()
        except Silence:
            if self.connection.has_events:
                raise failures.aborted(self.remote, accepted=True) from None
            self.connection.abort()
            raise failures.silence(self.remote, accepted=True) from None
        self.require_open()

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
            self.connection.let_go()
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
        """End it in good order (PS3.8 section 7.2), within a few seconds; returns when its connection is gone.

        Whatever the peer says meanwhile is dropped. An error, and a cancellation, too, aborts it.
        """
        try:
            released = Deferred.fromCoroutine(self._release())
            by = self._reactor.seconds() + _RELEASE_SECS
            await until(self._reactor, by, released, DeadlinePassed("no answer to the release"))
        except (HarmonydError, Silence):
            self.abort()
        except BaseException:
            self.abort()
            raise
        await self.closed

    async def _release(self) -> None:
        connection = self.connection
        if connection.association.state is core.State.STA6:
            connection.release()
        while not isinstance(event := await connection.receive(), _ENDS):
            if isinstance(event, core.ReleaseRequested):
                connection.let_go()
                return


_ENDS = (core.Released, core.Aborted, core.ConnectionLost)


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


def _nobody(_connection: Connection) -> None:
    """Nobody counts connections."""


async def open_association(
    reactor: Any,
    remote: RemoteNode,
    proposed: Proposal,
    deadline: float,
    roles: Sequence[core.RoleSelection] = (),
    connected: Callable[[Connection], None] = _nobody,
) -> ClientAssociation:
    """Connect, and negotiate a presentation context for each (abstract syntax, transfer syntaxes).

    ``connected`` is told of the transport connection, whatever becomes of the association on it.

    Raises ``RemoteUnreachable``, ``TlsFailed``, ``AssociationRejected``, ``AssociationAborted``, ``NonsenseAnswer``;
    ``DimseTimeout``, whose ``timeout`` is "connect" or "association"; ``DeadlinePassed`` when the operation's time
    (reactor seconds) is over before; ``EngineFailed`` when our certificates cannot be used.
    """
    request = association_request(remote, proposed, roles)
    kind = Connection if remote.tls is None else SecureConnection

    def build() -> Connection:
        return kind(reactor, core.Association.requestor(request), remote.association_timeout_secs)

    made_with = files_now(remote.tls)
    connection = await connect(reactor, remote, build, deadline)
    connected(connection)
    try:
        event = await until(reactor, deadline, Deferred.fromCoroutine(connection.receive()), deadline_passed())
    except Silence:
        connection.abort()
        raise failures.silence(remote, accepted=False) from None
    except BaseException:
        connection.abort()
        raise
    if not isinstance(event, core.Accepted):
        raise connection.problem(remote) or error_for(event, remote, accepted=False)
    association = ClientAssociation(reactor, connection, remote, event)
    association.made_with = made_with
    return association


def association_request(
    remote: RemoteNode, proposed: Proposal, roles: Sequence[core.RoleSelection] = ()
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
        user_identity=_user_identity(remote),
    )
    return core.AssociateRequest(remote.aet, remote.local_aet, contexts, info)


def _user_identity(remote: RemoteNode) -> core.UserIdentity | None:
    known = remote.user_identity
    if known is None:
        return None
    if known.passcode is None:
        return core.UserIdentity(core.UserIdentityType.USERNAME, known.username.encode())
    kind = core.UserIdentityType.USERNAME_AND_PASSCODE
    return core.UserIdentity(kind, known.username.encode(), known.passcode.encode())
