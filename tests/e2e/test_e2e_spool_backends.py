"""What was received reaches each backend as it should: equal, in order, late if need be, and visibly when it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from endpoint_kit import (
    MODES,
    Receiver,
    WebServer,
    data_set,
    endpoint,
    entries,
    send,
    send_as_is,
    spooled,
    wait_delivered,
)
from orthanc_kit import Orthanc
from pydicom import Dataset, dcmread
from retrieve_kit import NATIVE, SHIPPED_SYNTAXES, assert_same_objects, by_study, read, storage

from harmonyd.spool.api import EntryState
from harmonyd.spool.folder import SpoolFolder
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import CT_IMAGE_STORAGE, demo_files, make_study, report_files, shipped_folder
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, wait_until

Gateways = Callable[..., tuple[RunningDaemon, int]]
MULTI_FRAME = (
    "examples_ybr_color.dcm",
    "rtdose.dcm",
    "SC_rgb_rle_2frame.dcm",
)
"""Files of pydicom with several frames."""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateways]:
    """Start a daemon that forwards to ``backends``; the port where it receives is returned too."""
    with ExitStack() as stack:

        def start(backends: dict[str, Any], spool: dict[str, Any] | None = None, **options: Any) -> Any:
            port = free_port()
            config = write_config(
                tmp_path / f"host-{port}",
                http_port=free_port(),
                endpoints=endpoint(port, **options),
                backends=backends,
                sections={"spool": {"retry_max_secs": 1, **(spool or {})}},
            )
            return stack.enter_context(RunningDaemon(config)), port

        yield start


# --- equal


@pytest.fixture
def originals(tmp_path: Path) -> dict[str, Path]:
    """By SOP Instance UID: files in eight transfer syntaxes and more, and some of several frames."""
    names = (*SHIPPED_SYNTAXES, *MULTI_FRAME)
    paths = [distinct(shipped_folder() / name, tmp_path, number) for number, name in enumerate(names, 10)]
    found = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in paths}
    frames = [dcmread(found_path).get("NumberOfFrames", 1) for found_path in found.values()]
    syntaxes = {dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in found.values()}
    assert len(found) == len(paths)
    assert len(syntaxes) >= 11
    assert sum(int(number) > 1 for number in frames) == len(MULTI_FRAME)
    return found


def distinct(path: Path, folder: Path, number: int) -> Path:
    """A copy with a SOP Instance UID of its own, where it can be found, which several of these files share.

    Where the file meta information has another one, it is set right: it is what a sender announces.
    A data set of odd length is padded: on the network there is no other (PS3.8 section 9.3.5.1, PS3.5 section A.5).
    """
    ds = dcmread(path, stop_before_pixels=True)
    uid, announced = (str(each).encode() for each in (ds.SOPInstanceUID, ds.file_meta.MediaStorageSOPInstanceUID))
    assert len(uid) == len(announced)
    content = path.read_bytes().replace(announced, uid)
    if content.count(uid) > 1:
        content = content.replace(uid, uid[:-2] + b"%02d" % number)
    copy = folder / path.name
    copy.write_bytes(content + b"\0" * (len(data_set(content)) % 2))
    return copy


def assert_equal(stored: Dataset, original: Dataset) -> None:
    """The same transfer syntax and elements, but for what storescu sets right.

    It leaves out Data Set Trailing Padding (FFFC,FFFC), and compressed pixels are OB (PS3.5 section A.4), not OW.
    """
    if not NATIVE:
        original.pop(0xFFFCFFFC, None)
    if not NATIVE and original.file_meta.TransferSyntaxUID.is_encapsulated:
        original["PixelData"].VR = "OB"
    assert stored == original, original.SOPInstanceUID
    assert stored.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID


@pytest.mark.parametrize("mode", MODES)
def test_every_transfer_syntax(gateway: Gateways, tmp_path: Path, originals: dict[str, Path], mode: str) -> None:
    """A folder and a web server get the bytes that were sent; a DICOM node the same elements in the same syntax.

    With the native engine it gets the same bytes.
    """
    kept = tmp_path / "kept"
    with WebServer() as web, Receiver() as node:
        backends = {
            "kept": {"service": "storage", "path": str(kept)},
            "web": web.backend,
            "node": node.backend,
        }
        running, port = gateway(backends, store_scp=mode)
        send_as_is(port, *originals.values())
        wait_delivered(running)
        assert node.files.keys() == originals.keys()
        for uid, path in originals.items():
            if NATIVE:
                assert data_set(node.files[uid]) == data_set(path.read_bytes()), path.name
            assert_equal(read(node.files[uid]), dcmread(path))
        posted = {str(dcmread(path).SOPInstanceUID): path.read_bytes() for path in kept.glob("*/*/*.dcm")}
        assert sorted(posted.values()) == sorted(body for *_, body in web.received)
    for uid, path in originals.items():
        assert data_set(posted[uid]) == data_set(path.read_bytes()), path.name


# --- away, slow, in order


@pytest.mark.parametrize("mode", MODES)
def test_a_pacs_that_comes_back(gateway: Gateways, tmp_path: Path, mode: str) -> None:
    """A PACS that is stopped and started again has every object of before, meanwhile and after."""
    studies = [make_study(tmp_path / str(number), 8, patient_id=f"P{number}", size=32) for number in range(3)]
    pacs = RunningPacs(tmp_path / "pacs", files=[])
    with pacs:
        running, port = gateway({"pacs": {"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port}}, store_scp=mode)
        send(port, *studies[0].files)
        wait_delivered(running)
    send(port, *studies[1].files)
    wait_until(lambda: "pacs is away: " in running.log, "it is missed")
    wait_until(lambda: len(entries(running)) >= 8, "all is in the journal")
    with SpoolFolder(storage(running)) as spool:
        assert spool.summary().backends[0].away_reason
    assert {delivery.attempts for info in entries(running) for delivery in info.deliveries} == {0}
    with pacs:
        send(port, *studies[2].files)
        wait_delivered(running)
        assert "pacs takes objects again" in running.log
        stored = {str(dcmread(path).SOPInstanceUID) for path in pacs.layout.area.glob("*.dcm")}
    assert stored == {uid for study in studies for uid in study.sop_uids}


def test_a_slow_backend_holds_up_no_other(gateway: Gateways, tmp_path: Path) -> None:
    """While a web server does not answer, the other backend gets everything; then the web server does, too."""
    study = make_study(tmp_path / "made", 30, size=32)
    with WebServer() as web, Receiver() as node:
        web.gate.clear()
        running, port = gateway({"slow": web.backend, "node": node.backend})
        send(port, *study.files)
        assert web.waiting.wait(20)
        wait_until(lambda: len(node.files) == 30, "the other has everything")
        assert not web.received
        assert len(spooled(running)) == 30
        web.gate.set()
        wait_delivered(running)
        assert {str(read(body).SOPInstanceUID) for *_, body in web.received} == set(study.sop_uids)


@pytest.mark.parametrize("mode", MODES)
def test_in_order(gateway: Gateways, tmp_path: Path, mode: str) -> None:
    """With in_order an object that is refused at first holds up those of its study that came after it."""
    study = make_study(tmp_path / "made", 12, size=16)
    statuses = (0xC000, *(0x0000,) * 50)
    with ScriptedPeer(store_statuses=statuses) as peer:
        backends = {"peer": {"aet": "PEER", "host": "127.0.0.1", "port": peer.port, "max_associations": 1}}
        running, port = gateway(backends, store_scp=mode, in_order=True)
        send(port, *study.files)
        wait_delivered(running)
        stored = [event["sop_instance_uid"] for event in peer.events("stored") if event["status"] == 0]
        refused = [event["sop_instance_uid"] for event in peer.events("stored") if event["status"] != 0]
    assert len(refused) == 1
    assert list(dict.fromkeys(stored)) == list(study.sop_uids)


# --- refused


@pytest.mark.parametrize("mode", MODES)
def test_quarantine_and_retry(gateway: Gateways, tmp_path: Path, mode: str) -> None:
    """What a node refuses for its SOP class is put in quarantine, all else arrives; a retry by hand brings the rest."""
    study = make_study(tmp_path / "made", 6, size=16)
    reports = by_study(report_files())
    report_uids = {uid for files in reports.values() for uid in files}
    with Receiver() as node:
        node.refused.add(CT_IMAGE_STORAGE)
        running, port = gateway({"node": node.backend}, {"max_attempts": 2}, store_scp=mode)
        send(port, study.files[0], *report_files(), *study.files[1:])
        wait_until(lambda: len(quarantined(running)) == 6, "six are in quarantine", 40)
        assert set(node.files) == report_uids
        assert node.refusals == 12
        told = quarantined(running)
        assert {info.entry.metadata["sop_instance_uid"] for info in told} == set(study.sop_uids)
        assert all("C000" in info.deliveries[0].reason for info in told), told[0].deliveries
        for uid in study.sop_uids:
            assert f"{uid} from inbound is put in quarantine" in running.log
        node.refused.clear()
        with SpoolFolder(storage(running)) as spool:
            assert spool.retry([info.entry.id for info in told]) == 6
        wait_delivered(running)
        assert set(node.files) == report_uids | set(study.sop_uids)


def quarantined(running: RunningDaemon) -> list[Any]:
    """Entries that one backend does not take."""
    with SpoolFolder(storage(running)) as spool:
        return spool.entries(state=EntryState.QUARANTINED)


# --- Orthanc


@pytest.mark.parametrize("mode", MODES)
def test_from_orthanc_to_orthanc(gateway: Gateways, tmp_path: Path, mode: str) -> None:
    """What Orthanc sends to us arrives in another Orthanc, as the same data sets."""
    files = demo_files()[:20]
    with Orthanc(tmp_path / "destination") as destination:
        running, port = gateway({"orthanc": destination.backend}, store_scp=mode)
        with Orthanc(tmp_path / "source", {"HARMONY_SCP": port}) as source:
            source.send("HARMONY_SCP", [source.add(path) for path in files])
        wait_delivered(running)
        originals = {str(dcmread(path).SOPInstanceUID): path for path in files}
        assert_same_objects(destination.files(), originals)
        assert json.loads(destination.rest("GET", "/statistics"))["CountInstances"] == len(files)
