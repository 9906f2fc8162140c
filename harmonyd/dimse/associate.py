"""The first PDU of an association, read without answering it, and the two PDUs that refuse one (PS3.8 section 9.3)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from harmonyd.dimse.errors import DimseError

ARTIM_SECS = 30.0
"""The ARTIM timer (PS3.8 section 9.1.5): for a whole A-ASSOCIATE-RQ, and for a peer that has released its association
to close the connection."""
HEADER_BYTES = 6
MAX_REQUEST_BYTES = 128 * 1024
"""128 presentation contexts with every transfer syntax there is need less than half of this."""
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
"""DICOM Application Context Name (PS3.7 section A.2.1)."""
_ASSOCIATE_RQ, _ASSOCIATE_RJ, _ABORT = 1, 3, 7
_FIXED = struct.Struct(">BxIHxx16s16s32x")
_ITEM = struct.Struct(">BxH")
_APPLICATION_CONTEXT_ITEM, _PRESENTATION_CONTEXT_ITEM = 0x10, 0x20
_MAX_CONTEXTS = 128


class NotAnAssociateRequest(DimseError):
    """What came first on a connection is no A-ASSOCIATE-RQ (PS3.8 section 9.3.2)."""

    title = "Not DICOM"


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """What a caller says of itself. AE titles without their padding; they may hold any character of Latin-1."""

    protocol_version: int
    called_aet: str
    calling_aet: str
    application_context: str


class Rejection(Enum):
    """Result, source and reason/diagnosis of an A-ASSOCIATE-RJ (PS3.8 section 9.3.4, table 9-21)."""

    APPLICATION_CONTEXT_NAME_NOT_SUPPORTED = (1, 1, 2)
    CALLING_AE_TITLE_NOT_RECOGNIZED = (1, 1, 3)
    CALLED_AE_TITLE_NOT_RECOGNIZED = (1, 1, 7)
    PROTOCOL_VERSION_NOT_SUPPORTED = (1, 2, 2)
    TEMPORARY_CONGESTION = (2, 3, 1)
    LOCAL_LIMIT_EXCEEDED = (2, 3, 2)

    def pdu(self) -> bytes:
        """The A-ASSOCIATE-RJ."""
        return struct.pack(">BxIxBBB", _ASSOCIATE_RJ, 4, *self.value)

    @property
    def text(self) -> str:
        """For people."""
        kind = "permanently" if self.value[0] == 1 else "for now"
        return f"rejected {kind}: {self.name.lower().replace('_', ' ').replace('ae title', 'AE title')}"


def abort_pdu() -> bytes:
    """An A-ABORT of the service provider: unrecognized PDU (PS3.8 section 9.3.8)."""
    return struct.pack(">BxIxxBB", _ABORT, 4, 2, 1)


def request_bytes(head: bytes) -> int:
    """Size of the whole PDU, its header included, from its first ``HEADER_BYTES``. Raises ``NotAnAssociateRequest``."""
    kind, length = struct.unpack_from(">BxI", head)
    size = HEADER_BYTES + int(length)
    if kind != _ASSOCIATE_RQ:
        raise NotAnAssociateRequest(f"the first PDU has type {kind}, not that of an A-ASSOCIATE-RQ")
    if not _FIXED.size <= size <= MAX_REQUEST_BYTES:
        raise NotAnAssociateRequest(f"the first PDU says that it has {length} bytes")
    return size


def read_request(pdu: bytes) -> AssociateRequest:
    """Read a whole A-ASSOCIATE-RQ. Raises ``NotAnAssociateRequest``."""
    if len(pdu) < HEADER_BYTES or request_bytes(pdu) != len(pdu):
        raise NotAnAssociateRequest("the first PDU is not whole")
    _, _, version, called, calling = _FIXED.unpack_from(pdu)
    items = list(_items(pdu))
    names = [value for kind, value in items if kind == _APPLICATION_CONTEXT_ITEM]
    if len(names) != 1:
        raise NotAnAssociateRequest(f"the A-ASSOCIATE-RQ has {len(names)} application context names")
    if not 1 <= sum(kind == _PRESENTATION_CONTEXT_ITEM for kind, _ in items) <= _MAX_CONTEXTS:
        raise NotAnAssociateRequest(f"the A-ASSOCIATE-RQ has no presentation context, or more than {_MAX_CONTEXTS}")
    return AssociateRequest(version, _text(called), _text(calling), _text(names[0]))


def _items(pdu: bytes) -> Iterator[tuple[int, bytes]]:
    at = _FIXED.size
    while at < len(pdu):
        if at + _ITEM.size > len(pdu):
            raise NotAnAssociateRequest("the A-ASSOCIATE-RQ ends in the header of an item")
        kind, length = _ITEM.unpack_from(pdu, at)
        at += _ITEM.size
        if at + length > len(pdu):
            raise NotAnAssociateRequest("an item of the A-ASSOCIATE-RQ goes beyond its end")
        yield kind, pdu[at : at + length]
        at += length


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip("\0 ")


def printable(text: str) -> str:
    """What a peer wrote, as it may stand in a log."""
    return "".join(character if character.isprintable() else "?" for character in text)
