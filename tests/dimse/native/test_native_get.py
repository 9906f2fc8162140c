"""C-GET as an SCU: a mixed study arrives whole and as it is, and a node may do what it likes meanwhile."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
import pytest_twisted
from pynetdicom import AE, evt
from raw_scp import Raw
from scu_kit import Scu, query, read
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from harmonyd.dimse.engine import Instance, Match, Query, QueryLevel
from harmonyd.dimse.errors import (
    AssociationAborted,
    AssociationRejected,
    EngineFailed,
    NonsenseAnswer,
    RemoteUnreachable,
)
from harmonyd.dimse.native import classes, core, get, names, object_file
from harmonyd.dimse.part10 import read_header
from harmonyd.dimse.streams import ItemStream
from harmonyd.errors import DeadlinePassed, StorageFull
from harmonyd.testing.data import MadeStudy, shipped_folder
from harmonyd.testing.processes import free_port

STUDY_ROOT_GET = next(uid for model, uid in names.GET.items() if model.value == "study")
CT = "1.2.840.10008.5.1.4.1.1.2"
MIXED = ["CT_small.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small.dcm",
         "JPEG-lossy.dcm", "MR_small_jpeg_ls_lossless.dcm", "image_dfl.dcm", "reportsi.dcm"]  # fmt: skip


def of_study(study_uid: str) -> Query:
    return query(StudyInstanceUID=study_uid)


@pytest.fixture
def mixed(tmp_path: Path, quiet_pydicom: None) -> list[Path]:
    """A study of many transfer syntaxes, several of them of one SOP class; with the study's UID in each."""
    files = []
    for number, name in enumerate(MIXED):
        ds = pydicom.dcmread(shipped_folder() / name)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", f"1.2.3.{number}"
        ds.SOPInstanceUID = f"1.2.3.4.{number}"
        files.append(tmp_path / f"mixed-{number}.dcm")
        ds.save_as(files[-1])
    return files


class Node:
    """A node of pynetdicom's that answers C-FIND and C-GET with these files, each in its own transfer syntax."""

    aet = "GETTER"

    def __init__(self, files: Sequence[Path], *, finds: bool = True) -> None:
        self.datasets = [pydicom.dcmread(path) for path in files]
        self.cancelled = threading.Event()
        self.asked: list[str] = []
        node: Any = AE(self.aet)
        for uid in [STUDY_ROOT_GET, *(list(names.FIND.values()) if finds else [])]:
            node.add_supported_context(uid)
        for uid in dict.fromkeys(str(ds.SOPClassUID) for ds in self.datasets):
            syntaxes = dict.fromkeys(str(ds.file_meta.TransferSyntaxUID) for ds in self.datasets)
            node.add_supported_context(uid, list(syntaxes), scu_role=True, scp_role=True)
        handlers: list[Any] = [(evt.EVT_C_GET, self._get), (evt.EVT_C_FIND, self._find)]
        self._server = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]

    def _find(self, event: Any) -> Iterator[tuple[int, Any]]:
        asked = event.identifier
        self.asked.append(asked.QueryRetrieveLevel)
        for ds in self.datasets:
            answer = pydicom.Dataset()
            for element in asked:
                if element.tag in ds:
                    answer.add(ds[element.tag])
            answer.QueryRetrieveLevel = asked.QueryRetrieveLevel
            if asked.get("SeriesInstanceUID") in ("", None, ds.SeriesInstanceUID):
                yield 0xFF00, answer

    def _get(self, event: Any) -> Iterator[Any]:
        yield len(self.datasets)
        for ds in self.datasets:
            if event.is_cancelled:
                self.cancelled.set()
                yield 0xFE00, None
                return
            yield 0xFF00, ds

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def node(scu: Scu) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def start(*args: Any, **kwargs: Any) -> Node:
        made.append(Node(*args, **kwargs))
        return made[-1]

    yield start
    pytest_twisted.blockon(Deferred.fromCoroutine(scu.pool.close()))
    scu.pool._is_closing = False
    for each in made:
        each.close()


@pytest.mark.deadline(240)
@pytest_twisted.ensureDeferred
async def test_mixed_transfer_syntaxes(scu: Scu, node: Any, mixed: list[Path]) -> None:
    """One C-GET brings every instance of a study, in as many transfer syntaxes as it has, several of one class."""
    server = node(mixed)
    stream = get.get(scu.means, scu.node(server), of_study("1.2.3"), scu.op(60))
    instances: list[Instance] = await read(stream)
    assert stream.outcome.complete, stream.outcome
    got = {(each.sop_instance_uid, each.transfer_syntax_uid) for each in instances}
    headers = [read_header(path) for path in mixed]
    assert got == {(header.sop_instance_uid, header.transfer_syntax_uid) for header in headers}
    assert len({syntax for _, syntax in got}) >= 6
    for instance in instances:
        assert read_header(instance.path).sop_instance_uid == instance.sop_instance_uid


@pytest_twisted.ensureDeferred
async def test_dcmqrscp(scu: Scu, pacs: Any) -> None:
    """A study of a real PACS arrives, byte for byte what is in its area, and its classes were asked first."""
    area = {read_header(path).sop_instance_uid: path for path in pacs.layout.area.glob("*.dcm")}
    header = read_header(next(iter(area.values())))
    op = scu.op()
    asked = of_study(header.study_instance_uid)
    assert await classes.classes_of(scu.means, scu.node(pacs), asked, op)
    instances = await read(get.get(scu.means, scu.node(pacs), asked, op))
    assert instances
    for instance in instances:
        there, here = area[instance.sop_instance_uid], instance.path
        at = read_header(there).data_set_at
        assert here.read_bytes()[read_header(here).data_set_at :] == there.read_bytes()[at:]


@pytest_twisted.ensureDeferred
async def test_a_node_that_finds_nothing(scu: Scu, node: Any, study: MadeStudy) -> None:
    """Where a node does not tell what a study consists of, the usual SOP classes are proposed."""
    server = node(study.files, finds=False)
    instances = await read(get.get(scu.means, scu.node(server), of_study(study.study_uid), scu.op()))
    assert {each.sop_instance_uid for each in instances} == set(study.sop_uids)


@pytest.mark.parametrize(
    "record",
    [
        {"00080062": {"vr": "UI", "Value": ["no uid", "1." * 60, ""]}},
        {"00080060": {"vr": "CS", "Value": [None]}, "0020000E": {"vr": "UI", "Value": ["1.2.3"]}},
        {"00080060": {"vr": "CS"}, "0020000E": {"vr": "UI"}},
    ],
)
@pytest_twisted.ensureDeferred
async def test_classes_that_are_none(scu: Scu, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any]) -> None:
    """What a node tells of its classes is believed only as far as it can be."""

    async def answers(_stream: Any) -> AsyncGenerator[Match, None]:
        yield Match(json.dumps(record).encode())

    monkeypatch.setattr(classes, "find", lambda *_: ItemStream(answers))
    assert await classes.classes_of(scu.means, scu.node(), of_study("1.2.3"), scu.op()) == []


@pytest_twisted.ensureDeferred
async def test_a_node_that_takes_no_association(scu: Scu, peer: Any) -> None:
    """It is asked once: whoever may not ask what there is may not get it either."""
    node = peer("reject")
    with pytest.raises(AssociationRejected):
        await read(get.get(scu.means, scu.node(node), of_study("1.2.3"), scu.op()))
    with pytest.raises(RemoteUnreachable):
        await classes.classes_of(scu.means, scu.node(port=free_port()), of_study("1.2.3"), scu.op())
    assert len(node.events("association")) == 1


@pytest_twisted.ensureDeferred
async def test_a_node_that_is_long_in_finding(scu: Scu, peer: Any) -> None:
    """It gets a quarter of the time that there is, and is then asked for the objects."""
    node, op = scu.node(peer("serve", after=0)), scu.op(8.0)
    keys = query(QueryLevel.SERIES, {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4"})
    assert await classes.classes_of(scu.means, node, keys, op) == []
    assert scu.reactor.seconds() < op.deadline


@pytest_twisted.ensureDeferred
async def test_leaving_cancels(scu: Scu, peer: Any, eventually: Any) -> None:
    """Closing the stream after some instances has the node see a C-CANCEL, with what it sends meanwhile refused."""
    server = peer(count=30, interval_secs=0.02)
    _, done = scu.start(get.get(scu.means, scu.node(server), of_study("1.2.3"), scu.op()), take=2)
    await done
    await eventually(lambda: server.events("cancel"))
    assert not server.events("aborted")


@pytest.mark.parametrize("secs", [0.01, 0.05, 0.2, 0.4])
@pytest_twisted.ensureDeferred
async def test_cancelled(scu: Scu, peer: Any, eventually: Any, secs: float) -> None:
    """A cancellation in any phase leaves neither permit nor association."""
    server = peer(count=500, interval_secs=0.005)
    node = scu.node(server)
    _, done = scu.start(get.get(scu.means, node, of_study("1.2.3"), scu.op()))
    await deferLater(scu.reactor, secs)
    done.cancel()
    with pytest.raises(CancelledError):
        await done
    await eventually(lambda: scu.pool.open_count(node) == scu.pool.idle_count(node))


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, EngineFailed), (errno.EACCES, EngineFailed)],
)
@pytest_twisted.ensureDeferred
async def test_a_disk_that_fails(
    scu: Scu, node: Any, study: MadeStudy, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    """An object that cannot be written is refused, and the error says whether the disk is full or something else."""

    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    server = node(study.files)
    monkeypatch.setattr(object_file.os, "writev", fail)
    stream = get.get(scu.means, scu.node(server), of_study(study.study_uid), scu.op())
    with pytest.raises(error):
        await read(stream)
    assert stream.folder is not None and not list(stream.folder.iterdir())


class Talk:
    """A C-GET at an SCP that a test plays: what it asks is answered, then it is ready to send objects."""

    def __init__(
        self, scu: Scu, asked: Query, roles: bool = True, take: int | None = None, **options: Any
    ) -> None:
        self._scu = scu
        self.server = Raw()
        node = scu.node(self.server, idle_secs=0.0)
        self.stream = get.get(scu.means, node, asked, scu.op(**options))
        if take != 0:
            self.items, self.done = scu.start(self.stream, take)
        self._roles = roles

    async def begin(self) -> None:
        """To the point where the C-GET is under way."""
        await self._scu.means.in_thread(self._begin)

    def _begin(self) -> None:
        while True:
            self.connection, self.acceptor = self.server.accept(), core.Association.acceptor(16384)
            self.acceptor.receive(self.connection.recv(65536))
            while self.acceptor.request is None:
                self.acceptor.receive(self.connection.recv(65536))
            request = self.acceptor.request

            def support(uid: str) -> core.Support | None:
                return core.Support(names.UNCOMPRESSED, requestor_scp=self._roles)

            self.acceptor.accept(core.negotiate(request.contexts, support, request.user_information.roles))
            self.flush()
            command = self.hear()
            if command.field == core.CommandField.C_GET_RQ:
                self.asked = command
                return
            self.hear_data()
            self.acceptor.send(self.context_id, command.response(0xA900))
            self.flush()
            while not self.acceptor.closing:
                if not (data := self.connection.recv(65536)):
                    break
                for event in self.acceptor.receive(data):
                    if isinstance(event, core.ReleaseRequested):
                        self.acceptor.respond_release()
                        self.flush()
            self.connection.close()

    def flush(self) -> None:
        self.connection.sendall(self.acceptor.data_to_send())

    def hear(self) -> core.Command:
        """The next command. Blocking."""
        self._events = getattr(self, "_events", [])
        while True:
            while self._events:
                event = self._events.pop(0)
                if isinstance(event, core.CommandReceived):
                    self.context_id = event.context_id
                    return event.command
            data = self.connection.recv(65536)
            assert data, "the connection is closed"
            self._events += self.acceptor.receive(data)

    def hear_data(self) -> None:
        while not any(isinstance(each, core.DataReceived) and each.last for each in self._events):
            self._events += self.acceptor.receive(self.connection.recv(65536))
        self._events.clear()

    def send(self, context: core.Context, sop_class: str, uid: str, data: bytes) -> None:
        self.acceptor.send(context.id, core.c_store_rq(9, sop_class, uid), has_data=True)
        self.acceptor.send_data(context.id, data, True)
        self.flush()

    async def store(self, context: core.Context, sop_class: str, uid: str, data: bytes) -> int:
        """Send an object; the status that it gets."""

        def exchange() -> int:
            self.send(context, sop_class, uid, data)
            return self.hear().status or 0

        return await self._scu.means.in_thread(exchange)

    def context(self, uid: str) -> core.Context:
        return next(self.acceptor.contexts.accepted(uid))

    async def finish(self, status: int = 0) -> None:
        self.acceptor.send(self.context(STUDY_ROOT_GET).id, self.asked.response(status, completed=1))
        self.flush()
        try:
            await self.done
        finally:
            self.server.close()


def data_of(path: Path) -> bytes:
    return path.read_bytes()[read_header(path).data_set_at :]


@pytest.mark.parametrize("roles", [True, False])
@pytest_twisted.ensureDeferred
async def test_sub_operations(scu: Scu, study: MadeStudy, roles: bool) -> None:
    """Objects are taken, refused or put aside one by one, each with its status, whatever the node calls them."""
    talk = Talk(scu, of_study(study.study_uid), roles)
    await talk.begin()
    ct, service, mr = talk.context(CT), talk.context(STUDY_ROOT_GET), talk.context("1.2.840.10008.5.1.4.1.1.4")
    first, second = data_of(study.files[0]), data_of(study.files[1])
    one, two, three = study.sop_uids[:3]
    assert await talk.store(ct, CT, one, first) == 0
    assert await talk.store(ct, CT, one, first) == 0, "twice: put aside"
    assert await talk.store(ct, CT, two, b"") == 0xC000, "nothing"
    assert await talk.store(ct, CT, two, second[:-3]) == 0xC000, "cut"
    assert await talk.store(ct, CT, three, second) == 0xA900, "another instance"
    assert await talk.store(service, CT, two, second) == 0x0122, "in the context of the C-GET"
    assert await talk.store(mr, CT, two, second) == 0x0122, "in that of another class"
    assert await talk.store(ct, CT, two, second) == 0, "after all that"
    await talk.finish()
    assert [each.sop_instance_uid for each in talk.items] == [one, two]
    assert sorted(path.name for path in talk.stream.folder.iterdir()) == sorted([one, two])
    assert not talk.stream.outcome.complete


@pytest_twisted.ensureDeferred
async def test_what_cannot_be(scu: Scu, study: MadeStudy) -> None:
    """A message that has no place in a C-GET ends it, and leaves nothing half written."""
    for wrong in ("response", "command in an object", "another id"):
        talk = Talk(scu, of_study(study.study_uid))
        await talk.begin()
        if wrong == "response":
            talk.acceptor.send(talk.context(STUDY_ROOT_GET).id, core.c_echo_rq(3).response(0))
        elif wrong == "another id":
            response = core.Command(core.CommandField.C_GET_RSP, message_id_being_responded_to=77, status=0)
            talk.acceptor.send(talk.context(STUDY_ROOT_GET).id, response)
        else:
            talk.acceptor.send(talk.context(CT).id, core.c_store_rq(9, CT, "1.2"), has_data=True)
            talk.acceptor.send_data(talk.context(CT).id, bytes(5_000_000), False)
            await scu.means.in_thread(talk.flush)
            await scu.means.in_thread(talk.connection.sendall, b"\x04\0\0\0\0\x06\0\0\0\x02\x01\x03")
        await scu.means.in_thread(talk.flush)
        with pytest.raises(NonsenseAnswer):
            await talk.done
        assert not list(talk.stream.folder.iterdir())
        talk.server.close()


@pytest.mark.parametrize("whole", [True, False])
@pytest_twisted.ensureDeferred
async def test_left_in_the_middle_of_an_object(scu: Scu, study: MadeStudy, whole: bool) -> None:
    """A client that leaves during an object: C-CANCEL, the object is refused, the association released."""
    talk = Talk(scu, of_study(study.study_uid))
    await talk.begin()
    ct = talk.context(CT)
    talk.acceptor.send(ct.id, core.c_store_rq(9, CT, study.sop_uids[0]), has_data=True)
    talk.acceptor.send_data(ct.id, data_of(study.files[0]) + bytes(2_000_000), False)
    await scu.means.in_thread(talk.flush)
    while not list(talk.stream.folder.iterdir()):
        await deferLater(scu.reactor, 0.01)
    talk.done.cancel()
    cancel = await scu.means.in_thread(talk.hear)
    assert cancel.field == core.CommandField.C_CANCEL_RQ
    assert cancel.message_id_being_responded_to == talk.asked.message_id
    if whole:
        talk.acceptor.send_data(ct.id, bytes(1000), True)
        await scu.means.in_thread(talk.flush)
        assert (await scu.means.in_thread(talk.hear)).status == 0xA700
        talk.acceptor.send(
            talk.context(STUDY_ROOT_GET).id, talk.asked.response(0xFE00, remaining=3), has_data=True
        )
        talk.flush()
        await deferLater(scu.reactor, 0.1)
        talk.acceptor.send_data(talk.context(STUDY_ROOT_GET).id, b"", True)
        talk.flush()
    with pytest.raises(CancelledError):
        await talk.done
    ending = await scu.means.in_thread(talk.connection.recv, 65536)
    assert ending[0] == (0x05 if whole else 0x07)
    talk.server.close()


@pytest_twisted.ensureDeferred
async def test_deadline_while_nobody_reads(scu: Scu, study: MadeStudy) -> None:
    """At the deadline the association is aborted although the reader is somewhere else; it is told when it is back."""
    talk = Talk(scu, of_study(study.study_uid), secs=1.0, take=0)
    items = aiter(talk.stream)
    first = Deferred.fromCoroutine(anext(items))
    await talk.begin()
    assert await talk.store(talk.context(CT), CT, study.sop_uids[0], data_of(study.files[0])) == 0
    assert (await first).sop_instance_uid == study.sop_uids[0]
    ending = await scu.means.in_thread(talk.connection.recv, 65536)
    assert ending[0] == 0x07
    with pytest.raises(DeadlinePassed):
        await anext(items)
    await talk.stream.aclose()
    talk.server.close()


@pytest_twisted.ensureDeferred
async def test_aborted_in_the_middle_of_an_object(scu: Scu, study: MadeStudy) -> None:
    """What was under way is removed, what came before stays."""
    talk = Talk(scu, of_study(study.study_uid))
    await talk.begin()
    ct = talk.context(CT)
    assert await talk.store(ct, CT, study.sop_uids[0], data_of(study.files[0])) == 0
    talk.acceptor.send(ct.id, core.c_store_rq(9, CT, study.sop_uids[1]), has_data=True)
    talk.acceptor.send_data(ct.id, bytes(3_000_000), False)
    await scu.means.in_thread(talk.flush)
    talk.connection.close()
    with pytest.raises(AssociationAborted):
        await talk.done
    assert [path.name for path in talk.stream.folder.iterdir()] == [study.sop_uids[0]]
    talk.server.close()


@pytest_twisted.ensureDeferred
async def test_a_node_that_aborts_at_what_it_does_not_know(scu: Scu, node: Any, study: MadeStudy) -> None:
    """A node that aborts when it does not know every SOP class is asked again for no more than what is there."""
    from pynetdicom import acse

    server = node(study.files)
    known = {CT, STUDY_ROOT_GET, *names.FIND.values()}
    real = acse.ACSE._negotiate_as_acceptor

    def negotiate(self: Any) -> None:
        proposed = {str(each.abstract_syntax) for each in self.requestor.requested_contexts}
        if proposed <= known:
            real(self)
        else:
            self.assoc.abort()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acse.ACSE, "_negotiate_as_acceptor", negotiate)
        instances = await read(get.get(scu.means, scu.node(server), of_study(study.study_uid), scu.op()))
    assert {each.sop_instance_uid for each in instances} == set(study.sop_uids)


def test_contexts() -> None:
    """What is there can come in every transfer syntax, each with a context of its own if there is room; 128 at most."""
    for count in (0, 1, 3, 6, 7, 10, 200):
        found = [f"1.2.{number}" for number in range(count)]
        contexts = get.contexts_for(STUDY_ROOT_GET, found)
        assert len(contexts) <= 128 and contexts[0] == (STUDY_ROOT_GET, names.UNCOMPRESSED)
        for sop_class in found[:127]:
            own = [syntaxes for uid, syntaxes in contexts if uid == sop_class]
            assert {syntax for syntaxes in own for syntax in syntaxes} == {
                *names.UNCOMPRESSED,
                *names.COMMON_COMPRESSED,
            }
            assert len(own) >= min(19, 127 // count)
