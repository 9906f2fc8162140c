"""Whatever bytes, in whatever portions, in every state of an association."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from native_kit import Pair, request

from harmonyd.dimse.native.core import Aborted, Association, ConnectionLost, DataReceived, Event, Rejected, Released
from harmonyd.dimse.native.core.command_set import MAX_COMMAND_SET_BYTES
from harmonyd.dimse.native.core.pdu import MAX_ASSOCIATE_BYTES

ENDS = (Rejected, Released, Aborted, ConnectionLost)
MAX_HELD = MAX_COMMAND_SET_BYTES + MAX_ASSOCIATE_BYTES


def waiting_requestor() -> Association:
    """One that has sent its request."""
    association = Association.requestor(request())
    association.connected()
    return association


MAKERS: dict[str, Callable[[], Association]] = {
    "unconnected requestor": lambda: Association.requestor(request()),
    "waiting acceptor": lambda: Association.acceptor(16384),
    "waiting requestor": waiting_requestor,
    "acceptor": lambda: Pair.established().scp,
    "requestor": lambda: Pair.established().scu,
}


def hear(association: Association, portions: Iterator[bytes] | list[bytes]) -> list[Event]:
    """What comes of it, with the bounds checked after each portion, and after the end of the connection."""
    events: list[Event] = []
    for portion in portions:
        events += association.receive(portion)
        assert association.held_bytes <= MAX_HELD
    events += association.receive_eof()
    assert len(association.data_to_send()) < MAX_ASSOCIATE_BYTES
    ends = [index for index, event in enumerate(events) if isinstance(event, ENDS)]
    assert ends in ([], [len(events) - 1])
    assert association.receive(b"\x07\0\0\0\0\4\0\0\0\0") == [] and association.receive_eof() == []
    return [*joined(events)]


def joined(events: list[Event]) -> Iterator[Event]:
    """Neighbouring pieces of one data set put together."""
    held: DataReceived | None = None
    for event in events:
        if not isinstance(event, DataReceived):
            if held is not None:
                yield held
                held = None
            yield event
            continue
        before = b"" if held is None else held.fragment
        held = DataReceived(event.context_id, bytes(before) + event.fragment, event.last)
        if event.last:
            yield held
            held = None
    if held is not None:
        yield held


def single_bytes(content: bytes) -> list[bytes]:
    """The smallest portions there are."""
    return [content[at : at + 1] for at in range(len(content))]
