"""Two associations that talk to each other in memory, and one that talks to a peer made of bytes."""

from __future__ import annotations

import pytest
from native_kit import CT_IMAGE, ECHO_ID, STORE_ID, Pair, request

from harmonyd.dimse.native.core import (
    Accepted,
    Association,
    CommandReceived,
    DataReceived,
    NotAllowed,
    Rejected,
    Rejection,
    Released,
    ReleaseRequested,
    Requested,
    c_echo_rq,
    c_store_rq,
)


def test_an_echo_from_request_to_release() -> None:
    """Request, accept, C-ECHO, its response, release: both sides see what they should, and both may close."""
    pair = Pair()
    assert isinstance(pair.scp_event(), Requested)
    pair.accept()
    assert isinstance(pair.scu_event(), Accepted)
    pair.scu.send(ECHO_ID, c_echo_rq(7))
    received = pair.scp_event()
    assert isinstance(received, CommandReceived)
    pair.scp.send(received.context_id, received.command.response(0))
    answer = pair.scu_event()
    assert isinstance(answer, CommandReceived)
    assert (answer.command.status, answer.command.message_id_being_responded_to) == (0, 7)
    pair.scu.release()
    assert pair.scp_event() == ReleaseRequested()
    pair.scp.respond_release()
    assert pair.scp.closing and pair.scp.artim
    assert pair.scu_event() == Released()
    assert pair.scu.closing and not pair.scu.artim
    assert pair.scp.receive_eof() == [] and not pair.scp.artim


def test_a_data_set_arrives_in_pieces_that_give_the_whole() -> None:
    """Whatever the pieces that are sent, what arrives is their concatenation, and only its last piece says so."""
    pair = Pair.established()
    content = bytes(range(256)) * 1000
    pair.scu.send(STORE_ID, c_store_rq(1, CT_IMAGE, "1.2.3"), has_data=True)
    for start in range(0, len(content), 9999):
        pair.scu.send_data(STORE_ID, memoryview(content)[start : start + 9999], start + 9999 >= len(content))
    events = pair.to_scp()
    assert isinstance(events[0], CommandReceived) and events[0].command.has_data
    pieces = [event for event in events[1:] if isinstance(event, DataReceived)]
    assert len(pieces) == len(events) - 1
    assert b"".join(piece.fragment for piece in pieces) == content
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_rejection_says_why() -> None:
    """The requestor gets result, source and reason, and closes."""
    pair = Pair()
    pair.scp_event()
    pair.scp.reject(Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED)
    event = pair.scu_event()
    assert isinstance(event, Rejected)
    assert (event.result, event.source, event.reason) == (1, 1, 7)
    assert event.text == "Rejected Permanent, Service User, Called AE Title Not Recognized"
    assert pair.scu.closing and pair.scp.closing


def test_a_release_collision_ends_in_released_on_both_sides() -> None:
    """Both ask at once (PS3.8 section 7.2.2.7): neither driver has to know (Sta9 to Sta12)."""
    pair = Pair.established()
    pair.scu.release()
    pair.scp.release()
    to_scp, to_scu = pair.scu.data_to_send(), pair.scp.data_to_send()
    assert pair.scp.receive(to_scp) == []
    assert pair.scu.receive(to_scu) == []
    assert pair.to_scp() == [Released()]
    assert pair.to_scu() == [Released()]
    assert pair.scu.closing and pair.scp.closing


def test_what_is_not_allowed_raises_and_changes_nothing() -> None:
    """A command before the association stands, or inside a data set, is the driver's mistake."""
    scu = Association.requestor(request())
    with pytest.raises(NotAllowed):
        scu.send(ECHO_ID, c_echo_rq(1))
    scu.connected()
    assert scu.data_to_send()
    pair = Pair.established()
    with pytest.raises(NotAllowed, match="context 5 was not accepted"):
        pair.scu.send(5, c_echo_rq(1))
    pair.scu.send(STORE_ID, c_store_rq(1, CT_IMAGE, "1.2.3"), has_data=True)
    before = pair.scu.data_to_send()
    assert before
    for attempt in (
        lambda: pair.scu.send(ECHO_ID, c_echo_rq(2)),
        lambda: pair.scu.send_data(ECHO_ID, b"", True),
        pair.scu.release,
        pair.scu.respond_release,
    ):
        with pytest.raises(NotAllowed):
            attempt()
    assert pair.scu.data_to_send() == b"" and pair.scu.sending
