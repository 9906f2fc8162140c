"""The table of states against PS3.8 table 9-10, and against pynetdicom's copy of it."""

from __future__ import annotations

import pytest
from pynetdicom.fsm import TRANSITION_TABLE

from harmonyd.dimse.native.core.states import (
    ACTIONS,
    PDU_EVENTS,
    TABLE,
    Action,
    Artim,
    Evt,
    Indication,
    State,
    Transport,
)

IMPOSSIBLE = {
    Evt.ASSOCIATE_REQUEST: set(State) - {State.STA1},
    Evt.TRANSPORT_CONFIRM: set(State) - {State.STA4},
    Evt.TRANSPORT_INDICATION: set(State) - {State.STA1},
    Evt.ASSOCIATE_RESPONSE_ACCEPT: set(State) - {State.STA3},
    Evt.ASSOCIATE_RESPONSE_REJECT: set(State) - {State.STA3},
    Evt.P_DATA_REQUEST: set(State) - {State.STA6, State.STA8},
    Evt.RELEASE_REQUEST: set(State) - {State.STA6},
    Evt.RELEASE_RESPONSE: set(State) - {State.STA8, State.STA9, State.STA12},
    Evt.ABORT_REQUEST: {State.STA1, State.STA2, State.STA13},
    Evt.TRANSPORT_CLOSED: {State.STA1},
    Evt.ARTIM_EXPIRED: set(State) - {State.STA2, State.STA13},
}
"""Events of the service user, the transport and the timer: where they cannot be. A PDU cannot be in Sta1 and Sta4."""
NO_TRANSPORT = {State.STA1, State.STA4}


@pytest.mark.parametrize("event", list(Evt))
@pytest.mark.parametrize("state", list(State))
def test_each_event_in_each_state_is_an_action_or_impossible(event: Evt, state: State) -> None:
    """No field of the table is empty by oversight: those that are stand in a second list, with their reason."""
    assert ((event, state) in TABLE) is (state not in IMPOSSIBLE.get(event, NO_TRANSPORT))


def test_the_table_is_pynetdicoms() -> None:
    """Two people who copied the same page of the standard got the same."""
    ours = {(f"Evt{event.value}", f"Sta{state.value}"): name for (event, state), name in TABLE.items()}
    assert ours == TRANSITION_TABLE


def test_every_action_is_used_and_every_used_one_is_there() -> None:
    """AE-1 to AE-8, DT-1, DT-2, AR-1 to AR-10, AA-1 to AA-8: 28 of them."""
    assert set(TABLE.values()) == set(ACTIONS)
    numbers = {"AE": 8, "DT": 2, "AR": 10, "AA": 8}
    assert set(ACTIONS) == {f"{kind}-{n}" for kind, count in numbers.items() for n in range(1, count + 1)}


@pytest.mark.parametrize("name", list(ACTIONS))
def test_an_action_does_what_its_next_state_stands_for(name: str) -> None:
    """Sta13 and Sta2 run ARTIM, Sta1 has no transport connection, an abort ends everything."""
    action: Action = ACTIONS[name]
    if action.transport is Transport.CLOSE or action.indicates is Indication.RELEASED:
        assert action.next in ((State.STA1,), (State.STA12,))
    if action.artim is Artim.START:
        assert action.next[0] in (State.STA2, State.STA13)
    if action.ignores:
        assert action == Action(next=(State.STA13,), ignores=True)
    assert (len(action.next) == 2) is (name in ("AE-6", "AR-8"))


def test_every_pdu_is_an_event() -> None:
    """The seven PDUs have their seven events."""
    assert sorted(PDU_EVENTS) == [1, 2, 3, 4, 5, 6, 7]
    assert len(set(PDU_EVENTS.values())) == 7


def test_every_state_can_be_reached_and_left() -> None:
    """From Sta1 there is a way to each state, and from each state back."""
    ways: dict[State, set[State]] = {state: set() for state in State}
    for (_, state), name in TABLE.items():
        ways[state].update(ACTIONS[name].next)
    for start in State:
        seen, waiting = {start}, [start]
        while waiting:
            for after in ways[waiting.pop()] - seen:
                seen.add(after)
                waiting.append(after)
        assert seen == set(State)
