"""Reading the items of ``items``, in a whole A-ASSOCIATE PDU of bounded length. Raises ``ProtocolViolation``."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from harmonyd.dimse.native.core.errors import ProtocolViolation
from harmonyd.dimse.native.core.items import (
    ITEM_HEADER,
    AnsweredContext,
    AsynchronousOperations,
    CommonExtendedNegotiation,
    ExtendedNegotiation,
    ItemType,
    ProposedContext,
    RoleSelection,
    UserIdentity,
    UserInformation,
)

_CONTEXT_HEAD_BYTES = 4


def items_in(content: bytes, what: str) -> Iterator[tuple[int, int, bytes]]:
    """Type, the byte after it (reserved, or a version), and content of each item."""
    at, end = 0, len(content)
    while at < end:
        if at + ITEM_HEADER.size > end:
            raise ProtocolViolation(f"{what} ends in the header of an item")
        kind, length = ITEM_HEADER.unpack_from(content, at)
        start = at + ITEM_HEADER.size
        if start + length > end:
            raise ProtocolViolation(f"an item of type 0x{kind:02X} goes beyond the end of {what}")
        yield kind, content[at + 1], content[start : start + length]
        at = start + length


def text_of(value: bytes) -> str:
    """A UID or name without the padding that some senders add."""
    return value.decode("latin-1").strip("\0 ")


class _Fields:
    """Consecutive fields of one sub-item."""

    def __init__(self, content: bytes, what: str) -> None:
        self._content = content
        self._what = what
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        start, self._at = self._at, self._at + count
        if self._at > len(self._content):
            raise ProtocolViolation(f"{self._what} is too short")
        return self._content[start : self._at]

    def counted(self) -> bytes:
        """A field with its length in front."""
        return self.take(int.from_bytes(self.take(2), "big"))

    @property
    def more(self) -> bool:
        return self._at < len(self._content)

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._content) - self._at)


# --- presentation contexts --------------------------------------------------------------------------------------------


def decode_proposed(content: bytes) -> ProposedContext:
    """PS3.8 table 9-13."""
    what = "a proposed presentation context"
    number = _context_id(content, what)
    abstract: list[str] = []
    syntaxes: list[str] = []
    for kind, _, value in items_in(content[_CONTEXT_HEAD_BYTES:], what):
        if kind == ItemType.ABSTRACT_SYNTAX:
            abstract.append(text_of(value))
        elif kind == ItemType.TRANSFER_SYNTAX:
            syntaxes.append(text_of(value))
    if len(abstract) != 1 or not syntaxes:
        raise ProtocolViolation(f"{what} has {len(abstract)} abstract and {len(syntaxes)} transfer syntaxes")
    return ProposedContext(number, abstract[0], tuple(syntaxes))


def decode_answered(content: bytes) -> AnsweredContext:
    """PS3.8 table 9-18; the transfer syntax may be missing, or be nonsense, unless the context is accepted."""
    what = "an answered presentation context"
    number, result = _context_id(content, what), content[2]
    inner = content[_CONTEXT_HEAD_BYTES:]
    syntaxes = [text_of(value) for kind, _, value in items_in(inner, what) if kind == ItemType.TRANSFER_SYNTAX]
    if result == 0 and len(syntaxes) != 1:
        raise ProtocolViolation(f"an accepted presentation context has {len(syntaxes)} transfer syntaxes")
    return AnsweredContext(number, result, syntaxes[0] if syntaxes else "")


def _context_id(content: bytes, what: str) -> int:
    if len(content) < _CONTEXT_HEAD_BYTES:
        raise ProtocolViolation(f"{what} is too short")
    if content[0] % 2 == 0:
        raise ProtocolViolation(f"{what} has the even id {content[0]}")
    return content[0]


# --- user information -------------------------------------------------------------------------------------------------


def decode_user_information(content: bytes) -> UserInformation:
    """PS3.8 table 9-16. Of a sub-item that may stand once only the last one counts."""
    single: dict[str, Any] = {"implementation_class_uid": "", "implementation_version_name": ""}
    several: defaultdict[str, list[Any]] = defaultdict(list)
    for kind, version, value in items_in(content, "the user information"):
        if kind in _SINGLE:
            name, decode = _SINGLE[kind]
            single[name] = decode(value)
        elif kind in _SEVERAL:
            name, decode = _SEVERAL[kind]
            several[name].append(decode(value))
        elif kind == ItemType.COMMON_EXTENDED_NEGOTIATION:
            several["common_extended"].append(_common_extended(value, version))
        else:
            several["others"].append((kind, value))
    values: dict[str, Any] = {name: tuple(found) for name, found in several.items()}
    return UserInformation(**single, **values)


def _number(value: bytes) -> int:
    return int.from_bytes(_exactly(value, 4, "the maximum length"), "big")


def _exactly(value: bytes, count: int, what: str) -> bytes:
    if len(value) != count:
        raise ProtocolViolation(f"{what} has {len(value)} bytes")
    return value


def _window(value: bytes) -> AsynchronousOperations:
    return AsynchronousOperations(*struct.unpack(">HH", _exactly(value, 4, "the asynchronous operations window")))


def _role(value: bytes) -> RoleSelection:
    fields = _Fields(value, "a role selection")
    return RoleSelection(text_of(fields.counted()), *(bool(flag) for flag in fields.take(2)))


def _extended(value: bytes) -> ExtendedNegotiation:
    fields = _Fields(value, "an extended negotiation")
    return ExtendedNegotiation(text_of(fields.counted()), fields.rest())


def _common_extended(value: bytes, version: int) -> CommonExtendedNegotiation:
    what = "a common extended negotiation"
    fields = _Fields(value, what)
    sop_class, service_class = text_of(fields.counted()), text_of(fields.counted())
    inner = _Fields(fields.counted(), what)
    related: list[str] = []
    while inner.more:
        related.append(text_of(inner.counted()))
    return CommonExtendedNegotiation(sop_class, service_class, tuple(related), version)


def _identity(value: bytes) -> UserIdentity:
    fields = _Fields(value, "the user identity")
    kind, requested = fields.take(2)
    return UserIdentity(kind, fields.counted(), fields.counted(), bool(requested))


def _identity_response(value: bytes) -> bytes:
    return _Fields(value, "the answer to the user identity").counted()


_SINGLE: dict[int, tuple[str, Callable[[bytes], Any]]] = {
    ItemType.MAXIMUM_LENGTH: ("max_pdu", _number),
    ItemType.IMPLEMENTATION_CLASS_UID: ("implementation_class_uid", text_of),
    ItemType.ASYNCHRONOUS_OPERATIONS: ("asynchronous_operations", _window),
    ItemType.IMPLEMENTATION_VERSION_NAME: ("implementation_version_name", text_of),
    ItemType.USER_IDENTITY_REQUEST: ("user_identity", _identity),
    ItemType.USER_IDENTITY_RESPONSE: ("user_identity_response", _identity_response),
}
_SEVERAL: dict[int, tuple[str, Callable[[bytes], Any]]] = {
    ItemType.ROLE_SELECTION: ("roles", _role),
    ItemType.EXTENDED_NEGOTIATION: ("extended", _extended),
}
