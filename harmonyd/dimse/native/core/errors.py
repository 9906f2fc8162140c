"""What can be wrong with what a peer sent (theirs), and with what a driver asked for (ours)."""

from __future__ import annotations

from enum import IntEnum

from harmonyd.dimse.errors import EngineFailed, NonsenseAnswer


class AbortSource(IntEnum):
    """Source of an A-ABORT (PS3.8 table 9-26)."""

    SERVICE_USER = 0
    SERVICE_PROVIDER = 2


class AbortReason(IntEnum):
    """Reason/diagnosis of an A-ABORT whose source is the service provider (PS3.8 table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PDU_PARAMETER = 4
    UNEXPECTED_PDU_PARAMETER = 5
    INVALID_PDU_PARAMETER_VALUE = 6


class ProtocolViolation(NonsenseAnswer):
    """What a peer sent is against PS3.8; ``reason`` goes into the A-ABORT."""

    def __init__(self, detail: str, reason: AbortReason = AbortReason.INVALID_PDU_PARAMETER_VALUE) -> None:
        super().__init__(detail)
        self.reason = reason


class BadCommandSet(NonsenseAnswer):
    """A command set that cannot be understood (PS3.7 section 6.3): the upper layer's user aborts, not the provider."""


class NotAllowed(EngineFailed):
    """A driver asked for what the association's state, contexts or message under way forbid. Nothing has changed."""
