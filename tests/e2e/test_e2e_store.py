"""C-STORE end to end: objects in an HTTP body go to a real PACS, or to peers that take only some of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from misbehaving import Stage, stage
from pydicom import dcmread
from retrieve_kit import (
    DICOM,
    MULTIPART,
    SHIPPED_SYNTAXES,
    artifact_folders,
    assert_same_objects,
    ct_bytes,
    multipart,
    pacs_backend,
    parts_of,
    post,
    scratch_files,
)

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.data import shipped_folder, uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port, wait_until

SHIPPED = {name: shipped_folder() / name for name in SHIPPED_SYNTAXES}
SCRIPTS = {
    "takes-all": {},
    "takes-every-third": {"store_statuses": (0xA700, 0x0000, 0xC123)},
    "warns": {"store_statuses": (0xB000,)},
    "takes-none": {"store_statuses": (0xA700,)},
    "takes-every-second": {"store_statuses": (0xA700, 0x0000)},
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    """An empty dcmqrscp."""
    ports = {"HARMONY_MOVE": free_port()}
    with RunningPacs(tmp_path_factory.mktemp("archive"), files=[], destinations=ports) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, archive: RunningPacs) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("gateway")
    config = write_config(folder, http_port=free_port(), backends={"pacs": pacs_backend(archive)})
    with RunningDaemon(config) as running:
        yield running


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    scripts = {name: ("serve", given) for name, given in SCRIPTS.items()}
    with stage(tmp_path_factory.mktemp("peers"), scripts, options={"association_timeout_ms": 20_000}) as running:
        yield running


def store(daemon: RunningDaemon, body: bytes, kind: str = DICOM, *, path: str = "/dicom/store") -> Answer:
    return daemon.http("POST", path, body=body, headers={"Content-Type": kind})


def store_many(daemon: RunningDaemon, parts: list[bytes], *, path: str = "/dicom/store") -> Answer:
    return daemon.http("POST", path, **multipart(parts))


# --- a real PACS ------------------------------------------------------------------------------------------------------


def test_one_object_there_and_back(gateway: RunningDaemon, tmp_path: Path) -> None:
    """An object that is stored comes back by get, and by move, as the same data set."""
    data = ct_bytes(tmp_path)
    answer = store(gateway, data)
    assert answer.status == 200
    uid = dcmread(BytesIO(data)).SOPInstanceUID
    told = answer.json()
    assert (told["operation"], told["success"], told["complete"]) == ("store", True, True)
    (instance,) = told["instances"]
    assert instance["sop_class_uid"] == "1.2.840.10008.5.1.4.1.1.2"
    assert instance["sop_instance_uid"] == uid
    assert instance["status"] == "0x0000"
    assert instance["status_text"]
    for operation in ("get", "move"):
        back = post(gateway, operation, {"StudyInstanceUID": uid_for("a study to store")}, accept=DICOM)
        assert_same_objects([back.body], {uid: tmp_path / "made-1.dcm"})


def test_many_objects_there_and_back(gateway: RunningDaemon, tmp_path: Path) -> None:
    """Every part of a multipart body is stored, with one status each."""
    parts = [ct_bytes(tmp_path, number, study="thirty") for number in range(1, 31)]
    told = store_many(gateway, parts).json()
    assert told["success"] is True
    assert [instance["status"] for instance in told["instances"]] == ["0x0000"] * 30
    originals = {str(dcmread(path).SOPInstanceUID): path for path in tmp_path.glob("made-*.dcm")}
    back = post(gateway, "get", {"StudyInstanceUID": uid_for("thirty")}, accept=MULTIPART)
    assert_same_objects(parts_of(back), originals)


def test_nothing_is_left_behind(gateway: RunningDaemon, tmp_path: Path) -> None:
    """What was sent to us is not kept, whether it was stored or not."""
    store(gateway, ct_bytes(tmp_path))
    store(gateway, b"not DICOM")
    assert not artifact_folders(gateway, "store")
    assert not scratch_files(gateway)


def test_a_pacs_that_takes_one_transfer_syntax(gateway: RunningDaemon) -> None:
    """dcmqrscp takes no compressed objects here: what it refuses is told, and the rest is stored."""
    names = ["CT_small.dcm", "JPEG2000.dcm"]
    answer = store_many(gateway, [SHIPPED[name].read_bytes() for name in names])
    assert answer.status == 200
    told = answer.json()
    assert (told["success"], told["complete"]) == (False, False)
    assert told["incomplete_reason"] == "1 of 2 instances were not stored"
    assert [instance["status"] for instance in told["instances"]] == ["0x0000", None]


# --- peers that take any transfer syntax, and answer what they like ---------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED_SYNTAXES)
def test_each_transfer_syntax(peers: Stage, name: str) -> None:
    """Objects are sent in the transfer syntax they have, compressed ones too."""
    answer = store(peers.daemon, SHIPPED[name].read_bytes(), path="/dicom/store?backend=takes-all")
    (instance,) = answer.json()["instances"]
    assert (answer.status, instance["status"]) == (200, "0x0000")
    stored = peers.peers["takes-all"].events("stored")[-1]
    ds = dcmread(SHIPPED[name])
    assert stored["sop_instance_uid"] == instance["sop_instance_uid"] == ds.SOPInstanceUID
    assert stored["transfer_syntax_uid"] == ds.file_meta.TransferSyntaxUID


def test_several_transfer_syntaxes_at_once(peers: Stage) -> None:
    """One request may hold all of them."""
    bodies = [path.read_bytes() for path in SHIPPED.values()]
    told = store_many(peers.daemon, bodies, path="/dicom/store?backend=takes-all").json()
    assert told["success"] is True
    assert len(told["instances"]) == len(SHIPPED_SYNTAXES)


def test_some_are_refused(peers: Stage, tmp_path: Path) -> None:
    """A part of the objects refused: 200 that is no success, with the status of each."""
    parts = [ct_bytes(tmp_path, number) for number in range(1, 4)]
    answer = store_many(peers.daemon, parts, path="/dicom/store?backend=takes-every-third")
    told = answer.json()
    assert answer.status == 200
    assert (told["success"], told["complete"]) == (False, False)
    assert told["incomplete_reason"] == "2 of 3 instances were not stored"
    assert (told["stored"], told["failed"]) == (1, 2)
    assert [instance["status"] for instance in told["instances"]] == ["0xA700", "0x0000", "0xC123"]
    assert all(instance["status_text"] for instance in told["instances"])


def test_the_same_object_twice(peers: Stage, tmp_path: Path) -> None:
    """Two copies of one object are two instances, each with its own status."""
    part = ct_bytes(tmp_path)
    told = store_many(peers.daemon, [part, part], path="/dicom/store?backend=takes-every-second").json()
    assert [instance["status"] for instance in told["instances"]] == ["0xA700", "0x0000"]
    assert (told["success"], told["stored"], told["failed"]) == (False, 1, 1)


def test_a_warning_is_a_success(peers: Stage, tmp_path: Path) -> None:
    """Statuses 0xB000 and the like say that the object was taken (PS3.4 section B.2.3)."""
    told = store(peers.daemon, ct_bytes(tmp_path), path="/dicom/store?backend=warns").json()
    assert told["success"] is True
    assert told["instances"][0]["status"] == "0xB000"


def test_all_are_refused(peers: Stage, tmp_path: Path) -> None:
    """None taken is a failure of the remote node: 502, with the status of each."""
    parts = [ct_bytes(tmp_path, number) for number in range(1, 4)]
    answer = store_many(peers.daemon, parts, path="/dicom/store?backend=takes-none")
    assert answer.status == 502
    told = answer.json()
    assert told["dimse_status"] == "0xA700"
    assert [instance["status"] for instance in told["instances"]] == ["0xA700"] * 3
    assert (told["operation"], told["backend"], told["success"]) == ("store", "takes-none", False)


# --- while it comes ---------------------------------------------------------------------------------------------------


def test_parts_are_written_while_they_come(peers: Stage, tmp_path: Path) -> None:
    """What has arrived is on disk before the client has sent the rest, and no association is opened for it yet."""
    before = len(peers.peers["takes-all"].events("association"))
    request = multipart([ct_bytes(tmp_path, number, size=1024) for number in (1, 2)])
    with _half_sent(peers.daemon, request) as (connection, rest):
        assert len(peers.peers["takes-all"].events("association")) == before
        connection.send(rest)
        told = json.loads(connection.getresponse().read())
    assert (told["success"], told["stored"]) == (True, 2)


def test_a_client_that_leaves_in_the_middle(peers: Stage, tmp_path: Path) -> None:
    """Nothing is stored, and nothing of it is left."""
    before = len(peers.peers["takes-all"].events("association"))
    with _half_sent(peers.daemon, multipart([ct_bytes(tmp_path, size=1024)])):
        pass
    wait_until(lambda: not artifact_folders(peers.daemon, "store"), "the folder is gone")
    assert len(peers.peers["takes-all"].events("association")) == before


@contextmanager
def _half_sent(daemon: RunningDaemon, request: dict[str, Any]) -> Iterator[tuple[HTTPConnection, bytes]]:
    """A store of which all but the end was sent, and has been written; and that end."""
    body = request["body"]
    connection = daemon.connect()
    connection.putrequest("POST", "/dicom/store?backend=takes-all")
    connection.putheader("Content-Type", request["headers"]["Content-Type"])
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    connection.send(body[:-1000])
    wait_until(lambda: any(list(folder.iterdir()) for folder in artifact_folders(daemon, "store")), "it is written")
    yield connection, body[-1000:]
    connection.close()


# --- what a client can do wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/octet-stream", "multipart/form-data"])
def test_wrong_content_type(gateway: RunningDaemon, kind: str, tmp_path: Path) -> None:
    """Only application/dicom and multipart/related are read: 415."""
    answer = store(gateway, ct_bytes(tmp_path), kind)
    assert answer.status == 415
    assert "application/dicom" in answer.json()["detail"]


def test_no_content_type(gateway: RunningDaemon, tmp_path: Path) -> None:
    """An object without a Content-Type is refused too."""
    assert gateway.http("POST", "/dicom/store", body=ct_bytes(tmp_path)).status == 415


@pytest.mark.parametrize("cut", [0, 1, 100, 132, 400, -1, -500])
def test_not_a_whole_object(gateway: RunningDaemon, tmp_path: Path, cut: int) -> None:
    """What is not a Part 10 file to its last byte is 400, and nothing of the request is stored."""
    data = ct_bytes(tmp_path, 99, study="never stored")
    answer = store_many(gateway, [data, data[:cut]])
    assert answer.status == 400
    assert "Object 2 of 2" in answer.json()["detail"]
    assert store(gateway, data[:cut]).status == 400
    assert post(gateway, "get", {"StudyInstanceUID": uid_for("never stored")}).status == 404


def test_multipart_that_breaks_off(gateway: RunningDaemon, tmp_path: Path) -> None:
    """A multipart body without its closing boundary is 400."""
    request = multipart([ct_bytes(tmp_path)])
    request["body"] = request["body"][:-20]
    assert gateway.http("POST", "/dicom/store", **request).status == 400


def test_multipart_without_boundary(gateway: RunningDaemon, tmp_path: Path) -> None:
    """A multipart body whose type names no boundary is 400."""
    body = multipart([ct_bytes(tmp_path)])["body"]
    assert store(gateway, body, "multipart/related").status == 400


def test_empty_multipart(gateway: RunningDaemon) -> None:
    """A multipart body without a part is 400."""
    assert store_many(gateway, []).status == 400
