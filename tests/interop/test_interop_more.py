"""What has to be installed first, with 'make interop': dcm4che, dcmjs-dimse, odil, PixelMed, tiny-pacs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from interop_kit import (
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    MOVE_AET,
    SCP_AET,
    SCU_AET,
    STUDY,
    UNCOMPRESSED,
    Gateway,
    Sample,
    arrived,
    equal,
    files_below,
    identical,
    node,
)

from harmonyd.dimse.engine import RemoteNode
from harmonyd.testing.processes import end_group, free_port, port_is_free, wait_until

pytestmark = [pytest.mark.peers, pytest.mark.deadline(240)]

INSTALLED = Path(__file__).parents[2] / ".interop"
PEERS = Path(__file__).parent / "peers"
DCM4CHE = ("java", "-cp", f"{INSTALLED / 'dcm4che.jar'}:{INSTALLED / 'classes'}", "Dcm4cheNode")
DCMJS = ("node", str(PEERS / "dcmjs_node.js"))
ENV = {**os.environ, "NODE_PATH": str(INSTALLED / "node_modules")}
_JARS = ("pixelmed", "commons-codec", "slf4j-api", "vecmath", "jmdns", "javax.json", "hsqldb")
PIXELMED = ("java", "-cp", ":".join(f"/usr/share/java/{name}.jar" for name in _JARS))
ODIL = ("/usr/bin/odil",)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """``started(port, *argv)``: a program that listens there; it is ended with the test."""
    with ExitStack() as stack:

        def start(port: int, *argv: object) -> None:
            log = stack.enter_context((tmp_path / "peer.log").open("wb"))
            process = subprocess.Popen(
                [str(arg) for arg in argv],
                env=ENV,
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            stack.callback(end_group, process)
            wait_until(lambda: process.poll() is not None or not port_is_free(port), "the peer listens", 30)
            assert process.poll() is None, (tmp_path / "peer.log").read_text()

        yield start


@pytest.fixture
def scp(
    started: Callable[..., None], tmp_path: Path, move_port: int
) -> Callable[[str, tuple[str, ...], list[Sample]], RemoteNode]:
    """One of our small nodes, with these samples; what it gets is in ``tmp_path / "stored"``."""
    folder = tmp_path / "stored"
    folder.mkdir()

    def start(aet: str, program: tuple[str, ...], held: list[Sample]) -> RemoteNode:
        port = free_port()
        started(port, *program, "scp", port, folder, move_port, *[sample.path for sample in held])
        return node(aet, port)

    return start


async def check_find(gateway: Gateway, remote: RemoteNode, held: list[Sample]) -> None:
    """C-FIND of the study and of its images."""
    (study,) = await gateway.find(remote, StudyInstanceUID="", PatientID="INTEROP")
    assert study["StudyInstanceUID"] == STUDY
    found = [
        image["SOPInstanceUID"]
        for each in await gateway.find(remote, "SERIES", StudyInstanceUID=STUDY, SeriesInstanceUID="")
        for image in await gateway.find(
            remote, "IMAGE", StudyInstanceUID=STUDY, SeriesInstanceUID=each["SeriesInstanceUID"], SOPInstanceUID=""
        )
    ]
    assert sorted(found) == sorted(sample.sop_instance_uid for sample in held)


# --- dcm4che


@pytest_twisted.ensureDeferred
async def test_dcm4che(gateway: Gateway, scp: Any, samples: list[Sample], tmp_path: Path) -> None:
    """As an SCP of everything: stores and moves are byte for byte, gets but for what it converts."""
    remote = scp("DCM4CHE", DCM4CHE, samples)
    assert (await gateway.echo(remote)).status == 0
    await check_find(gateway, remote, samples)
    await gateway.store_all(remote, samples)
    identical(samples, files_below(tmp_path / "stored"))
    moved = await gateway.move(remote)
    assert moved.outcome.complete, moved.outcome
    identical(samples, moved.files)
    got = await gateway.get(remote)
    assert got.outcome.complete, got.outcome
    equal(samples, got.files, converts=UNCOMPRESSED)


@pytest_twisted.ensureDeferred
async def test_dcm4che_sends(gateway: Gateway, samples: list[Sample]) -> None:
    """As an SCU of C-ECHO and C-STORE."""
    port = await gateway.receive()
    await gateway.run(*DCM4CHE, "send", port, SCP_AET, *[sample.path for sample in samples])
    identical(samples, gateway.taken.files)


# --- dcmjs-dimse


@pytest_twisted.ensureDeferred
async def test_dcmjs(gateway: Gateway, scp: Any, samples: list[Sample], tmp_path: Path) -> None:
    """As an SCP."""
    remote = scp("DCMJS", DCMJS, samples)
    assert (await gateway.echo(remote)).status == 0
    await check_find(gateway, remote, samples)
    sent = [sample for sample in samples if sample.transfer_syntax_uid != DEFLATED]
    await gateway.store_all(remote, sent)
    arrived(sent, files_below(tmp_path / "stored"), converts=UNCOMPRESSED)


@pytest_twisted.ensureDeferred
async def test_dcmjs_moves(gateway: Gateway, scp: Any, samples: list[Sample]) -> None:
    """As a source of C-MOVE, without Move Originator."""
    sent = [sample for sample in samples if sample.transfer_syntax_uid != DEFLATED]
    moved = await gateway.move(scp("DCMJS", DCMJS, sent))
    assert moved.outcome.complete, moved.outcome
    arrived(sent, moved.files, converts=UNCOMPRESSED)


@pytest_twisted.ensureDeferred
async def test_dcmjs_sends(gateway: Gateway, samples: list[Sample]) -> None:
    """As an SCU of C-ECHO and C-STORE."""
    port = await gateway.receive()
    sent = [sample for sample in samples if sample.transfer_syntax_uid != DEFLATED]
    await gateway.run(*DCMJS, "send", port, SCP_AET, *[sample.path for sample in sent], env=ENV)
    arrived(sent, gateway.taken.files, converts=UNCOMPRESSED)


# --- tiny-pacs, which is built on pynetdicom2


@pytest.fixture
def tiny_pacs(started: Callable[..., None], tmp_path: Path, move_port: int) -> RemoteNode:
    port = free_port()
    devices = {
        aet: {"aet": aet, "address": "127.0.0.1", "port": at} for aet, at in ((MOVE_AET, move_port), (SCU_AET, 104))
    }
    config = {
        "ae": {"ae_title": ["TINY_PACS"], "port": port, "dump_ds": False},
        "components": {
            "Database": {"on": True},
            "Devices": {"on": True, "auto_add": True, "devices": devices},
            "PACS": {"on": True},
            "InMemoryStorage": {"on": True},
        },
    }
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    started(port, INSTALLED / "tiny-pacs" / "bin" / "tiny-pacs", "run", "-c", tmp_path / "tiny.json")
    return node("TINY_PACS", port)


@pytest_twisted.ensureDeferred
async def test_tiny_pacs(gateway: Gateway, tiny_pacs: RemoteNode, samples: list[Sample]) -> None:
    """As a PACS. Below studies each of its matches repeats the first one.

    It sends all objects of a SOP class in one context, whatever their transfer syntax, so there is only one here.
    """
    samples = [sample for sample in samples if sample.transfer_syntax_uid == EXPLICIT]
    assert (await gateway.echo(tiny_pacs)).status == 0
    await gateway.store_all(tiny_pacs, samples)
    (study,) = await gateway.find(tiny_pacs, StudyInstanceUID="")
    assert study["StudyInstanceUID"] == STUDY
    images = await gateway.find(tiny_pacs, "IMAGE", StudyInstanceUID=STUDY, SOPInstanceUID="")
    assert len(images) == len(samples)
    moved = await gateway.move(tiny_pacs)
    assert moved.outcome.complete, moved.outcome
    equal(samples, moved.files)
    got = await gateway.get(tiny_pacs)
    assert got.outcome.complete, got.outcome
    equal(samples, got.files)


# --- senders


@pytest_twisted.ensureDeferred
async def test_odil_sends(gateway: Gateway, samples: list[Sample]) -> None:
    """odil's programs send uncompressed objects."""
    sent = [sample for sample in samples if sample.transfer_syntax_uid in (IMPLICIT, EXPLICIT)]
    port = await gateway.receive()
    await gateway.run(*ODIL, "echo", "127.0.0.1", port, "ODIL", SCP_AET)
    await gateway.run(*ODIL, "store", "127.0.0.1", port, "ODIL", SCP_AET, *[sample.path for sample in sent])
    arrived(sent, gateway.taken.files, converts=UNCOMPRESSED)


# --- PixelMed


@pytest_twisted.ensureDeferred
async def test_pixelmed(gateway: Gateway, started: Any, samples: list[Sample], tmp_path: Path) -> None:
    """As a receiver: it accepts what is not compressed, best of all in Explicit VR Little Endian."""
    port, folder = free_port(), tmp_path / "stored"
    folder.mkdir()
    started(port, *PIXELMED, "com.pixelmed.network.StorageSOPClassSCPDispatcher", port, "PIXELMED", folder)
    remote = node("PIXELMED", port)
    assert (await gateway.echo(remote)).status == 0
    sent = [sample for sample in samples if sample.transfer_syntax_uid in (*UNCOMPRESSED, DEFLATED)]
    results = await gateway.store(remote, samples)
    assert sum(result.status == 0 for result in results) == len(sent)
    arrived(sent, files_below(folder), converts=UNCOMPRESSED)


@pytest_twisted.ensureDeferred
async def test_pixelmed_sends(gateway: Gateway, samples: list[Sample]) -> None:
    """As an SCU of C-ECHO and C-STORE of uncompressed objects."""
    port = await gateway.receive()
    called = ("127.0.0.1", port, SCP_AET, "PIXELMED")
    await gateway.run(*PIXELMED, "com.pixelmed.network.VerificationSOPClassSCU", *called, "NONSECURE")
    sent = [sample for sample in samples if sample.transfer_syntax_uid in (IMPLICIT, EXPLICIT)]
    for sample in sent:
        uids = (sample.sop_class_uid, sample.sop_instance_uid)
        await gateway.run(*PIXELMED, "com.pixelmed.network.StorageSOPClassSCU", *called, sample.path, *uids)
    arrived(sent, gateway.taken.files, converts=UNCOMPRESSED)


@pytest_twisted.ensureDeferred
async def test_odil(gateway: Gateway, started: Any, samples: list[Sample], tmp_path: Path) -> None:
    """odil's SCPs of C-ECHO and C-STORE: all but what is deflated, which they cannot read."""
    port, folder = free_port(), tmp_path / "stored"
    folder.mkdir()
    started(port, "/usr/bin/python3", PEERS / "odil_node.py", port, folder)
    remote = node("ODIL", port, idle_secs=0.0)  # it serves one association after the other
    assert (await gateway.echo(remote)).status == 0
    sent = [sample for sample in samples if sample.transfer_syntax_uid != DEFLATED]
    await gateway.until(lambda: not port_is_free(port))
    await gateway.store_all(remote, sent)
    arrived(sent, files_below(folder), converts=UNCOMPRESSED)
