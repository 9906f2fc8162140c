"""A request of a peer while it is worked on: the association is read all the while.

So a C-CANCEL, an A-ABORT or a connection that breaks ends the work at once, and the answers to C-STORE sub-operations
reach it. What else may not come meanwhile (asynchronous operations are not negotiated) is refused.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from harmonyd.dimse.native import core
from harmonyd.dimse.native.connection import Silence
from harmonyd.dimse.native.inbound import Ended, InboundSession
from harmonyd.dimse.serving import NotServed
from harmonyd.dimse.status import CANCEL, RESOURCE_LIMITATION


class Ongoing:
    """Await ``run`` once."""

    def __init__(self, session: InboundSession, command: core.Command) -> None:
        self.is_cancelled = False
        self._session = session
        self._command = command
        self._error: BaseException | None = None
        """What has ended the association."""
        self._work: Deferred[Any] | None = None
        self._is_finishing = False
        self._is_over = False
        """The work is; it may end inside of what the reader does, where nothing can be cancelled."""
        self._awaited = 0
        """Message id of a request of ours."""
        self._response: Deferred[core.Command] | None = None

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Work, until that is done or has to end; in every case ``work`` has ended then.

        Raises ``NotServed``, with Cancel (0xFE00) when the peer cancels; ``Ended``, ``Silence`` and ``Stopped`` when
        the association is over; and what ``work`` raises.
        """
        reading = Deferred.fromCoroutine(self._read())
        working = self._work = Deferred.fromCoroutine(work)
        if self._error is not None:  # what ends it was there already
            working.cancel()
        try:
            await working
        except CancelledError:
            if self._error is None and not self.is_cancelled:
                raise  # from elsewhere
        finally:
            self._work = None
            self._is_over = True
            reading.cancel()
            await reading
        if self._error is not None:
            raise self._error
        if self.is_cancelled:
            raise NotServed(CANCEL)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """What is done inside is not ended by a C-CANCEL, only what would come after it.

        Raises ``CancelledError`` behind it then.
        """
        self._is_finishing = True
        try:
            yield
        finally:
            self._is_finishing = False
        if self.is_cancelled:
            raise CancelledError

    def expect(self, message_id: int) -> Deferred[core.Command]:
        """The response to a request of ours that is going out."""
        self._awaited = message_id
        self._response = Deferred(self._forget)
        return self._response

    def _forget(self, _cancelled: object) -> None:
        self._response = None

    # --- reading

    async def _read(self) -> None:
        try:
            while not self._is_over:
                self._take(await self._event())
        except CancelledError:
            pass
        except Exception as error:  # noqa: BLE001 - it is raised by ``run``
            self._end(error)

    async def _event(self) -> core.Event:
        """The peer may be silent as long as it takes what is sent to it: it is us who work."""
        connection = self._session.connection
        while True:
            try:
                return await connection.receive()
            except Silence:
                if connection.is_stuck:
                    raise

    def _take(self, event: core.Event) -> None:
        session = self._session
        match event:
            case core.CommandReceived(_, command) if command.is_response:
                session.skips_data = command.has_data
                self._answered(command)
            case core.CommandReceived(_, command) if command.field == core.CommandField.C_CANCEL_RQ:
                session.skips_data = command.has_data
                if command.message_id_being_responded_to == self._command.message_id:
                    self._cancel()
            case core.CommandReceived(context_id, command):
                session.skips_data = command.has_data
                self._refuse(context_id, command)
            case core.DataReceived() if session.skips_data:
                session.skips_data = not event.last
            case _:
                session.end(event)
                raise Ended

    def _refuse(self, context_id: int, command: core.Command) -> None:
        message = "{calling} ({peer}) asks for {command} while something else is not done"
        self._session.say(message, command=command.name)
        connection = self._session.connection
        context = connection.association.contexts.get(context_id)
        if context is not None and not connection.association.sending:
            self._session.respond(context, command, RESOURCE_LIMITATION, "one operation at a time")

    def _answered(self, command: core.Command) -> None:
        waiting = self._response
        if waiting is not None and command.message_id_being_responded_to == self._awaited:
            self._response = None
            waiting.callback(command)
        else:
            self._session.outgoing.answered(command)

    def _cancel(self) -> None:
        self.is_cancelled = True
        if self._work is not None and not self._is_finishing:
            self._work.cancel()

    def _end(self, error: BaseException) -> None:
        self._error = error
        if self._work is not None:
            self._work.cancel()
