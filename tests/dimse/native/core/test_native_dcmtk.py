"""The core over blocking sockets against real DCMTK programs, as nothing but its own documentation tells to use it."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from make_captures import storescp

from harmonyd.dimse.native import core
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import dcmtk

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
EXPLICIT_VR_LE, IMPLICIT_VR_LE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    """Three CT instances."""
    return make_study(tmp_path_factory.mktemp("study"), 3)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, study: MadeStudy) -> Iterator[RunningPacs]:
    """A dcmqrscp that has them."""
    with RunningPacs(tmp_path_factory.mktemp("pacs"), files=study.files) as running:
        yield running


def test_the_documented_example(pacs: RunningPacs, capsys: pytest.CaptureFixture[str]) -> None:
    """The program in the package's docstring does a C-ECHO, and says so."""
    assert core.__doc__ is not None
    indented = core.__doc__.split("this long::", 1)[1].split("\nAn SCP", 1)[0]
    program = "\n".join(line[4:] for line in indented.splitlines())
    exec(program.replace("11112", str(pacs.port)).replace("ANY-SCP", pacs.aet), {})
    assert capsys.readouterr().out == "status 0x0000\n"


class Driver:
    """The smallest there can be."""

    def __init__(self, association: core.Association, sock: socket.socket) -> None:
        self.association = association
        self.sock = sock
        self.sock.settimeout(20)
        self._waiting: list[core.Event] = []

    def event(self) -> core.Event:
        """The next one."""
        while not self._waiting:
            self.sock.sendall(self.association.data_to_send())
            data = self.sock.recv(65536)
            self._waiting += self.association.receive(data) if data else self.association.receive_eof()
        return self._waiting.pop(0)

    def message(self) -> tuple[int, core.Command, bytes]:
        """The next command with its data set."""
        event = self.event()
        assert isinstance(event, core.CommandReceived)
        data, last = b"", not event.command.has_data
        while not last:
            piece = self.event()
            assert isinstance(piece, core.DataReceived)
            data, last = data + piece.fragment, piece.last
        return event.context_id, event.command, data

    def finish(self) -> None:
        """Write what is left, and close."""
        self.sock.sendall(self.association.data_to_send())
        assert self.association.closing
        self.sock.close()


def _scu(port: int, called: str, *contexts: core.ProposedContext, roles: tuple[core.RoleSelection, ...] = ()) -> Driver:
    info = core.UserInformation(max_pdu=65536, roles=roles)
    association = core.Association.requestor(core.AssociateRequest(called, "CORE", contexts, info))
    driver = Driver(association, socket.create_connection(("127.0.0.1", port), 20))
    association.connected()
    assert isinstance(driver.event(), core.Accepted)
    return driver


def _content(path: Path) -> bytes:
    """The data set of a Part 10 file."""
    raw = path.read_bytes()
    return raw[144 + int.from_bytes(raw[140:144], "little") :]


@pytest.mark.parametrize("piece", [100_000, 999, 2000])
def test_storing_in_storescp(tmp_path: Path, study: MadeStudy, piece: int) -> None:
    """In one piece, in odd pieces, and with an empty last fragment: storescp has the object, byte for byte."""
    with storescp(tmp_path, "+B", "-pdu", "4096") as port:
        driver = _scu(port, "ANY", core.ProposedContext(1, CT_IMAGE, (EXPLICIT_VR_LE,)))
        for number, (path, uid) in enumerate(zip(study.files, study.sop_uids, strict=True), 1):
            content = _content(path)
            driver.association.send(1, core.c_store_rq(number, CT_IMAGE, uid), has_data=True)
            for start in range(0, len(content), piece):
                driver.association.send_data(1, content[start : start + piece], False)
            driver.association.send_data(1, b"", True)
            _, answer, _ = driver.message()
            assert (answer.status, answer.message_id_being_responded_to) == (0, number)
        driver.association.release()
        assert driver.event() == core.Released()
        driver.finish()
    stored = {pydicom.dcmread(path).SOPInstanceUID: _content(path) for path in tmp_path.iterdir()}
    assert stored == {uid: _content(path) for path, uid in zip(study.files, study.sop_uids, strict=True)}


def test_a_get_from_dcmqrscp(pacs: RunningPacs, study: MadeStudy) -> None:
    """The objects come as C-STORE requests over our own association, in the role that was negotiated."""
    driver = _scu(
        pacs.port,
        pacs.aet,
        core.ProposedContext(1, STUDY_ROOT_GET, (IMPLICIT_VR_LE,)),
        core.ProposedContext(3, CT_IMAGE, (EXPLICIT_VR_LE,)),
        roles=(core.RoleSelection(CT_IMAGE, scu=False, scp=True),),
    )
    uid = study.study_uid.encode()
    identifier = b"\x08\0\x52\0\6\0\0\0STUDY \x20\0\x0d\0" + len(uid + b"\0" * (len(uid) % 2)).to_bytes(4, "little")
    driver.association.send(1, core.c_get_rq(1, STUDY_ROOT_GET), has_data=True)
    driver.association.send_data(1, identifier + uid + b"\0" * (len(uid) % 2), True)
    objects: dict[str | None, bytes] = {}
    while True:
        context_id, command, data = driver.message()
        if command.field == core.CommandField.C_STORE_RQ:
            objects[command.affected_sop_instance_uid] = data
            driver.association.send(context_id, command.response(0))
        elif command.status != 0xFF00:
            break
    assert (command.status, command.completed, command.failed) == (0, 3, 0)
    assert sorted(filter(None, objects)) == sorted(study.sop_uids)
    driver.association.release()
    assert driver.event() == core.Released()
    driver.finish()


def _serve(listener: socket.socket, received: dict[str | None, bytes]) -> None:
    sock, _ = listener.accept()
    association = core.Association.acceptor(16384)
    driver = Driver(association, sock)
    requested = driver.event()
    assert isinstance(requested, core.Requested)
    supported = {VERIFICATION: core.Support((IMPLICIT_VR_LE,)), CT_IMAGE: core.Support((EXPLICIT_VR_LE,))}
    association.accept(core.negotiate(requested.request.contexts, supported.get))
    data = b""
    command: core.Command | None = None
    while not isinstance(event := driver.event(), core.ReleaseRequested):
        if isinstance(event, core.CommandReceived):
            command, data = event.command, b""
        elif isinstance(event, core.DataReceived):
            data += event.fragment
        assert command is not None and isinstance(event, (core.CommandReceived, core.DataReceived))
        if event.last if isinstance(event, core.DataReceived) else not command.has_data:
            received[command.affected_sop_instance_uid] = data
            association.send(event.context_id, command.response(0))
    association.respond_release()
    driver.finish()


@pytest.mark.parametrize("program", ["echoscu", "storescu"])
def test_serving_dcmtk(study: MadeStudy, program: str) -> None:
    """echoscu and storescu are content with our answers, and end with exit code 0."""
    received: dict[str | None, bytes] = {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        served = threading.Thread(target=_serve, args=(listener, received))
        served.start()
        port = listener.getsockname()[1]
        files = list(map(str, study.files)) if program == "storescu" else []
        argv = [dcmtk(program), "127.0.0.1", str(port), *files]
        ended = subprocess.run(argv, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
        served.join(20)
    assert ended.returncode == 0, ended.stderr
    expected = set(study.sop_uids) if program == "storescu" else {None}
    assert set(received) == expected
