"""The items inside an A-ASSOCIATE PDU: presentation contexts (PS3.8 section 9.3.2), user information (PS3.7 Annex D).

Encoding is exact. Decoding is strict about lengths and counts, and tolerant about what carries no meaning: padding of
UIDs, reserved bytes, sub-items nobody knows (they are kept in ``UserInformation.others``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

IMPLEMENTATION_CLASS_UID = "2.25.215289038995406866855151790805042915127"
IMPLEMENTATION_VERSION_NAME = "HARMONYD"
"""What we say of ourselves (PS3.7 section D.3.3.2)."""
DEFAULT_MAX_PDU = 16384
"""What is assumed of a peer that does not say what it can receive."""

ITEM_HEADER = struct.Struct(">BxH")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_WINDOW = struct.Struct(">HH")


class ItemType(IntEnum):
    """Item types of PS3.8 section 9.3 and PS3.7 section D.3.3."""

    APPLICATION_CONTEXT = 0x10
    PROPOSED_CONTEXT = 0x20
    ANSWERED_CONTEXT = 0x21
    ABSTRACT_SYNTAX = 0x30
    TRANSFER_SYNTAX = 0x40
    USER_INFORMATION = 0x50
    MAXIMUM_LENGTH = 0x51
    IMPLEMENTATION_CLASS_UID = 0x52
    ASYNCHRONOUS_OPERATIONS = 0x53
    ROLE_SELECTION = 0x54
    IMPLEMENTATION_VERSION_NAME = 0x55
    EXTENDED_NEGOTIATION = 0x56
    COMMON_EXTENDED_NEGOTIATION = 0x57
    USER_IDENTITY_REQUEST = 0x58
    USER_IDENTITY_RESPONSE = 0x59


class ContextResult(IntEnum):
    """Result/reason of a presentation context (PS3.8 table 9-18)."""

    ACCEPTANCE = 0
    USER_REJECTION = 1
    NO_REASON = 2
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


class UserIdentityType(IntEnum):
    """User-Identity-Type (PS3.7 table D.3-14)."""

    USERNAME = 1
    USERNAME_AND_PASSCODE = 2
    KERBEROS = 3
    SAML = 4
    JWT = 5


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """One proposed presentation context (PS3.8 section 9.3.2.2)."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnsweredContext:
    """The answer to one proposed presentation context (PS3.8 section 9.3.3.2)."""

    id: int
    result: int
    transfer_syntax: str = ""
    """Means something with ``ContextResult.ACCEPTANCE`` only."""


@dataclass(frozen=True, slots=True)
class AsynchronousOperations:
    """Asynchronous operations window (PS3.7 section D.3.3.3); 0 is unlimited."""

    invoked: int = 1
    performed: int = 1


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """SCP/SCU role selection (PS3.7 section D.3.3.4): roles of the requestor, proposed in an RQ, accepted in an AC."""

    sop_class_uid: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class ExtendedNegotiation:
    """SOP class extended negotiation (PS3.7 section D.3.3.5)."""

    sop_class_uid: str
    information: bytes


@dataclass(frozen=True, slots=True)
class CommonExtendedNegotiation:
    """SOP class common extended negotiation (PS3.7 section D.3.3.6); in an RQ only."""

    sop_class_uid: str
    service_class_uid: str
    related_sop_class_uids: tuple[str, ...] = ()
    version: int = 0
    """Of the sub-item; 0 is the only one defined."""


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """User identity of an RQ (PS3.7 section D.3.3.7.1). The fields hold secrets and are left out of ``repr``."""

    type: int
    primary: bytes
    secondary: bytes = b""
    response_requested: bool = False

    def __repr__(self) -> str:
        return f"UserIdentity(type={self.type}, response_requested={self.response_requested})"


@dataclass(frozen=True, slots=True)
class UserInformation:
    """User information (PS3.8 section 9.3.2.3), the same in RQ and AC."""

    max_pdu: int = DEFAULT_MAX_PDU
    """Longest variable field of a P-DATA-TF that the sender of this can receive; 0 is no limit (PS3.8 section D.1)."""
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID
    """Ours unless something else is said; empty when a peer sends none. So the next one."""
    implementation_version_name: str = IMPLEMENTATION_VERSION_NAME
    asynchronous_operations: AsynchronousOperations | None = None
    roles: tuple[RoleSelection, ...] = ()
    extended: tuple[ExtendedNegotiation, ...] = ()
    common_extended: tuple[CommonExtendedNegotiation, ...] = ()
    user_identity: UserIdentity | None = None
    """In an RQ."""
    user_identity_response: bytes | None = None
    """In an AC (PS3.7 section D.3.3.7.2); empty for the types that have no answer but "accepted"."""
    others: tuple[tuple[int, bytes], ...] = ()
    """Type and content of sub-items that are not defined."""


# --- encoding ---------------------------------------------------------------------------------------------------------


def item(kind: int, content: bytes) -> bytes:
    """One item, or sub-item."""
    return ITEM_HEADER.pack(kind, len(content)) + content


def text_item(kind: int, text: str) -> bytes:
    """An item that is a UID or a name."""
    return item(kind, text.encode("latin-1"))


def _counted(content: bytes) -> bytes:
    return _U16.pack(len(content)) + content


def _counted_text(text: str) -> bytes:
    return _counted(text.encode("latin-1"))


def encode_proposed(context: ProposedContext) -> bytes:
    """PS3.8 table 9-13."""
    syntaxes = b"".join(text_item(ItemType.TRANSFER_SYNTAX, uid) for uid in context.transfer_syntaxes)
    abstract = text_item(ItemType.ABSTRACT_SYNTAX, context.abstract_syntax)
    return item(ItemType.PROPOSED_CONTEXT, bytes((context.id, 0, 0, 0)) + abstract + syntaxes)


def encode_answered(context: AnsweredContext) -> bytes:
    """PS3.8 table 9-18."""
    syntax = text_item(ItemType.TRANSFER_SYNTAX, context.transfer_syntax)
    return item(ItemType.ANSWERED_CONTEXT, bytes((context.id, 0, context.result, 0)) + syntax)


def encode_user_information(info: UserInformation) -> bytes:
    """PS3.8 table 9-16, its sub-items in ascending order of their types."""
    return item(ItemType.USER_INFORMATION, b"".join(_user_items(info)))


def _user_items(info: UserInformation) -> Iterator[bytes]:
    yield item(ItemType.MAXIMUM_LENGTH, _U32.pack(info.max_pdu))
    if info.implementation_class_uid:
        yield text_item(ItemType.IMPLEMENTATION_CLASS_UID, info.implementation_class_uid)
    if (window := info.asynchronous_operations) is not None:
        yield item(ItemType.ASYNCHRONOUS_OPERATIONS, _WINDOW.pack(window.invoked, window.performed))
    for role in info.roles:
        yield item(ItemType.ROLE_SELECTION, _counted_text(role.sop_class_uid) + bytes((role.scu, role.scp)))
    if info.implementation_version_name:
        yield text_item(ItemType.IMPLEMENTATION_VERSION_NAME, info.implementation_version_name)
    for extended in info.extended:
        yield item(ItemType.EXTENDED_NEGOTIATION, _counted_text(extended.sop_class_uid) + extended.information)
    for common in info.common_extended:
        yield _encode_common_extended(common)
    if (identity := info.user_identity) is not None:
        head = bytes((identity.type, identity.response_requested))
        yield item(ItemType.USER_IDENTITY_REQUEST, head + _counted(identity.primary) + _counted(identity.secondary))
    if info.user_identity_response is not None:
        yield item(ItemType.USER_IDENTITY_RESPONSE, _counted(info.user_identity_response))
    for kind, content in info.others:
        yield item(kind, content)


def _encode_common_extended(common: CommonExtendedNegotiation) -> bytes:
    """The byte after the item type is the sub-item's version here (PS3.7 table D.3-12)."""
    related = b"".join(_counted_text(uid) for uid in common.related_sop_class_uids)
    content = _counted_text(common.sop_class_uid) + _counted_text(common.service_class_uid) + _counted(related)
    return bytes((ItemType.COMMON_EXTENDED_NEGOTIATION, common.version)) + _counted(content)
