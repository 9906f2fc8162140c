"""Requests of ours over an association that the peer began: an N-EVENT-REPORT on the way back (PS3.4 section J.3.3).

They go out between two requests of the peer's, never inside one: no asynchronous operations are negotiated.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from harmonyd.dimse.native import core
from harmonyd.dimse.normalized import Unanswered
from harmonyd.waiters import Waiters

ANSWER_SECS = 30.0
"""For the peer to answer one; its own requests may come before that."""


class Outgoing:
    """Of one session. ``serving`` is set while a request of the peer's is worked on."""

    def __init__(self) -> None:
        self._serving = False
        self._ended = False
        self._free: Waiters[None] = Waiters()
        self._awaited: dict[int, Deferred[core.Command]] = {}

    def begin(self) -> None:
        """A request of the peer's is worked on."""
        self._serving = True

    def done(self) -> None:
        """It is answered."""
        self._serving = False
        self._free.fire(None)

    def end(self) -> None:
        """The association is over."""
        self._ended = True
        self._free.fire(None)
        awaited, self._awaited = self._awaited, {}
        for response in awaited.values():
            response.errback(Unanswered("the association has ended"))

    async def turn(self) -> None:
        """Return when something may be sent. Raises ``Unanswered`` when the association is over."""
        while self._serving and not self._ended:
            await self._free.wait()
        if self._ended:
            raise Unanswered("the association has ended")

    async def response(self, reactor: Any, message_id: int) -> core.Command:
        """The response to a request that was sent. Raises ``Unanswered``."""
        waiting: Deferred[core.Command] = Deferred()
        self._awaited[message_id] = waiting
        late = reactor.callLater(ANSWER_SECS, self._late, message_id)
        try:
            return await waiting
        finally:
            self._awaited.pop(message_id, None)
            if late.active():
                late.cancel()

    def answered(self, command: core.Command) -> None:
        """A response has come; one that nobody waits for is let pass."""
        waiting = self._awaited.pop(command.message_id_being_responded_to or 0, None)
        if waiting is not None:
            waiting.callback(command)

    def _late(self, message_id: int) -> None:
        waiting = self._awaited.pop(message_id, None)
        if waiting is not None:
            waiting.errback(Unanswered(f"no answer within {ANSWER_SECS:g} s"))
