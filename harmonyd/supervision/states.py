"""The life of a kept child as a table: ``(state, event) → (new state, effects)``. No I/O, no clock, no randomness.

The diagram is in docs/operations.md, made from the table by ``diagram``. In short: what fails is in BACKOFF until a
timer starts it again, and FATAL after too many fast failures, from where a slower timer does. FATAL for an unusable
program or option has no timer: only a start or a new configuration helps. A stop leads through STOPPING to STOPPED.

A process may still be dying while its child is in BACKOFF or FATAL; ``Spawn`` waits for it, and ``GONE`` is an event
only where somebody waits for it (STOPPING). An event that a state does not know raises and changes nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum

from harmonyd.errors import HarmonydError


class State(StrEnum):
    """The names are supervisor's (``supervisor.states.ProcessStates``)."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"
    STOPPING = "STOPPING"
    EXITED = "EXITED"
    """Only for once-children: a kept child that exits is restarted."""
    FATAL = "FATAL"


class Event(Enum):
    """What can happen to a kept child."""

    START = "start"
    STOP = "stop"
    READY = "alive, owns its port, answered a C-ECHO"
    EXITED = "the process exited"
    NOT_STARTED = "no process could be started this time"
    UNUSABLE = "the program or its options can never work"
    STARTUP_OVER = "not ready within the startup deadline"
    HUNG = "too many probes missed"
    STABLE = "ready for the stable interval"
    GIVE_UP = "too many fast failures"
    RESTART_DUE = "backoff over"
    RETRY_DUE = "time to try a given-up child again"
    GRACE_OVER = "stop grace over"
    GONE = "no process of the group is left"


class Timer(Enum):
    """The timers of a child; the value is the event one posts when it fires."""

    STARTUP = Event.STARTUP_OVER
    STABLE = Event.STABLE
    RESTART = Event.RESTART_DUE
    RETRY = Event.RETRY_DUE
    GRACE = Event.GRACE_OVER


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process, once an earlier one is gone and its port is free, and look for readiness."""


@dataclass(frozen=True, slots=True)
class Signal:
    """Signal the whole group."""

    signum: int


@dataclass(frozen=True, slots=True)
class Discard:
    """KILL what is left of the group; how and when it exits is no event any more."""


@dataclass(frozen=True, slots=True)
class ArmTimer:
    """Arm a timer. Arming RESTART counts one failure, and may find that it was one too many (GIVE_UP)."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class CancelTimer:
    timer: Timer


@dataclass(frozen=True, slots=True)
class Probe:
    """Probe the running child now and then."""


@dataclass(frozen=True, slots=True)
class StopProbe:
    """Stop looking for readiness, or probing."""


@dataclass(frozen=True, slots=True)
class ResetBackoff:
    """Forget earlier failures."""


@dataclass(frozen=True, slots=True)
class Record:
    """Tell the operator what went wrong."""


Effect = Spawn | Signal | Discard | ArmTimer | CancelTimer | Probe | StopProbe | ResetBackoff | Record
Step = tuple[State, tuple[Effect, ...]]


class IllegalTransition(HarmonydError):
    """The child's state does not know this event, for example ``start`` of a running child."""

    title = "Not possible in this state"


_launch = (Spawn(), ArmTimer(Timer.STARTUP))
_start: Step = (State.STARTING, (ResetBackoff(), *_launch))
_start_failed: Step = (
    State.BACKOFF,
    (CancelTimer(Timer.STARTUP), StopProbe(), Discard(), Record(), ArmTimer(Timer.RESTART)),
)
_failed: Step = (State.BACKOFF, (CancelTimer(Timer.STABLE), StopProbe(), Discard(), Record(), ArmTimer(Timer.RESTART)))
_unusable: Step = (State.FATAL, (CancelTimer(Timer.STARTUP), StopProbe(), Discard(), Record()))


def _stop_from(*timers: Timer) -> Step:
    cancelled = tuple(CancelTimer(timer) for timer in timers)
    return State.STOPPING, (*cancelled, StopProbe(), Signal(signal.SIGTERM), ArmTimer(Timer.GRACE))


TABLE: Mapping[State, Mapping[Event, Step]] = {
    State.STOPPED: {Event.START: _start},
    State.STARTING: {
        Event.READY: (State.RUNNING, (CancelTimer(Timer.STARTUP), ArmTimer(Timer.STABLE), Probe())),
        Event.EXITED: _start_failed,
        Event.NOT_STARTED: _start_failed,
        Event.STARTUP_OVER: _start_failed,
        Event.UNUSABLE: _unusable,
        Event.STOP: _stop_from(Timer.STARTUP),
    },
    State.RUNNING: {
        Event.STABLE: (State.RUNNING, (ResetBackoff(),)),
        Event.EXITED: _failed,
        Event.HUNG: _failed,
        Event.STOP: _stop_from(Timer.STABLE),
    },
    State.BACKOFF: {
        Event.START: (State.STARTING, (CancelTimer(Timer.RESTART), ResetBackoff(), *_launch)),
        Event.RESTART_DUE: (State.STARTING, _launch),
        Event.GIVE_UP: (State.FATAL, (CancelTimer(Timer.RESTART), ArmTimer(Timer.RETRY))),
        # What a process says on its way out can arrive after its exit.
        Event.UNUSABLE: (State.FATAL, (CancelTimer(Timer.RESTART), Record())),
        Event.STOP: _stop_from(Timer.RESTART),
    },
    State.FATAL: {
        Event.START: (State.STARTING, (CancelTimer(Timer.RETRY), ResetBackoff(), *_launch)),
        Event.RETRY_DUE: (State.STARTING, _launch),
        Event.UNUSABLE: (State.FATAL, (CancelTimer(Timer.RETRY), Record())),
        Event.STOP: _stop_from(Timer.RETRY),
    },
    State.STOPPING: {
        Event.EXITED: (State.STOPPING, ()),
        Event.GRACE_OVER: (State.STOPPING, (Signal(signal.SIGKILL),)),
        Event.GONE: (State.STOPPED, (CancelTimer(Timer.GRACE),)),
    },
    State.EXITED: {},
}


def step(state: State, event: Event) -> Step:
    """Look up what follows. Raises ``IllegalTransition`` for an event that the state does not know."""
    try:
        return TABLE[state][event]
    except KeyError:
        known = ", ".join(sorted(known.name for known in TABLE[state])) or "none"
        raise IllegalTransition(f"a child in state {state.value} knows no {event.name} (it knows: {known})") from None
