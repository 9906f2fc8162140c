"""DIMSE commands as values (PS3.7 chapters 9 and 10, Annex E); ``command_set`` is their encoding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

NO_DATA_SET = 0x0101
"""Command Data Set Type (0000,0800) of a command that no data set follows (PS3.7 section 9.3)."""
WITH_DATA_SET = 0x0001
_RESPONSE = 0x8000


class CommandField(IntEnum):
    """Command Field (0000,0100) (PS3.7 section E.1-1)."""

    C_STORE_RQ = 0x0001
    C_STORE_RSP = 0x8001
    C_GET_RQ = 0x0010
    C_GET_RSP = 0x8010
    C_FIND_RQ = 0x0020
    C_FIND_RSP = 0x8020
    C_MOVE_RQ = 0x0021
    C_MOVE_RSP = 0x8021
    C_ECHO_RQ = 0x0030
    C_ECHO_RSP = 0x8030
    N_EVENT_REPORT_RQ = 0x0100
    N_EVENT_REPORT_RSP = 0x8100
    N_GET_RQ = 0x0110
    N_GET_RSP = 0x8110
    N_SET_RQ = 0x0120
    N_SET_RSP = 0x8120
    N_ACTION_RQ = 0x0130
    N_ACTION_RSP = 0x8130
    N_CREATE_RQ = 0x0140
    N_CREATE_RSP = 0x8140
    N_DELETE_RQ = 0x0150
    N_DELETE_RSP = 0x8150
    C_CANCEL_RQ = 0x0FFF


class Priority(IntEnum):
    """Priority (0000,0700)."""

    MEDIUM = 0
    HIGH = 1
    LOW = 2


@dataclass(frozen=True, slots=True)
class Command:
    """A command set (PS3.7 section 6.3.1); None: the element is not in it, or has no value."""

    field: int
    """Command Field; a ``CommandField``, unless it is one that PS3.7 does not know."""
    message_id: int | None = None
    message_id_being_responded_to: int | None = None
    affected_sop_class_uid: str | None = None
    requested_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    requested_sop_instance_uid: str | None = None
    priority: int | None = None
    data_set_type: int = NO_DATA_SET
    status: int | None = None
    error_comment: str | None = None
    offending_elements: tuple[int, ...] = ()
    """Tags, group in the upper 16 bits."""
    error_id: int | None = None
    move_destination: str | None = None
    move_originator_aet: str | None = None
    move_originator_message_id: int | None = None
    remaining: int | None = None
    """Number of remaining sub-operations; so the next three."""
    completed: int | None = None
    failed: int | None = None
    warning: int | None = None
    event_type_id: int | None = None
    action_type_id: int | None = None
    attribute_identifiers: tuple[int, ...] = ()
    """Attribute Identifier List (0000,1005) of an N-GET: tags."""

    @property
    def has_data(self) -> bool:
        """A data set follows."""
        return self.data_set_type != NO_DATA_SET

    @property
    def is_response(self) -> bool:
        """It answers a request (PS3.7 section E.1: the highest bit of the command field)."""
        return bool(self.field & _RESPONSE)

    @property
    def name(self) -> str:
        """``C-STORE-RQ``; for people."""
        try:
            return CommandField(self.field).name.replace("_", "-")
        except ValueError:
            return f"command 0x{self.field:04X}"

    def response(
        self,
        status: int,
        *,
        error_comment: str | None = None,
        remaining: int | None = None,
        completed: int | None = None,
        failed: int | None = None,
        warning: int | None = None,
    ) -> Command:
        """The response to this request: its message id, SOP class and, where it names them, SOP instance and type."""
        return Command(
            self.field | _RESPONSE,
            message_id_being_responded_to=self.message_id,
            affected_sop_class_uid=self.affected_sop_class_uid or self.requested_sop_class_uid,
            affected_sop_instance_uid=self.affected_sop_instance_uid or self.requested_sop_instance_uid,
            status=status,
            error_comment=error_comment,
            remaining=remaining,
            completed=completed,
            failed=failed,
            warning=warning,
            event_type_id=self.event_type_id,
            action_type_id=self.action_type_id,
        )

    def announcing(self, has_data: bool) -> Command:
        """The same with the Command Data Set Type for a data set that follows, or does not."""
        if self.has_data == has_data:
            return self
        return replace(self, data_set_type=WITH_DATA_SET if has_data else NO_DATA_SET)


def c_echo_rq(message_id: int, sop_class_uid: str = "1.2.840.10008.1.1") -> Command:
    """C-ECHO-RQ (PS3.7 section 9.3.5.1)."""
    return Command(CommandField.C_ECHO_RQ, message_id, affected_sop_class_uid=sop_class_uid)


def c_store_rq(
    message_id: int,
    sop_class_uid: str,
    sop_instance_uid: str,
    *,
    priority: int = Priority.MEDIUM,
    move_originator_aet: str | None = None,
    move_originator_message_id: int | None = None,
) -> Command:
    """C-STORE-RQ (PS3.7 section 9.3.1.1); its data set follows."""
    return Command(
        CommandField.C_STORE_RQ,
        message_id,
        affected_sop_class_uid=sop_class_uid,
        affected_sop_instance_uid=sop_instance_uid,
        priority=priority,
        data_set_type=WITH_DATA_SET,
        move_originator_aet=move_originator_aet,
        move_originator_message_id=move_originator_message_id,
    )


def c_find_rq(message_id: int, sop_class_uid: str, *, priority: int = Priority.MEDIUM) -> Command:
    """C-FIND-RQ (PS3.7 section 9.3.2.1); its identifier follows."""
    return _query(CommandField.C_FIND_RQ, message_id, sop_class_uid, priority)


def c_get_rq(message_id: int, sop_class_uid: str, *, priority: int = Priority.MEDIUM) -> Command:
    """C-GET-RQ (PS3.7 section 9.3.3.1); its identifier follows."""
    return _query(CommandField.C_GET_RQ, message_id, sop_class_uid, priority)


def c_move_rq(message_id: int, sop_class_uid: str, destination: str, *, priority: int = Priority.MEDIUM) -> Command:
    """C-MOVE-RQ (PS3.7 section 9.3.4.1); its identifier follows."""
    return replace(_query(CommandField.C_MOVE_RQ, message_id, sop_class_uid, priority), move_destination=destination)


def c_cancel_rq(message_id_being_responded_to: int) -> Command:
    """C-CANCEL-RQ for a C-FIND, C-GET or C-MOVE under way (PS3.7 sections 9.3.2.3, 9.3.3.3, 9.3.4.3)."""
    return Command(CommandField.C_CANCEL_RQ, message_id_being_responded_to=message_id_being_responded_to)


def _query(field: CommandField, message_id: int, sop_class_uid: str, priority: int) -> Command:
    return Command(
        field,
        message_id,
        affected_sop_class_uid=sop_class_uid,
        priority=priority,
        data_set_type=WITH_DATA_SET,
    )
