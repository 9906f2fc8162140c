"""Command sets, byte for byte, with pydicom and pynetdicom as the second opinion."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_kit import CT_IMAGE, STORE_ID, Pair
from native_strategies import commands
from pydicom.dataset import Dataset
from pynetdicom.dimse_messages import C_FIND_RSP, C_STORE_RQ
from pynetdicom.dimse_primitives import C_FIND, C_STORE
from pynetdicom.dsutils import decode as pydicom_decode
from pynetdicom.dsutils import encode as pydicom_encode
from pynetdicom.pdu import P_DATA_TF

from harmonyd.dimse.native.core import (
    BadCommandSet,
    Command,
    CommandField,
    CommandReceived,
    DataReceived,
    c_cancel_rq,
    c_echo_rq,
    c_move_rq,
    command_set,
)

SETTINGS = settings(max_examples=200, deadline=None)
KEYWORDS = {
    "affected_sop_class_uid": "AffectedSOPClassUID",
    "requested_sop_class_uid": "RequestedSOPClassUID",
    "field": "CommandField",
    "message_id": "MessageID",
    "message_id_being_responded_to": "MessageIDBeingRespondedTo",
    "move_destination": "MoveDestination",
    "priority": "Priority",
    "data_set_type": "CommandDataSetType",
    "status": "Status",
    "offending_elements": "OffendingElement",
    "error_comment": "ErrorComment",
    "error_id": "ErrorID",
    "affected_sop_instance_uid": "AffectedSOPInstanceUID",
    "requested_sop_instance_uid": "RequestedSOPInstanceUID",
    "event_type_id": "EventTypeID",
    "attribute_identifiers": "AttributeIdentifierList",
    "action_type_id": "ActionTypeID",
    "remaining": "NumberOfRemainingSuboperations",
    "completed": "NumberOfCompletedSuboperations",
    "failed": "NumberOfFailedSuboperations",
    "warning": "NumberOfWarningSuboperations",
    "move_originator_aet": "MoveOriginatorApplicationEntityTitle",
    "move_originator_message_id": "MoveOriginatorMessageID",
}


def _by_pydicom(command: Command) -> bytes:
    dataset = Dataset()
    for name, keyword in KEYWORDS.items():
        value = getattr(command, name)
        if value is not None and value != ():
            setattr(dataset, keyword, list(value) if isinstance(value, tuple) else value)
    content = pydicom_encode(dataset, True, True)
    assert content is not None
    return b"\0\0\0\0\4\0\0\0" + len(content).to_bytes(4, "little") + content


@SETTINGS
@given(commands())
def test_a_command_set_is_what_pydicom_would_write(command: Command) -> None:
    """The same elements, the same padding, the right group length; and it is read as the same command."""
    encoded = command_set.encode(command)
    assert encoded == _by_pydicom(command)
    assert command_set.decode(encoded) == command


@SETTINGS
@given(commands(), st.data())
def test_the_order_of_elements_means_nothing(command: Command, data: st.DataObject) -> None:
    """A command set is read whatever the order of its elements, with a wrong group length, or with none."""
    dataset = pydicom_decode(BytesIO(command_set.encode(command)), True, True)
    del dataset[0x00000000]
    elements = data.draw(st.permutations([_alone(element) for element in dataset]))
    assert command_set.decode(b"".join(elements)) == command


def _alone(element: Any) -> bytes:
    dataset = Dataset()
    dataset.add(element)
    content = pydicom_encode(dataset, True, True)
    assert content is not None
    return content


@SETTINGS
@given(st.binary(max_size=300))
def test_any_bytes_give_a_command_or_bad_command_set(content: bytes) -> None:
    """Nothing else comes out of a command set made of any bytes."""
    try:
        command_set.decode(content)
    except BadCommandSet as problem:
        assert problem.detail


@SETTINGS
@given(commands(), st.data())
def test_a_damaged_command_set_gives_a_command_or_bad_command_set(command: Command, data: st.DataObject) -> None:
    """Nothing else comes out of a command set with some bytes changed, or a part missing."""
    content = bytearray(command_set.encode(command))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        command_set.decode(bytes(content[: data.draw(st.integers(0, len(content)))]))
    except BadCommandSet as problem:
        assert problem.detail


ECHO = command_set.encode(c_echo_rq(1))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "lacks field and data_set_type and message_id"),
        (ECHO[:-1], "says that it has 2 bytes, 1 are left"),
        (ECHO + b"\0\0", "ends in the header"),
        (ECHO + ECHO[-10:], r"\(0000,0800\) twice"),
        (ECHO + b"\x08\0\x05\0\0\0\0\0", r"has the element \(0008,0005\)"),
        (ECHO + b"\0\0\2\x09\xff\xff\xff\xff", "says that it has 4294967295 bytes"),
        (ECHO + b"\0\0\0\x09\1\0\0\0\0", r"a number \(US\) of a command set has 1 bytes"),
        (ECHO + b"\0\0\1\x09\2\0\0\0\0\0", "a list of tags of a command set has 2 bytes"),
        (ECHO.replace(b"\x30\x00\0\0\x10\x01", b"\x30\x80\0\0\x10\x01"), "being_responded_to and status"),
    ],
)
def test_what_is_wrong_with_a_command_set_is_said(content: bytes, complaint: str) -> None:
    """Each mistake has its own words."""
    with pytest.raises(BadCommandSet, match=complaint):
        command_set.decode(content)


def test_what_carries_no_meaning_is_tolerated() -> None:
    """Retired elements, elements without a value, and padding of either kind disturb nothing."""
    retired = b"\0\0\x01\0\4\0\0\0\1\2\3\4"
    empty = b"\0\0\2\x09\0\0\0\0" + b"\0\0\0\7\0\0\0\0"
    padded = b"\0\0\0\x10\6\0\0\x001.2 \0\0"
    command = command_set.decode(ECHO + retired + empty + padded)
    assert (command.error_comment, command.priority, command.affected_sop_instance_uid) == (None, None, "1.2")
    assert command.name == "C-ECHO-RQ" and not command.has_data


def test_a_comment_in_any_encoding_is_read() -> None:
    """UTF-8 is recognised; anything else is read as Latin-1 and loses nothing."""
    for raw, text in (("Gerät".encode(), "Gerät"), ("Gerät".encode("latin-1") + b" ", "Gerät")):
        element = b"\0\0\2\x09" + len(raw).to_bytes(4, "little") + raw
        assert command_set.decode(ECHO + element).error_comment == text


def test_our_comments_keep_to_the_default_repertoire() -> None:
    """An Error Comment that we send has at most 64 characters, all of them ASCII."""
    sent = command_set.encode(c_echo_rq(1).response(0x0110, error_comment="Gerät " * 20))
    assert command_set.decode(sent).error_comment == ("Ger?t " * 20)[:64].strip()


def test_an_unknown_command_is_read_and_named() -> None:
    """A command field that PS3.7 does not know is for the driver to answer (0x0211), not a violation."""
    command = command_set.decode(command_set.encode(Command(0x0777, message_id=1)))
    assert command.name == "command 0x0777"


def test_a_response_takes_over_what_it_answers() -> None:
    """Message id and SOP class go into the response, those of N-ACTION too."""
    move = c_move_rq(9, "1.2", "DEST")
    answer = move.response(0xA801, error_comment="unknown")
    assert (answer.field, answer.message_id_being_responded_to) == (CommandField.C_MOVE_RSP, 9)
    assert (answer.affected_sop_class_uid, answer.status, answer.has_data) == ("1.2", 0xA801, False)
    action = Command(CommandField.N_ACTION_RQ, 1, requested_sop_class_uid="1.3", requested_sop_instance_uid="1.4")
    answered = action.response(0)
    assert (answered.affected_sop_class_uid, answered.affected_sop_instance_uid) == ("1.3", "1.4")


def test_a_cancel_names_what_it_cancels() -> None:
    """C-CANCEL-RQ has the message id of the request, and no data set."""
    cancel = command_set.decode(command_set.encode(c_cancel_rq(5)))
    assert (cancel.message_id, cancel.message_id_being_responded_to, cancel.has_data) == (None, 5, False)


def test_a_value_that_does_not_fit_is_our_mistake() -> None:
    """A number of more than 16 bits is ``ValueError``, and nothing is sent."""
    with pytest.raises(ValueError, match="message_id 65536"):
        command_set.encode(c_echo_rq(65536))


def _p_data(message: Any, max_pdu: int) -> bytes:
    pdus = []
    for primitive in message.encode_msg(STORE_ID, max_pdu):
        each = P_DATA_TF()
        each.from_primitive(primitive)
        pdus.append(each.encode())
    return b"".join(pdus)


@SETTINGS
@given(st.binary(min_size=2, max_size=3000), st.integers(128, 5000))
def test_a_message_of_pynetdicom_arrives(content: bytes, max_pdu: int) -> None:
    """A C-STORE that pynetdicom has cut into PDUs is the command and the bytes of its data set."""
    primitive = C_STORE()
    primitive.MessageID = 7
    primitive.AffectedSOPClassUID = CT_IMAGE
    primitive.AffectedSOPInstanceUID = "1.2.3"
    primitive.Priority = 2
    primitive.DataSet = BytesIO(content)
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    pair = Pair.established()
    command, *pieces = pair.scp.receive(_p_data(message, max_pdu))
    assert isinstance(command, CommandReceived)
    assert (command.command.message_id, command.command.affected_sop_instance_uid) == (7, "1.2.3")
    assert all(isinstance(piece, DataReceived) for piece in pieces)
    assert b"".join(piece.fragment for piece in pieces if isinstance(piece, DataReceived)) == content


def test_a_message_of_ours_is_what_pynetdicom_would_send() -> None:
    """A C-FIND response with its identifier: the same PDUs, byte for byte."""
    primitive = C_FIND()
    primitive.MessageIDBeingRespondedTo = 3
    primitive.AffectedSOPClassUID = CT_IMAGE
    primitive.Status = 0xFF00
    primitive.Identifier = BytesIO(b"identifier")
    message = C_FIND_RSP()
    message.primitive_to_message(primitive)
    pair = Pair.established()
    asked = Command(CommandField.C_FIND_RQ, 3, affected_sop_class_uid=CT_IMAGE)
    pair.scp.send(STORE_ID, asked.response(0xFF00), has_data=True)
    pair.scp.send_data(STORE_ID, b"identifier", True)
    assert pair.scp.data_to_send() == _p_data(message, 16384)
