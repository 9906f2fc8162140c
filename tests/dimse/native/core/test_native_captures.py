"""What DCMTK's programs said to each other, told again to our side of it.

Each capture is used three ways: every PDU and command set of DCMTK is read and written again to the same bytes; its SCU
talks to our acceptor; its SCP answers our requestor.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from make_captures import read_capture

from harmonyd.dimse.native.core import (
    Aborted,
    Accepted,
    Answer,
    AssociateAccept,
    AssociateRequest,
    Association,
    Command,
    CommandField,
    CommandReceived,
    DataReceived,
    Event,
    Rejected,
    Rejection,
    Released,
    ReleaseRequested,
    Requested,
    command_set,
    pdu,
)

CAPTURES = Path(__file__).parent.parent / "captures"
NAMES = sorted(path.stem for path in CAPTURES.glob("*.capture"))
RESERVED_FF = b"\0\xff\0\x30"
"""DCMTK fills a reserved byte before each proposed abstract syntax (PS3.8 table 9-13), which we leave 0."""
OFFIS_CLASS_UID = "1.2.276.0.7230010.3.0.3.6.7"


def _records(name: str) -> list[tuple[bytes, bytes]]:
    return list(read_capture(CAPTURES / f"{name}.capture"))


def _side(name: str, way: bytes) -> bytes:
    return b"".join(data for each, data in _records(name) if each == way)


def _pdus(stream: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(stream):
        end = at + 6 + struct.unpack_from(">xxI", stream, at)[0]
        found.append(stream[at:end])
        at = end
    assert at == len(stream)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", [b">", b"<"])
def test_each_pdu_of_dcmtk_is_written_again_to_the_same_bytes(name: str, way: bytes) -> None:
    """Reading loses nothing, and we write as DCMTK does: the PDUs, and the command sets in them."""
    pdus = _pdus(_side(name, way))
    assert pdus
    for each in pdus:
        value = pdu.decode(each[0], each[6:])
        assert value.encode() == each.replace(RESERVED_FF, b"\0\0\0\x30")
        for pdv in value.pdvs if isinstance(value, pdu.PData) else ():
            if pdv.command:
                content = bytes(pdv.fragment)
                assert command_set.encode(command_set.decode(content)) == content


def _accept_of(name: str) -> AssociateAccept:
    accept = pdu.decode(2, _pdus(_side(name, b"<"))[0][6:])
    assert isinstance(accept, AssociateAccept)
    return accept


def _told_to_acceptor(name: str) -> tuple[Association, list[Event]]:
    """Our acceptor hears DCMTK's SCU, and answers the request as DCMTK's SCP did."""
    association = Association.acceptor(16384)
    request, *rest = _pdus(_side(name, b">"))
    events = association.receive(request)
    accept = _accept_of(name)
    association.accept(Answer(accept.contexts, accept.user_information.roles))
    association.data_to_send()
    return association, events + association.receive(b"".join(rest))


def _told_to_requestor(name: str) -> tuple[Association, list[Event]]:
    """Our requestor asks as DCMTK's SCU did, and hears DCMTK's SCP; it may ask for release before the end."""
    request = pdu.decode(1, _pdus(_side(name, b">"))[0][6:])
    assert isinstance(request, AssociateRequest)
    association = Association.requestor(request)
    association.connected()
    assert association.data_to_send() == request.encode()
    *most, last = _pdus(_side(name, b"<"))
    events = association.receive(b"".join(most))
    if last[0] == pdu.PduType.RELEASE_RP:
        association.release()
        assert association.data_to_send() == _pdus(_side(name, b">"))[-1]
    return association, events + association.receive(last)


def _commands(events: list[Event]) -> list[Command]:
    return [event.command for event in events if isinstance(event, CommandReceived)]


def _data_sets(events: list[Event]) -> list[bytes]:
    found, pieces = [], b""
    for event in events:
        if isinstance(event, DataReceived):
            pieces += event.fragment
            if event.last:
                found.append(pieces)
                pieces = b""
    assert not pieces
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rejected"])
def test_dcmtks_scu_is_understood_to_its_end(name: str) -> None:
    """From its request to its release or abort there is nothing that breaks a rule."""
    association, events = _told_to_acceptor(name)
    assert isinstance(events[0], Requested)
    request = events[0].request
    assert request.user_information.implementation_class_uid == OFFIS_CLASS_UID
    assert (request.calling_aet, request.user_information.max_pdu) == (request.calling_aet.upper(), 16384)
    if name == "echo_aborted":
        assert isinstance(events[-1], Aborted) and events[-1].by_peer
        assert association.closing
        return
    assert events[-1] == ReleaseRequested()
    association.respond_release()
    assert association.data_to_send() == _pdus(_side(name, b"<"))[-1]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("rejected", "echo_aborted")])
def test_dcmtks_scp_is_understood_to_its_end(name: str) -> None:
    """From its acceptance to its answer to our release there is nothing that breaks a rule."""
    association, events = _told_to_requestor(name)
    assert isinstance(events[0], Accepted)
    assert list(events[0].contexts.accepted())
    assert events[-1] == Released()
    assert association.closing


def test_a_rejection_by_dcmtk() -> None:
    """dcmqrscp knows no such called AE title."""
    text = "Rejected Permanent, Service User, Called AE Title Not Recognized"
    _, events = _told_to_requestor("rejected")
    assert events == [Rejected(*Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED.value, text)]


def test_an_echo_with_as_many_contexts_as_there_can_be() -> None:
    """echoscu proposes 128 contexts, and dcmqrscp accepts them all."""
    _, events = _told_to_requestor("echo_many_contexts")
    assert isinstance(events[0], Accepted) and len(list(events[0].contexts.accepted())) == 128
    assert [command.status for command in _commands(events)] == [0]


def test_a_find_with_three_matches() -> None:
    """Three pending responses with identifiers, and a final one without."""
    _, events = _told_to_requestor("find")
    assert [(c.status, c.has_data) for c in _commands(events)] == [(0xFF00, True)] * 3 + [(0, False)]
    assert {c.message_id_being_responded_to for c in _commands(events)} == {1}
    assert all(b"MADE-" in identifier for identifier in _data_sets(events))
    _, asked = _told_to_acceptor("find")
    assert [c.field for c in _commands(asked)] == [CommandField.C_FIND_RQ]


def test_a_find_that_is_cancelled() -> None:
    """findscu sends C-CANCEL-RQ, which has no data set and names the request."""
    _, asked = _told_to_acceptor("find_cancelled")
    assert [c.name for c in _commands(asked)] == ["C-FIND-RQ", "C-CANCEL-RQ"]
    assert _commands(asked)[1].message_id_being_responded_to == _commands(asked)[0].message_id


def test_refusals_have_their_status() -> None:
    """A failure status, and the words that come with it."""
    _, events = _told_to_requestor("find_refused")
    assert [c.status for c in _commands(events)] == [0xC000]
    _, events = _told_to_requestor("move_refused")
    assert [c.status for c in _commands(events)] == [0xA801]


def test_a_get_brings_objects_over_the_association_that_asked() -> None:
    """C-STORE requests come in contexts in which the requestor is SCP; the final response counts them."""
    association, events = _told_to_requestor("get")
    stores = [event for event in events if isinstance(event, CommandReceived) and event.command.name == "C-STORE-RQ"]
    assert len(stores) == len(_data_sets(events)) == 2
    for store in stores:
        context = association.contexts.get(store.context_id)
        assert context is not None and context.requestor_scp
        found = association.contexts.find(context.abstract_syntax, context.transfer_syntax, requestor_is_scp=True)
        assert found is not None and found.abstract_syntax == store.command.affected_sop_class_uid
    final = _commands(events)[-1]
    assert (final.name, final.status, final.completed, final.failed) == ("C-GET-RSP", 0, 2, 0)


def test_a_store_in_small_pdus() -> None:
    """storescu sends each object in PDUs of at most 4096 bytes, as storescp said."""
    _, events = _told_to_acceptor("store")
    stores = _commands(events)
    assert [c.name for c in stores] == ["C-STORE-RQ"] * 2
    data_sets = _data_sets(events)
    for store, data_set in zip(stores, data_sets, strict=True):
        assert store.affected_sop_instance_uid is not None
        assert store.affected_sop_instance_uid.encode() in data_set
    assert sum(isinstance(event, DataReceived) for event in events) > 4


def test_a_user_identity() -> None:
    """storescu -usr -pwd: user name and passcode (PS3.7 section D.3.3.7)."""
    _, events = _told_to_acceptor("store_user")
    assert isinstance(events[0], Requested)
    identity = events[0].request.user_information.user_identity
    assert identity is not None
    assert (identity.type, identity.primary, identity.secondary) == (2, b"somebody", b"secret")
