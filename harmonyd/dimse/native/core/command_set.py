"""Command sets on the wire (PS3.7 section 6.3.1): Implicit VR Little Endian, group 0000 only.

Decoding is strict where a mistake could change the meaning (lengths, an element of another group, an element twice, no
command field, data set type, message id or status where one is mandatory), and tolerant where it cannot: the order of
elements, the value of the group length, retired elements, empty values, padding.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from harmonyd.dimse.native.core.commands import Command, CommandField
from harmonyd.dimse.native.core.errors import BadCommandSet

MAX_COMMAND_SET_BYTES = 64 * 1024
"""A real one has a few hundred bytes."""
MAX_COMMENT_BYTES = 64
"""Of the Error Comment (0000,0902); what is longer is cut."""

_ELEMENT = struct.Struct("<HHI")
_US_ELEMENT = struct.Struct("<HHIH")
_GROUP_LENGTH = struct.Struct("<HHII")
_U16 = struct.Struct("<H")
_AT = struct.Struct("<HH")


def _read_us(value: bytes) -> int:
    if len(value) != _U16.size:
        raise BadCommandSet(f"a number (US) of a command set has {len(value)} bytes")
    return int.from_bytes(value, "little")


def _read_uid(value: bytes) -> str | None:
    return value.decode("latin-1").strip("\0 ") or None


def _read_text(value: bytes) -> str | None:
    """Error comments come in whatever the peer speaks: UTF-8 is recognised, all else is taken for Latin-1."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return text.strip("\0 ") or None


def _read_tags(value: bytes) -> tuple[int, ...]:
    if len(value) % _AT.size:
        raise BadCommandSet(f"a list of tags of a command set has {len(value)} bytes")
    return tuple(group << 16 | element for group, element in _AT.iter_unpack(value))


def _pad(value: bytes, padding: bytes) -> bytes:
    return value + padding if len(value) % 2 else value


def _write_us(element: int, value: int) -> bytes:
    return _US_ELEMENT.pack(0, element, 2, value)


def _write_uid(element: int, value: str) -> bytes:
    return _write(element, _pad(value.encode("latin-1"), b"\0"))


def _write_aet(element: int, value: str) -> bytes:
    return _write(element, _pad(value.encode("latin-1"), b" "))


def _write_comment(element: int, value: str) -> bytes:
    """An LO in the default repertoire, as a command set has no Specific Character Set (PS3.7 section 6.3.1)."""
    return _write(element, _pad(value.encode("ascii", "replace")[:MAX_COMMENT_BYTES], b" "))


def _write_tags(element: int, value: tuple[int, ...]) -> bytes:
    return _write(element, b"".join(_AT.pack(tag >> 16, tag & 0xFFFF) for tag in value))


def _write(element: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, element, len(value)) + value


Reader = Callable[[bytes], Any]
Writer = Callable[[int, Any], bytes]
_US: tuple[Reader, Writer] = (_read_us, _write_us)
_UI: tuple[Reader, Writer] = (_read_uid, _write_uid)
_AE: tuple[Reader, Writer] = (_read_text, _write_aet)
_LO: tuple[Reader, Writer] = (_read_text, _write_comment)
_TAGS: tuple[Reader, Writer] = (_read_tags, _write_tags)

ELEMENTS: dict[int, tuple[str, tuple[Reader, Writer]]] = {
    0x0002: ("affected_sop_class_uid", _UI),
    0x0003: ("requested_sop_class_uid", _UI),
    0x0100: ("field", _US),
    0x0110: ("message_id", _US),
    0x0120: ("message_id_being_responded_to", _US),
    0x0600: ("move_destination", _AE),
    0x0700: ("priority", _US),
    0x0800: ("data_set_type", _US),
    0x0900: ("status", _US),
    0x0901: ("offending_elements", _TAGS),
    0x0902: ("error_comment", _LO),
    0x0903: ("error_id", _US),
    0x1000: ("affected_sop_instance_uid", _UI),
    0x1001: ("requested_sop_instance_uid", _UI),
    0x1002: ("event_type_id", _US),
    0x1005: ("attribute_identifiers", _TAGS),
    0x1008: ("action_type_id", _US),
    0x1020: ("remaining", _US),
    0x1021: ("completed", _US),
    0x1022: ("failed", _US),
    0x1023: ("warning", _US),
    0x1030: ("move_originator_aet", _AE),
    0x1031: ("move_originator_message_id", _US),
}
"""PS3.7 table E.1-1: element number in group 0000, attribute of ``Command``, how it is read and written."""

_READERS = {element: (name, kind[0]) for element, (name, kind) in ELEMENTS.items()}
_WRITERS = [(element, name, kind[1]) for element, (name, kind) in sorted(ELEMENTS.items())]


def encode(command: Command) -> bytes:
    """The command set with its group length. Raises ``ValueError`` for a number or tag that does not fit."""
    parts = [b""]
    try:
        for element, name, write in _WRITERS:
            value = getattr(command, name)
            if value is not None and value != ():
                parts.append(write(element, value))
    except (struct.error, UnicodeEncodeError) as error:
        raise ValueError(f"{name} {value!r} does not fit into a command set") from error
    parts[0] = _GROUP_LENGTH.pack(0, 0, 4, sum(map(len, parts)))
    return b"".join(parts)


def decode(content: bytes) -> Command:
    """Read a whole command set. Raises ``BadCommandSet``."""
    values: dict[str, Any] = {}
    seen: set[int] = set()
    at, end = 0, len(content)
    while at < end:
        if end - at < _ELEMENT.size:
            raise BadCommandSet("a command set ends in the header of an element")
        group, element, length = _ELEMENT.unpack_from(content, at)
        at += _ELEMENT.size
        if group or length > end - at or element in seen:
            raise BadCommandSet(_complaint(group, element, length, end - at))
        seen.add(element)
        if length and element in _READERS:
            name, read = _READERS[element]
            values[name] = read(content[at : at + length])
        at += length
    _check(values)
    return Command(**values)


def _complaint(group: int, element: int, length: int, left: int) -> str:
    tag = f"({group:04X},{element:04X})"
    if group:
        return f"a command set has the element {tag}"
    if length > left:
        return f"the element {tag} of a command set says that it has {length} bytes, {left} are left"
    return f"a command set has the element {tag} twice"


def _check(values: dict[str, Any]) -> None:
    """The elements without which nothing can be done with a command (PS3.7 sections 9.3 and 10.3)."""
    needed = ["field", "data_set_type"]
    field = values.get("field", 0)
    if field & 0x8000:
        needed += ["message_id_being_responded_to", "status"]
    elif field == CommandField.C_CANCEL_RQ:
        needed.append("message_id_being_responded_to")
    else:
        needed.append("message_id")
    missing = [name for name in needed if name not in values]
    if missing:
        raise BadCommandSet(f"a command set lacks {' and '.join(missing)}")
