"""A circuit breaker: a node at which one thing after the other fails is left alone for a while. Pure.

CLOSED, until so many failures came in a row, with no answer between them; then OPEN, and nothing is asked; then
HALF_OPEN, while one C-ECHO is: with its answer CLOSED again, without one OPEN for twice as long, up to a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from twisted.internet.defer import CancelledError

from harmonyd.config.sparing import BreakerOptions
from harmonyd.dimse.errors import (
    AssociationAborted,
    AssociationRejected,
    DimseFailure,
    DimseTimeout,
    NonsenseAnswer,
    NoPresentationContext,
    RemoteUnreachable,
    TlsFailed,
)
from harmonyd.errors import DeadlinePassed, NotFound, RemoteError

__all__ = ["Breaker", "State", "Verdict", "is_suspicious", "of_echo", "of_operation"]


class State(StrEnum):
    """See above."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Verdict(StrEnum):
    """What the end of an operation says about the node."""

    ANSWERS = "answers"
    """It made an association, whatever became of it then."""
    AWAY = "away"
    """There is no association to be had."""
    UNKNOWN = "unknown"


_NO_ASSOCIATION = (RemoteUnreachable, TlsFailed, AssociationRejected)
_ASSOCIATED = (DimseFailure, NoPresentationContext, NotFound)
_BEFORE_ASSOCIATION = ("connect", "association")


def of_operation(error: BaseException | None) -> Verdict:
    """Of one that ended with this; None: well.

    A silence on an association says nothing by itself: the question may have been too big for the node.
    """
    if error is None or isinstance(error, _ASSOCIATED):
        return Verdict.ANSWERS
    if isinstance(error, _NO_ASSOCIATION):
        return Verdict.AWAY
    if isinstance(error, AssociationAborted | NonsenseAnswer) and not error.associated:
        return Verdict.AWAY
    if isinstance(error, DimseTimeout) and error.extra.get("timeout") in _BEFORE_ASSOCIATION:
        return Verdict.AWAY
    return Verdict.UNKNOWN


def is_suspicious(error: BaseException | None) -> bool:
    """Tell whether an UNKNOWN one may be the node's fault: a silence, a deadline, an association that broke off."""
    if isinstance(error, DeadlinePassed):
        return error.extra.get("timeout") != "queue"
    return isinstance(error, AssociationAborted | NonsenseAnswer)


def of_echo(error: BaseException | None) -> Verdict:
    """The same of a C-ECHO, which no node needs long for; the wait for a free association is ours."""
    if error is None or isinstance(error, _ASSOCIATED):
        return Verdict.ANSWERS
    if isinstance(error, CancelledError) or not isinstance(error, RemoteError | DeadlinePassed):
        return Verdict.UNKNOWN
    return Verdict.UNKNOWN if error.extra.get("timeout") == "queue" else Verdict.AWAY


@dataclass(slots=True)
class Breaker:
    """``seconds``: since the epoch. With ``options.failures`` 0 it stays closed."""

    options: BreakerOptions
    seconds: Callable[[], float]
    state: State = State.CLOSED
    since: float = 0.0
    """When that began; 0: with the daemon."""
    in_a_row: int = 0
    """Failures since the node answered last."""
    trips: int = 0
    """Times it opened, from closed."""
    reason: str = ""
    """The last failure."""
    next_probe: float = 0.0
    """While it is open."""
    _wait_secs: float = 0.0

    @property
    def is_closed(self) -> bool:
        return self.state is State.CLOSED

    def answered(self) -> None:
        """The node made an association. What had begun before it opened does not close it."""
        if self.is_closed:
            self.in_a_row, self.reason = 0, ""

    def failed(self, reason: str) -> bool:
        """The node made none; tell whether that opens it."""
        if not self.is_closed:
            return False
        self.in_a_row += 1
        self.reason = reason
        if not self.options.failures or self.in_a_row < self.options.failures:
            return False
        self.trips += 1
        self._open(self.options.open_secs)
        return True

    def probe(self) -> None:
        """A C-ECHO begins."""
        if self.state is State.OPEN:
            self._become(State.HALF_OPEN)

    def probe_answered(self) -> bool:
        """It was answered; tell whether that closes it."""
        was_closed = self.is_closed
        self.in_a_row, self.reason = 0, ""
        if not was_closed:
            self._become(State.CLOSED)
        return not was_closed

    def probe_failed(self, reason: str) -> bool:
        """It was not; tell whether that opens it, which is news only where it was closed."""
        if self.is_closed:
            return self.failed(reason)
        self.in_a_row += 1
        self.reason = reason
        self._open(min(2 * self._wait_secs, self.options.max_open_secs))
        return False

    def probe_undecided(self) -> None:
        """It says nothing: the next one is due as late as this one was."""
        if not self.is_closed:
            self._open(self._wait_secs)

    def secs_until_probe(self) -> float:
        """How long nothing is asked, while it is open."""
        return max(0.0, self.next_probe - self.seconds())

    def _open(self, wait_secs: float) -> None:
        self._wait_secs = wait_secs
        self.next_probe = self.seconds() + wait_secs
        self._become(State.OPEN)

    def _become(self, state: State) -> None:
        if State.CLOSED in (self.state, state):
            self.since = self.seconds()
        self.state = state
