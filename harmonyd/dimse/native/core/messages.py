"""DIMSE messages over P-DATA (PS3.7 section 6.3, PS3.8 Annex E): in each direction one after the other."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Container

from harmonyd.dimse.native.core import command_set
from harmonyd.dimse.native.core.command_set import MAX_COMMAND_SET_BYTES
from harmonyd.dimse.native.core.commands import Command
from harmonyd.dimse.native.core.errors import AbortReason, BadCommandSet, NotAllowed, ProtocolViolation
from harmonyd.dimse.native.core.events import CommandReceived, DataReceived, Event
from harmonyd.dimse.native.core.pdu import COMMAND_FLAG, LAST_FLAG, PduType

_PDU_WITH_PDV = struct.Struct(">BxIIBB")
"""The headers of a P-DATA-TF and of the only PDV in it."""
_OVERHEAD_BYTES = 6
"""Of a PDV in its PDU."""
MAX_SENT_PDU = 128 * 1024
"""Longer ones bring nothing, even to a peer that allows them."""
MIN_PEER_MAX_PDU = 64
"""A peer that can receive less than this cannot be served in a reasonable number of PDUs."""
_CACHED_BYTES = 1024
"""A command set is remembered up to this length."""
_UNEXPECTED = AbortReason.UNEXPECTED_PDU_PARAMETER


class IncomingMessages:
    """Puts command sets together, passes data sets on, and checks that messages come in order."""

    __slots__ = ("_cached", "_cached_bytes", "_command", "_context_id", "_data", "_is_command", "_last", "accepted")

    def __init__(self) -> None:
        self.accepted: Container[int] = ()
        """Ids of the accepted presentation contexts."""
        self._context_id = 0
        """Of the message under way; 0: none."""
        self._data = False
        """A data set is awaited, or under way; otherwise a command set."""
        self._command = bytearray()
        self._is_command = self._last = False
        self._cached_bytes = b""
        self._cached: Command | None = None

    @property
    def held(self) -> int:
        """Number of bytes kept."""
        return len(self._command)

    @property
    def unfinished(self) -> bool:
        """A message has begun and not ended."""
        return self._context_id != 0

    def forget(self) -> None:
        """Nothing more will be received."""
        self._command.clear()

    def begin(self, context_id: int, command: bool, last: bool, length: int) -> None:
        """A PDV begins. Raises ``ProtocolViolation`` when it cannot be the next one of a message."""
        if self._context_id:
            if context_id != self._context_id:
                raise ProtocolViolation(
                    f"a fragment in presentation context {context_id} comes inside a message in {self._context_id}",
                    _UNEXPECTED,
                )
            if command is self._data:  # one kind is under way, and this is the other
                kinds = ("a data set", "a command set") if command else ("a command set", "a data set")
                raise ProtocolViolation(f"{kinds[0]} is not finished, and {kinds[1]} comes", _UNEXPECTED)
        else:
            self._begin_message(context_id, command)
        if command and len(self._command) + length > MAX_COMMAND_SET_BYTES:
            raise BadCommandSet(f"a command set has more than {MAX_COMMAND_SET_BYTES} bytes")
        self._is_command, self._last = command, last

    def _begin_message(self, context_id: int, command: bool) -> None:
        if context_id not in self.accepted:
            raise ProtocolViolation(f"presentation context {context_id} was not accepted")
        if not command:
            raise ProtocolViolation("a data set comes that no command announced", _UNEXPECTED)
        self._context_id, self._data = context_id, False

    def fragment(self, piece: memoryview, complete: bool, events: list[Event]) -> None:
        """A part of the PDV that ``begin`` was told of; ``complete``: its last part. Raises ``BadCommandSet``."""
        last = self._last and complete
        context_id = self._context_id
        if not self._is_command:
            if last:
                self._context_id, self._data = 0, False
            if last or piece:
                events.append(DataReceived(context_id, piece, last))
            return
        if not last:
            self._command += piece
            return
        command = self._decoded(piece)
        self._data = command.has_data
        if not self._data:
            self._context_id = 0
        events.append(CommandReceived(context_id, command))

    def _decoded(self, piece: memoryview) -> Command:
        """Pending responses are the same command set again and again, so the last one is remembered."""
        if not self._command and self._cached is not None and piece == self._cached_bytes:
            return self._cached
        content = bytes(self._command) + piece
        self._command.clear()
        command = command_set.decode(content)
        if len(content) <= _CACHED_BYTES:
            self._cached_bytes, self._cached = content, command
        return command


class OutgoingMessages:
    """Cuts command and data sets to what the peer can receive, and checks that our messages are in order."""

    __slots__ = ("_context_id", "_fragment_bytes", "_odd", "_queue")

    def __init__(self, queue: deque[bytes | memoryview]) -> None:
        self._queue = queue
        self._fragment_bytes = 0
        self._context_id = 0
        """Where a data set is announced and not finished; 0: nowhere."""
        self._odd = b""

    @property
    def unfinished(self) -> bool:
        """A data set was announced and its last fragment is not sent."""
        return self._context_id != 0

    def set_peer_max_pdu(self, peer_max_pdu: int) -> None:
        """What the peer said; 0 is no limit. Fragments have an even length: an odd one, DCMTK refuses."""
        room = min(peer_max_pdu or MAX_SENT_PDU, MAX_SENT_PDU) - _OVERHEAD_BYTES
        self._fragment_bytes = room - room % 2

    def command(self, context_id: int, command: Command, *, has_data: bool) -> None:
        """Queue a command set. Raises ``NotAllowed`` inside a data set."""
        if self._context_id:
            raise NotAllowed(
                f"{command.name} before the end of the data set in presentation context {self._context_id}"
            )
        content = command_set.encode(command.announcing(has_data))
        self._cut(context_id, COMMAND_FLAG, content, True)
        if has_data:
            self._context_id = context_id

    def data(self, context_id: int, fragment: bytes | memoryview, last: bool) -> None:
        """Queue a piece of the data set. Raises ``NotAllowed`` when the last command announced none there."""
        if not context_id or context_id != self._context_id:
            raise NotAllowed(f"no data set is announced in presentation context {context_id}")
        if self._odd:
            fragment, self._odd = self._odd + fragment, b""
        if not last and len(fragment) % 2:
            fragment, self._odd = fragment[:-1], bytes(fragment[-1:])
        if last or fragment:
            self._cut(context_id, 0, fragment, last)
        if last:
            self._context_id = 0

    def _cut(self, context_id: int, flags: int, content: bytes | memoryview, last: bool) -> None:
        room, total = self._fragment_bytes, len(content)
        if total <= room:
            self._put(context_id, flags | LAST_FLAG * last, content)
            return
        view = memoryview(content)
        for start in range(0, total, room):
            ends = last and start + room >= total
            self._put(context_id, flags | LAST_FLAG * ends, view[start : start + room])

    def _put(self, context_id: int, flags: int, fragment: bytes | memoryview) -> None:
        size = len(fragment)
        self._queue.append(_PDU_WITH_PDV.pack(PduType.P_DATA_TF, size + 6, size + 2, context_id, flags))
        self._queue.append(fragment)


def check_peer_max_pdu(peer_max_pdu: int) -> None:
    """Raises ``ProtocolViolation`` when the peer cannot be served in a reasonable number of PDUs."""
    if 0 < peer_max_pdu < MIN_PEER_MAX_PDU:
        raise ProtocolViolation(f"the peer can receive {peer_max_pdu} bytes in a PDU; {MIN_PEER_MAX_PDU} are needed")
