"""Received objects on their way: into envelopes, or kept in a folder when the pipeline has no backend."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from harmonyd.config.model import DicomEndpointOptions
from harmonyd.dimse.engine import Instance
from harmonyd.dimse.part10 import check_complete
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import RemoteError
from harmonyd.pipeline.errors import DeliveryFailed
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.services.dicom.inbound import DicomEndpoint, keep
from harmonyd.testing.data import demo_files


class FakeEngine:
    """Hands out the handler it was given, for the tests to call."""

    handler: Any = None

    def store_scp(self, config: Any, handler: Any) -> None:
        self.handler = handler


class FakeBackend:
    """Takes requests and reads their bodies."""

    def __init__(self) -> None:
        self.got: list[RequestEnvelope] = []
        self.bodies: list[bytes] = []
        self.is_away = False

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        if self.is_away:
            raise RemoteError("away")
        self.got.append(request)
        self.bodies.append(await request.body.read(10_000_000))
        return ResponseEnvelope()


async def _in_thread(function: Any, *args: Any) -> Any:
    return function(*args)


def _handler(tmp_path: Path, **backends: FakeBackend) -> Any:
    engine: Any = FakeEngine()
    pipeline = Pipeline("p", [], backends)
    DicomEndpoint("scp", DicomEndpointOptions(), engine, pipeline, tmp_path, _in_thread)
    return engine.handler


def _instance(path: Path) -> Instance:
    header = check_complete(path)
    return Instance(
        path, header.sop_class_uid, header.sop_instance_uid, header.transfer_syntax_uid, header.size_bytes
    )


def _content(path: Path) -> bytes:
    return path.read_bytes()


def _add_unreadable_sequence(path: Path) -> None:
    """A private sequence of ten bytes that are no item, before the pixels."""
    before, pixels, after = path.read_bytes().rpartition(b"\xe0\x7f\x10\x00")
    nonsense = bytes(range(10))
    sequence = b"\x01\x50\x01\x10SQ\0\0" + len(nonsense).to_bytes(4, "little") + nonsense
    path.write_bytes(before + sequence + pixels + after)


@pytest.fixture
def received(tmp_path: Path) -> Path:
    """An object in the spool."""
    return Path(shutil.copy(demo_files()[0], tmp_path / "received.dcm"))


@pytest_twisted.ensureDeferred
async def test_an_envelope(tmp_path: Path, received: Path) -> None:
    """The backend gets the object as it lies on disk, who sent it, and its JSON view."""
    backend = FakeBackend()
    await _handler(tmp_path, store=backend)(_instance(received), "MODALITY")
    (request,) = backend.got
    assert backend.bodies == [_content(received)]
    assert request.metadata["calling_aet"] == "MODALITY"
    assert request.normalized["00080018"]["Value"] == [request.metadata["sop_instance_uid"]]


@pytest_twisted.ensureDeferred
async def test_an_object_without_a_json_view(tmp_path: Path, received: Path) -> None:
    """A whole object that we cannot show to middleware still reaches the backend."""
    _add_unreadable_sequence(received)
    backend = FakeBackend()
    await _handler(tmp_path, store=backend)(_instance(received), None)
    assert backend.bodies == [_content(received)]
    assert backend.got[0].normalized is None


@pytest_twisted.ensureDeferred
async def test_only_those_who_lack_it(tmp_path: Path, received: Path) -> None:
    """When one of two backends was away, the next try goes to that one only."""
    one, two = FakeBackend(), FakeBackend()
    two.is_away = True
    handler = _handler(tmp_path, one=one, two=two)
    with pytest.raises(DeliveryFailed):
        await handler(_instance(received), None)
    two.is_away = False
    await handler(_instance(received), None)
    assert (len(one.got), len(two.got)) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_kept_without_a_backend(tmp_path: Path, received: Path) -> None:
    """Without a backend the object lies in a folder by study and series."""
    await _handler(tmp_path)(_instance(received), None)
    header = check_complete(received)
    folder = tmp_path / "received" / "scp" / header.study_instance_uid / header.series_instance_uid
    assert [file.name for file in folder.iterdir()] == [f"{header.sop_instance_uid}.dcm"]


def test_the_same_object_is_kept_once(tmp_path: Path, received: Path) -> None:
    """An object that is handed on a second time changes nothing."""
    header = check_complete(received)
    first = keep(received, header, tmp_path / "kept")
    assert keep(received, header, tmp_path / "kept") == first
    assert list(first.parent.iterdir()) == [first]


def test_another_object_of_the_same_uid_is_kept_too(tmp_path: Path, received: Path) -> None:
    """Two different objects of one UID were both acknowledged: none replaces the other."""
    header = check_complete(received)
    other = tmp_path / "other.dcm"
    other.write_bytes(received.read_bytes() + b"\xfc\xff\xfc\xffOB\0\0\x02\0\0\0\0\0")
    first = keep(received, header, tmp_path / "kept")
    second = keep(other, check_complete(other), tmp_path / "kept")
    assert first != second
    assert first.read_bytes() == received.read_bytes()
    assert second.read_bytes() == other.read_bytes()
    assert keep(other, header, tmp_path / "kept") == second


def test_uids_that_are_none_make_no_path(tmp_path: Path, received: Path) -> None:
    """What a sender writes where UIDs should be never leads out of the folder."""
    header = replace(
        check_complete(received), study_instance_uid="../..", series_instance_uid="/etc", sop_instance_uid="a/b"
    )
    kept = keep(received, header, tmp_path / "kept")
    assert kept == tmp_path / "kept" / "unknown" / "unknown" / "received.dcm"
