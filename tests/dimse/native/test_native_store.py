"""C-STORE as an SCU: as they are, one result each, many on one association, and none leaks whatever happens."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
import pytest_twisted
from pydicom.filereader import read_dataset
from pynetdicom import AE, evt
from raw_scp import Raw
from scu_kit import Scu, read
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from harmonyd.dimse.errors import AssociationAborted, DimseTimeout, NoPresentationContext
from harmonyd.dimse.native import find, names, object_sender, store
from harmonyd.dimse.native.files import Conversion, NotConvertible
from harmonyd.errors import DeadlinePassed
from harmonyd.testing.certificates import Authority, server_context
from harmonyd.testing.data import MadeStudy, make_study, shipped_folder
from harmonyd.testing.processes import dcmtk, end_group, free_port, port_is_free, wait_until
from harmonyd.tls import TlsClient

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT, IMPLICIT, JPEG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.4.50"


class Scp:
    """A storage SCP of pynetdicom's; it keeps every data set's bytes, and counts associations."""

    aet = "STORE"

    def __init__(self, syntaxes: dict[str, list[str]], on_store: Callable[[Any], int] = lambda _: 0) -> None:
        self.received: list[tuple[str, str, bytes]] = []
        self.associations = 0
        self._on_store = on_store
        node: Any = AE(self.aet)
        for uid, accepted in syntaxes.items():
            node.add_supported_context(uid, accepted)
        node.add_supported_context(names.VERIFICATION)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_ACCEPTED, self._accepted)]
        self._server = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]

    def _accepted(self, event: Any) -> None:
        self.associations += 1

    def _store(self, event: Any) -> int:
        syntax = str(event.context.transfer_syntax)
        content = event.request.DataSet.getvalue()
        self.received.append((str(event.request.AffectedSOPInstanceUID), syntax, content))
        return self._on_store(event)

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def scp(scu: Scu) -> Iterator[Callable[..., Scp]]:
    made: list[Scp] = []

    def start(*args: Any) -> Scp:
        made.append(Scp(*args))
        return made[-1]

    yield start
    pytest_twisted.blockon(Deferred.fromCoroutine(scu.pool.close()))
    scu.pool._is_closing = False
    for each in made:
        each.close()


def data_set(path: Path) -> bytes:
    """What is behind the file meta information."""
    content = path.read_bytes()
    length = int.from_bytes(content[140:144], "little")
    return content[144 + length :]


def statuses(results: list[Any]) -> list[int | None]:
    return [result.status for result in results]


@pytest_twisted.ensureDeferred
async def test_as_they_are(scu: Scu, scp: Any, study: MadeStudy) -> None:
    """Many objects go over one association, byte for byte, each with a result of its own."""
    server = scp({CT: [EXPLICIT]})
    results = await read(store.store(scu.means, scu.node(server), study.files, scu.op()))
    assert statuses(results) == [0] * 10
    assert [result.sop_instance_uid for result in results] == list(study.sop_uids)
    assert [content for _, _, content in server.received] == [data_set(path) for path in study.files]
    assert server.associations == 1


@pytest_twisted.ensureDeferred
async def test_association_for_the_next(scu: Scu, scp: Any, study: MadeStudy) -> None:
    """The next store within half a second uses the same association, if it can."""
    server = scp({CT: [EXPLICIT, JPEG]})
    node = scu.node(server)
    for path in study.files[:3]:
        assert statuses(await read(store.store(scu.means, node, [path], scu.op()))) == [0]
    assert server.associations == 1
    compressed = shipped_folder() / "JPEG-lossy.dcm"
    again = await read(store.store(scu.means, node, [study.files[0], compressed], scu.op()))
    assert again[0].status == 0
    assert server.associations == 2
    await deferLater(scu.reactor, 0.7)
    assert scu.pool.open_count(node) == 0


@pytest_twisted.ensureDeferred
async def test_more_than_one_batch(scu: Scu, scp: Any, tmp_path: Path) -> None:
    """More than 500 files are several batches on one association."""
    server = scp({CT: [EXPLICIT]})
    many = make_study(tmp_path / "many", 1020, size=2)
    results = await read(store.store(scu.means, scu.node(server), many.files, scu.op(60)))
    assert statuses(results) == [0] * 1020
    assert server.associations == 1


@pytest_twisted.ensureDeferred
async def test_statuses(scu: Scu, scp: Any, study: MadeStudy) -> None:
    """Each status is that of its object, and a failure does not end the rest."""
    turn = iter([0x0000, 0xA700, 0xB000, 0xC000, 0x0122] * 2)
    server = scp({CT: [EXPLICIT]}, lambda _: next(turn))
    results = await read(store.store(scu.means, scu.node(server), study.files, scu.op()))
    assert statuses(results) == [0x0000, 0xA700, 0xB000, 0xC000, 0x0122] * 2


@pytest_twisted.ensureDeferred
async def test_implicit_only(scu: Scu, scp: Any, tmp_path: Path) -> None:
    """A node that takes only Implicit VR Little Endian gets uncompressed objects so, and no others; nothing is left."""
    classes = {str(uid): [IMPLICIT] for uid in names.STORAGE_CLASSES}
    server = scp(classes)
    shipped = ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "MR_small_bigendian.dcm", "reportsi.dcm"]
    files = []
    for name in shipped:
        files.append(tmp_path / name)
        files[-1].write_bytes((shipped_folder() / name).read_bytes())
    results = await read(store.store(scu.means, scu.node(server), files, scu.op()))
    assert statuses(results) == [0, 0, None, 0, 0]
    assert "no presentation context" in results[2].status_text
    assert {syntax for _, syntax, _ in server.received} == {IMPLICIT}
    first = pydicom.dcmread(tmp_path / "CT_small.dcm")
    target = tmp_path / "received.dcm"
    ds = pydicom.dcmread(tmp_path / "CT_small.dcm", stop_before_pixels=True)
    ds.file_meta.TransferSyntaxUID = IMPLICIT
    ds.save_as(target, implicit_vr=True, little_endian=True)
    head = data_set(target)
    assert server.received[0][2].startswith(head)
    assert server.received[0][2][len(head) + 8 :][: len(first.PixelData)] == first.PixelData
    assert server.received[2][2].endswith(pydicom.dcmread(files[1]).PixelData), "the same image in little endian"
    assert len(_names(tmp_path)) == len(shipped) + 2


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "MR_small_padded.dcm", "reportsi.dcm", "rtplan.dcm"],
)
def test_conversion(tmp_path: Path, quiet_pydicom: None, name: str, syntax: str) -> None:
    """A converted data set has the same elements, and the same pixels."""
    path = tmp_path / name
    path.write_bytes((shipped_folder() / name).read_bytes())
    conversion = Conversion(path, syntax)
    made = conversion.convert()
    with made.path.open("rb") as file:
        ours = read_dataset(file, syntax == IMPLICIT, True)
    assert made.path.stat().st_size == made.end
    for element in pydicom.dcmread(path):
        if not element.tag.is_private:
            assert ours[element.tag].value == element.value, element.tag
    conversion.remove()
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_conversion_that_cannot_be(tmp_path: Path, quiet_pydicom: None) -> None:
    """What cannot be read leaves nothing, and a conversion that nobody waits for is not begun."""
    path = tmp_path / "nothing.dcm"
    path.write_bytes(b"nothing")
    conversion = Conversion(path, IMPLICIT)
    with pytest.raises(NotConvertible):
        conversion.convert()
    conversion.remove()
    late = Conversion(shipped_folder() / "CT_small.dcm", IMPLICIT)
    late.remove()
    with pytest.raises(NotConvertible):
        late.convert()
    assert [each.name for each in tmp_path.iterdir()] == ["nothing.dcm"]


@pytest_twisted.ensureDeferred
async def test_files_that_are_not_there(scu: Scu, scp: Any, study: MadeStudy, tmp_path: Path) -> None:
    """A file that cannot be read, or is none, is its own result; the others are sent."""
    server = scp({CT: [EXPLICIT]})
    none = tmp_path / "none.dcm"
    none.write_bytes(b"no DICOM")
    files = [study.files[0], tmp_path / "gone.dcm", none, study.files[1]]
    results = await read(store.store(scu.means, scu.node(server), files, scu.op()))
    assert statuses(results) == [0, None, None, 0]
    assert server.associations == 1
    assert statuses(await read(store.store(scu.means, scu.node(server), files[1:3], scu.op()))) == [None, None]


@pytest.mark.parametrize("what", ["vanishes", "shrinks", "grows"])
@pytest_twisted.ensureDeferred
async def test_files_that_change(
    scu: Scu, scp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A file that changes after its header was read costs no other its answer."""
    server = scp({CT: [EXPLICIT]})
    big = make_study(tmp_path / "big", 3, size=1000)
    real = store._headers

    def headers(paths: Any) -> Any:
        found = real(paths)
        if what == "vanishes":
            big.files[1].unlink()
        elif what == "shrinks":
            with big.files[1].open("r+b") as file:
                file.truncate(1_000_000)
        else:
            with big.files[1].open("ab") as file:
                file.write(bytes(2_000_000))
        return found

    monkeypatch.setattr(store, "_headers", headers)
    results = await read(store.store(scu.means, scu.node(server), big.files, scu.op()))
    assert statuses(results) == [0, 0 if what == "grows" else None, 0]
    assert all(len(content) == len(data_set(big.files[0])) for _, _, content in server.received)


@pytest_twisted.ensureDeferred
async def test_many_contexts(scu: Scu, scp: Any, study: MadeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects that need more presentation contexts than an association has go over several."""
    monkeypatch.setattr(store, "MAX_CONTEXTS", 2)
    server = scp({str(uid): [EXPLICIT, IMPLICIT] for uid in names.STORAGE_CLASSES})
    files = [study.files[0], shipped_folder() / "MR_small.dcm", study.files[1], shipped_folder() / "reportsi.dcm"]
    assert statuses(await read(store.store(scu.means, scu.node(server), files, scu.op()))) == [0] * 4
    assert server.associations > 1


@pytest_twisted.ensureDeferred
async def test_nothing_accepted(scu: Scu, scp: Any, study: MadeStudy) -> None:
    """A node that takes none of the SOP classes fails the whole."""
    with pytest.raises(NoPresentationContext):
        await read(store.store(scu.means, scu.node(scp({names.MOVE[next(iter(names.MOVE))]: [IMPLICIT]})),
                               study.files, scu.op()))  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_idle_association_that_is_over(scu: Scu, scp: Any, study: MadeStudy) -> None:
    """An idle association whose node has ended it meanwhile costs no object its answer."""
    server = scp({CT: [EXPLICIT]}, lambda _: 0)
    node = scu.node(server)
    assert statuses(await read(store.store(scu.means, node, study.files[:1], scu.op()))) == [0]
    for association in list(server._server.active_associations):
        association.abort()
    assert statuses(await read(store.store(scu.means, node, study.files[1:3], scu.op()))) == [0, 0]


@pytest_twisted.ensureDeferred
async def test_aborted_under_way(scu: Scu, scp: Any, study: MadeStudy) -> None:
    """What was answered before the node aborts keeps its answer; the object at hand and the rest have none."""
    turn = iter(range(100))

    def answer(event: Any) -> int:
        if next(turn) == 3:
            event.assoc.abort()
        return 0

    server = scp({CT: [EXPLICIT]}, answer)
    results = await read(store.store(scu.means, scu.node(server), study.files, scu.op()))
    assert statuses(results) == [0, 0, 0, *[None] * 7]

    def never(event: Any) -> int:
        event.assoc.abort()
        return 0

    with pytest.raises(AssociationAborted):
        await read(store.store(scu.means, scu.node(scp({CT: [EXPLICIT]}, never)), study.files, scu.op()))


@pytest_twisted.ensureDeferred
async def test_deadline_between_two_objects(
    scu: Scu, scp: Any, study: MadeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadline that passes while a file is read, and nothing is under way, holds all the same."""
    server = scp({CT: [EXPLICIT]})
    real = object_sender.ReadAhead.take

    async def slow(self: Any, source: Any, at: int) -> bytes:
        await deferLater(scu.reactor, 0.2)
        return await real(self, source, at)

    monkeypatch.setattr(object_sender.ReadAhead, "take", slow)
    results = await read(store.store(scu.means, scu.node(server), study.files, scu.op(secs=0.7)))
    assert None in statuses(results) and 0 in statuses(results)
    assert "in time" in results[-1].status_text


@pytest_twisted.ensureDeferred
async def test_cancelled(scu: Scu, scp: Any, tmp_path: Path) -> None:
    """A store that is cancelled in the middle of an object aborts, and leaves no conversion."""
    server = scp({CT: [IMPLICIT]})
    big = make_study(tmp_path / "big", 3, size=2000)
    for secs in (0.0, 0.02, 0.06, 0.1):
        _, done = scu.start(store.store(scu.means, scu.node(server), big.files, scu.op()))
        await deferLater(scu.reactor, secs)
        done.cancel()
        with contextlib.suppress(CancelledError):
            await done
        await deferLater(scu.reactor, 0.1)
        assert len(_names(tmp_path / "big")) == 3


@pytest.mark.parametrize("how", ["silence", "deadline", "early answer"])
@pytest_twisted.ensureDeferred
async def test_a_node_that_stops_reading(scu: Scu, tmp_path: Path, how: str) -> None:
    """An object that a node does not take any more ends in time; an answer that it gave nevertheless counts."""
    server = Raw()
    node = scu.node(server, association_timeout_secs=0.5 if how != "deadline" else 30.0)
    big = make_study(tmp_path / "big", 2, size=4000)
    items, done = scu.start(store.store(scu.means, node, big.files, scu.op(0.8 if how == "deadline" else 20)))
    connection, acceptor = await scu.means.in_thread(server.negotiate)
    connection.sendall(acceptor.data_to_send())
    if how == "early answer":
        request = (await scu.means.in_thread(_first_command, connection, acceptor)).command
        acceptor.send(1, request.response(0xA700))
        connection.sendall(acceptor.data_to_send())
        await done
        assert statuses(items) == [0xA700, None]
    else:
        with pytest.raises(DimseTimeout if how == "silence" else DeadlinePassed):
            await done
    server.close()


@pytest.mark.parametrize("tls", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_node_that_reads_slowly(scu: Scu, tmp_path: Path, tls: bool) -> None:
    """A node is not silent while it takes what the kernel holds for it, however long that lasts."""
    raw = Raw()
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    node = scu.node(raw, association_timeout_secs=1.0)
    if tls:
        ca = Authority(tmp_path)
        context = server_context(ca.issue("node", ("127.0.0.1",)))
        raw.socket = context.wrap_socket(raw.socket, server_side=True)
        node = replace(node, tls=TlsClient(ca.cert))
    big = make_study(tmp_path / "big", 1, size=1000)
    items, done = scu.start(store.store(scu.means, node, big.files, scu.op()))
    connection, acceptor = await scu.means.in_thread(raw.negotiate)
    connection.sendall(acceptor.data_to_send())

    def take() -> None:
        request = None
        began = time.monotonic()
        while True:
            for event in acceptor.receive(connection.recv(20_000)):
                request = getattr(event, "command", request)
                if getattr(event, "last", False):
                    assert time.monotonic() - began > 3
                    acceptor.send(1, request.response(0))
                    connection.sendall(acceptor.data_to_send())
                    return
            time.sleep(0.04)

    await scu.means.in_thread(take)
    await done
    assert statuses(items) == [0]
    raw.close()


def _first_command(connection: Any, acceptor: Any) -> Any:
    while True:
        for event in acceptor.receive(connection.recv(1000)):
            if hasattr(event, "command"):
                return event


@pytest_twisted.ensureDeferred
async def test_an_answer_before_the_end(scu: Scu, tmp_path: Path) -> None:
    """A node that answers before it has the whole object, and then ends the association, has answered."""
    server = Raw()
    big = make_study(tmp_path / "big", 1, size=4000)
    items, done = scu.start(store.store(scu.means, scu.node(server), big.files, scu.op()))
    connection, acceptor = await scu.means.in_thread(server.negotiate)
    connection.sendall(acceptor.data_to_send())
    request = (await scu.means.in_thread(_first_command, connection, acceptor)).command
    acceptor.send(1, request.response(0xA700))
    connection.sendall(acceptor.data_to_send())
    await deferLater(scu.reactor, 0.05)
    acceptor.abort()
    connection.sendall(acceptor.data_to_send())
    await done
    assert statuses(items) == [0xA700]
    server.close()


def _started(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


@pytest_twisted.ensureDeferred
async def test_storescp(scu: Scu, study: MadeStudy, tmp_path: Path) -> None:
    """DCMTK's storescp takes them, and what it writes is what was sent."""
    port = free_port()
    folder = tmp_path / "stored"
    folder.mkdir()
    argv = [dcmtk("storescp"), "+B", "+xa", "-od", str(folder), str(port)]
    process = _started(argv)
    try:
        await scu.means.in_thread(wait_until, lambda: not port_is_free(port), "storescp listens", 10.0)
        node = scu.node(port=port, aet="STORESCP")
        results = await read(store.store(scu.means, node, study.files, scu.op()))
        assert statuses(results) == [0] * 10
        assert len(_names(folder)) == 10
        with contextlib.suppress(NoPresentationContext):
            await find.echo(scu.means, node, scu.op())
        await scu.pool.close()
    finally:
        end_group(process)
