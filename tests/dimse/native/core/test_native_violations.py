"""Each way to break the rules, with the A-ABORT that it brings and the words that it has."""

from __future__ import annotations

import struct

import pytest
from native_kit import CT_IMAGE, ECHO_ID, STORE_ID, Pair, request

from harmonyd.dimse.native.core import (
    Aborted,
    AbortReason,
    AssociateAccept,
    AssociateRequest,
    Association,
    CommandReceived,
    DataReceived,
    Rejection,
    UserInformation,
    c_echo_rq,
    c_store_rq,
    command_set,
    pdu,
)
from harmonyd.dimse.native.core.inbound import TOLERATED_PDU_BYTES

INVALID, UNEXPECTED = AbortReason.INVALID_PDU_PARAMETER_VALUE, AbortReason.UNEXPECTED_PDU_PARAMETER
ECHO = command_set.encode(c_echo_rq(1))
STORE = command_set.encode(c_store_rq(1, CT_IMAGE, "1.2.3"))
COMMAND, LAST = 1, 2
RELEASE = pdu.ReleaseRequest().encode()


def pdv(fragment: bytes, flags: int, context_id: int = STORE_ID) -> bytes:
    """A PDV with its header."""
    return struct.pack(">IBB", len(fragment) + 2, context_id, flags) + fragment


def p_data(*pdvs: bytes) -> bytes:
    """A P-DATA-TF."""
    content = b"".join(pdvs)
    return struct.pack(">BxI", 4, len(content)) + content


def aborts(association: Association, data: bytes, reason: int, words: str, source: int = 2) -> None:
    """``data`` ends the association with this A-ABORT, and the event says the same in words."""
    *_, event = association.receive(data)
    assert isinstance(event, Aborted)
    assert (event.source, event.reason, event.by_peer) == (source, reason, False)
    assert words in event.text
    assert association.data_to_send() == struct.pack(">BxIxxBB", 7, 4, source, reason)
    assert association.closing and association.artim
    assert association.receive(p_data(pdv(ECHO, COMMAND | LAST))) == []
    assert association.data_to_send() == b"" and association.held_bytes == 0


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (p_data(pdv(b"x", LAST)), UNEXPECTED, "a data set comes that no command announced"),
        (p_data(pdv(ECHO, COMMAND | LAST, ECHO_ID), pdv(b"x", LAST, ECHO_ID)), UNEXPECTED, "no command announced"),
        (p_data(pdv(STORE, COMMAND | LAST), pdv(ECHO, COMMAND | LAST)), UNEXPECTED, "a data set is not finished"),
        (
            p_data(pdv(STORE, COMMAND | LAST), pdv(b"x", 0), pdv(ECHO, COMMAND)),
            UNEXPECTED,
            "a data set is not finished",
        ),
        (p_data(pdv(STORE[:9], COMMAND), pdv(b"x", LAST)), UNEXPECTED, "a command set is not finished"),
        (p_data(pdv(STORE[:9], COMMAND), pdv(STORE[9:], COMMAND | LAST, ECHO_ID)), UNEXPECTED, "inside a message in 3"),
        (p_data(pdv(STORE, COMMAND | LAST), pdv(b"x", LAST, ECHO_ID)), UNEXPECTED, "inside a message in 3"),
        (p_data(pdv(ECHO, COMMAND | LAST, 5)), INVALID, "presentation context 5 was not accepted"),
        (p_data(pdv(ECHO, COMMAND | LAST, 0)), INVALID, "presentation context 0 was not accepted"),
        (p_data(pdv(ECHO, COMMAND | LAST, 2)), INVALID, "presentation context 2 was not accepted"),
        (p_data(), INVALID, "a P-DATA-TF is empty"),
        (p_data(b"\0\0\0\2\3"), INVALID, "5 bytes at the end"),
        (p_data(pdv(ECHO, COMMAND | LAST), b"\0"), INVALID, "1 bytes at the end"),
        (p_data(b"\0\0\0\1\3\3"), INVALID, "says that it has 1 bytes"),
        (p_data(b"\0\0\0\0\3\3"), INVALID, "says that it has 0 bytes"),
        (p_data(b"\0\0\0\x09\3\3abc"), INVALID, "says that it has 9 bytes; 5 are left"),
        (p_data(b"\xff\xff\xff\xff\3\3abc"), INVALID, "says that it has 4294967295 bytes"),
        (b"\x04\0\xff\xff\xff\xff", INVALID, "a P-DATA-TF says that it has 4294967295 bytes; 16384 were allowed"),
        (struct.pack(">BxI", 4, TOLERATED_PDU_BYTES + 1), INVALID, "were allowed"),
        (b"\x08\0\0\0\0\4", AbortReason.UNRECOGNIZED_PDU, "Unrecognized PDU type 8"),
        (b"\x00\0\0\0\0\4", AbortReason.UNRECOGNIZED_PDU, "Unrecognized PDU type 0"),
        (b"GET / HTTP/1.1\r\n", AbortReason.UNRECOGNIZED_PDU, "Unrecognized PDU type 71"),
        (b"\x01\0\0\0\0\x44", AbortReason.UNEXPECTED_PDU, "ASSOCIATE_RQ comes in Sta6"),
        (b"\x02\0\xff\xff\xff\xff", AbortReason.UNEXPECTED_PDU, "ASSOCIATE_AC comes in Sta6"),
        (b"\x06\0\0\0\0\4", AbortReason.UNEXPECTED_PDU, "RELEASE_RP comes in Sta6"),
        (b"\x05\0\0\0\0\5", INVALID, "a PDU of type 5 says that it has 5 bytes"),
        (b"\x07\0\xff\xff\xff\xff", INVALID, "a PDU of type 7 says that it has 4294967295 bytes"),
        (
            p_data(pdv(STORE, COMMAND | LAST)) + pdu.ReleaseRequest().encode(),
            AbortReason.UNEXPECTED_PDU,
            "inside a message",
        ),
    ],
)
def test_a_violation_of_the_upper_layer(data: bytes, reason: int, words: str) -> None:
    """The service provider aborts (AA-8), with the reason of PS3.8 table 9-26."""
    aborts(Pair.established().scp, data, reason, words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (p_data(pdv(b"", COMMAND | LAST)), "lacks field"),
        (p_data(pdv(ECHO[:-1], COMMAND | LAST)), "2 bytes, 1 are left"),
        (p_data(*[pdv(bytes(8192), COMMAND)] * 9), "more than 65536 bytes"),
        (p_data(b"\0\1\0\3\3\1" + bytes(65537)), "more than 65536 bytes"),
    ],
)
def test_a_command_set_that_cannot_be_understood(data: bytes, words: str) -> None:
    """DIMSE is the user of the upper layer: its abort has no reason on the wire (AA-1), and one in the event."""
    aborts(Pair.established().scp, data, 0, words, source=0)


@pytest.mark.parametrize("kind", [2, 3, 4, 5, 6, 8, 71])
def test_what_is_no_request_where_one_is_awaited(kind: int) -> None:
    """In Sta2 the abort is the service user's (AA-1)."""
    words = "Unrecognized PDU" if kind > 7 else "in Sta2"
    aborts(Association.acceptor(16384), struct.pack(">BxI", kind, 4), 0, words, source=0)


def test_nothing_may_come_between_request_and_answer() -> None:
    """In Sta3 everything but A-ABORT is unexpected (AA-8)."""
    pair = Pair()
    pair.to_scp()
    aborts(pair.scp, p_data(pdv(ECHO, COMMAND | LAST)), AbortReason.UNEXPECTED_PDU, "P_DATA_TF comes in Sta3")


def test_data_after_a_wish_for_release() -> None:
    """Who has asked for release may send no more data (AA-8 in Sta8)."""
    pair = Pair.established()
    pair.scp.receive(RELEASE)
    aborts(pair.scp, p_data(pdv(ECHO, COMMAND | LAST)), AbortReason.UNEXPECTED_PDU, "P_DATA_TF comes in Sta8")


def test_a_peer_that_can_receive_next_to_nothing() -> None:
    """A maximum length that would need a PDU for a few bytes is refused, on either side."""
    tiny = UserInformation(max_pdu=10)
    asked = request()
    changed = AssociateRequest(asked.called_aet, asked.calling_aet, asked.contexts, tiny)
    aborts(Association.acceptor(16384), changed.encode(), 0, "can receive 10 bytes", source=0)
    requestor = Pair().scu
    requestor.data_to_send()
    aborts(requestor, AssociateAccept("SCP", "SCU", (), tiny).encode(), INVALID, "can receive 10 bytes")


def test_a_second_request_after_a_rejection_is_aborted_once() -> None:
    """In Sta13 the peer is told (AA-7), nobody else is, and then nothing is heard any more."""
    pair = Pair()
    pair.scp_event()
    pair.scp.reject(Rejection.TEMPORARY_CONGESTION)
    pair.scp.data_to_send()
    assert pair.scp.receive(p_data(pdv(ECHO, COMMAND | LAST))) == []
    assert pair.scp.data_to_send() == b""
    assert pair.scp.receive(request().encode() * 3) == []
    assert pair.scp.data_to_send() == pdu.Abort(2, 2).encode()


def test_what_waits_to_be_sent_is_dropped_for_an_abort() -> None:
    """After an abort nothing else is of use to the peer."""
    pair = Pair.established()
    pair.scp.send(ECHO_ID, c_echo_rq(1))
    aborts(pair.scp, b"\x08\0\0\0\0\4", AbortReason.UNRECOGNIZED_PDU, "type 8")


# --- legal, if unusual ------------------------------------------------------------------------------------------------


def test_several_messages_in_one_pdu() -> None:
    """Command and data set, empty PDVs, a last PDV without bytes, the next message: all in one P-DATA-TF."""
    content = p_data(
        pdv(STORE[:10], COMMAND),
        pdv(b"", COMMAND),
        pdv(STORE[10:], COMMAND | LAST),
        pdv(b"", 0),
        pdv(b"abc", 0),
        pdv(b"", LAST),
        pdv(ECHO, COMMAND | LAST, ECHO_ID),
        pdv(STORE, COMMAND | LAST),
        pdv(b"", LAST),
    )
    first, data, end, echo, second, nothing = Pair.established().scp.receive(content)
    assert isinstance(first, CommandReceived) and isinstance(second, CommandReceived)
    assert first.command == second.command
    assert data == DataReceived(STORE_ID, b"abc", False)
    assert end == nothing == DataReceived(STORE_ID, b"", True)
    assert isinstance(echo, CommandReceived) and echo.context_id == ECHO_ID


def test_reserved_bits_of_the_message_control_header_mean_nothing() -> None:
    """Only the two lowest count (PS3.8 section E.2)."""
    (event,) = Pair.established().scp.receive(p_data(pdv(ECHO, 0xFC | COMMAND | LAST)))
    assert isinstance(event, CommandReceived)


def test_a_pdu_that_is_longer_than_allowed_is_read_and_counted() -> None:
    """Up to a fixed bound: its length costs us nothing."""
    pair = Pair.established()
    data = bytes(100_000)
    events = pair.scp.receive(p_data(pdv(STORE, COMMAND | LAST)) + p_data(pdv(data, LAST)))
    assert events[1:] == [DataReceived(STORE_ID, data, True)]
    assert pair.scp.oversized_pdus == 1


def test_no_limit_means_no_limit() -> None:
    """With a maximum of 0 we have told the peer that any length will do."""
    pair = Pair(scp_max_pdu=0)
    pair.to_scp()
    pair.accept()
    pair.to_scu()
    (command,) = pair.scp.receive(p_data(pdv(STORE, COMMAND | LAST)))
    assert isinstance(command, CommandReceived)
    assert pair.scp.receive(struct.pack(">BxIIBB", 4, 2**32 - 1, 2**32 - 5, STORE_ID, 0)) == []
    assert pair.scp.oversized_pdus == 0 and not pair.scp.closing


@pytest.mark.parametrize("max_pdu", [64, 65, 1000, 16384, 0])
@pytest.mark.parametrize("piece", [1, 7, 100, 5000])
def test_our_fragments_fit_and_have_an_even_length(max_pdu: int, piece: int) -> None:
    """No PDU is longer than the peer can receive, and only the last fragment of a data set may be odd."""
    pair = Pair(scp_max_pdu=max_pdu)
    pair.to_scp()
    pair.accept()
    pair.to_scu()
    content = bytes(range(251)) * 41
    pair.scu.send(STORE_ID, c_store_rq(1, CT_IMAGE, "1.2.3"), has_data=True)
    for start in range(0, len(content), piece):
        pair.scu.send_data(STORE_ID, content[start : start + piece], start + piece >= len(content))
    stream, at, got = pair.scu.data_to_send(), 0, b""
    while at < len(stream):
        length = struct.unpack_from(">xxI", stream, at)[0]
        (each,) = pdu.PData.decode(stream[at + 6 : at + 6 + length]).pdvs
        assert 2 < length <= (max_pdu or length)
        assert len(each.fragment) % 2 == 0 or (each.last and at + 6 + length == len(stream))
        got += b"" if each.command else each.fragment
        at += 6 + length
    assert got == content
    events = pair.scp.receive(stream)
    assert isinstance(events[-1], DataReceived) and events[-1].last
