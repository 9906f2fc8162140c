"""Objects that others send to a dicom endpoint: kept, stored onward, posted to an HTTP server, and never lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from endpoint_kit import WebServer, endpoint, entries, send, spooled, wait_delivered
from pydicom import dcmread
from retrieve_kit import assert_same_objects, ct_bytes, storage

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import make_study, report_files, shipped_folder
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import dcmtk, free_port, wait_until

Peers = Callable[..., ScriptedPeer]


def kept_files(daemon: RunningDaemon) -> list[Path]:
    return sorted((storage(daemon) / "received" / "inbound").glob("*/*/*.dcm"))


# --- kept -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[RunningDaemon]:
    """A daemon with an endpoint and no backend."""
    folder = tmp_path_factory.mktemp("keeper")
    config = write_config(folder, http_port=free_port(), endpoints=endpoint(port), backends={})
    with RunningDaemon(config) as running:
        yield running


@pytest.mark.parametrize("report", report_files(), ids=lambda path: path.name)
def test_kept_below_its_uids(keeper: RunningDaemon, port: int, report: Path) -> None:
    """Without a backend an object is kept as study/series/instance.dcm, with the same data set."""
    send(port, report)
    ds = dcmread(report)
    target = storage(keeper) / "received" / "inbound" / ds.StudyInstanceUID / ds.SeriesInstanceUID
    kept = wait_until(lambda: list(target.glob(f"{ds.SOPInstanceUID}.dcm")), "the object is kept")
    assert_same_objects([kept[0].read_bytes()], {ds.SOPInstanceUID: report})
    assert dcmread(kept[0]).file_meta.SourceApplicationEntityTitle == "MODALITY"
    wait_delivered(keeper)


def test_what_a_crash_left_half_kept(tmp_path: Path) -> None:
    """The folder of a pipeline without a backend is tidied up at the start as any other backend's."""
    config = write_config(tmp_path, http_port=free_port(), endpoints=endpoint(free_port()), backends={})
    daemon = RunningDaemon(config)
    part = storage(daemon) / "received" / "inbound" / ".0123.part"
    part.parent.mkdir(parents=True)
    part.touch()
    os.utime(part, (0, 0))
    with daemon:
        assert not part.exists()


COMPRESSED = {
    "image_dfl.dcm": "-xd",
    "MR_small_RLE.dcm": "-xr",
    "JPEG-lossy.dcm": "-xx",
    "SC_rgb_jpeg_gdcm.dcm": "-xs",
    "JPEGLSNearLossless_08.dcm": "-xu",
    "MR_small_jpeg_ls_lossless.dcm": "-xt",
    "JPEG2000.dcm": "-xw",
    "MR_small_jp2klossless.dcm": "-xv",
}
"""Files of pydicom, and the option that makes storescu propose their transfer syntax."""


@pytest.mark.parametrize("name", COMPRESSED)
def test_kept_in_its_transfer_syntax(keeper: RunningDaemon, port: int, name: str) -> None:
    """Compressed objects are kept as they come, also one that belongs to no study."""
    ds = dcmread(shipped_folder() / name)
    folders = (ds.get("StudyInstanceUID", "unknown"), ds.get("SeriesInstanceUID", "unknown"))
    target = storage(keeper).joinpath("received", "inbound", *folders, f"{ds.SOPInstanceUID}.dcm")
    target.unlink(missing_ok=True)
    send(port, shipped_folder() / name, options=(COMPRESSED[name],))
    wait_until(target.exists, "the object is kept")
    kept = dcmread(target)
    assert kept.file_meta.TransferSyntaxUID == ds.file_meta.TransferSyntaxUID
    assert kept.PixelData == ds.PixelData
    wait_delivered(keeper)


def test_many_senders_at_once(keeper: RunningDaemon, port: int, tmp_path: Path) -> None:
    """Senders wait for one another, and every object that was acknowledged is kept."""
    studies = [make_study(tmp_path / str(number), 20, patient_id=f"SENDER-{number}") for number in range(4)]
    senders = [Thread(target=send, args=(port, *study.files)) for study in studies]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    wait_delivered(keeper)
    kept = {path.stem for path in kept_files(keeper)}
    for study in studies:
        assert set(study.sop_uids) <= kept


def test_echo(keeper: RunningDaemon, port: int) -> None:
    """The endpoint answers C-ECHO."""
    argv = [dcmtk("echoscu"), "-aec", "HARMONY_SCP", "127.0.0.1", str(port)]
    assert subprocess.run(argv, check=False, capture_output=True).returncode == 0
    assert keeper.http("GET", "/readyz").status == 200


# --- stored onward ----------------------------------------------------------------------------------------------------


def test_stored_onward(tmp_path: Path, peer: Peers) -> None:
    """With a dicom backend each object is stored there, in the order of its arrival, and then released."""
    node, port = peer(), free_port()
    backend = {"aet": "PEER", "host": "127.0.0.1", "port": node.port}
    config = write_config(tmp_path, http_port=free_port(), endpoints=endpoint(port), backends={"peer": backend})
    study = make_study(tmp_path / "made", 10)
    with RunningDaemon(config) as running:
        send(port, *study.files)
        node.wait_for("stored", 10)
        wait_delivered(running)
        assert not kept_files(running)
    assert [event["sop_instance_uid"] for event in node.events("stored")] == list(study.sop_uids)


def test_refused_by_one_taken_by_the_other(tmp_path: Path, peer: Peers) -> None:
    """An object goes to every backend; one that has it is not asked again when the other refuses it at first."""
    good, bad, port = peer(), peer(store_statuses=(0xA700, 0x0000)), free_port()
    backends = {
        name: {"aet": "PEER", "host": "127.0.0.1", "port": node.port} for name, node in (("good", good), ("bad", bad))
    }
    config = write_config(tmp_path, http_port=free_port(), endpoints=endpoint(port), backends=backends)
    with RunningDaemon(config) as running:
        send(port, report_files()[0])
        bad.wait_for("stored", 2)
        wait_delivered(running)
    assert [event["status"] for event in bad.events("stored")] == [0xA700, 0x0000]
    assert len(good.events("stored")) == 1


@contextmanager
def store_scp(port: int, folder: Path) -> Iterator[Path]:
    """A storescp that is up in no time, writing into ``folder``."""
    folder.mkdir()
    argv = [dcmtk("storescp"), "+B", "-od", str(folder), str(port)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as scp:
        try:
            yield folder
        finally:
            scp.terminate()


def test_a_backend_that_is_away(tmp_path: Path) -> None:
    """What a backend cannot take yet waits in the spool, is said in the log, and is delivered when it is back."""
    port, peer_port = free_port(), free_port()
    backend = {"aet": "PEER", "host": "127.0.0.1", "port": peer_port}
    config = write_config(tmp_path, http_port=free_port(), endpoints=endpoint(port), backends={"peer": backend})
    study = make_study(tmp_path / "made", 2)
    with RunningDaemon(config) as running:
        send(port, *study.files)
        wait_until(lambda: "peer is away: " in running.log, "it has failed once")
        wait_until(lambda: len(entries(running)) == 2, "both are in the spool")
        with store_scp(peer_port, tmp_path / "back") as back:
            # Under load the first tries may come too early, and the next ones after 15 s only.
            wait_delivered(running)
            assert {str(dcmread(path).SOPInstanceUID) for path in back.iterdir()} == set(study.sop_uids)


def test_a_backend_that_is_away_and_a_crash(tmp_path: Path) -> None:
    """What waits in the spool survives kill -9 of the daemon, and is delivered after the next start."""
    port, peer_port = free_port(), free_port()
    backend = {"aet": "PEER", "host": "127.0.0.1", "port": peer_port}
    config = write_config(tmp_path, http_port=free_port(), endpoints=endpoint(port), backends={"peer": backend})
    study = make_study(tmp_path / "made", 3)
    with RunningDaemon(config) as running:
        send(port, *study.files)
        wait_until(lambda: "peer is away: " in running.log, "it has failed once")
        running.kill9()
        running.assert_nothing_left(5)
        assert len(spooled(running)) == 3
    with ScriptedPeer(port=peer_port) as back, RunningDaemon(config) as again:
        back.wait_for("stored", 3)
        wait_delivered(again)
        assert {event["sop_instance_uid"] for event in back.events("stored")} == set(study.sop_uids)
        assert len(back.events("stored")) == 3


def test_kill_9_while_objects_arrive(tmp_path: Path) -> None:
    """Every object that the sender was told we have is kept, whatever ends the daemon meanwhile."""
    port = free_port()
    config = write_config(tmp_path, http_port=free_port(), endpoints=endpoint(port), backends={})
    study = make_study(tmp_path / "made", 200, size=128)
    argv = [dcmtk("storescu"), "-v", "-aec", "HARMONY_SCP", "127.0.0.1", str(port), *map(str, study.files)]
    with RunningDaemon(config) as running:
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as sender:
            wait_until(lambda: len(kept_files(running)) + len(spooled(running)) > 20, "objects arrive")
            running.kill9()
            said, _ = sender.communicate(timeout=20)
        running.assert_nothing_left(5)
    acknowledged = said.count(b"Received Store Response (Success)")
    assert 0 < acknowledged < 200
    with RunningDaemon(config) as again:
        wait_delivered(again)
        kept = {path.stem for path in kept_files(again)}
    assert set(study.sop_uids[:acknowledged]) <= kept


# --- posted to an HTTP server -----------------------------------------------------------------------------------------


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[WebServer]:
    with WebServer(getattr(request, "param", (201,))) as running:
        yield running


@pytest.mark.parametrize("server", [(201,), (503, 200)], indirect=True, ids=["at once", "at the second time"])
def test_posted_to_a_server(tmp_path: Path, server: WebServer) -> None:
    """An http backend gets POST application/dicom with the bytes that arrived, until it answers with success."""
    port = free_port()
    backends = {"web": server.backend}
    config = write_config(tmp_path, http_port=free_port(), endpoints=endpoint(port), backends=backends)
    ct_bytes(tmp_path, size=512)
    attempts = len(server.statuses)
    with RunningDaemon(config) as running:
        send(port, tmp_path / "made-1.dcm")
        wait_until(lambda: len(server.received) == attempts, "the server has it")
        wait_delivered(running)
    assert len({body for *_, body in server.received}) == 1
    method, path, headers, body = server.received[-1]
    assert (method, path) == ("POST", "/objects")
    assert headers["content-type"] == "application/dicom"
    assert headers["x-request-id"]
    ds = dcmread(tmp_path / "made-1.dcm")
    assert_same_objects([body], {ds.SOPInstanceUID: tmp_path / "made-1.dcm"})
