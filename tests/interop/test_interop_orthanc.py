"""Orthanc: as a PACS that is asked and filled, as a sender, and as the source of C-MOVE and C-GET."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_twisted
from interop_kit import (
    MOVE_AET,
    SCP_AET,
    SCU_AET,
    STUDY,
    UNCOMPRESSED,
    Gateway,
    Sample,
    equal,
    node,
)
from orthanc_kit import Orthanc

from harmonyd.dimse.engine import RemoteNode
from harmonyd.testing.processes import free_port


@dataclass(frozen=True, slots=True)
class Archive:
    """An Orthanc with the samples."""

    orthanc: Orthanc
    remote: RemoteNode
    inbound_port: int
    """Where it finds HARMONY_SCP."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample], move_port: int) -> Iterator[Archive]:
    inbound_port = free_port()
    folder = tmp_path_factory.mktemp("orthanc") / "full"
    with Orthanc(folder, {MOVE_AET: move_port, SCP_AET: inbound_port, SCU_AET: free_port()}) as orthanc:
        for sample in samples:
            orthanc.add(sample.path)
        yield Archive(orthanc, node("ORTHANC", orthanc.port), inbound_port)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc") / "empty") as orthanc:
        yield orthanc


def held(orthanc: Orthanc, folder: Path) -> list[Path]:
    """All that it holds, as files."""
    paths = []
    for number, content in enumerate(orthanc.files()):
        paths.append(folder / f"held-{number}.dcm")
        paths[-1].write_bytes(content)
    return paths


@pytest_twisted.ensureDeferred
async def test_echo(gateway: Gateway, archive: Archive) -> None:
    """C-ECHO to Orthanc."""
    assert (await gateway.echo(archive.remote)).status == 0


@pytest_twisted.ensureDeferred
async def test_find(gateway: Gateway, archive: Archive, samples: list[Sample]) -> None:
    """C-FIND on three levels; it also tells the SOP classes of a study."""
    (study,) = await gateway.find(archive.remote, StudyInstanceUID="", SOPClassesInStudy="")
    assert study["StudyInstanceUID"] == STUDY
    assert set(study["SOPClassesInStudy"]) == {sample.sop_class_uid for sample in samples}
    series = await gateway.find(archive.remote, "SERIES", StudyInstanceUID=STUDY, SeriesInstanceUID="", Modality="")
    assert {"CT", "MR", "RTPLAN"} <= {each["Modality"] for each in series}
    found = [
        image["SOPInstanceUID"]
        for each in series
        for image in await gateway.find(
            archive.remote,
            "IMAGE",
            StudyInstanceUID=STUDY,
            SeriesInstanceUID=each["SeriesInstanceUID"],
            SOPInstanceUID="",
        )
    ]
    assert sorted(found) == sorted(sample.sop_instance_uid for sample in samples)


@pytest_twisted.ensureDeferred
async def test_get(gateway: Gateway, archive: Archive, samples: list[Sample]) -> None:
    """C-GET of the whole study, each object in the transfer syntax that it is stored in."""
    got = await gateway.get(archive.remote)
    assert got.outcome.complete, got.outcome
    equal(samples, got.files, converts=UNCOMPRESSED)


@pytest_twisted.ensureDeferred
async def test_move(gateway: Gateway, archive: Archive, samples: list[Sample]) -> None:
    """C-MOVE of the whole study."""
    moved = await gateway.move(archive.remote)
    assert moved.outcome.complete, moved.outcome
    equal(samples, moved.files)


@pytest_twisted.ensureDeferred
async def test_store(gateway: Gateway, empty: Orthanc, samples: list[Sample], tmp_path: Path) -> None:
    """It takes everything."""
    await gateway.store_all(node("ORTHANC", empty.port), samples)
    equal(samples, await gateway.in_thread(held, empty, tmp_path))


@pytest_twisted.ensureDeferred
async def test_receive(gateway: Gateway, archive: Archive, samples: list[Sample]) -> None:
    """It sends us what it holds, each object in the transfer syntax that it is stored in."""
    await gateway.receive(port=archive.inbound_port)
    ids = json.loads(archive.orthanc.rest("GET", "/instances"))
    await gateway.in_thread(archive.orthanc.send, SCP_AET, ids)
    equal(samples, gateway.taken.files)


@pytest_twisted.ensureDeferred
async def test_echo_from_it(gateway: Gateway, archive: Archive) -> None:
    """It gets an answer to its C-ECHO."""
    await gateway.receive(port=archive.inbound_port)
    await gateway.in_thread(archive.orthanc.rest, "POST", f"/modalities/{SCP_AET}/echo", b"{}")
