"""One association that a peer began: its commands, each to the service that answers it (PS3.7 chapter 9).

A service gets a command when that is complete, and reads its data set from the session. Another service of DIMSE is
another entry in its receiver's table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol, TypeAlias

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from harmonyd.dimse.engine import Association
from harmonyd.dimse.native import core
from harmonyd.dimse.native.connection import Connection, Silence
from harmonyd.dimse.native.outgoing import Outgoing
from harmonyd.dimse.serving import NotServed
from harmonyd.dimse.status import CANNOT_UNDERSTAND, UNRECOGNIZED_OPERATION
from harmonyd.waiters import Waiters

MAX_IDENTIFIER_BYTES = 1_000_000
"""An identifier is a few kilobytes of text; it is in memory as a whole."""
MAX_COMMENT_CHARS = 64
"""Error Comment (0000,0902) is an LO."""


class Ended(Exception):
    """The association is over, in the middle of a message."""


class Stopped(Exception):
    """We end the association."""


class Receiver(Protocol):
    """Who serves associations."""

    @property
    def max_pdu(self) -> int: ...

    @property
    def association_timeout_secs(self) -> float:
        """Silence allowed."""
        ...

    @property
    def services(self) -> Mapping[int, Service]:
        """By Command Field (0000,0100) of the request."""
        ...

    def answer(self, request: core.AssociateRequest) -> core.Answer:
        """Which of the proposed presentation contexts it can serve."""
        ...

    def ended(self, session: InboundSession) -> None:
        """The association is over, and nothing of it is under way."""
        ...


class InboundSession:
    """An accepted association, from ``run`` to its end, whoever ends it."""

    _log = Logger()

    def __init__(self, connection: Connection, association: Association, receiver: Receiver) -> None:
        self.association = association
        self.connection = connection
        self.receiver = receiver
        self.has_ended = False
        self._is_busy = False
        self._is_stopping = False
        self._tell_end: Callable[[Exception], None] | None = None
        self._message_id = 0
        self.skips_data = False
        """The data set that comes next belongs to a command that nobody serves."""
        connection.closed.addCallback(lambda _: self._end_is_near(Ended()))
        self._over: Waiters[None] = Waiters()
        self.outgoing = Outgoing()
        """Requests of ours to the peer."""

    async def run(self) -> None:
        """Serve it until it is over. Never raises."""
        try:
            while not self._is_stopping and await self._serve_next():
                pass
        except (Ended, Stopped):
            pass
        except Silence:
            self.say("the association with {calling} ({peer}) is ended: for {secs:g} s it brought nothing")
        except Exception:  # noqa: BLE001 - of this association only
            self._log.failure("an association is ended, by our fault", association_id=self.association.id)
        if self.connection.association.established:
            self.connection.abort()
        self.has_ended = True
        self.outgoing.end()
        self.receiver.ended(self)
        self._over.fire(None)

    async def stop(self) -> None:
        """End it; what is being made durable is answered first. Returns when it is over and its connection closed."""
        self._is_stopping = True
        if self._is_busy:
            self._end_is_near(Stopped())  # whoever waits may answer now, and is busy with that no more
        else:
            self.connection.interrupt(Stopped())
        if not self.has_ended:
            await self._over.wait()
        gone: Deferred[None] = Deferred()
        self.connection.closed.addBoth(lambda _: gone.callback(None))
        await gone

    @contextmanager
    def not_interrupted(self) -> Iterator[None]:
        """While something is done whose outcome the peer is to know."""
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    @contextmanager
    def tells_its_end(self, tell: Callable[[Exception], None]) -> Iterator[None]:
        """Have ``tell`` called, at once if need be, with ``Ended`` when the peer is gone, ``Stopped`` on ``stop``."""
        self._tell_end = tell
        try:
            if not self.connection.association.established:
                tell(Ended())
            elif self._is_stopping:
                tell(Stopped())
            yield
        finally:
            self._tell_end = None

    def _end_is_near(self, why: Exception) -> None:
        if self._tell_end is not None:
            self._tell_end(why)

    # --- for services

    def next_message_id(self) -> int:
        """For a request of ours to the peer."""
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id

    def respond(self, context: core.Context, command: core.Command, status: int, comment: str = "") -> None:
        """Send the response; when the association is over by now, nobody is told."""
        if self.connection.association.established:
            response = command.response(status, error_comment=error_comment(comment))
            self.connection.send(context.id, response)

    async def fragment(self) -> core.DataReceived:
        """The next piece of the data set that the command announced. Raises ``Ended``, ``Silence``, ``Stopped``."""
        event = await self.connection.receive()
        if isinstance(event, core.DataReceived):
            return event
        self.end(event)
        raise Ended

    async def data_set(self, command: core.Command) -> bytes:
        """All of an identifier. Raises as ``fragment`` does; ``NotServed`` when it is missing or long."""
        if not command.has_data:
            raise NotServed(CANNOT_UNDERSTAND, "no identifier")
        pieces, size, is_last = [], 0, False
        while not is_last:
            piece = await self.fragment()
            is_last, size = piece.last, size + len(piece.fragment)
            if size <= MAX_IDENTIFIER_BYTES:
                pieces.append(piece.fragment)
        if size > MAX_IDENTIFIER_BYTES:
            raise NotServed(CANNOT_UNDERSTAND, f"the identifier has more than {MAX_IDENTIFIER_BYTES} bytes")
        return b"".join(pieces)

    async def skip_data(self, command: core.Command) -> None:
        """Read the data set, and forget it. Raises as ``fragment`` does."""
        if command.has_data:
            while not (await self.fragment()).last:
                pass

    # --- the association

    async def _serve_next(self) -> bool:
        event = await self.connection.receive()
        if self.skips_data and isinstance(event, core.DataReceived):
            self.skips_data = not event.last
            return True
        if not isinstance(event, core.CommandReceived):
            self.end(event)
            return False
        context = self.connection.association.contexts.get(event.context_id)
        assert context is not None
        command = event.command
        service = self.receiver.services.get(command.field)
        if service is not None:
            self.outgoing.begin()
            try:
                await service(self, context, command)
            finally:
                self.outgoing.done()
        else:
            await self._unknown(context, command)
        return True

    async def _unknown(self, context: core.Context, command: core.Command) -> None:
        """A response to nothing, and a C-CANCEL of what has ended already, are let pass."""
        await self.skip_data(command)
        if command.is_response:
            self.outgoing.answered(command)
        if not command.is_response and command.field != core.CommandField.C_CANCEL_RQ:
            self.say("{calling} ({peer}) asks for what is not offered: {command}", command=command.name)
            self.respond(context, command, UNRECOGNIZED_OPERATION)

    def end(self, event: core.Event) -> None:
        """What brings no message is the end: of the association, or of our patience."""
        if isinstance(event, core.ReleaseRequested):
            with suppress(core.NotAllowed):  # behind its release the peer has sent what ended it already
                self.connection.respond_release()
        elif isinstance(event, core.Aborted) and not event.by_peer:
            self.say("the association with {calling} ({peer}) is aborted: {text}", text=event.text)

    def say(self, message: str, **fields: object) -> None:
        known = self.association
        self._log.warn(
            message, calling=known.calling_aet, peer=known.peer, secs=self.connection.silence_secs,
            association_id=known.id, **fields,
        )  # fmt: skip


Service: TypeAlias = Callable[[InboundSession, core.Context, core.Command], Awaitable[None]]
"""Answers one request. It reads the data set to its end before it sends the last response."""
Offered: TypeAlias = tuple[str, Service]
"""What a configuration calls it, and who answers."""


async def echo(session: InboundSession, context: core.Context, command: core.Command) -> None:
    """C-ECHO (PS3.7 section 9.1.5)."""
    await session.skip_data(command)
    session.respond(context, command, 0x0000)


def error_comment(text: str) -> str | None:
    """As it may stand in an Error Comment (PS3.7 section C.4.2, VR LO); None for nothing."""
    plain = "".join(char if char.isascii() and char.isprintable() and char != "\\" else "?" for char in text)
    return plain[:MAX_COMMENT_CHARS] or None
