"""The seven protocol data units (PS3.8 section 9.3) as frozen values, with ``encode()`` and ``decode()``.

What is received of a P-DATA-TF is passed on by ``inbound`` as it comes, never as a ``PData``: that is for those who
have a whole one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from harmonyd.dimse.associate import APPLICATION_CONTEXT
from harmonyd.dimse.native.core.errors import AbortReason, AbortSource, ProtocolViolation
from harmonyd.dimse.native.core.item_decoding import (
    decode_answered,
    decode_proposed,
    decode_user_information,
    items_in,
    text_of,
)
from harmonyd.dimse.native.core.items import (
    AnsweredContext,
    ItemType,
    ProposedContext,
    UserInformation,
    encode_answered,
    encode_proposed,
    encode_user_information,
    text_item,
)

HEADER = struct.Struct(">BxI")
"""PDU type, and length of all that follows."""
PDV_HEADER = struct.Struct(">IBB")
"""Length of what follows it, presentation context id, message control header (PS3.8 section 9.3.5.1, Annex E)."""
COMMAND_FLAG, LAST_FLAG = 1, 2
MAX_ASSOCIATE_BYTES = 256 * 1024
"""128 presentation contexts with all 38 transfer syntaxes that DCMTK knows take 127 KiB, and there are more."""
MAX_CONTEXTS = 128
_ASSOCIATE = struct.Struct(">H2x16s16s32x")
_REJECT = struct.Struct(">xBBB")
_ABORT = struct.Struct(">xxBB")
_FOUR_BYTES = range(4, 5)
_OUR_INFORMATION = UserInformation()


class PduType(IntEnum):
    """PS3.8 section 9.3.1."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA_TF = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


LENGTHS: dict[int, range] = {
    PduType.ASSOCIATE_RQ: range(_ASSOCIATE.size, MAX_ASSOCIATE_BYTES + 1),
    PduType.ASSOCIATE_AC: range(_ASSOCIATE.size, MAX_ASSOCIATE_BYTES + 1),
    PduType.ASSOCIATE_RJ: _FOUR_BYTES,
    PduType.RELEASE_RQ: _FOUR_BYTES,
    PduType.RELEASE_RP: _FOUR_BYTES,
    PduType.ABORT: _FOUR_BYTES,
}
"""What the length field of each PDU that is received as a whole may say."""


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """A-ASSOCIATE-RQ (PS3.8 section 9.3.2). AE titles without their padding; they may hold any character of Latin-1."""

    called_aet: str
    calling_aet: str
    contexts: tuple[ProposedContext, ...]
    user_information: UserInformation = _OUR_INFORMATION
    application_context: str = APPLICATION_CONTEXT
    protocol_version: int = 1

    def encode(self) -> bytes:
        """The PDU. Raises ``ValueError`` for an AE title of more than 16 characters."""
        contexts = [encode_proposed(context) for context in self.contexts]
        return _encode_associate(PduType.ASSOCIATE_RQ, self, contexts)

    @classmethod
    def decode(cls, body: bytes) -> AssociateRequest:
        """Read what follows the header of the PDU. Raises ``ProtocolViolation``."""
        parts = _Parts(body, "the A-ASSOCIATE-RQ", ItemType.PROPOSED_CONTEXT)
        contexts = tuple(decode_proposed(content) for content in parts.contexts)
        if not 1 <= len(contexts) <= MAX_CONTEXTS:
            raise ProtocolViolation(f"the A-ASSOCIATE-RQ has {len(contexts)} presentation contexts")
        _unique(contexts, "the A-ASSOCIATE-RQ")
        return cls(*parts.aets, contexts, parts.information, parts.application_context, parts.version)


@dataclass(frozen=True, slots=True)
class AssociateAccept:
    """A-ASSOCIATE-AC (PS3.8 section 9.3.3). The AE titles are those of the RQ, and not to be tested."""

    called_aet: str
    calling_aet: str
    contexts: tuple[AnsweredContext, ...]
    user_information: UserInformation = _OUR_INFORMATION
    application_context: str = APPLICATION_CONTEXT
    protocol_version: int = 1

    def encode(self) -> bytes:
        """The PDU. Raises ``ValueError`` for an AE title of more than 16 characters."""
        contexts = [encode_answered(context) for context in self.contexts]
        return _encode_associate(PduType.ASSOCIATE_AC, self, contexts)

    @classmethod
    def decode(cls, body: bytes) -> AssociateAccept:
        """Read what follows the header of the PDU. Raises ``ProtocolViolation``."""
        parts = _Parts(body, "the A-ASSOCIATE-AC", ItemType.ANSWERED_CONTEXT)
        contexts = tuple(decode_answered(content) for content in parts.contexts)
        _unique(contexts, "the A-ASSOCIATE-AC")
        return cls(*parts.aets, contexts, parts.information, parts.application_context, parts.version)


@dataclass(frozen=True, slots=True)
class AssociateReject:
    """A-ASSOCIATE-RJ (PS3.8 section 9.3.4, table 9-21)."""

    result: int
    source: int
    reason: int

    def encode(self) -> bytes:
        """The PDU."""
        return HEADER.pack(PduType.ASSOCIATE_RJ, _REJECT.size) + _REJECT.pack(self.result, self.source, self.reason)

    @classmethod
    def decode(cls, body: bytes) -> AssociateReject:
        """Read what follows the header of the PDU. Raises ``ProtocolViolation``."""
        return cls(*_fixed(_REJECT, body, "the A-ASSOCIATE-RJ"))


@dataclass(frozen=True, slots=True)
class Pdv:
    """Presentation data value (PS3.8 section 9.3.5.1): a fragment of a command set or of a data set."""

    context_id: int
    fragment: bytes | memoryview
    command: bool
    last: bool

    def encode(self) -> bytes:
        """The item with its header."""
        flags = COMMAND_FLAG * self.command | LAST_FLAG * self.last
        return PDV_HEADER.pack(len(self.fragment) + 2, self.context_id, flags) + self.fragment


@dataclass(frozen=True, slots=True)
class PData:
    """P-DATA-TF (PS3.8 section 9.3.5)."""

    pdvs: tuple[Pdv, ...]

    def encode(self) -> bytes:
        """The PDU."""
        content = b"".join(pdv.encode() for pdv in self.pdvs)
        return HEADER.pack(PduType.P_DATA_TF, len(content)) + content

    @classmethod
    def decode(cls, body: bytes) -> PData:
        """Read what follows the header of the PDU. Raises ``ProtocolViolation``."""
        pdvs: list[Pdv] = []
        at = 0
        while at < len(body):
            left = len(body) - at
            head = PDV_HEADER.unpack_from(body, at) if left >= PDV_HEADER.size else (0, 0, 0)
            length, context_id, flags = head
            check_pdv_length(length, left)
            fragment = body[at + PDV_HEADER.size : at + 4 + length]
            pdvs.append(Pdv(context_id, fragment, bool(flags & COMMAND_FLAG), bool(flags & LAST_FLAG)))
            at += 4 + length
        return cls(tuple(pdvs))


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """A-RELEASE-RQ (PS3.8 section 9.3.6)."""

    def encode(self) -> bytes:
        """The PDU."""
        return HEADER.pack(PduType.RELEASE_RQ, 4) + bytes(4)

    @classmethod
    def decode(cls, body: bytes) -> ReleaseRequest:
        """There is nothing in it that is to be tested."""
        return cls()


@dataclass(frozen=True, slots=True)
class ReleaseResponse:
    """A-RELEASE-RP (PS3.8 section 9.3.7)."""

    def encode(self) -> bytes:
        """The PDU."""
        return HEADER.pack(PduType.RELEASE_RP, 4) + bytes(4)

    @classmethod
    def decode(cls, body: bytes) -> ReleaseResponse:
        """There is nothing in it that is to be tested."""
        return cls()


@dataclass(frozen=True, slots=True)
class Abort:
    """A-ABORT (PS3.8 section 9.3.8, table 9-26)."""

    source: int = AbortSource.SERVICE_USER
    reason: int = AbortReason.NOT_SPECIFIED

    def encode(self) -> bytes:
        """The PDU."""
        return HEADER.pack(PduType.ABORT, _ABORT.size) + _ABORT.pack(self.source, self.reason)

    @classmethod
    def decode(cls, body: bytes) -> Abort:
        """Read what follows the header of the PDU. Raises ``ProtocolViolation``."""
        return cls(*_fixed(_ABORT, body, "the A-ABORT"))


Pdu: TypeAlias = AssociateRequest | AssociateAccept | AssociateReject | PData | ReleaseRequest | ReleaseResponse | Abort

_DECODERS: dict[int, Callable[[bytes], Pdu]] = {
    PduType.ASSOCIATE_RQ: AssociateRequest.decode,
    PduType.ASSOCIATE_AC: AssociateAccept.decode,
    PduType.ASSOCIATE_RJ: AssociateReject.decode,
    PduType.P_DATA_TF: PData.decode,
    PduType.RELEASE_RQ: ReleaseRequest.decode,
    PduType.RELEASE_RP: ReleaseResponse.decode,
    PduType.ABORT: Abort.decode,
}


def decode(kind: int, body: bytes) -> Pdu:
    """Read what follows the header of a PDU of type ``kind``. Raises ``ProtocolViolation``."""
    try:
        decoder = _DECODERS[kind]
    except KeyError:
        raise ProtocolViolation(f"Unrecognized PDU type {kind}", AbortReason.UNRECOGNIZED_PDU) from None
    return decoder(body)


def check_pdv_length(length: int, left: int) -> None:
    """``length`` stands in the header of a PDV; ``left`` bytes of its PDU begin with that header."""
    if left < PDV_HEADER.size:
        raise ProtocolViolation(f"{left} bytes at the end of a P-DATA-TF are less than the header of a PDV")
    if not 2 <= length <= left - 4:
        raise ProtocolViolation(f"a PDV says that it has {length} bytes; {left - 4} are left in its PDU")


# --- the two A-ASSOCIATE PDUs -----------------------------------------------------------------------------------------


def _encode_associate(kind: PduType, pdu: AssociateRequest | AssociateAccept, contexts: Iterable[bytes]) -> bytes:
    aets = (_aet(pdu.called_aet), _aet(pdu.calling_aet))
    application = text_item(ItemType.APPLICATION_CONTEXT, pdu.application_context)
    items = b"".join((application, *contexts, encode_user_information(pdu.user_information)))
    body = _ASSOCIATE.pack(pdu.protocol_version, *aets) + items
    return HEADER.pack(kind, len(body)) + body


def _aet(text: str) -> bytes:
    if len(text) > 16:
        raise ValueError(f"an AE title has at most 16 characters: {text!r}")
    return text.encode("latin-1").ljust(16)


class _Parts:
    """What the two A-ASSOCIATE PDUs have in common, taken apart."""

    def __init__(self, body: bytes, what: str, context_type: ItemType) -> None:
        if len(body) < _ASSOCIATE.size:
            raise ProtocolViolation(f"{what} is too short")
        version, called, calling = _ASSOCIATE.unpack_from(body)
        self.version = int(version)
        self.aets = (text_of(called), text_of(calling))
        self.contexts: list[bytes] = []
        self.information = decode_user_information(b"")
        names: list[str] = []
        for kind, _, content in items_in(body[_ASSOCIATE.size :], what):
            if kind == context_type:
                self.contexts.append(content)
            elif kind == ItemType.USER_INFORMATION:
                self.information = decode_user_information(content)
            elif kind == ItemType.APPLICATION_CONTEXT:
                names.append(text_of(content))
        if len(names) != 1:
            raise ProtocolViolation(f"{what} has {len(names)} application context names")
        self.application_context = names[0]


def _unique(contexts: Iterable[ProposedContext | AnsweredContext], what: str) -> None:
    seen: set[int] = set()
    for context in contexts:
        if context.id in seen:
            raise ProtocolViolation(f"{what} has presentation context id {context.id} twice")
        seen.add(context.id)


def _fixed(layout: struct.Struct, body: bytes, what: str) -> tuple[int, ...]:
    if len(body) < layout.size:
        raise ProtocolViolation(f"{what} is too short")
    return layout.unpack_from(body)
