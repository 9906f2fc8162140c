"""Whatever a peer sends, in whatever portions: no exception, bounded memory, the same events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from any_input_kit import MAKERS, hear, single_bytes, waiting_requestor
from hypothesis import given, settings
from hypothesis import strategies as st
from make_captures import read_capture
from native_kit import Pair
from native_strategies import accepts, requests

from harmonyd.dimse.native.core import (
    Answer,
    AssociateAccept,
    AssociateRequest,
    Association,
    DataReceived,
    pdu,
)

CAPTURES = Path(__file__).parent.parent / "captures"
SETTINGS = settings(max_examples=200, deadline=None)
NAMES = ("echo", "find", "find_cancelled", "get", "move_refused", "store", "store_user", "echo_aborted")


def _stream(name: str, way: bytes) -> bytes:
    return b"".join(data for each, data in read_capture(CAPTURES / f"{name}.capture") if each == way)


def _first_and_rest(stream: bytes) -> tuple[bytes, bytes]:
    end = 6 + int.from_bytes(stream[2:6], "big")
    return stream[:end], stream[end:]


SCU_SIDE = {name: _first_and_rest(_stream(name, b">")) for name in NAMES}
SCP_SIDE = {name: _first_and_rest(_stream(name, b"<")) for name in NAMES}


def _acceptor(name: str) -> Association:
    """Established as in the capture."""
    association = Association.acceptor(16384)
    association.receive(SCU_SIDE[name][0])
    accept = pdu.decode(2, SCP_SIDE[name][0][6:])
    assert isinstance(accept, AssociateAccept)
    association.accept(Answer(accept.contexts, accept.user_information.roles))
    return association


def _requestor(name: str) -> Association:
    """Established as in the capture."""
    asked = pdu.decode(1, SCU_SIDE[name][0][6:])
    assert isinstance(asked, AssociateRequest)
    association = Association.requestor(asked)
    association.connected()
    association.receive(SCP_SIDE[name][0])
    return association


def _portions(draw: Callable[[st.SearchStrategy[list[int]]], list[int]], content: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=12)))
    return [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The same with some bytes changed, and some parts missing, repeated or put elsewhere."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["byte", "cut", "again", "insert", "header"]))
        at = draw(st.integers(0, max(len(changed) - 1, 0)))
        end = at + draw(st.integers(1, 40))
        if kind == "byte" and changed:
            changed[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del changed[at:end]
        elif kind == "again":
            changed[at:at] = changed[at:end]
        elif kind == "insert":
            changed[at:at] = draw(st.binary(max_size=30))
        else:
            changed[at:at] = draw(HEADERS)
    return bytes(changed)


HEADERS = st.builds(
    lambda kind, length: bytes((kind, 0)) + length.to_bytes(4, "big"),
    st.integers(0, 9),
    st.sampled_from([0, 1, 4, 5, 6, 7, 8, 100, 2**16, 2**24, 2**32 - 1]),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(MAKERS)), st.lists(st.binary(max_size=40) | HEADERS, max_size=8).map(b"".join), st.data())
def test_any_bytes_in_any_state(maker: str, content: bytes, data: st.DataObject) -> None:
    """Bytes without meaning end the association, and never more than that; how they are cut changes nothing."""
    whole = hear(MAKERS[maker](), [content])
    assert hear(MAKERS[maker](), _portions(data.draw, content)) == whole
    assert hear(MAKERS[maker](), single_bytes(content)) == whole


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_a_damaged_conversation(name: str, data: st.DataObject) -> None:
    """What DCMTK said, damaged: told to the acceptor and to the requestor, in one portion and in several."""
    for make, sides in ((_acceptor, SCU_SIDE), (_requestor, SCP_SIDE)):
        content = data.draw(damaged(sides[name][1]))
        whole = hear(make(name), [content])
        assert hear(make(name), _portions(data.draw, content)) == whole


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_byte_by_byte(name: str) -> None:
    """The undamaged one, in the smallest portions there are."""
    for make, sides in ((_acceptor, SCU_SIDE), (_requestor, SCP_SIDE)):
        content = sides[name][1]
        assert hear(make(name), single_bytes(content)) == hear(make(name), [content])


@SETTINGS
@given(st.data(), requests())
def test_a_damaged_request(data: st.DataObject, asked: AssociateRequest) -> None:
    """An A-ASSOCIATE-RQ of any kind, damaged."""
    content = data.draw(damaged(asked.encode()))
    whole = hear(Association.acceptor(16384), [content])
    assert hear(Association.acceptor(16384), _portions(data.draw, content)) == whole


@SETTINGS
@given(st.data(), accepts())
def test_a_damaged_accept(data: st.DataObject, accept: AssociateAccept) -> None:
    """An A-ASSOCIATE-AC of any kind, that need not fit the request, damaged."""
    content = data.draw(damaged(accept.encode()))
    whole = hear(waiting_requestor(), [content])
    assert hear(waiting_requestor(), _portions(data.draw, content)) == whole


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_will_do(kind: Callable[[bytes], bytes]) -> None:
    """What is received may be bytes, a bytearray, or a view."""
    assert _acceptor("store").receive(kind(SCU_SIDE["store"][1])) == _acceptor("store").receive(SCU_SIDE["store"][1])


def test_a_buffer_is_let_go() -> None:
    """Nothing but the pieces of a data set refers to what was received: then its buffer can be changed."""
    association = _acceptor("echo")
    whole = SCU_SIDE["echo"][1]
    for content in (whole[:3], whole[3:40], whole[40:], b"nonsense"):
        buffer = bytearray(content)
        association.receive(buffer)
        buffer += b"more"  # BufferError while a view of it exists


def test_a_big_data_set_is_never_kept() -> None:
    """Of a message of 64 MiB in PDUs of 16 MiB nothing is held between two portions."""
    pair = Pair.established()
    name_command = SCU_SIDE["store"][1]
    command_end = 6 + int.from_bytes(name_command[2:6], "big")
    command = bytearray(name_command[:command_end])
    command[10] = 3
    assert len(pair.scp.receive(bytes(command))) == 1
    portion = bytes(65536)
    for _ in range(4):
        length = 16 * 1024 * 1024
        pair.scp.receive(b"\x04\0" + (length + 6).to_bytes(4, "big") + (length + 2).to_bytes(4, "big") + b"\x03\0")
        for _ in range(length // len(portion)):
            (event,) = pair.scp.receive(portion)
            assert isinstance(event, DataReceived) and len(event.fragment) == len(portion)
            assert pair.scp.held_bytes == 0
    assert pair.scp.oversized_pdus == 4
