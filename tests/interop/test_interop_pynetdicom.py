"""pynetdicom: as an SCP of every service in several transfer syntaxes, and as a sender."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from interop_kit import (
    BIG_ENDIAN,
    SCP_AET,
    STUDY,
    UNCOMPRESSED,
    Gateway,
    Sample,
    equal,
    files_below,
    identical,
    node,
)
from pydicom import Dataset, dcmread
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from harmonyd.dimse.engine import RemoteNode
from harmonyd.testing.processes import free_port

SERVICES = (
    Verification,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)


@dataclass
class Archive:
    """A node that answers everything; it takes storage classes in ``syntaxes``, in this order of preference."""

    folder: Path
    samples: list[Sample]
    move_port: int
    syntaxes: tuple[str, ...] = tuple(ALL_TRANSFER_SYNTAXES)
    port: int = field(default_factory=free_port)

    @property
    def remote(self) -> RemoteNode:
        return node("PYNETDICOM", self.port)

    @contextmanager
    def running(self) -> Iterator[RemoteNode]:
        entity = AE(ae_title="PYNETDICOM")
        for service in SERVICES:
            entity.add_supported_context(service)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(
                str(context.abstract_syntax), list(self.syntaxes), scu_role=True, scp_role=True
            )
        for context in {(sample.sop_class_uid, sample.transfer_syntax_uid) for sample in self.samples}:
            entity.add_requested_context(*context)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._stored),
            (evt.EVT_C_FIND, self._found),
            (evt.EVT_C_GET, self._get),
            (evt.EVT_C_MOVE, self._move),
        ]
        server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        try:
            yield self.remote
        finally:
            server.shutdown()

    def _stored(self, event: Any) -> int:
        path = self.folder / str(event.request.AffectedSOPInstanceUID)
        path.write_bytes(event.encoded_dataset())
        return 0

    def _found(self, event: Any) -> Iterator[tuple[int, Dataset]]:
        keys = event.identifier
        records = {}
        for sample in self.samples:
            ds = dcmread(sample.path, stop_before_pixels=True)
            record = Dataset()
            for element in keys:
                record[element.tag] = ds.get(element.tag, element)
            record.QueryRetrieveLevel = keys.QueryRetrieveLevel
            if not keys.get("SeriesInstanceUID") or keys.SeriesInstanceUID == ds.SeriesInstanceUID:
                records.setdefault(record.get("SOPInstanceUID") or record.get("SeriesInstanceUID") or STUDY, record)
        for record in records.values():
            yield 0xFF00, record

    def _get(self, event: Any) -> Iterator[Any]:
        yield len(self.samples)
        yield from self._sent()

    def _move(self, event: Any) -> Iterator[Any]:
        yield ("127.0.0.1", self.move_port)
        yield from self._get(event)

    def _sent(self) -> Iterator[Any]:
        for sample in self.samples:
            yield 0xFF00, dcmread(sample.path)


@pytest.fixture
def archive(tmp_path: Path, samples: list[Sample], move_port: int) -> Archive:
    folder = tmp_path / "stored"
    folder.mkdir()
    return Archive(folder, samples, move_port)


@pytest_twisted.ensureDeferred
async def test_echo(gateway: Gateway, archive: Archive) -> None:
    """C-ECHO to it."""
    with archive.running() as remote:
        assert (await gateway.echo(remote)).status == 0


@pytest_twisted.ensureDeferred
async def test_find(gateway: Gateway, archive: Archive, samples: list[Sample]) -> None:
    """C-FIND on two levels."""
    with archive.running() as remote:
        (study,) = await gateway.find(remote, StudyInstanceUID="", PatientName="")
        assert (study["StudyInstanceUID"], str(study["PatientName"])) == (STUDY, "Doe^Interop")
        images = await gateway.find(remote, "IMAGE", StudyInstanceUID=STUDY, SOPInstanceUID="")
        assert {image["SOPInstanceUID"] for image in images} == {sample.sop_instance_uid for sample in samples}


@pytest_twisted.ensureDeferred
async def test_get(gateway: Gateway, archive: Archive, samples: list[Sample]) -> None:
    """C-GET of the study: several transfer syntaxes of one SOP class come over one association.

    Big endian is not proposed, and it cannot convert: those are counted as failed.
    """
    with archive.running() as remote:
        got = await gateway.get(remote)
    sent = [sample for sample in samples if sample.transfer_syntax_uid != BIG_ENDIAN]
    assert got.outcome.suboperations is not None
    assert got.outcome.suboperations.failed == len(samples) - len(sent)
    equal(sent, got.files, converts=UNCOMPRESSED)


@pytest_twisted.ensureDeferred
async def test_move(gateway: Gateway, archive: Archive, samples: list[Sample]) -> None:
    """C-MOVE of the whole study."""
    with archive.running() as remote:
        moved = await gateway.move(remote)
    assert moved.outcome.complete, moved.outcome
    equal(samples, moved.files)


@pytest_twisted.ensureDeferred
async def test_store(gateway: Gateway, archive: Archive, samples: list[Sample]) -> None:
    """A node that takes every transfer syntax gets our bytes."""
    with archive.running() as remote:
        await gateway.store_all(remote, samples)
    identical(samples, files_below(archive.folder))


@pytest_twisted.ensureDeferred
async def test_store_by_preference(gateway: Gateway, archive: Archive, samples: list[Sample]) -> None:
    """A node that likes another transfer syntax better, but takes all, still gets each object as it is."""
    archive.syntaxes = tuple(reversed(ALL_TRANSFER_SYNTAXES))
    with archive.running() as remote:
        await gateway.store_all(remote, samples)
    identical(samples, files_below(archive.folder))


@pytest_twisted.ensureDeferred
async def test_receive(gateway: Gateway, samples: list[Sample]) -> None:
    """Every data set that is sent byte for byte arrives byte for byte."""
    port = await gateway.receive()
    await gateway.in_thread(send, port, samples)
    identical(samples, gateway.taken.files)


def send(port: int, samples: list[Sample]) -> None:
    """All over one association, as they are in their files. Blocking."""
    entity = AE(ae_title="PYNETDICOM")
    for context in {(sample.sop_class_uid, sample.transfer_syntax_uid) for sample in samples}:
        entity.add_requested_context(*context)
    entity.add_requested_context(Verification)
    before, _config.STORE_SEND_CHUNKED_DATASET = _config.STORE_SEND_CHUNKED_DATASET, True
    assoc = entity.associate("127.0.0.1", port, ae_title=SCP_AET)
    try:
        assert assoc.is_established
        assert assoc.send_c_echo().Status == 0
        for sample in samples:
            assert assoc.send_c_store(sample.path).Status == 0
    finally:
        _config.STORE_SEND_CHUNKED_DATASET = before
        assoc.release()
