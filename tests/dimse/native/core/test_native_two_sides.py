"""Two associations with a network between them that delivers late and in any portions, and drivers that do anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_kit import CT_IMAGE, ECHO_ID, STORE_ID, SUPPORTED, Pair, request

from harmonyd.dimse.native.core import (
    Aborted,
    Accepted,
    Association,
    CommandReceived,
    ConnectionLost,
    DataReceived,
    Event,
    NotAllowed,
    Rejected,
    Rejection,
    Released,
    ReleaseRequested,
    Requested,
    State,
    c_echo_rq,
    c_store_rq,
    negotiate,
)
from harmonyd.dimse.native.core.reasons import rejection_text

ENDS = (Rejected, Released, Aborted, ConnectionLost)


class Side:
    """A driver that does as it is told, and keeps what it sent and got."""

    def __init__(self, association: Association) -> None:
        self.association = association
        self.in_flight = bytearray()
        """Written by this side, not delivered to the other."""
        self.closed = False
        self.eof_told = False
        self.events: list[Event] = []
        self.sent: list[bytes] = []
        self.answers = True
        """At once, rather than when it is told to."""
        self._next_message_id = 1

    def flush(self) -> None:
        """Write what is to be written; close when that is due, as the simplest driver does."""
        if not self.closed:
            self.in_flight += self.association.data_to_send()
            self.closed = self.association.closing

    def hear(self, events: list[Event]) -> None:
        """React to what must be reacted to."""
        self.events += events
        for event in events:
            if isinstance(event, Requested) and self.answers:
                self._try(self.answer)
            elif isinstance(event, ReleaseRequested) and self.answers:
                self._try(self.association.respond_release)
        self.flush()

    def answer(self) -> None:
        asked = self.association.request or request()
        self.association.accept(negotiate(asked.contexts, SUPPORTED.get))

    def store(self, content: bytes, piece: int) -> None:
        """Send a whole message."""
        self.association.send(STORE_ID, c_store_rq(self._next_message_id, CT_IMAGE, "1.2.3"), has_data=True)
        self._next_message_id += 1
        for start in range(0, len(content), piece):
            self.association.send_data(STORE_ID, content[start : start + piece], False)
        self.association.send_data(STORE_ID, b"", True)
        self.sent.append(content)

    def do(self, name: str, content: bytes, piece: int) -> None:
        """One action of the driver, if it is allowed."""
        actions: dict[str, Callable[[], None]] = {
            "echo": lambda: self.association.send(ECHO_ID, c_echo_rq(1)),
            "store": lambda: self.store(content, piece),
            "release": self.association.release,
            "accept": self.answer,
            "respond": self.association.respond_release,
            "abort": self.association.abort,
            "reject": lambda: self.association.reject(Rejection.TEMPORARY_CONGESTION),
        }
        self._try(actions[name])
        self.flush()

    def _try(self, action: Callable[[], None]) -> None:
        before = self.association.state
        try:
            action()
        except NotAllowed:
            assert self.association.state is before

    def got(self) -> tuple[list[bytes], bytes]:
        """The data sets that came whole, and the beginning of one that did not."""
        whole, held = [], b""
        for event in self.events:
            if isinstance(event, DataReceived):
                held += event.fragment
                if event.last:
                    whole.append(held)
                    held = b""
        return whole, held


class Network:
    """An established, or not yet established, association between two sides."""

    def __init__(self) -> None:
        self.scu = Side(Association.requestor(request(128)))
        self.scp = Side(Association.acceptor(100))
        self.scu.association.connected()
        self.scu.flush()

    def deliver(self, source: Side, target: Side, most: int) -> bool:
        """Some bytes, or the end of the connection when that is next; false when there was nothing."""
        portion = bytes(source.in_flight[:most])
        del source.in_flight[:most]
        if portion:
            target.hear(target.association.receive(portion))
        elif source.closed and not target.eof_told:
            target.eof_told = True
            target.hear(target.association.receive_eof())
            target.closed = True
        else:
            return False
        return True

    def settle(self) -> None:
        """Deliver all, both ways."""
        while self.deliver(self.scu, self.scp, 1000) or self.deliver(self.scp, self.scu, 1000):
            pass


USUAL = ["echo", "store", "store", "release", "respond", *["deliver"] * 5]
ANY = [*USUAL, "abort", "accept", "reject"]


def _actions(names: list[str]) -> st.SearchStrategy[list[tuple[str, bool, bytes, int]]]:
    one = st.tuples(st.sampled_from(names), st.booleans(), st.binary(max_size=300), st.integers(1, 1000))
    return st.lists(one, max_size=25)


@settings(max_examples=500, deadline=None)
@given(_actions(USUAL) | _actions(ANY), st.booleans(), st.booleans())
def test_whatever_the_drivers_do(actions: list[tuple[str, bool, bytes, int]], prompt: bool, established: bool) -> None:
    """Neither side ever accuses the other of a violation, what arrives is what was sent, and an end is told once."""
    network = Network()
    if established:
        network.settle()
    network.scp.answers = network.scu.answers = prompt
    for name, by_scu, content, number in actions:
        side, other = (network.scu, network.scp) if by_scu else (network.scp, network.scu)
        if name == "deliver":
            network.deliver(side, other, number)
        else:
            side.do(name, content, number)
    network.settle()
    for name in ("accept", "respond"):
        for side in (network.scu, network.scp):
            side.do(name, b"", 1)
        network.settle()
    for side, other in ((network.scu, network.scp), (network.scp, network.scu)):
        ends = [event for event in side.events if isinstance(event, ENDS)]
        assert len(ends) <= 1 and (not ends or side.events[-1] is ends[0])
        assert all(event.by_peer for event in ends if isinstance(event, Aborted))
        whole, begun = other.got()
        assert whole == side.sent[: len(whole)]
        assert not begun or side.sent[len(whole)].startswith(begun)
        assert side.association.closing is side.closed


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.booleans())
def test_an_abort_at_any_point(after: int, by_scu: bool) -> None:
    """Whenever one side aborts, the other learns it, as an abort or as a lost connection, and both are at their end."""
    network = Network()
    network.settle()
    network.scu.store(b"x" * 500, 50)
    network.scp.do("echo", b"", 1)
    network.scu.flush()
    network.deliver(network.scu, network.scp, after)
    side, other = (network.scu, network.scp) if by_scu else (network.scp, network.scu)
    side.association.abort()
    side.flush()
    network.settle()
    assert isinstance(other.events[-1], (Aborted, ConnectionLost))
    assert side.association.closing and other.association.closing
    assert not any(isinstance(event, ENDS) for event in side.events)


def test_both_ask_for_release_with_messages_under_way() -> None:
    """A collision after a message that is still on its way: the message arrives (AR-6), then both are released."""
    network = Network()
    network.settle()
    network.scu.store(b"y" * 300, 300)
    network.scu.association.release()
    network.scp.association.release()
    network.scu.flush()
    network.scp.flush()
    network.settle()
    assert network.scp.got() == ([b"y" * 300], b"")
    assert network.scu.events[-1] == network.scp.events[-1] == Released()
    assert network.scu.association.state is network.scp.association.state is State.STA1


def test_a_response_may_follow_the_peers_wish_for_release() -> None:
    """After A-RELEASE-RQ the other side may still send (AR-7), and the one that asked still hears it (AR-6)."""
    pair = Pair.established()
    pair.scu.send(ECHO_ID, c_echo_rq(1))
    pair.scu.release()
    command, wish = pair.to_scp()
    assert isinstance(command, CommandReceived) and wish == ReleaseRequested()
    pair.scp.send(ECHO_ID, command.command.response(0))
    pair.scp.respond_release()
    answer, released = pair.to_scu()
    assert isinstance(answer, CommandReceived) and released == Released()


def test_an_acceptor_that_gets_no_request_closes_after_its_artim_time() -> None:
    """ARTIM runs from the connection to the request, and from a rejection or release response to the end."""
    acceptor = Association.acceptor(16384)
    assert acceptor.artim and not acceptor.closing
    acceptor.artim_expired()
    assert acceptor.closing and not acceptor.artim and acceptor.data_to_send() == b""
    pair = Pair()
    pair.scp_event()
    assert not pair.scp.artim
    pair.scp.artim_expired()
    pair.scp.reject(Rejection.LOCAL_LIMIT_EXCEEDED)
    assert pair.scp.artim and pair.scp.closing
    pair.scp.artim_expired()
    assert not pair.scp.artim and pair.scp.closing


@pytest.mark.parametrize(
    ("changes", "rejection"),
    [
        ({"protocol_version": 2}, Rejection.PROTOCOL_VERSION_NOT_SUPPORTED),
        ({"application_context": "1.2.3"}, Rejection.APPLICATION_CONTEXT_NAME_NOT_SUPPORTED),
    ],
)
def test_what_nobody_supports_is_rejected_without_asking(changes: dict[str, object], rejection: Rejection) -> None:
    """The service provider itself rejects another protocol version or application context (AE-6)."""
    asked = request()
    values = {name: getattr(asked, name) for name in type(asked).__slots__}
    acceptor = Association.acceptor(16384)
    (event,) = acceptor.receive(type(asked)(**(values | changes)).encode())
    assert event == Rejected(*rejection.value, rejection_text(*rejection.value), by_peer=False)
    assert acceptor.data_to_send() == rejection.pdu()
    assert acceptor.closing and acceptor.artim


def test_a_connection_that_cannot_be_made() -> None:
    """The driver tells it as the end of the connection."""
    requestor = Association.requestor(request())
    assert requestor.receive(b"\x07\0\0\0\0\4\0\0\0\0") == []
    assert requestor.receive_eof() == [ConnectionLost()]
    assert requestor.closing and requestor.receive_eof() == []


def test_an_abort_is_always_allowed() -> None:
    """In every state, and twice; what was not written yet is dropped for it."""
    for make in (lambda: Association.requestor(request()), lambda: Association.acceptor(1000), lambda: Pair().scu):
        association = make()
        association.abort()
        association.abort()
        assert association.closing
    pair = Pair.established()
    pair.scu.send(ECHO_ID, c_echo_rq(1))
    pair.scu.abort()
    (event,) = pair.to_scp()
    assert event == Aborted(0, 0, "aborted by the peer", by_peer=True)


def test_an_accept_has_an_answer_to_each_context() -> None:
    """A context without an answer, or an answer without a context, is our mistake."""
    pair = Pair()
    pair.scp_event()
    asked = pair.scp.request
    assert asked is not None
    for contexts in (asked.contexts[:1], ()):
        with pytest.raises(NotAllowed, match="each proposed"):
            pair.scp.accept(negotiate(contexts, SUPPORTED.get))
    pair.accept()
    assert isinstance(pair.scu_event(), Accepted)
    assert pair.scu.contexts == pair.scp.contexts
