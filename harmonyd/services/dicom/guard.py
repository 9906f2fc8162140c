"""What stands before a remote node: its circuit breaker, the hours in which it may be asked, and how it is.

Clients are told at once, with 503, that it is not asked. Deliveries of the spool wait: they come back by themselves,
and each brings a C-ECHO with it that may close the breaker before its time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from harmonyd.config.model import DicomBackendOptions
from harmonyd.errors import HarmonydError, Unavailable
from harmonyd.services.dicom.breaker import Breaker, State, Verdict, is_suspicious, of_echo, of_operation
from harmonyd.waiters import Waiters

__all__ = ["CircuitOpen", "Echo", "OutsideHours", "PacsGuard", "kind_of"]

KINDS = ("echo", "find", "retrieve", "store")
_RETRIEVES = ("get", "move")
_LIKE = {"worklist": "find", "commit": "store", "mpps": "store"}
_LOOK_SECS = 3600.0
"""At the latest after so long it is looked whether hours have begun: clocks are set."""
_LEAST_SECS = 1.0
"""Between two C-ECHOs on behalf of deliveries, or of operations that ended badly."""


class CircuitOpen(Unavailable):
    """The node failed so often that it is left alone for now."""

    title = "The remote node is not asked now"


class OutsideHours(Unavailable):
    """The configuration does not let this operation reach the node at this time of the day."""

    title = "Not at this time of the day"


@dataclass(frozen=True, slots=True)
class Echo:
    """A C-ECHO of ours."""

    at: float
    """When it ended, in seconds since the epoch."""
    secs: float
    error: str
    """Empty: the node answered Success."""


class PacsGuard:
    """Of one backend. ``echo`` performs a C-ECHO, and raises what is wrong; ``start`` and ``stop`` it."""

    _log = Logger()

    def __init__(
        self,
        name: str,
        options: DicomBackendOptions,
        reactor: Any,
        echo: Callable[[], Awaitable[Any]],
        returned: Callable[[str], None] = lambda name: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``returned`` is told the name when the node answers again.

        Hours go by ``wall``: unlike the reactor's clock it notices when the machine's is set, or was asleep.
        """
        self.name = name
        self.breaker = Breaker(options.breaker, reactor.seconds)
        self.last_echo: Echo | None = None
        self.last_answer = 0.0
        """When the node was last known to answer; 0: never."""
        self.refused = {"breaker": 0, "hours": 0}
        """Operations of clients, by reason."""
        self._hours = options.hours
        self._echo_secs = options.health_echo_secs
        self._reactor = reactor
        self._wall = wall
        self._echo = echo
        self._returned = returned
        self._timers: dict[str, DelayedCall] = {}
        self._asked: Waiters[None] = Waiters()
        self._asking: Deferred[None] | None = None
        self._is_asking = self._is_stopped = False

    def start(self) -> None:
        """Begin to look after the node, if the configuration wants that."""
        if self._echo_secs:
            self._later("health", self._echo_secs, self._look_again)

    async def stop(self) -> None:
        """End all that runs by itself."""
        self._is_stopped = True
        for name in list(self._timers):
            self._cancel(name)
        if self._asking is not None:
            self._asking.cancel()
        if self._is_asking:
            await self._asked.wait()

    # --- before an operation

    def admit(self, operation: str) -> None:
        """Raises ``OutsideHours`` and ``CircuitOpen``.

        An echo goes through: who asks for it wants to know how the node is, and it costs what one of ours does.
        """
        self._check_hours(operation)
        if not self.breaker.is_closed and operation != "echo":
            self.refused["breaker"] += 1
            raise self._suspended()

    async def admit_delivery(self) -> None:
        """The same for what waits in the spool; may ask the node for a C-ECHO first."""
        self._check_hours("store")
        if self.breaker.is_closed:
            return
        last = self.last_echo.at if self.last_echo is not None else 0.0
        if self._is_asking or self._reactor.seconds() - last >= _LEAST_SECS:
            await self.look()
        if not self.breaker.is_closed:
            raise self._suspended()

    def _check_hours(self, operation: str) -> None:
        if self.permits(kind_of(operation)) or self._hours is None:
            return
        self.refused["hours"] += 1
        now = self._wall()
        raise OutsideHours(
            f"Backend {self.name} is not to be asked for this at this time of the day.",
            hint="Ask again in its permitted hours (permitted_hours of the backend); Retry-After says when they begin.",
            backend=self.name,
            retry_after_secs=_whole(self._hours.next_begin(now) - now),
        )

    def permits(self, kind: str) -> bool:
        """Tell whether operations of this kind may reach the node now."""
        hours = self._hours
        return hours is None or not hours.concern(kind) or hours.permit(self._wall())

    def _suspended(self) -> CircuitOpen:
        breaker = self.breaker
        return CircuitOpen(
            f"{self.name} is not asked now, after {breaker.in_a_row} failures in a row; the last one: {breaker.reason}",
            hint="harmonyd tries it by itself, with a C-ECHO, and lets requests through as soon as it answers.",
            backend=self.name,
            retry_after_secs=_whole(breaker.secs_until_probe()),
        )

    # --- after it

    def note(self, error: BaseException | None, operation: str = "") -> None:
        """An operation ended with this; None: the node has answered."""
        verdict = of_operation(error)
        if verdict is Verdict.UNKNOWN and is_suspicious(error):
            self._suspect()
        if operation == "echo" and verdict is Verdict.ANSWERS:
            self._note_echo(error)
            return
        if verdict is Verdict.ANSWERS:
            self.last_answer = self._reactor.seconds()
            self.breaker.answered()
        elif verdict is Verdict.AWAY and self.breaker.failed(_reason(error)):
            self._opened()

    def _suspect(self) -> None:
        """Find out whether it is the node: a C-ECHO says so, whatever was asked before."""
        last = self.last_echo.at if self.last_echo is not None else 0.0
        is_of_use = self.breaker.is_closed and self.breaker.options.failures and self.permits("echo")
        if is_of_use and not self._is_stopped and self._reactor.seconds() - last >= _LEAST_SECS:
            self._begin_asking()

    def _opened(self) -> None:
        breaker = self.breaker
        self._log.warn(
            "{backend} is not asked for {secs:g} s, after {count} failures in a row; the last one: {reason}",
            backend=self.name, secs=breaker.options.open_secs, count=breaker.in_a_row, reason=breaker.reason,
        )  # fmt: skip
        self._probe_later()

    # --- C-ECHOs of our own

    async def look(self) -> None:
        """Ask for a C-ECHO now, or wait for the one that runs; ``last_echo`` says what came of it."""
        if self._is_stopped:
            return
        waiting = self._asked.wait()
        self._begin_asking()
        await waiting

    def _look_again(self) -> None:
        self._later("health", self._echo_secs, self._look_again)
        # While it is open, the breaker asks.
        if self.breaker.is_closed and self.permits("echo"):
            self._begin_asking()

    def _probe_later(self) -> None:
        self._later("probe", self.breaker.secs_until_probe(), self._probe)

    def _probe(self) -> None:
        if self.breaker.is_closed:
            return
        if self._hours is not None and not self.permits("echo"):
            now = self._wall()
            self._later("probe", min(_LOOK_SECS, self._hours.next_begin(now) - now), self._probe)
            return
        self._begin_asking()

    def _begin_asking(self) -> None:
        if self._is_asking:
            return
        self._is_asking = True
        asking = Deferred.fromCoroutine(self._ask())
        asking.addErrback(lambda failure: self._log.failure("a C-ECHO was not noted", failure=failure))
        self._asking = asking if self._is_asking else None

    async def _ask(self) -> None:
        began = self._reactor.seconds()
        self.breaker.probe()
        error: BaseException | None = None
        try:
            await self._echo()
        except (Exception, CancelledError) as exc:  # noqa: BLE001 - whatever it is, it is what came of it
            error = exc
        finally:
            self._is_asking, self._asking = False, None
            now = self._reactor.seconds()
            if not isinstance(error, CancelledError):
                self.last_echo = Echo(now, max(0.0, now - began), "" if error is None else _reason(error))
            self._note_echo(error)
            self._asked.fire(None)

    def _note_echo(self, error: BaseException | None) -> None:
        breaker, since = self.breaker, self.breaker.since
        verdict = of_echo(error)
        if verdict is Verdict.ANSWERS:
            self.last_answer = self._reactor.seconds()
            if breaker.probe_answered():
                self._cancel("probe")
                secs = self.last_answer - since
                self._log.info("{backend} answers again, after {secs:.0f} s", backend=self.name, secs=secs)
                self._returned(self.name)
            return
        if verdict is Verdict.UNKNOWN:
            breaker.probe_undecided()
        elif breaker.probe_failed(_reason(error)):
            self._opened()
            return
        if breaker.state is State.OPEN:
            self._probe_later()

    def _later(self, name: str, secs: float, call: Callable[[], None]) -> None:
        self._cancel(name)
        if not self._is_stopped:
            self._timers[name] = self._reactor.callLater(secs, partial(self._due, name, call))

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _due(self, name: str, call: Callable[[], None]) -> None:
        self._timers.pop(name, None)
        call()

    # --- for people

    def figures(self) -> dict[str, Any]:
        """How the node is. Times in seconds since the epoch, None for never."""
        breaker, echo = self.breaker, self.last_echo
        now = self._wall()
        permitted = {kind: self.permits(kind) for kind in KINDS}
        begins = None if self._hours is None or all(permitted.values()) else self._hours.next_begin(now)
        return {
            "state": breaker.state.value,
            "since_at": breaker.since or None,
            "failures_in_a_row": breaker.in_a_row,
            "reason": breaker.reason or None,
            "trips": breaker.trips,
            "next_probe_at": None if breaker.is_closed else breaker.next_probe,
            "last_answer_at": self.last_answer or None,
            "last_echo": None
            if echo is None
            else {
                "at": echo.at,
                "ok": not echo.error,
                "latency_ms": round(echo.secs * 1000, 1),
                "error": echo.error or None,
            },
            "permitted": permitted,
            "next_permitted_at": begins,
            "refused": dict(self.refused),
        }


def kind_of(operation: str) -> str:
    """Return what permitted hours call an operation."""
    return "retrieve" if operation in _RETRIEVES else _LIKE.get(operation, operation)


def _reason(error: BaseException | None) -> str:
    return error.detail if isinstance(error, HarmonydError) else type(error).__name__


def _whole(secs: float) -> int:
    return max(1, math.ceil(secs))
