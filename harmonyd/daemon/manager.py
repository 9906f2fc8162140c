"""What the service manager (systemd) is told: ready, status, reload, stop, and signs of life while we really work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from harmonyd.supervision.kept import Kept
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.telemetry.notify import Notifier

SETTLED = ("RUNNING", "FATAL", "STOPPED")
"""States of a child that the report of a complete start does not wait for."""
START_MARGIN_SECS = 60.0
"""For what precedes the children's start: left-overs of a crashed run, and taking up what was spooled."""
THREADS_SECS = 300.0
"""When no thread has been free for this long, supervision, which reads /proc in threads, is blind."""


class ServiceManager:
    """Keeps systemd informed; without systemd it only follows what happens.

    READY is reported once ``listening`` was called and each kept child is RUNNING, FATAL or STOPPED, at the latest
    ``startup_deadline_secs`` after ``listening``: one bad child must not put the daemon in a restart loop.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, notifier: Notifier, supervisor: ProcessSupervisor, startup_deadline_secs: float
    ) -> None:
        self._reactor = reactor
        self._notifier = notifier
        self._supervisor = supervisor
        self._startup_deadline_secs = startup_deadline_secs
        self._listening = self._ready = self._reloading = self._stopping = False
        self._deadline: DelayedCall | None = None
        self._threads_answered_at: float = reactor.seconds()
        self._threads_asked = False
        self._watchdog = LoopingCall(self._sign_of_life)
        self._watchdog.clock = reactor

    @property
    def ready(self) -> bool:
        """Whether the start has been reported as complete."""
        return self._ready

    # --- what the daemon tells

    def starting(self) -> None:
        """The start has begun."""
        self._notifier.more_time(self._startup_deadline_secs + START_MARGIN_SECS)
        self._supervisor.on_change = self._changed
        if self._notifier.watchdog_secs is not None:
            self._watchdog.start(self._notifier.watchdog_secs / 2)
        self._changed()

    def listening(self) -> None:
        """All listeners are bound, and all children that start with the daemon have been started."""
        self._listening = True
        self._deadline = self._reactor.callLater(self._startup_deadline_secs, self._waited_long_enough)
        self._changed()

    def failed(self, why: str) -> None:
        """The daemon cannot start, and will end."""
        self._notifier.status(f"Cannot start: {why}")

    def reloading(self) -> None:
        """The configuration is being read again; ``reloaded`` must follow."""
        self._reloading = True
        if self._ready:
            self._notifier.reloading("Reloading the configuration")

    def reloaded(self, problem: str = "", *, in_force: bool = False) -> None:
        """The reload is over. ``problem``: why everything stays as it was; the status says it until the next change.

        ``in_force``: the new configuration is used in spite of that.
        """
        self._reloading = False
        if self._stopping:
            return
        if self._ready:
            what = "The new configuration is in force, but" if in_force else "The new configuration was refused:"
            self._notifier.ready(f"{what} {problem}" if problem else self._status())
        else:
            self._changed()

    def stopping(self, within_secs: float, *, to_restart: bool = False) -> None:
        """The stop has begun; it may take so long. ``to_restart``: this process starts again after it."""
        self._stopping = True
        self._cancel_deadline()
        if to_restart:  # for systemd the service goes on: READY will end this
            self._notifier.reloading("Restarting")
        else:
            self._notifier.stopping("Stopping")
        self._notifier.more_time(within_secs)

    def step(self, what: str) -> None:
        """Say which step of the stop is under way."""
        self._log.info("stopping: {what}", what=what)
        self._notifier.status(f"Stopping: {what}")

    def close(self) -> None:
        """Everything has ended."""
        self._cancel_deadline()
        self._notifier.status("Stopped")
        if self._watchdog.running:
            self._watchdog.stop()

    # --- ready, and status

    def _changed(self) -> None:
        """Something changed: a child its state, or the daemon its own."""
        if self._stopping or self._reloading:
            return
        children = self._supervisor.children()
        if self._ready:
            self._notifier.status(self._status())
        elif self._listening and all(child.state in SETTLED for child in children):
            self._report_ready()
        else:
            self._notifier.status(f"Starting: {summary(children)}")

    def _waited_long_enough(self) -> None:
        self._deadline = None
        self._report_ready()

    def _report_ready(self) -> None:
        self._ready = True
        self._cancel_deadline()
        self._notifier.ready(self._status())

    def _status(self) -> str:
        children = self._supervisor.children()
        well = all(child.state == "RUNNING" for child in children)
        return f"{'Serving' if well else 'Degraded'}: {summary(children)}"

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # --- the watchdog

    def _sign_of_life(self) -> None:
        """Runs only while the reactor does; says we live only while supervision does, too."""
        problem = self._problem()
        if problem:
            self._log.critical("the watchdog gets no sign of life: {problem}", problem=problem)
        else:
            self._notifier.alive()

    def _problem(self) -> str:
        neglected = [child.full_name for child in self._supervisor.children() if not child.attended]
        if neglected:
            return f"nothing looks after {', '.join(neglected)}"
        self._ask_threads()
        silent_secs = self._reactor.seconds() - self._threads_answered_at
        return f"no thread was free for {silent_secs:.0f} s" if silent_secs > THREADS_SECS else ""

    def _ask_threads(self) -> None:
        if self._threads_asked:
            return

        def answered(_: Any) -> None:
            self._threads_asked = False
            self._threads_answered_at = self._reactor.seconds()

        self._threads_asked = True
        deferToThreadPool(self._reactor, self._reactor.getThreadPool(), lambda: None).addBoth(answered)


def summary(children: Sequence[Kept]) -> str:
    """How many children run, and what is the matter with those that do not."""
    running = sum(child.state == "RUNNING" for child in children)
    counts = f"{running} of {len(children)} children running" if children else "no children to keep"
    others = [f"{child.full_name} {child.state}: {child.note}" for child in children if child.state != "RUNNING"]
    return "; ".join([counts, *others])
