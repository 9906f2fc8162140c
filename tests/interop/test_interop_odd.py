"""Peers that are odd in ways that users have met; each does one thing wrong, and the rest as the standard says."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from interop_kit import EXPLICIT, MOVE_AET, SCP_AET, Gateway, Sample, identical
from odd_kit import Line, OddNode, call
from twisted.internet.defer import Deferred, gatherResults

from harmonyd.dimse.engine import QueryModel
from harmonyd.dimse.errors import AssociationAborted, NonsenseAnswer
from harmonyd.dimse.native import client, core, names

PENDING = 0xFF00
FIND, GET = names.FIND[QueryModel.STUDY_ROOT], names.GET[QueryModel.STUDY_ROOT]


def of_syntax(samples: list[Sample], uid: str = EXPLICIT) -> list[Sample]:
    return [sample for sample in samples if sample.transfer_syntax_uid == uid]


def in_one_pdu(context_id: int, data: bytes) -> bytes:
    """A whole data set in one P-DATA-TF (PS3.8 section 9.3.5), however large."""
    return struct.pack(">BxIIBB", 4, len(data) + 6, len(data) + 2, context_id, 2) + data


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """In Explicit VR Little Endian."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


# --- C-MOVE without Move Originator


def moves(line: Line, samples: list[Sample], port: int) -> None:
    line.accept(line.requested())
    while True:
        context_id, command = line.command()
        contexts = {sample.sop_class_uid: sample.transfer_syntax_uid for sample in samples}
        delivery = call(port, MOVE_AET, *contexts.items(), calling_aet="MODALITY")
        for number, sample in enumerate(samples, 1):
            context = delivery.association.contexts.find(sample.sop_class_uid)
            assert context is not None
            delivery.send(
                context.id, core.c_store_rq(number, sample.sop_class_uid, sample.sop_instance_uid), sample.data_set
            )
            delivery.command()
        delivery.association.release()
        delivery.flush()
        delivery.sock.close()
        line.respond(context_id, command, completed=len(samples), failed=0, warning=0)


@pytest_twisted.ensureDeferred
async def test_no_move_originator(gateway: Gateway, samples: list[Sample]) -> None:
    """Deliveries that name no move, from an AE title that is not the PACS's: each of two moves gets its own."""
    sent = of_syntax(samples)
    async with OddNode(gateway, lambda line: moves(line, sent, gateway.move_port)) as odd:
        running = [Deferred.fromCoroutine(gateway.move(odd)) for _ in range(2)]
        for moved in await gatherResults(running, consumeErrors=True):
            assert moved.outcome.complete, moved.outcome
            identical(sent, moved.files)


# --- A-ABORT instead of refusing a presentation context


def knows(*abstract_syntaxes: str, then: Callable[[Line], None]) -> Callable[[Line], None]:
    def serve(line: Line) -> None:
        request = line.requested()
        if {context.abstract_syntax for context in request.contexts} - set(abstract_syntaxes):
            line.association.abort()
            line.flush()
            return
        line.accept(request)
        then(line)

    return serve


def answers(line: Line) -> None:
    while True:
        line.respond(*line.command())


@pytest_twisted.ensureDeferred
async def test_aborts_unknown_contexts(gateway: Gateway) -> None:
    """A node that knows two services, and aborts when it is asked for more, is asked for what is needed only."""
    there = OddNode(gateway, knows(names.VERIFICATION, FIND, then=answers))
    async with there as odd:
        assert (await gateway.echo(odd)).status == 0
        assert await gateway.find(odd) == []
        assert there.connections == 3
        assert (await gateway.echo(odd)).status == 0


@pytest_twisted.ensureDeferred
async def test_aborts_no_context_of_a_store(gateway: Gateway, samples: list[Sample]) -> None:
    """A store proposes what its objects need and no more."""
    (sample, *_) = of_syntax(samples)
    async with OddNode(gateway, knows(sample.sop_class_uid, then=answers)) as odd:
        await gateway.store_all(odd, [sample])


@pytest_twisted.ensureDeferred
async def test_aborts_a_context_of_a_store(gateway: Gateway, samples: list[Sample]) -> None:
    """Where that is too much the abort is told."""
    async with OddNode(gateway, knows(names.VERIFICATION, then=answers)) as odd:
        with pytest.raises(AssociationAborted):
            await gateway.store(odd, of_syntax(samples)[:1])


@pytest_twisted.ensureDeferred
async def test_aborts_unknown_contexts_of_a_get(gateway: Gateway, samples: list[Sample]) -> None:
    """A C-GET is asked again for those SOP classes only that the study has."""
    (sample, *_) = of_syntax(samples)

    def serve(line: Line) -> None:
        while True:
            context_id, command = line.command()
            if command.field == core.CommandField.C_FIND_RQ:
                match = (0x0008, 0x0062, b"UI", sample.sop_class_uid.encode())
                line.association.send(context_id, command.response(PENDING), has_data=True)
                line.association.send_data(context_id, element(*match), True)
                line.respond(context_id, command)
                continue
            context = line.association.contexts.find(sample.sop_class_uid, EXPLICIT, requestor_is_scp=True)
            assert context is not None
            request = core.c_store_rq(1, sample.sop_class_uid, sample.sop_instance_uid)
            line.send(context.id, request, sample.data_set)
            assert line.command()[1].status == 0
            line.respond(context_id, command, completed=1, failed=0, warning=0)

    async with OddNode(gateway, knows(FIND, GET, sample.sop_class_uid, then=serve)) as odd:
        got = await gateway.get(odd)
        assert got.outcome.complete, got.outcome
        identical([sample], got.files)


# --- idle associations


def _fin(line: Line) -> None:
    line.sock.shutdown(socket.SHUT_RDWR)


def _reset(line: Line) -> None:
    line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.sock.close()


def _abort(line: Line) -> None:
    line.association.abort()
    line.flush()


def _release(line: Line) -> None:
    line.association.release()
    line.event()


@pytest.mark.parametrize("end", [_fin, _reset, _abort, _release])
@pytest_twisted.ensureDeferred
async def test_closes_idle_associations(gateway: Gateway, end: Callable[[Line], None]) -> None:
    """A node that ends an association right after its answer costs the next operation a new one, and no failure."""

    def serve(line: Line) -> None:
        line.accept(line.requested())
        line.respond(*line.command())
        end(line)

    there = OddNode(gateway, serve)
    async with there as odd:
        for _ in range(5):
            assert (await gateway.echo(odd)).status == 0
        assert there.connections == 5


# --- P-DATA-TF of 16 MiB

HUGE = 16 * 1024 * 1024


def huge(sample: Sample) -> bytes:
    """Its data set, with so much padding (FFFC,FFFC) behind it that it has 16 MiB."""
    data = sample.data_set
    return data + struct.pack("<HH2sxxI", 0xFFFC, 0xFFFC, b"OB", HUGE - len(data) - 12) + bytes(HUGE - len(data) - 12)


@pytest_twisted.ensureDeferred
async def test_huge_pdus_to_our_scp(gateway: Gateway, samples: list[Sample]) -> None:
    """A sender that takes no notice of our maximum length is understood."""
    (sample, *_) = of_syntax(samples)
    data, port = huge(sample), await gateway.receive()

    def send() -> None:
        line = call(port, SCP_AET, (sample.sop_class_uid, EXPLICIT))
        request = core.c_store_rq(1, sample.sop_class_uid, sample.sop_instance_uid)
        line.association.send(1, request, has_data=True)
        line.flush()
        line.raw(in_one_pdu(1, data))
        line.association.send_data(1, b"", True)
        line.association.data_to_send()
        assert line.command()[1].status == 0
        line.association.release()
        line.flush()
        line.sock.close()

    await gateway.in_thread(send)
    (path,) = gateway.taken.files
    assert path.read_bytes().endswith(data)


@pytest_twisted.ensureDeferred
async def test_huge_pdus_in_a_get(gateway: Gateway, samples: list[Sample]) -> None:
    """A PACS that sends a C-GET's object in one PDU of 16 MiB is understood."""
    (sample, *_) = of_syntax(samples)
    data = huge(sample)

    def serve(line: Line) -> None:
        line.accept(line.requested(), max_pdu=HUGE)
        while True:
            context_id, command = line.command()
            if command.field == core.CommandField.C_GET_RQ:
                context = line.association.contexts.find(sample.sop_class_uid, EXPLICIT, requestor_is_scp=True)
                assert context is not None
                request = core.c_store_rq(7, sample.sop_class_uid, sample.sop_instance_uid)
                line.association.send(context.id, request, has_data=True)
                line.flush()
                line.raw(in_one_pdu(context.id, data))
                line.association.send_data(context.id, b"", True)
                line.association.data_to_send()
                assert line.command()[1].status == 0
                line.respond(context_id, command, completed=1, failed=0, warning=0)
            else:
                line.respond(context_id, command)

    async with OddNode(gateway, serve) as odd:
        got = await gateway.get(odd)
        assert got.outcome.complete, got.outcome
        assert got.files[0].read_bytes().endswith(data)


@pytest.mark.parametrize("max_pdu", [HUGE, 0])
@pytest_twisted.ensureDeferred
async def test_asks_for_huge_pdus(gateway: Gateway, samples: list[Sample], max_pdu: int) -> None:
    """A receiver that takes PDUs of 16 MiB, or of any length, gets its objects whole."""
    sent = of_syntax(samples)
    received: list[bytes] = []

    def serve(line: Line) -> None:
        line.accept(line.requested(), max_pdu=max_pdu)
        while True:
            pieces: list[bytes] = []
            event = line.event()
            if isinstance(event, core.ReleaseRequested):
                line.association.respond_release()
                line.flush()
                return
            assert isinstance(event, core.CommandReceived)
            last = False
            while not last:
                piece = line.event()
                assert isinstance(piece, core.DataReceived)
                pieces.append(bytes(piece.fragment))
                last = piece.last
            received.append(b"".join(pieces))
            line.respond(event.context_id, event.command)

    async with OddNode(gateway, serve) as odd:
        await gateway.store_all(odd, sent)
    assert received == [sample.data_set for sample in sent]


# --- out of the negotiated context


def in_another_context(line: Line) -> None:
    line.accept(line.requested())
    answer = line.held_back(*_answer(line))
    answer[10] = 199
    line.raw(bytes(answer))
    line.event()


def _answer(line: Line) -> Any:
    context_id, command = line.command()
    return context_id, command.response(0)


@pytest_twisted.ensureDeferred
async def test_answers_a_store_in_another_context(gateway: Gateway, samples: list[Sample]) -> None:
    """A response in a presentation context that was never proposed ends the association, with an error that says so."""
    async with OddNode(gateway, in_another_context) as odd:
        with pytest.raises(NonsenseAnswer, match="context 199"):
            await gateway.store(odd, of_syntax(samples)[:1])


@pytest_twisted.ensureDeferred
async def test_answers_an_echo_in_another_context(gateway: Gateway) -> None:
    """The same for a service."""
    async with OddNode(gateway, in_another_context) as odd:
        with pytest.raises(NonsenseAnswer, match="context 199"):
            await gateway.echo(odd)


# --- no end


@pytest_twisted.ensureDeferred
async def test_does_not_answer_a_release(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that never answers an A-RELEASE-RQ is aborted after a while; the operation has its result before."""
    monkeypatch.setattr(client, "_RELEASE_SECS", 0.2)

    def serve(line: Line) -> None:
        line.accept(line.requested())
        line.respond(*line.command())
        while True:
            line.event()

    async with OddNode(gateway, serve) as odd:
        assert (await gateway.echo(replace(odd, idle_secs=0.0))).status == 0


@pytest_twisted.ensureDeferred
async def test_never_releases(gateway: Gateway, samples: list[Sample]) -> None:
    """A sender that keeps its association open for ever is cut off when it was silent too long; its object stays."""
    (sample, *_) = of_syntax(samples)
    port = await gateway.receive(association_timeout_secs=0.3)

    def send() -> bytes:
        line = call(port, SCP_AET, (sample.sop_class_uid, EXPLICIT))
        line.send(1, core.c_store_rq(1, sample.sop_class_uid, sample.sop_instance_uid), sample.data_set)
        assert line.command()[1].status == 0
        with line.sock:
            return line.sock.recv(100)

    assert (await gateway.in_thread(send))[:1] == b"\x07"
    identical([sample], gateway.taken.files)
