"""Bytes in, PDUs and fragments out: the framing of PS3.8 section 9.3 over a stream that is cut anywhere.

What is kept between two calls is bounded: a header that is not whole, a control PDU that is not whole (at most
``MAX_ASSOCIATE_BYTES``), a command set that is not whole (at most ``MAX_COMMAND_SET_BYTES``). The bytes of a data set
are passed on as views of what came in, whether or not their PDU is complete, so the length of a PDU costs nothing.

Decisions fall at fixed places of the stream (after a PDU's header, after a PDV's header, after a whole control PDU or
command set): however the stream is cut, the same things happen, and only data fragments are cut as it is.
"""

from __future__ import annotations

import struct
from typing import Any, Protocol

from harmonyd.dimse.native.core.errors import ProtocolViolation
from harmonyd.dimse.native.core.events import Event
from harmonyd.dimse.native.core.messages import IncomingMessages
from harmonyd.dimse.native.core.pdu import (
    COMMAND_FLAG,
    HEADER,
    LAST_FLAG,
    LENGTHS,
    PDV_HEADER,
    PduType,
    check_pdv_length,
)

TOLERATED_PDU_BYTES = 32 * 1024 * 1024
"""Some peers send P-DATA-TF of 16 MiB, whatever maximum they were told. This much is read, and counted."""
_ANY_LENGTH = 0xFFFFFFFF
_NOTHING = memoryview(b"")


class Owner(Protocol):
    """Who knows the state of the association."""

    @property
    def listening(self) -> bool:
        """What comes in still means something."""

    def pdu_begins(self, kind: int) -> bool:
        """Whether a PDU of this type is wanted now; if not it is skipped. May raise ``ProtocolViolation``."""

    def pdu_arrived(self, kind: int, body: bytes) -> None:
        """A control PDU is complete. May raise ``ProtocolViolation``."""


class Chunk:
    """What came in, in portions of known size; one that is not whole is kept until the rest is there."""

    __slots__ = ("_at", "_end", "_held", "_view")

    def __init__(self) -> None:
        self._view = _NOTHING
        self._at = self._end = 0
        self._held = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes; those before must have been used up, or be ``held``."""
        view = memoryview(data)
        self._view = view if view.format == "B" and view.contiguous else view.cast("B")
        self._at, self._end = 0, len(self._view)

    def let_go(self) -> None:
        """Keep no reference to what came in."""
        self._view = _NOTHING
        self._at = self._end = 0

    def forget(self) -> None:
        """Keep nothing at all."""
        self.let_go()
        self._held.clear()

    @property
    def held(self) -> int:
        """Number of bytes kept."""
        return len(self._held)

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...] | None:
        """A header; None when it is not whole."""
        at = self._at
        if not self._held and at + layout.size <= self._end:
            self._at = at + layout.size
            return layout.unpack_from(self._view, at)
        whole = self.take(layout.size)
        return None if whole is None else layout.unpack(whole)

    def take(self, count: int) -> bytes | None:
        """Exactly ``count`` bytes; None when they are not there yet."""
        held = self._held
        piece = self.some(count - len(held))
        if len(piece) == count:
            return bytes(piece)
        held += piece
        if len(held) < count:
            return None
        whole = bytes(held)
        held.clear()
        return whole

    def some(self, most: int) -> memoryview:
        """At most ``most`` bytes, without copying them."""
        at = self._at
        self._at = end = min(at + most, self._end)
        return self._view[at:end]


class Inbound:
    """The receiving half of a connection."""

    __slots__ = (
        "_chunk",
        "_kind",
        "_limit",
        "_max_pdu",
        "_pdu_left",
        "_pdv_left",
        "_skip",
        "messages",
        "oversized_pdus",
    )

    def __init__(self, max_pdu: int) -> None:
        self.messages = IncomingMessages()
        self.oversized_pdus = 0
        """P-DATA-TF that were longer than the maximum we told the peer, and tolerated."""
        self.limit(max_pdu)
        self._chunk = Chunk()
        self._kind = 0
        self._skip = False
        self._pdu_left = 0
        self._pdv_left = 0

    def limit(self, max_pdu: int) -> None:
        """What the peer is told; 0 is no limit."""
        self._max_pdu = max_pdu or _ANY_LENGTH
        self._limit = max(self._max_pdu, TOLERATED_PDU_BYTES)

    @property
    def held(self) -> int:
        """Number of bytes kept of what is not complete yet."""
        return self._chunk.held + self.messages.held

    def receive(self, data: bytes | bytearray | memoryview, owner: Owner, events: list[Event]) -> None:
        """Work through ``data``. Raises ``ProtocolViolation`` or ``BadCommandSet``; nothing may follow then."""
        self._chunk.feed(data)
        try:
            while owner.listening and self._advance(owner, events):
                pass
        finally:
            self._chunk.let_go()

    def forget(self) -> None:
        """Nothing more will be received."""
        self._chunk.forget()
        self.messages.forget()

    def _advance(self, owner: Owner, events: list[Event]) -> bool:
        """One step; false when there are not enough bytes for it."""
        if not self._pdu_left:
            return self._begin_pdu(owner)
        if self._skip:
            return self._skip_some()
        if self._kind != PduType.P_DATA_TF:
            return self._whole_pdu(owner)
        if not self._pdv_left:
            return self._begin_pdv(events)
        return self._fragment(events)

    def _begin_pdu(self, owner: Owner) -> bool:
        head = self._chunk.unpack(HEADER)
        if head is None:
            return False
        self._kind, length = head
        self._skip = not owner.pdu_begins(self._kind)
        self._pdu_left = length
        if self._kind != PduType.P_DATA_TF:
            if length not in LENGTHS[self._kind]:
                raise ProtocolViolation(f"a PDU of type {self._kind} says that it has {length} bytes")
        elif length > self._max_pdu:
            if length > self._limit:
                raise ProtocolViolation(f"a P-DATA-TF says that it has {length} bytes; {self._max_pdu} were allowed")
            self.oversized_pdus += 1
        elif not length:
            raise ProtocolViolation("a P-DATA-TF is empty")
        return True

    def _skip_some(self) -> bool:
        skipped = len(self._chunk.some(self._pdu_left))
        self._pdu_left -= skipped
        return skipped > 0

    def _whole_pdu(self, owner: Owner) -> bool:
        body = self._chunk.take(self._pdu_left)
        if body is None:
            return False
        self._pdu_left = 0
        owner.pdu_arrived(self._kind, body)
        return True

    def _begin_pdv(self, events: list[Event]) -> bool:
        if self._pdu_left < PDV_HEADER.size:
            check_pdv_length(0, self._pdu_left)
        head = self._chunk.unpack(PDV_HEADER)
        if head is None:
            return False
        length, context_id, flags = head
        check_pdv_length(length, self._pdu_left)
        self._pdu_left -= PDV_HEADER.size
        self._pdv_left = length - 2
        self.messages.begin(context_id, bool(flags & COMMAND_FLAG), bool(flags & LAST_FLAG), self._pdv_left)
        if not self._pdv_left:
            self.messages.fragment(_NOTHING, True, events)
        return True

    def _fragment(self, events: list[Event]) -> bool:
        piece = self._chunk.some(self._pdv_left)
        if not piece:
            return False
        self._pdu_left -= len(piece)
        self._pdv_left -= len(piece)
        self.messages.fragment(piece, not self._pdv_left, events)
        return True
