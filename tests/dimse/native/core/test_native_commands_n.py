"""DIMSE-N requests and their responses, with pynetdicom as the second opinion."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from pynetdicom.dimse_messages import N_ACTION_RQ, N_CREATE_RQ, N_EVENT_REPORT_RQ, N_SET_RQ
from pynetdicom.dimse_primitives import N_ACTION, N_CREATE, N_EVENT_REPORT, N_SET

from harmonyd.dimse.native.core import (
    Command,
    CommandField,
    command_set,
    n_action_rq,
    n_create_rq,
    n_event_report_rq,
    n_set_rq,
)

CLASS, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"


def by_pynetdicom(message: Any, primitive: Any) -> Command:
    message.primitive_to_message(primitive)
    (pdv, *_) = message.encode_msg(1, 16384)
    return command_set.decode(pdv.presentation_data_value_list[0][1][1:])


def filled(primitive: Any, **values: Any) -> Any:
    for name, value in {"MessageID": 7, **values}.items():
        setattr(primitive, name, value)
    return primitive


AFFECTED = {"AffectedSOPClassUID": CLASS, "AffectedSOPInstanceUID": INSTANCE}
REQUESTED = {"RequestedSOPClassUID": CLASS, "RequestedSOPInstanceUID": INSTANCE}
DATA = BytesIO(b"\x08\x00\x05\x00\0\0\0\0")


@pytest.mark.parametrize(
    ("ours", "message", "primitive"),
    [
        (
            n_event_report_rq(7, CLASS, INSTANCE, 2),
            N_EVENT_REPORT_RQ(),
            filled(N_EVENT_REPORT(), **AFFECTED, EventTypeID=2, EventInformation=DATA),
        ),
        (
            n_action_rq(7, CLASS, INSTANCE, 1),
            N_ACTION_RQ(),
            filled(N_ACTION(), **REQUESTED, ActionTypeID=1, ActionInformation=DATA),
        ),
        (n_create_rq(7, CLASS, INSTANCE), N_CREATE_RQ(), filled(N_CREATE(), **AFFECTED, AttributeList=DATA)),
        (n_set_rq(7, CLASS, INSTANCE), N_SET_RQ(), filled(N_SET(), **REQUESTED, ModificationList=DATA)),
    ],
    ids=lambda value: value.name if isinstance(value, Command) else "",
)
def test_requests_are_those_of_pynetdicom(ours: Command, message: Any, primitive: Any) -> None:
    """Decoded they are equal, and ours survives encoding."""
    theirs = by_pynetdicom(message, primitive)
    assert theirs.announcing(True).announcing(False) == ours.announcing(False)
    assert theirs.has_data == ours.has_data
    assert command_set.decode(command_set.encode(ours)) == ours


def test_responses_name_what_was_asked() -> None:
    """The SOP class and instance as affected, and the type of event or action (PS3.7 tables 10.3-2 and 10.3-8)."""
    response = n_action_rq(7, CLASS, INSTANCE, 1).response(0x0110, error_comment="no")
    assert (response.field, response.message_id_being_responded_to) == (CommandField.N_ACTION_RSP, 7)
    assert (response.affected_sop_class_uid, response.affected_sop_instance_uid) == (CLASS, INSTANCE)
    assert (response.action_type_id, response.event_type_id, response.status) == (1, None, 0x0110)
    assert n_event_report_rq(1, CLASS, INSTANCE, 2).response(0).event_type_id == 2


def test_without_a_data_set_and_an_instance() -> None:
    """An N-CREATE may leave the choice of its instance; what has no data set says so."""
    command = n_create_rq(1, CLASS, has_data=False)
    assert (command.has_data, command.affected_sop_instance_uid) == (False, None)
    assert not n_action_rq(1, CLASS, INSTANCE, 1, has_data=False).has_data
