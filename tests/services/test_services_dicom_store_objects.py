"""Several inbound objects over one association: each gets its own answer, whatever becomes of the others."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError

from harmonyd.bodies import BytesBody
from harmonyd.config.model import DicomBackendOptions
from harmonyd.dimse.engine import StoreResult
from harmonyd.dimse.errors import AssociationAborted, DimseError, DimseFailure, RemoteUnreachable
from harmonyd.dimse.part10 import DamagedFile
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest
from harmonyd.pipeline.errors import NotTried
from harmonyd.services.dicom.backend import DicomBackend
from harmonyd.services.dicom.objects import ObjectBody
from harmonyd.testing.data import demo_files


class FakeEngine:
    """Answers the files of a call with statuses, in order, and then fails if told so."""

    def __init__(self, *statuses: int | None, error: Exception | None = None) -> None:
        self.calls: list[list[Path]] = []
        self._statuses = statuses
        self._error = error

    async def store(self, _remote: Any, files: Sequence[Path], _op: Any) -> AsyncGenerator[StoreResult, None]:
        self.calls.append(list(files))
        for status in self._statuses[: len(files)]:
            yield StoreResult("1.2", "1.2.3", status, "told")
        if self._error is not None:
            raise self._error


def backend(engine: Any, storage: Path) -> DicomBackend:
    options = DicomBackendOptions("PACS", "127.0.0.1", 104)
    return DicomBackend("pacs", options, engine, reactor, storage, has_retrievers=False)


def request(body: Any) -> RequestEnvelope:
    headers = {"content-type": "application/dicom"}
    return RequestEnvelope("dicom", "C-STORE", "dicom://A/1", "/", body, headers, metadata={"dimse_op": "store"})


@pytest.fixture
def objects(tmp_path: Path) -> list[Path]:
    """Four received objects."""
    return [Path(shutil.copy(demo_files()[0], tmp_path / f"{number}.dcm")) for number in range(4)]


async def stored(engine: FakeEngine, paths: Sequence[Path]) -> list[type]:
    """The kinds of the answers."""
    sender = backend(engine, paths[0].parent / "storage")
    answers = await sender.send_all([request(ObjectBody(path, 1)) for path in paths])
    assert sender.active == set()
    return [type(answer) for answer in answers]


@pytest_twisted.ensureDeferred
async def test_all_over_one_association(objects: list[Path]) -> None:
    """The engine gets the files as they lie, once; a warning is a success."""
    engine = FakeEngine(0, 0xB000, 0, 0)
    assert await stored(engine, objects) == [ResponseEnvelope] * 4
    assert engine.calls == [objects]


@pytest_twisted.ensureDeferred
async def test_one_is_refused(objects: list[Path]) -> None:
    """A failure status is the answer to that object only."""
    found = await stored(FakeEngine(0, 0xC000, 0, 0), objects)
    assert found == [ResponseEnvelope, DimseFailure, ResponseEnvelope, ResponseEnvelope]


@pytest_twisted.ensureDeferred
async def test_one_is_left_out(objects: list[Path]) -> None:
    """No answer to an object before one that has an answer concerns it alone: no presentation context, for one."""
    found = await stored(FakeEngine(0, None, 0, 0), objects)
    assert found == [ResponseEnvelope, DimseError, ResponseEnvelope, ResponseEnvelope]


@pytest.mark.parametrize(
    ("engine", "blamed"),
    [
        (FakeEngine(0, 0, None, None), DimseError),
        (FakeEngine(0, 0, error=AssociationAborted("gone")), AssociationAborted),
        (FakeEngine(0, 0, None, error=OSError("no more files")), OSError),
        (FakeEngine(0, 0), DimseError),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_association_ends_in_the_middle(objects: list[Path], engine: FakeEngine, blamed: type) -> None:
    """Those that were answered are done, the first one without an answer is told why, the rest were not tried."""
    assert await stored(engine, objects) == [ResponseEnvelope, ResponseEnvelope, blamed, NotTried]


@pytest_twisted.ensureDeferred
async def test_no_association(objects: list[Path]) -> None:
    """The first object is told, the others were not tried."""
    found = await stored(FakeEngine(error=RemoteUnreachable("refused")), objects)
    assert found == [RemoteUnreachable, NotTried, NotTried, NotTried]


@pytest_twisted.ensureDeferred
async def test_files_that_cannot_be_read(objects: list[Path]) -> None:
    """One that vanished, and one that is torn, are told so, and are in nobody's way."""
    objects[0].unlink()
    objects[2].write_bytes(b"torn")
    engine = FakeEngine(0, 0)
    assert await stored(engine, objects) == [FileNotFoundError, ResponseEnvelope, DamagedFile, ResponseEnvelope]
    assert engine.calls == [[objects[1], objects[3]]]


@pytest_twisted.ensureDeferred
async def test_nothing_that_can_be_read(objects: list[Path]) -> None:
    """Then no association is made at all."""
    objects[0].unlink()
    engine = FakeEngine()
    assert await stored(engine, objects[:1]) == [FileNotFoundError]
    assert engine.calls == []


@pytest_twisted.ensureDeferred
async def test_a_stop(objects: list[Path]) -> None:
    """Cancelled is not failed: it is passed on."""
    with pytest.raises(CancelledError):
        await stored(FakeEngine(0, error=CancelledError()), objects)


@pytest_twisted.ensureDeferred
async def test_what_middleware_made_goes_by_itself(objects: list[Path], tmp_path: Path) -> None:
    """When one of the bodies is no received file, each object is stored alone, and answered alone."""
    engine = FakeEngine(0)
    data = objects[1].read_bytes()
    bodies = [ObjectBody(objects[0], 1), BytesBody(data), BytesBody(b"nonsense"), ObjectBody(objects[3], 1)]
    answers = await backend(engine, tmp_path / "storage").send_all(list(map(request, bodies)))
    assert [type(answer) for answer in answers] == [ResponseEnvelope, ResponseEnvelope, BadRequest, ResponseEnvelope]
    assert (engine.calls[0], engine.calls[2]) == ([objects[0]], [objects[3]])
    assert engine.calls[1] not in ([objects[0]], [objects[1]])
