"""DIMSE status codes: their category and their meaning in words (PS3.7 Annex C, PS3.4 Annexes B and C)."""

from __future__ import annotations

from enum import Enum

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
INVALID_INSTANCE = 0x0117
SOP_CLASS_NOT_SUPPORTED = 0x0122
OUT_OF_RESOURCES = 0xA700
"""This one and the next two are of PS3.4 table B.2-1."""
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
NOT_AUTHORIZED = 0x0124
UNRECOGNIZED_OPERATION = 0x0211
RESOURCE_LIMITATION = 0x0213
CANNOT_CALCULATE = 0xA701
"""This one and the next five are of PS3.4 tables C.4-1 to C.4-3."""
CANNOT_PERFORM = 0xA702
UNKNOWN_DESTINATION = 0xA801
UNABLE_TO_PROCESS = 0xC001
SOME_FAILED = 0xB000
DUPLICATE_TRANSACTION = 0x0131
"""Of Storage Commitment, as a Failure Reason (PS3.3 section C.14.1.1)."""
INVALID_ATTRIBUTE_VALUE = 0x0106
NO_SUCH_INSTANCE = 0x0112
NO_SUCH_EVENT = 0x0113
INVALID_ARGUMENT = 0x0115
CLASS_INSTANCE_CONFLICT = 0x0119
NO_SUCH_ACTION = 0x0123
PENDING = 0xFF00
CANCEL = 0xFE00
UNKNOWN = "Unknown status"

_PENDING = frozenset({0xFF00, 0xFF01})
_WARNINGS = frozenset({0x0001, 0x0107, 0x0116})

_GENERAL = {
    0x0000: "Success",
    0x0001: "Warning: requested optional attributes are not supported",
    0x0105: "Failed: no such attribute",
    0x0106: "Failed: invalid attribute value",
    0x0107: "Warning: attribute list error",
    0x0110: "Failed: processing failure",
    0x0111: "Failed: duplicate SOP instance",
    0x0112: "Failed: no such SOP instance",
    0x0113: "Failed: no such event type",
    0x0114: "Failed: no such argument",
    0x0115: "Failed: invalid argument value",
    0x0116: "Warning: attribute value out of range",
    0x0117: "Failed: invalid SOP instance UID",
    0x0118: "Failed: no such SOP class",
    0x0119: "Failed: class-instance conflict",
    0x0120: "Failed: missing attribute",
    0x0121: "Failed: missing attribute value",
    0x0122: "Refused: SOP class not supported",
    0x0123: "Failed: no such action type",
    0x0124: "Refused: not authorized",
    0x0210: "Failed: duplicate invocation",
    0x0211: "Failed: unrecognized operation",
    0x0212: "Failed: mistyped argument",
    0x0131: "Failed: duplicate transaction UID",
    0x0213: "Failed: resource limitation",
}

_NO_MATCH = "Failed: the identifier does not match the SOP class"
_RETRIEVE = {
    0xA701: "Refused: out of resources, unable to calculate the number of matches",
    0xA702: "Refused: out of resources, unable to perform sub-operations",
    0xA900: _NO_MATCH,
    0xB000: "Warning: sub-operations complete, one or more failures or warnings",
    0xFE00: "Cancelled: sub-operations terminated on request",
    0xFF00: "Pending: sub-operations are continuing",
}

_BY_OPERATION: dict[str, dict[int, str]] = {
    "echo": {},
    "find": {
        0xA700: "Refused: out of resources",
        0xA900: _NO_MATCH,
        0xFE00: "Cancelled: matching terminated on request",
        0xFF00: "Pending: matches are continuing",
        0xFF01: "Pending: matches are continuing, one or more optional keys were not supported",
    },
    "commit": {},
    "mpps": {},
    "get": _RETRIEVE | {0xA700: "Refused: out of resources"},
    "move": _RETRIEVE | {0xA700: "Refused: out of resources", 0xA801: "Refused: move destination unknown"},
    "store": {
        0xB000: "Warning: coercion of data elements",
        0xB006: "Warning: elements discarded",
        0xB007: "Warning: data set does not match SOP class",
        0xFE00: "Cancelled",
    },
}

_STORE_RANGES = {0xA7: "Refused: out of resources", 0xA9: "Failed: data set does not match SOP class"}


class StatusCategory(Enum):
    """What a status says about the operation (PS3.7 section C.1)."""

    SUCCESS = "success"
    PENDING = "pending"
    WARNING = "warning"
    CANCEL = "cancel"
    FAILURE = "failure"


def category(code: int) -> StatusCategory:
    """Return the category of a 16 bit status; a code that PS3.7 does not know is a failure."""
    if code == SUCCESS:
        return StatusCategory.SUCCESS
    if code in _PENDING:
        return StatusCategory.PENDING
    if code == CANCEL:
        return StatusCategory.CANCEL
    if code in _WARNINGS or code >> 12 == 0xB:
        return StatusCategory.WARNING
    return StatusCategory.FAILURE


def text(operation: str, code: int) -> str:
    """Return what ``code`` means in an operation (echo, find, get, move, store); "Unknown status" if nothing."""
    known = _BY_OPERATION[operation].get(code) or _GENERAL.get(code)
    return known or _range_text(operation, code)


def _range_text(operation: str, code: int) -> str:
    """Meaning of the codes of which the standard fixes only the leading digits."""
    if operation == "store" and code >> 8 in _STORE_RANGES:
        return _STORE_RANGES[code >> 8]
    if code >> 12 == 0xC and operation != "echo":
        return "Failed: cannot understand" if operation == "store" else "Failed: unable to process"
    return "Warning" if code >> 12 == 0xB else UNKNOWN
