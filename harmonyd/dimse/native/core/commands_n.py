"""Requests of the DIMSE-N services that harmonyd uses (PS3.7 chapter 10); of a response, see ``Command.response``."""

from __future__ import annotations

from harmonyd.dimse.native.core.commands import NO_DATA_SET, WITH_DATA_SET, Command, CommandField


def n_event_report_rq(
    message_id: int, sop_class_uid: str, sop_instance_uid: str, event_type_id: int, *, has_data: bool = True
) -> Command:
    """N-EVENT-REPORT-RQ (PS3.7 section 10.3.1.1)."""
    return Command(
        CommandField.N_EVENT_REPORT_RQ,
        message_id,
        affected_sop_class_uid=sop_class_uid,
        affected_sop_instance_uid=sop_instance_uid,
        data_set_type=_data(has_data),
        event_type_id=event_type_id,
    )


def n_action_rq(
    message_id: int, sop_class_uid: str, sop_instance_uid: str, action_type_id: int, *, has_data: bool = True
) -> Command:
    """N-ACTION-RQ (PS3.7 section 10.3.4.1)."""
    return Command(
        CommandField.N_ACTION_RQ,
        message_id,
        requested_sop_class_uid=sop_class_uid,
        requested_sop_instance_uid=sop_instance_uid,
        data_set_type=_data(has_data),
        action_type_id=action_type_id,
    )


def n_create_rq(message_id: int, sop_class_uid: str, sop_instance_uid: str = "", *, has_data: bool = True) -> Command:
    """N-CREATE-RQ (PS3.7 section 10.3.5.1); without a SOP Instance UID the performer chooses one."""
    return Command(
        CommandField.N_CREATE_RQ,
        message_id,
        affected_sop_class_uid=sop_class_uid,
        affected_sop_instance_uid=sop_instance_uid or None,
        data_set_type=_data(has_data),
    )


def n_set_rq(message_id: int, sop_class_uid: str, sop_instance_uid: str) -> Command:
    """N-SET-RQ (PS3.7 section 10.3.3.1); its modification list follows."""
    return Command(
        CommandField.N_SET_RQ,
        message_id,
        requested_sop_class_uid=sop_class_uid,
        requested_sop_instance_uid=sop_instance_uid,
        data_set_type=WITH_DATA_SET,
    )


def _data(follows: bool) -> int:
    return WITH_DATA_SET if follows else NO_DATA_SET
