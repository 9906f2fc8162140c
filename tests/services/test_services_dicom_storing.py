"""A store: what is refused before anything is sent, and what is told when it breaks off."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
import pytest_twisted

from harmonyd.bodies import BytesBody
from harmonyd.dimse.engine import OperationContext, StoreResult
from harmonyd.dimse.errors import AssociationAborted, DimseFailure
from harmonyd.envelope import RequestEnvelope
from harmonyd.errors import BadRequest, UnsupportedMediaType
from harmonyd.services.dicom.results import FixedResults
from harmonyd.services.dicom.storing import store_request
from harmonyd.testing.data import demo_files


class FakeEngine:
    """Answers each file with a status, in order, and then fails if told so."""

    def __init__(self, *statuses: int | None, error: Exception | None = None) -> None:
        self.files: list[Path] = []
        self._statuses = statuses
        self._error = error

    async def store(self, remote: Any, files: Sequence[Path], op: Any) -> AsyncGenerator[StoreResult, None]:
        self.files = list(files)
        for number, status in enumerate(self._statuses):
            yield StoreResult("1.2", f"1.2.{number}", status, "told")
        if self._error is not None:
            raise self._error


async def _in_thread(function: Any, *args: Any) -> Any:
    return function(*args)


async def _store(engine: FakeEngine, body: bytes, folder: Path, kind: str = "application/dicom") -> FixedResults:
    request = RequestEnvelope("http", "POST", "/store", "/store", BytesBody(body), {"content-type": kind})
    op = OperationContext("0" * 32, "request", 1e12)
    remote: Any = None
    return await store_request(engine, remote, request, op, folder, _in_thread)  # type: ignore[arg-type]


def _object(path: Path, **elements: str) -> bytes:
    """A whole object with other elements than it should have."""
    with pydicom.config.disable_value_validation():
        ds = pydicom.dcmread(demo_files()[0])
        for keyword, value in elements.items():
            setattr(ds, keyword, value)
            setattr(ds.file_meta, f"MediaStorage{keyword}", value)
        ds.save_as(path)
    return path.read_bytes()


@pytest_twisted.ensureDeferred
async def test_all_stored(tmp_path: Path) -> None:
    """The answer has each instance, and what was received is removed."""
    results = await _store(FakeEngine(0), _object(tmp_path / "a"), tmp_path / "storage")
    assert results.summary()["success"] is True
    assert len([record async for record in results]) == 1
    assert _content(tmp_path / "storage") == []


def _content(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest_twisted.ensureDeferred
async def test_some_refused(tmp_path: Path) -> None:
    """One that was refused, and one that has no answer, make the whole no success."""
    summary = (await _store(FakeEngine(0, 0xA700, None), _object(tmp_path / "a"), tmp_path)).summary()
    assert (summary["success"], summary["complete"], summary["stored"], summary["failed"]) == (False, False, 1, 2)


@pytest_twisted.ensureDeferred
async def test_all_refused(tmp_path: Path) -> None:
    """When none was taken, it is the node's failure, with each instance in the detail."""
    with pytest.raises(DimseFailure) as raised:
        await _store(FakeEngine(0xA700), _object(tmp_path / "a"), tmp_path)
    assert raised.value.extra["instances"][0]["status"] == "0xA700"


@pytest_twisted.ensureDeferred
async def test_breaks_off(tmp_path: Path) -> None:
    """A failure after some instances tells what became of those."""
    with pytest.raises(AssociationAborted) as raised:
        await _store(FakeEngine(0, error=AssociationAborted("gone")), _object(tmp_path / "a"), tmp_path)
    assert [instance["status"] for instance in raised.value.extra["instances"]] == ["0x0000"]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": "1.2.3\nPresentationContext2 = x"},
        {"SOPClassUID": "not a UID"},
        {"SOPInstanceUID": "1.2.3\nDIMSE Status : 0x0000: Success"},
    ],
)
async def test_uids_that_are_none(tmp_path: Path, elements: dict[str, str]) -> None:
    """An object whose UIDs could pass for lines of a configuration or a log is refused, and nothing is sent."""
    engine = FakeEngine(0)
    with pytest.raises(BadRequest):
        await _store(engine, _object(tmp_path / "a", **elements), tmp_path)
    assert engine.files == []


@pytest_twisted.ensureDeferred
async def test_no_dicom(tmp_path: Path) -> None:
    """Bodies of another kind, and damaged objects, are the caller's fault."""
    with pytest.raises(UnsupportedMediaType):
        await _store(FakeEngine(0), b"{}", tmp_path, "application/json")
    with pytest.raises(BadRequest):
        await _store(FakeEngine(0), b"nonsense", tmp_path)
    with pytest.raises(BadRequest):
        await _store(FakeEngine(0), _object(tmp_path / "a")[:-100], tmp_path)
