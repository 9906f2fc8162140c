"""A child that is kept running: executes the effects of the table in ``states``, and turns what happens into events."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from harmonyd.config.daemon import SupervisionConfig
from harmonyd.supervision import reasons, states
from harmonyd.supervision.api import ExitRecord, KeptSpec
from harmonyd.supervision.backoff import Backoff
from harmonyd.supervision.errors import ChildNotReady, SpawnError, UnusableProgram
from harmonyd.supervision.handlers import LineHandler
from harmonyd.supervision.history import History
from harmonyd.supervision.logs import ChildLog
from harmonyd.supervision.ports import holder_text, problem_text, try_port
from harmonyd.supervision.process import ChildProcess, exit_text, in_thread
from harmonyd.supervision.readiness import Examiner, Finding, ProbeFunction, Verdict
from harmonyd.supervision.states import Event, State, Timer
from harmonyd.supervision.task import Task
from harmonyd.supervision.timers import Timers, duration_secs
from harmonyd.waiters import Waiters

LAST_LINES = 5

Launch = Callable[["Kept", ChildProcess], None]
"""Starts the process of a child and reports it to whoever has to know. Raises ``SpawnError``."""


class Kept:
    """Implements ``api.KeptChild``. Made by ``ProcessSupervisor.keep``; everything on the reactor's thread."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        spec: KeptSpec,
        config: SupervisionConfig,
        log: ChildLog,
        *,
        probe: ProbeFunction,
        random: Callable[[], float],
        launch: Launch,
    ) -> None:
        self.spec = spec
        self.full_name = f"{spec.group}:{spec.name}"
        self.output = log
        self.exits: deque[ExitRecord] = deque(maxlen=20)
        """How its latest processes ended, oldest first; their output is in ``output``."""
        self.on_change: Callable[[], None] = lambda: None
        """Called after each change of its state, or of why it is in it."""
        self.history = History()
        self._reactor = reactor
        self._config = config
        self._probe = probe
        self._launch = launch
        self._backoff = Backoff(
            config.backoff_initial_secs, config.backoff_max_secs, config.fatal_after_failures, random
        )
        self._state = State.STOPPED
        self._state_since: float = reactor.seconds()
        self._why = "not started"
        self._process: ChildProcess | None = None
        self._discarded = False
        self._task = Task(self._post, self._task_failed)
        self._timers = Timers(reactor, self._timer_fired)
        self._events: deque[Event] = deque()
        self._posting = False
        self._ready: Waiters[None] = Waiters()
        self._stopped: Waiters[None] = Waiters()
        self._handler = LineHandler(self.full_name, spec.on_line)

    # --- api.KeptChild

    @property
    def state(self) -> str:
        return self._state.value

    @property
    def state_since(self) -> float:
        """When it came into its state, in seconds on the reactor's clock."""
        return self._state_since

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and not self._process.exited else None

    @property
    def note(self) -> str:
        """What is to be said about it in its state, without times: "busy", "", or why it does not run."""
        return self._why

    @property
    def attended(self) -> bool:
        """Whether a task or a timer will take it out of its state, where one must."""
        if self._state is State.BACKOFF:
            return Timer.RESTART in self._timers
        return self._task.runs or self._state not in (State.STARTING, State.RUNNING)

    @property
    def description(self) -> str:
        if self._state is State.RUNNING:
            minutes, secs = divmod(int(self._reactor.seconds() - self._state_since), 60)
            uptime = f"pid {self.pid}, uptime {minutes // 60}:{minutes % 60:02}:{secs:02}"
            return f"{uptime}, {self._why}" if self._why else uptime
        due_secs = self._timers.due_secs(Timer.RESTART, Timer.RETRY)
        return self._why if due_secs is None else f"{self._why}; next try in {due_secs:.0f} s"

    def when_ready(self) -> Deferred[None]:
        waiter = self._ready.wait()
        self._tell_waiters()
        return waiter

    def start(self) -> None:
        """Start a child that is STOPPED, FATAL or in BACKOFF. Raises ``IllegalTransition`` in any other state."""
        states.step(self._state, Event.START)
        self._post(Event.START)

    async def stop(self) -> None:
        """End it and keep it STOPPED; returns when no process of its group is left. Safe to call at any time."""
        if self._state is State.STOPPED:
            return
        if self._state is not State.STOPPING:
            self._post(Event.STOP)
        stopped = self._stopped.wait()
        self._tell_waiters()
        await stopped

    def signal(self, signum: int) -> None:
        """Signal its whole group; does nothing when there is none."""
        if self._process is not None:
            self._process.signal(signum)

    def configure(self, config: SupervisionConfig) -> None:
        """Go by other settings; a timer that runs is not set anew."""
        self._config = config
        self._backoff.configure(config.backoff_initial_secs, config.backoff_max_secs, config.fatal_after_failures)
        self.output.configure(config)

    def replace(self, why: str) -> None:
        """End the process of a child that is RUNNING and start another, as if it had hung."""
        if self._state is State.RUNNING:
            self._why = why
            self._post(Event.HUNG)

    # --- events and effects

    def _post(self, event: Event) -> None:
        """Handle an event; one that comes while another is handled waits for its turn."""
        self._events.append(event)
        if self._posting:
            return
        self._posting = True
        try:
            while self._events:
                self._handle(self._events.popleft())
        finally:
            self._posting = False
        self._tell_waiters()

    def _handle(self, event: Event) -> None:
        before = self._state
        try:
            new, effects = states.step(before, event)
        except states.IllegalTransition as bug:
            self.log.error("{child}: ignored: {error}", child=self.full_name, error=bug.detail)
            return
        if new is not before:
            self._state, self._state_since = new, self._reactor.seconds()
            self._why = reasons.PLAIN.get(new, self._why)
        for effect in effects:
            self._execute(effect)
        if new is not before:
            self.log.emit(
                LogLevel.error if new is State.FATAL else LogLevel.info,
                "{child}: {before} -> {state}: {why}",
                child=self.full_name, pid=self.pid, before=before.value, state=new.value, why=self.description,
            )  # fmt: skip
            self.on_change()

    def _execute(self, effect: states.Effect) -> None:
        match effect:
            case states.Spawn():
                self._task.run(self._bring_up())
            case states.Probe():
                self._task.run(self._watch_over())
            case states.StopProbe():
                self._task.end()
            case states.Signal(signum):
                self._signal(signum)
            case states.Discard():
                self._discard()
            case states.ArmTimer(Timer.RESTART):
                self._arm_restart()
            case states.ArmTimer(timer):
                self._timers.arm(timer, duration_secs(timer, self._config))
            case states.CancelTimer(timer):
                self._timers.cancel(timer)
            case states.ResetBackoff():
                self._backoff.reset()
            case states.Record():
                self._record()

    def _signal(self, signum: int) -> None:
        if self._process is None:
            self._post(Event.GONE)
        else:
            self._process.signal(signum)

    def _discard(self) -> None:
        self._discarded = self._process is not None
        self.signal(signal.SIGKILL)

    def _record(self) -> None:
        self.log.warn(
            "{child}: {why}; it said last: {last}",
            child=self.full_name, pid=self.pid, why=self._why,
            last=[line.decode("utf-8", "replace") for line in self.output.last_lines(LAST_LINES)],
        )  # fmt: skip

    # --- timers

    def _arm_restart(self) -> None:
        delay_secs = self._backoff.failed(self._reactor.seconds())
        if delay_secs is None:
            self._post(Event.GIVE_UP)
        else:
            self._timers.arm(Timer.RESTART, delay_secs)

    def _timer_fired(self, timer: Timer) -> None:
        if timer is Timer.STARTUP:
            self._why = f"not ready after {self._config.startup_deadline_secs:g} s: {self._why}"
        self._post(timer.value)

    # --- the task of the state: bringing up, or watching over

    def _task_failed(self, failure: Failure) -> None:
        self.log.failure("{child}: its supervision failed", failure, child=self.full_name)
        self._why = f"internal error: {failure.getErrorMessage()}"
        self._post(Event.NOT_STARTED if self._state is State.STARTING else Event.HUNG)

    async def _bring_up(self) -> Event:
        """Start the process; return READY, or why there is none (its exit and the deadline are events of their own)."""
        if self._process is not None:
            self._why = f"waiting for pid {self._process.pid} of the last run to end"
            await self._process.when_gone()
        error = try_port(self.spec.port)
        if error is not None:
            self._why = await in_thread(self._reactor, problem_text, self.spec.port, error)
            return Event.NOT_STARTED
        try:
            process = self._spawn()
        except SpawnError as failed:
            self._why = failed.detail
            return Event.UNUSABLE if isinstance(failed, UnusableProgram) else Event.NOT_STARTED
        await self._examiner(process).until_ready(self._found)
        return Event.READY

    def _spawn(self) -> ChildProcess:
        process = ChildProcess(
            self._reactor, self.full_name, on_lines=self._lines, on_exit=self._exited, on_gone=self._gone
        )
        self._process, self._discarded = process, False
        try:
            self._launch(self, process)
        except SpawnError:
            self._process = None
            raise
        self.history.started(self._reactor.seconds())
        return process

    async def _watch_over(self) -> Event:
        assert self._process is not None
        await self._examiner(self._process).until_hung(self._found)
        self._why = f"hung: {self._why}"
        return Event.HUNG

    def _examiner(self, process: ChildProcess) -> Examiner:
        return Examiner(self._reactor, process, self.spec, self._probe, lambda: self._config)

    def _found(self, found: Finding) -> None:
        self._why = found.why
        if found.verdict is Verdict.BUSY and Timer.STARTUP in self._timers:
            # While it serves somebody, it is not late.
            self._timers.put_off(Timer.STARTUP, self._config.startup_deadline_secs)

    # --- the process

    def _lines(self, lines: list[bytes]) -> None:
        assert self._process is not None
        self.output.lines(self._process.pid, lines)
        self._handler(lines)

    def _exited(self) -> None:
        self.history.stopped_at = self._reactor.seconds()
        process = self._process
        if process is None or self._discarded:
            return
        if self._state is not State.STOPPING:
            self._why = exit_text(process.exit_code, process.exit_signal)
        self._post(Event.EXITED)

    def _gone(self) -> None:
        """Its output is complete, and nothing of its group is left."""
        process, self._process = self._process, None
        assert process is not None
        record = process.exit_record()
        self.exits.append(record)
        if self._state is State.STOPPING:
            self._post(Event.GONE)
        elif self._state in (State.BACKOFF, State.FATAL) and record.exit_code:
            self._explain(record)

    def _explain(self, record: ExitRecord) -> None:
        """Say better why it failed, now that its last words are here."""
        self._why = reasons.explained(record)
        if reasons.is_for_good(record):
            self._post(Event.UNUSABLE)
        elif reasons.port_was_taken(record):
            in_thread(self._reactor, holder_text, self.spec.port).addCallback(self._port_was_held)
        self.on_change()

    def _port_was_held(self, text: str) -> None:
        self.log.warn("{child}: {why}", child=self.full_name, why=text)
        if self._state in (State.BACKOFF, State.FATAL):
            self._why = text
            self.on_change()

    # --- those who wait

    def _tell_waiters(self) -> None:
        if self._state is State.RUNNING:
            self._ready.fire(None)
        elif self._state in (State.FATAL, State.STOPPING, State.STOPPED):
            self._ready.fail(ChildNotReady(f"{self.full_name} is {self.state}: {self.description}"))
        if self._state is State.STOPPED:
            self._stopped.fire(None)
