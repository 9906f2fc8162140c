"""One object of 500 MB, both ways: memory stays flat."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from raw_scp import Raw

from harmonyd.dimse.native import core, names
from harmonyd.testing.certificates import Authority, server_context
from harmonyd.testing.data import make_ct

OBJECT_BYTES = 500_000_000
GROWTH_BYTES = 40_000_000
CT = "1.2.840.10008.5.1.4.1.1.2"


def big_file(path: Path) -> int:
    """A CT whose pixel data are a hole in the file; its size."""
    uids = {"study_uid": "1.2.3", "series_uid": "1.2.3.4", "sop_uid": "1.2.3.4.5"}
    make_ct(path, instance_number=1, patient_id="BIG", size=4, **uids)
    content = path.read_bytes()
    head = content[: -4 * 4 * 2 - 4] + OBJECT_BYTES.to_bytes(4, "little")
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) + OBJECT_BYTES)
    return path.stat().st_size


class Scp:
    """Takes one object, or gives one, in a thread."""

    def __init__(self, syntaxes: tuple[str, ...], tls: ssl.SSLContext | None = None) -> None:
        self.raw = Raw()
        self._tls = tls
        self.port = self.raw.port
        self.received_bytes = 0
        self._syntaxes = syntaxes
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(10)
        self.raw.close()

    def _serve(self) -> None:
        while True:
            connection, acceptor = self._accept(), core.Association.acceptor(131072)
            connection.settimeout(60)
            while data := connection.recv(1 << 18):
                for event in acceptor.receive(data):
                    if self._is_over(connection, acceptor, event):
                        return
                connection.sendall(acceptor.data_to_send())

    def _accept(self) -> Any:
        plain = self.raw.accept()
        if self._tls is None:
            return plain
        secure = self._tls.wrap_socket(plain, server_side=True)
        self.raw.kept.append(secure)
        return secure

    def _is_over(self, connection: Any, acceptor: core.Association, event: core.Event) -> bool:
        match event:
            case core.Requested(request):
                answer = core.negotiate(
                    request.contexts,
                    lambda _: core.Support(self._syntaxes, requestor_scp=True),
                    request.user_information.roles,
                )
                acceptor.accept(answer)
            case core.CommandReceived(context_id, command):
                self._context_id, self._command = context_id, command
                if command.is_response:
                    acceptor.send(self._get.context_id, self._get.command.response(0, completed=1))
            case core.DataReceived(_, fragment, last):
                self.received_bytes += len(fragment)
                if last:
                    self._asked(connection, acceptor)
            case core.ReleaseRequested():
                acceptor.respond_release()
                connection.sendall(acceptor.data_to_send())
                return self._command.field in (core.CommandField.C_STORE_RQ, core.CommandField.C_STORE_RSP)
        return False

    def _asked(self, connection: Any, acceptor: core.Association) -> None:
        command = self._command
        if command.field == core.CommandField.C_STORE_RQ:
            acceptor.send(self._context_id, command.response(0))
        elif command.field == core.CommandField.C_FIND_RQ:
            acceptor.send(self._context_id, command.response(0xA900))
        else:
            self._get = core.CommandReceived(self._context_id, command)
            self._give(connection, acceptor)

    def _give(self, connection: Any, acceptor: core.Association) -> None:
        context = next(acceptor.contexts.accepted(CT))
        acceptor.send(context.id, core.c_store_rq(1, CT, "1.2.3.4.5"), has_data=True)
        with self.object.open("rb") as file:
            file.seek(int.from_bytes(file.read(144)[140:], "little") + 144)
            while piece := file.read(1 << 20):
                acceptor.send_data(context.id, piece, False)
                connection.sendall(acceptor.data_to_send())
        acceptor.send_data(context.id, b"", True)

    object: Path


def child(what: str, port: int, path: Path, ca: Path | None = None) -> dict[str, Any]:
    """What the other process said."""
    argv = [sys.executable, str(Path(__file__).with_name("memory_child.py")), what, str(port), str(path)]
    if ca is not None:
        argv.append(str(ca))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}  # where its kits are
    run = subprocess.run(argv, capture_output=True, timeout=110, check=False, env=env)
    assert run.stdout, run.stderr.decode()
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.mark.deadline(240)
@pytest.mark.parametrize("syntaxes", [names.UNCOMPRESSED, (names.IMPLICIT_VR_LE,)], ids=["as it is", "converted"])
def test_store(tmp_path: Path, syntaxes: tuple[str, ...]) -> None:
    """An object on its way out, as it is or converted, is never in memory as a whole."""
    path = tmp_path / "big.dcm"
    size = big_file(path)
    scp = Scp(syntaxes)
    found = child("store", scp.port, path)
    scp.close()
    assert found["said"] == [0]
    assert size - 1000 < scp.received_bytes <= size
    assert found["grown"] < GROWTH_BYTES
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.deadline(240)
def test_get(tmp_path: Path) -> None:
    """Nor is one on its way in."""
    path = tmp_path / "big.dcm"
    big_file(path)
    scp = Scp(names.UNCOMPRESSED)
    scp.object = path
    storage = tmp_path / "storage"
    storage.mkdir()
    found = child("get", scp.port, storage)
    scp.close()
    assert len(found["said"]) == 1 and found["said"][0] > OBJECT_BYTES
    assert found["grown"] < GROWTH_BYTES


@pytest.mark.deadline(240)
@pytest.mark.parametrize("what", ["store", "get"])
def test_over_tls(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, what: str) -> None:
    """Both ways over TLS, too: who reads or takes slowly is waited for."""
    ca = Authority(tmp_path_factory.mktemp("certificates"))
    path = tmp_path / "big.dcm"
    big_file(path)
    scp = Scp(names.UNCOMPRESSED, server_context(ca.issue("server")))
    scp.object = path
    storage = tmp_path / "storage"
    storage.mkdir()
    found = child(what, scp.port, path if what == "store" else storage, ca.cert)
    scp.close()
    if what == "store":
        assert found["said"] == [0] and scp.received_bytes > OBJECT_BYTES
    else:
        assert len(found["said"]) == 1 and found["said"][0] > OBJECT_BYTES
    assert found["grown"] < GROWTH_BYTES
