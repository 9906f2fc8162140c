"""Whose turn it is among moves to one store AE: those that cannot be confused run at once, the others one by one.

movescu's message id is always 1, so objects are matched to moves by what was asked for. Two moves cannot be confused
when some unique key has no value in common, such as the Study Instance UIDs of two studies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred

from harmonyd.dimse.waiting import until
from harmonyd.errors import DeadlinePassed, Unavailable

MAX_WAITING = 100
"""Moves that may wait for their turn on one port; the next is refused."""
_HINT = "Moves to one store AE take turns; ask for less at once, or try again later."

Wanted = Mapping[str, frozenset[str]]
"""The unique keys of a retrieve (``accept.wanted_keys``)."""


def overlap(one: Wanted, two: Wanted) -> bool:
    """Whether an object could belong to both."""
    return not any(one[key].isdisjoint(two[key]) for key in one.keys() & two.keys())


class Turns:
    """Grants turns in the order in which they were asked for; who overlaps with nothing before it need not wait."""

    def __init__(self, reactor: Any, port: int) -> None:
        self._reactor = reactor
        self._port = port
        self._running: list[Wanted] = []
        self._waiting: list[tuple[Wanted, Deferred[None]]] = []

    @property
    def in_use(self) -> bool:
        return bool(self._running or self._waiting)

    async def acquire(self, wanted: Wanted, deadline: float) -> None:
        """Wait for a turn; ``release`` it with the same object. Raises ``Unavailable`` and ``DeadlinePassed``."""
        place: tuple[Wanted, Deferred[None]] = (wanted, Deferred())
        self._waiting.append(place)
        self._grant()
        if len(self._waiting) > MAX_WAITING and place in self._waiting:
            self._waiting.remove(place)
            full = f"{MAX_WAITING} moves wait for their turn on the store SCP of port {self._port} already"
            raise Unavailable(full, hint=_HINT, retry_after_secs=5)
        late = "The deadline passed while the move waited for its turn on the store SCP"
        try:
            await until(self._reactor, deadline, place[1], DeadlinePassed(late, hint=_HINT, timeout="queue"))
        except BaseException:
            if place in self._waiting:
                self._waiting.remove(place)
            else:  # granted and cancelled in the same instant
                self.release(wanted)
            self._grant()
            raise

    def release(self, wanted: Wanted) -> None:
        """The move is over."""
        self._running = [item for item in self._running if item is not wanted]
        self._grant()

    def _grant(self) -> None:
        ahead: list[Wanted] = list(self._running)
        granted, waiting = [], []
        for place in self._waiting:
            wanted = place[0]
            if any(overlap(wanted, other) for other in ahead):
                waiting.append(place)
            else:
                granted.append(place)
            ahead.append(wanted)
        self._waiting = waiting
        self._running += [wanted for wanted, _ in granted]
        # Last: whoever goes on now may be done at once, and release.
        for _, turn in granted:
            turn.callback(None)
