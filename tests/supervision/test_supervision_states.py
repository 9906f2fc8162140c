"""The table of a kept child's life."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervisor.states import ProcessStates

from harmonyd.supervision.states import (
    TABLE,
    ArmTimer,
    CancelTimer,
    Event,
    IllegalTransition,
    Probe,
    Signal,
    Spawn,
    State,
    StopProbe,
    Timer,
    step,
)

LEGAL = {(state, event) for state, row in TABLE.items() for event in row}
EXPECTED = {
    ("STOPPED", "START"): "STARTING",
    ("STARTING", "READY"): "RUNNING",
    ("STARTING", "EXITED"): "BACKOFF",
    ("STARTING", "NOT_STARTED"): "BACKOFF",
    ("STARTING", "STARTUP_OVER"): "BACKOFF",
    ("STARTING", "UNUSABLE"): "FATAL",
    ("STARTING", "STOP"): "STOPPING",
    ("RUNNING", "STABLE"): "RUNNING",
    ("RUNNING", "EXITED"): "BACKOFF",
    ("RUNNING", "HUNG"): "BACKOFF",
    ("RUNNING", "STOP"): "STOPPING",
    ("BACKOFF", "START"): "STARTING",
    ("BACKOFF", "RESTART_DUE"): "STARTING",
    ("BACKOFF", "GIVE_UP"): "FATAL",
    ("BACKOFF", "UNUSABLE"): "FATAL",
    ("BACKOFF", "STOP"): "STOPPING",
    ("FATAL", "START"): "STARTING",
    ("FATAL", "RETRY_DUE"): "STARTING",
    ("FATAL", "UNUSABLE"): "FATAL",
    ("FATAL", "STOP"): "STOPPING",
    ("STOPPING", "EXITED"): "STOPPING",
    ("STOPPING", "GRACE_OVER"): "STOPPING",
    ("STOPPING", "GONE"): "STOPPED",
}


def test_state_names_are_supervisors() -> None:
    """Every state is one that supervisorctl knows."""
    assert all(hasattr(ProcessStates, state.value) for state in State)


def test_every_state_has_a_row() -> None:
    """The table speaks about every state."""
    assert set(TABLE) == set(State)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Event))
def test_each_pair_of_state_and_event(state: State, event: Event) -> None:
    """Each legal pair leads where the design says, each other one raises and says what the state knows."""
    expected = EXPECTED.get((state.name, event.name))
    if expected is None:
        with pytest.raises(IllegalTransition, match=state.value):
            step(state, event)
    else:
        assert step(state, event)[0].value == expected


def test_a_bad_option_is_not_tried_again() -> None:
    """An unusable program arms no timer, a given-up child arms the retry."""
    for state in (State.STARTING, State.BACKOFF, State.FATAL):
        assert not [effect for effect in step(state, Event.UNUSABLE)[1] if isinstance(effect, ArmTimer)]
    assert ArmTimer(Timer.RETRY) in step(State.BACKOFF, Event.GIVE_UP)[1]


def test_stop_signals_term_first_and_kill_after_the_grace() -> None:
    """Stopping is TERM to the group with a grace timer, then KILL."""
    for state in (State.STARTING, State.RUNNING, State.BACKOFF, State.FATAL):
        effects = step(state, Event.STOP)[1]
        assert Signal(15) in effects
        assert ArmTimer(Timer.GRACE) in effects
    assert step(State.STOPPING, Event.GRACE_OVER)[1] == (Signal(9),)


@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_timers_and_probes_never_outlive_their_state(events: list[Event]) -> None:
    """On any path a timer is armed once, cancelled only while armed or fired, and nothing runs in STOPPED."""
    state, armed, task = State.STOPPED, set[Timer](), False
    timer_events = {timer.value: timer for timer in Timer}
    for event in events:
        if (state, event) not in LEGAL or (event in timer_events and timer_events[event] not in armed):
            continue
        armed.discard(timer_events.get(event))  # type: ignore[arg-type]
        if event in (Event.READY, Event.HUNG, Event.NOT_STARTED) or (event is Event.UNUSABLE and task):
            task = False  # the task of the state ended with this event
        state, effects = step(state, event)
        for effect in effects:
            match effect:
                case ArmTimer(timer):
                    assert timer not in armed
                    armed.add(timer)
                case CancelTimer(timer):
                    armed.discard(timer)
                case Spawn() | Probe():
                    assert not task
                    task = True
                case StopProbe():
                    task = False
        assert task == (state in (State.STARTING, State.RUNNING))
        allowed = {
            State.STARTING: {Timer.STARTUP},
            State.RUNNING: {Timer.STABLE},
            State.BACKOFF: {Timer.RESTART},
            State.FATAL: {Timer.RETRY},
            State.STOPPING: {Timer.GRACE},
        }
        assert armed <= allowed.get(state, set())
