"""Any order of operations, answers, ends and times: no permit, association or timer is lost, no limit exceeded."""

from __future__ import annotations

import random
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from any_order_kit import RECEIVER, Deliverer
from fake_net import FakeNet, Link
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scu_kit import query, read
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from harmonyd.dimse.associate import Rejection
from harmonyd.dimse.engine import OperationContext, QueryLevel, RemoteNode
from harmonyd.dimse.errors import DimseError, NoPresentationContext
from harmonyd.dimse.native import core, find, get, names, store
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.move import move
from harmonyd.dimse.native.pool import AssociationPool
from harmonyd.dimse.part10 import read_header
from harmonyd.dimse.waiting import AssociationSlots
from harmonyd.errors import DeadlinePassed, Unavailable
from harmonyd.testing.data import make_study

ENDS = (DimseError, DeadlinePassed, Unavailable, CancelledError)
LIMITS = (1, 3)
PORTS = (11112, 11113)


@dataclass
class Running:
    """An operation, and what became of it."""

    name: str
    done: Deferred[Any]
    result: Any = None
    is_over: bool = False
    is_cancelled: bool = False

    def __post_init__(self) -> None:
        self.done.addBoth(self._over)

    def _over(self, result: Any) -> None:
        self.result, self.is_over = result, True


class Operations(RuleBasedStateMachine):
    """Two nodes with a limit of 1 and 3."""

    @initialize(idle_secs=st.sampled_from([0.0, 1.0, 5.0]), seed=st.integers(0, 1 << 32))
    def begin(self, idle_secs: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = tempfile.TemporaryDirectory(prefix="any-order-")
        root = Path(self.folder.name)
        self.study = make_study(root / "study", 3, size=300)
        self.files = self.study.files
        self.net = FakeNet()
        self.pool = AssociationPool(self.net)
        self.means = Means(self.net, self.pool, root / "storage")
        self.means.storage.mkdir()
        self.nodes = [
            RemoteNode(f"n{port}", "PEER", host, port, "US", 5.0, 20.0, 16384, limit, idle_secs)
            for host, port, limit in zip(("10.0.0.1", "pacs.example"), PORTS, LIMITS, strict=True)
        ]
        self.slots = [AssociationSlots(self.net, node.name, node.max_associations, 5) for node in self.nodes]
        self.moving = Means(self.net, self.pool, root / "moves")
        self.moving.storage.mkdir()
        self.deliverer = Deliverer(self.net, self.moving, self.files, self.random)
        self.operations: list[Running] = []

    # --- ours

    @rule(
        node=st.sampled_from([0, 1, 1]),
        kind=st.sampled_from(["echo", "find", "get", "move", "store"]),
        secs=st.sampled_from([0.0, 3.0, 60.0, 600.0]),
        take=st.sampled_from([None, None, 0, 1]),
    )
    def start(self, node: int, kind: str, secs: float, take: int | None) -> None:
        op = OperationContext(uuid.uuid4().hex, "test", self.net.seconds() + secs, 2, slots=self.slots[node])
        remote = self.nodes[node]
        if kind == "echo":
            running = Deferred.fromCoroutine(find.echo(self.means, remote, op))
        else:
            asked = query(QueryLevel.SERIES, StudyInstanceUID=self.study.study_uid, SeriesInstanceUID="")
            stream: Any = {
                "find": lambda: find.find(self.means, remote, asked, op),
                "get": lambda: get.get(self.means, remote, asked, op),
                "move": lambda: move(self.moving, self.deliverer.ports, remote, RECEIVER, asked, op),
                "store": lambda: store.store(self.means, remote, self.files, op),
            }[kind]()
            running = Deferred.fromCoroutine(read(stream, take=take))
        self.operations.append(Running(kind, running))
        self.net.settle()

    @precondition(lambda self: any(not each.is_over for each in self.operations))
    @rule()
    def cancel(self) -> None:
        operation = self.random.choice([each for each in self.operations if not each.is_over])
        operation.is_cancelled = True
        operation.done.cancel()
        self.net.settle()

    @rule(secs=st.sampled_from([0.05, 0.6, 1.5, 4.0, 25.0]))
    def time_passes(self, secs: float) -> None:
        self.net.pump([secs / 10] * 10)
        self.net.settle()

    # --- the nodes

    def _pick(self, state: core.State, event: type[Any] | None = None) -> Link | None:
        links = [link for link in self.net.open_links if link.peer.state is state]
        links = [link for link in links if event is None or any(isinstance(each, event) for each in link.heard)]
        return self.random.choice(links) if links else None

    @rule(connects=st.booleans())
    def network(self, connects: bool) -> None:
        """From now on connections are made at once, or wait."""
        self.net.is_quiet = connects
        waiting = [each for each in self.net.connectors if not each.is_over]
        for connector in waiting:
            if connects:
                connector.succeed()
        self.net.settle()

    @rule()
    def refuse(self) -> None:
        for connector in [each for each in self.net.connectors if not each.is_over][:1]:
            connector.refuse()
        self.net.settle()

    @rule(everything=st.booleans(), deaf=st.sampled_from([False, False, True]))
    def accept(self, everything: bool, deaf: bool) -> None:
        """And read nothing more, where they are ``deaf``."""
        while (link := self._pick(core.State.STA3)) is not None:
            link.accept()
            link.is_peer_reading = not deaf
            self.net.settle()
            if not everything:
                return

    @rule()
    def reject(self) -> None:
        if (link := self._pick(core.State.STA3)) is not None:
            link.peer.reject(Rejection.LOCAL_LIMIT_EXCEEDED)
            link.say()
            self.net.settle()

    @rule(
        status=st.sampled_from([0x0000, 0x0000, 0xFF00, 0xA700, 0xFE00]),
        count=st.integers(1, 4),
        wrong=st.sampled_from([0, 0, 0, 0, 1]),
    )
    def respond(self, status: int, count: int, wrong: int) -> None:
        """Answer the last requests that were heard."""
        for _ in range(count):
            link = self._pick(core.State.STA6, core.CommandReceived)
            if link is None:
                return
            commands = [each for each in link.heard if isinstance(each, core.CommandReceived)]
            context_id, command = commands[-1].context_id, commands[-1].command
            if command.is_response or command.message_id is None:
                continue
            self._answer(link, context_id, command, status, wrong)
            self.net.settle()

    def _answer(self, link: Link, context_id: int, command: core.Command, status: int, wrong: int) -> None:
        is_find = command.field == core.CommandField.C_FIND_RQ
        if command.field in (core.CommandField.C_ECHO_RQ, core.CommandField.C_STORE_RQ) and status == 0xFF00:
            status = 0
        response = command.response(status)
        if wrong:
            response = core.Command(response.field, message_id_being_responded_to=999, status=status)
        has_data = is_find and status == 0xFF00
        link.peer.send(context_id, response, has_data=has_data)
        if has_data:
            context = link.peer.contexts.get(context_id)
            assert context is not None
            explicit = context.transfer_syntax == names.EXPLICIT_VR_LE
            vr = b"UI\x06\x00" if explicit else b"\x06\x00\x00\x00"
            link.peer.send_data(context_id, b"\x08\x00\x16\x00" + vr + b"1.2.3\0", True)
        if status != 0xFF00:
            link.heard.clear()
        link.say()

    @rule(steps=st.integers(1, 6))
    def behave(self, steps: int) -> None:
        """Every node does what is right: accepts, answers, delivers, lets go."""
        for _ in range(steps):
            for link in self.net.open_links:
                self._behave(link)
            self.net.settle()

    def _behave(self, link: Link) -> None:
        link.read_on()
        self.net.settle()
        if link.peer.state is core.State.STA3:
            link.accept()
        elif link.peer.state is core.State.STA8:
            link.peer.respond_release()
            link.say()
        elif self._asked(link):
            asked = next(each for each in link.heard if isinstance(each, core.CommandReceived))
            if asked.command.field == core.CommandField.C_GET_RQ and self.random.random() < 0.7:
                self._deliver(link, "whole")
            elif asked.command.field == core.CommandField.C_MOVE_RQ and self.random.random() < 0.7:
                self.deliverer.begin("named")
                self.deliverer.finish()
            elif not asked.command.is_response:
                pending = asked.command.field == core.CommandField.C_FIND_RQ and self.random.random() < 0.5
                self._answer(link, asked.context_id, asked.command, 0xFF00 if pending else 0, 0)

    @rule(what=st.sampled_from(["whole", "whole", "damaged", "unasked", "cut"]))
    def deliver(self, what: str) -> None:
        """A C-STORE sub-operation, where a C-GET is under way."""
        links = [link for link in self.net.open_links if self._asked(link) == core.CommandField.C_GET_RQ]
        if links:
            self._deliver(self.random.choice(links), what)

    def _deliver(self, link: Link, what: str) -> None:
        context = link.peer.contexts.find(names.COMMON_STORAGE[0], names.EXPLICIT_VR_LE, requestor_is_scp=True)
        if context is None:  # a peer that did not grant the role
            return
        number = self.random.randrange(len(self.files))
        data = self.files[number].read_bytes()[read_header(self.files[number]).data_set_at :]
        uid = self.study.sop_uids[number] if what != "unasked" else "1.2.3.4"
        link.peer.send(context.id, core.c_store_rq(7, names.COMMON_STORAGE[0], uid), has_data=True)
        link.peer.send_data(context.id, data if what != "damaged" else data[:-3], what != "cut")
        link.say()
        self.net.settle()
        if what == "cut":
            link.peer.abort()
            link.say()
            self.net.settle()

    def _asked(self, link: Link) -> int:
        """The request that a peer is at, if any."""
        requests = [each.command for each in link.heard if isinstance(each, core.CommandReceived)]
        is_free = link.peer.state is core.State.STA6 and not link.peer.sending
        return requests[0].field if requests and is_free else 0

    @rule(what=st.sampled_from(["named", "named", "of another move", "nameless", "unasked"]))
    def begin_delivery(self, what: str) -> None:
        """A C-STORE at our own port, perhaps of a C-MOVE that is under way."""
        self.deliverer.begin(what)

    @rule()
    def finish_deliveries(self) -> None:
        self.deliverer.finish()

    @rule(how=st.sampled_from(["release", "abort", "drop", "deaf", "listens"]))
    def end(self, how: str) -> None:
        links = self.net.open_links
        if not links:
            return
        link = self.random.choice(links)
        if how == "drop":
            link.drop()
        elif how == "deaf":
            link.is_peer_reading = False
        elif how == "listens":
            link.read_on()
        elif how == "abort":
            link.peer.abort()
            link.say()
        elif link.peer.state is core.State.STA6 and not link.peer.sending:
            link.peer.release()
            link.say()
        self.net.settle()

    @rule()
    def peers_release(self) -> None:
        """Every node answers a release that it has heard."""
        while (link := self._pick(core.State.STA8)) is not None:
            link.peer.respond_release()
            link.say()
            self.net.settle()

    # --- what holds

    @invariant()
    def limits_hold(self) -> None:
        if not hasattr(self, "nodes"):
            return
        for node in self.nodes:
            links = [link for link in self.net.open_links if link.port == node.port]
            connecting = [each for each in self.net.connectors if not each.is_over and each.port == node.port]
            count = self.pool.open_count(node)
            assert len(links) + len(connecting) <= count <= node.max_associations
            # Twisted waits for the time of a second address before it says that the only one failed.
            assert node.host == "pacs.example" or count == len(links) + len(connecting)
            assert self.pool.idle_count(node) <= len(links)

    @invariant()
    def ends_are_of_the_known_kinds(self) -> None:
        for operation in getattr(self, "operations", []):
            if isinstance(operation.result, Failure):
                assert isinstance(operation.result.value, ENDS), operation.result.getTraceback()
                assert operation.is_cancelled or not operation.result.check(CancelledError)

    @invariant()
    def nobody_holds_what_nobody_uses(self) -> None:
        for node, slots in zip(getattr(self, "nodes", []), getattr(self, "slots", []), strict=True):
            running = sum(not each.is_over for each in self.operations)
            assert slots._semaphore.tokens >= node.max_associations - running

    @invariant()
    def what_was_received_is_somewhere(self) -> None:
        if hasattr(self, "deliverer"):
            assert self.deliverer.kept_count == self.deliverer.file_count()

    def teardown(self) -> None:
        if not hasattr(self, "net"):
            return
        self.deliverer.finish()
        closing = Deferred.fromCoroutine(self.pool.close())
        self.net.settle()
        for _ in range(60):
            self.net.advance(0.5)
            self.net.settle()
        assert closing.called and not isinstance(closing.result, Failure), closing
        assert all(each.is_over for each in self.operations), [each for each in self.operations if not each.is_over]
        self.ends_are_of_the_known_kinds()
        assert [slots._semaphore.tokens for slots in self.slots] == list(LIMITS)
        assert not self.net.open_links
        self.what_was_received_is_somewhere()
        self.deliverer.assert_unused()
        assert not self.net.getDelayedCalls(), self.net.getDelayedCalls()
        self.folder.cleanup()


Operations.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestOperations = Operations.TestCase


def test_kinds() -> None:
    """What an operation may end with when a node refuses is among what is allowed above."""
    assert issubclass(NoPresentationContext, ENDS)
