"""Is a child ready, and is it still well? Readings are taken in a thread; judgements are pure.

RUNNING means ready: alive, a process of its own group listens on its port, and a C-ECHO succeeded, or it was seen at
work for somebody who got in first. Afterwards **busy is not hung**: a storescp without ``--fork`` serves one
association at a time and answers no other meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from twisted.internet.task import deferLater

from harmonyd.config.daemon import SupervisionConfig
from harmonyd.supervision.api import KeptSpec
from harmonyd.supervision.errors import ProbeFailed
from harmonyd.supervision.ports import established, open_sockets, owned_by_session
from harmonyd.supervision.process import ChildProcess, in_thread
from harmonyd.supervision.watcher import members, read_stat

ProbeFunction = Callable[[Any, str, int, str, float], Awaitable[None]]
"""(reactor, host, port, called AE title, timeout in seconds); raises ``ProbeFailed``: ``probe.c_echo``."""

HOST = "127.0.0.1"
READY_POLL_SECS = (0.02, 0.5)
"""First and longest delay between looks at a child that starts."""


class Verdict(Enum):
    WELL = "answers"
    BUSY = "busy with an association"
    MISSED = "missed a probe"


@dataclass(frozen=True, slots=True)
class Finding:
    verdict: Verdict
    why: str = ""


OnFinding = Callable[[Finding], None]


@dataclass(frozen=True, slots=True)
class Reading:
    """What /proc says about a child."""

    stopped: bool
    """By a signal, or by a tracer: it does nothing until it is continued."""
    connections: int
    """Established on its port."""
    cpu_ticks: int


def read_child(session: int, port: int) -> Reading:
    """Take a reading. May read many files: call it in a thread.

    The tables of all connections and processes cost milliseconds. They are read only if the child has more open than
    the socket it listens on: an idle one accepts at once, so that a connection it has not accepted is no work of its.
    """
    leader = read_stat(session)
    connections = established(port) if open_sockets(session) != 1 else 0
    cpu_ticks = sum(stat.cpu_ticks for stat in members(session)) if connections else 0
    return Reading(leader is not None and leader.state in "Tt", connections, cpu_ticks)


class Movement:
    """Remembers when something about a child last changed: what it wrote, what CPU time it used."""

    def __init__(self, now: float) -> None:
        self._last: tuple[int, int] | None = None
        self._moved_at = now

    def still_secs(self, now: float, output_bytes: int, cpu_ticks: int) -> float:
        """Note the present values; return for how long nothing has moved."""
        if (output_bytes, cpu_ticks) != self._last:
            self._last = (output_bytes, cpu_ticks)
            self._moved_at = now
        return now - self._moved_at


def judge(reading: Reading, still_secs: float, association_timeout_secs: float) -> Finding | None:
    """What a reading alone tells; None: only a C-ECHO can tell."""
    if reading.stopped:
        return Finding(Verdict.MISSED, "it is stopped by a signal")
    if not reading.connections:
        return None
    if still_secs >= association_timeout_secs:
        return Finding(Verdict.MISSED, f"it has a connection open, and nothing about it moved for {still_secs:.0f} s")
    return Finding(Verdict.BUSY, "busy")


class Examiner:
    """Examines one process of a child. ``config`` is asked each time, because a reload may change it."""

    def __init__(
        self,
        reactor: Any,
        process: ChildProcess,
        spec: KeptSpec,
        probe: ProbeFunction,
        config: Callable[[], SupervisionConfig],
    ) -> None:
        self._reactor = reactor
        self._process = process
        self._spec = spec
        self._probe = probe
        self._config = config
        self._movement = Movement(reactor.seconds())

    async def until_ready(self, on_finding: OnFinding) -> None:
        """Return when the child is ready; ``on_finding`` gets what is found before, and "busy" if it is ready by that.

        Senders that follow each other closely leave no gap for a C-ECHO: a child that says more from one look at it to
        the next, busy at both, answers them.
        """
        delay_secs, longest_secs = READY_POLL_SECS
        said_when_busy: int | None = None
        while True:
            await deferLater(self._reactor, delay_secs)
            found = await self.ready()
            if found.verdict is Verdict.WELL:
                return
            on_finding(found)
            said = self._process.output_bytes if found.verdict is Verdict.BUSY else None
            if said is not None and said_when_busy is not None and said > said_when_busy:
                return
            said_when_busy = said
            delay_secs = min(1.5 * delay_secs, longest_secs)

    async def until_hung(self, on_finding: OnFinding) -> None:
        """Probe now and then, sooner after a miss; return when too many probes in a row were missed."""
        misses = 0
        while misses < self._config().probe_misses:
            config = self._config()
            longest_secs = config.probe_timeout_secs if misses else config.probe_interval_secs
            await deferLater(self._reactor, min(config.probe_interval_secs, longest_secs))
            found = await self.examine()
            misses = misses + 1 if found.verdict is Verdict.MISSED else 0
            on_finding(found)

    async def ready(self) -> Finding:
        """WELL when the port is its own and a C-ECHO succeeded; BUSY when somebody got in first; else MISSED."""
        if not await in_thread(self._reactor, owned_by_session, self._spec.port, self._process.pid):
            return Finding(Verdict.MISSED, f"it does not listen on port {self._spec.port}")
        return await self.examine()

    async def examine(self) -> Finding:
        """WELL, BUSY or MISSED.

        A busy child gets no C-ECHO: it could not answer, and each try would fill its queue of waiting connections.
        """
        found = await self._look()
        if found is not None:
            return found
        echoed = await self._echo()
        if echoed.verdict is Verdict.WELL:
            return echoed
        return await self._look() or echoed

    async def _look(self) -> Finding | None:
        reading = await in_thread(self._reactor, read_child, self._process.pid, self._spec.port)
        now = self._reactor.seconds()
        still_secs = self._movement.still_secs(now, self._process.output_bytes, reading.cpu_ticks)
        return judge(reading, still_secs, self._spec.association_timeout_secs)

    async def _echo(self) -> Finding:
        timeout_secs = self._config().probe_timeout_secs
        try:
            await self._probe(self._reactor, HOST, self._spec.port, self._spec.called_aet, timeout_secs)
        except ProbeFailed as error:
            return Finding(Verdict.MISSED, f"C-ECHO failed: {error.detail}")
        return Finding(Verdict.WELL)
