"""Received objects on their way: from the receiver into the spool, and from there through the pipeline."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from harmonyd.acknowledge import PipelineAnswers
from harmonyd.config.model import DicomEndpointOptions
from harmonyd.dimse.engine import Arrival, Association, Instance
from harmonyd.dimse.errors import (
    AssociationAborted,
    AssociationRejected,
    DimseFailure,
    DimseTimeout,
    RemoteUnreachable,
)
from harmonyd.dimse.part10 import check_complete
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import HarmonydError, StorageFull, Unavailable
from harmonyd.middleware.base import Middleware
from harmonyd.middleware.passthru import Passthru
from harmonyd.pipeline.errors import NotTried
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.services.dicom.inbound import DicomEndpoint, scp_config
from harmonyd.services.http.errors import UpstreamUnreachable
from harmonyd.spool.api import Delivered, Entry, Failed, NewEntry, Untried
from harmonyd.testing.data import demo_files
from harmonyd.tls import TlsServer

ASSOCIATION = Association("a" * 32, "GATEWAY", "CT1", "192.0.2.7")


class FakeScp:
    """Says what it is told to do."""

    def __init__(self, said: list[Any]) -> None:
        self._said = said

    async def start(self) -> None:
        self._said.append("scp starts")

    async def stop(self) -> None:
        self._said.append("scp stops")

    async def pause(self) -> None:
        self._said.append("scp pauses")

    async def resume(self, config: Any) -> None:
        self._said.append(config)

    async def taken(self) -> None:
        self._said.append("scp has handed on")


class FakeSpool:
    """Says what it is told to do, and keeps what it takes."""

    admission: Any = None

    def __init__(self, said: list[Any]) -> None:
        self._said = said
        self.took: list[tuple[str, list[NewEntry], list[str]]] = []
        self.aside: list[tuple[str, NewEntry, str]] = []

    def attach(self, endpoint: str, deliverer: Any, *, in_order: bool) -> None:
        self._said.append(f"spool delivers for {endpoint}{' in order' * in_order}")

    async def rearrange(self, endpoint: str, *, in_order: bool) -> None:
        self._said.append(f"spool rearranges {endpoint}{' in order' * in_order}")

    async def detach(self, endpoint: str) -> None:
        self._said.append(f"spool delivers nothing for {endpoint}")

    async def emptied(self, endpoint: str) -> None:
        self._said.append(f"spool has emptied {endpoint}")

    async def take(self, endpoint: str, entries: Sequence[NewEntry], backends: Sequence[str]) -> None:
        self.took.append((endpoint, list(entries), list(backends)))

    async def put_aside(self, endpoint: str, entry: NewEntry, reason: str) -> None:
        self.aside.append((endpoint, entry, reason))


class FakeBackend:
    """Takes requests and reads their bodies, or answers as told."""

    def __init__(self, answer: ResponseEnvelope | Exception | None = None) -> None:
        self.answer = answer
        self.got: list[RequestEnvelope] = []
        self.bodies: list[bytes] = []
        self.waits: Deferred[None] | None = None

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        self.got.append(request)
        self.bodies.append(await request.body.read(10_000_000))
        if self.waits is not None:
            await self.waits
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer or ResponseEnvelope()


class Batching(FakeBackend):
    """Takes many."""

    max_batch = 7


class Stage:
    """An endpoint among fakes. It is its own engine."""

    def __init__(self, *middleware: Middleware, options: DicomEndpointOptions | None = None, **backends: Any) -> None:
        self.said: list[Any] = []
        self.spool = FakeSpool(self.said)
        pipeline = Pipeline("p", middleware, backends)
        engines: Any = {"dcmtk": self}
        spool: Any = self.spool
        self.config: Any = None
        self.endpoint = DicomEndpoint("scp", options or DicomEndpointOptions(), engines, pipeline, spool, _in_thread)

    def store_scp(self, config: Any, handler: Any, admission: Any, questions: Any = None) -> Any:
        self.config = config
        assert admission is self.spool.admission
        return FakeScp(self.said)


async def _in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def arrival(path: Path) -> Arrival:
    header = check_complete(path)
    instance = Instance(
        path,
        header.sop_class_uid,
        header.sop_instance_uid,
        header.transfer_syntax_uid,
        header.size_bytes,
        header.study_instance_uid,
        header.series_instance_uid,
    )
    return Arrival(instance, ASSOCIATION, "MOVER")


async def entry_of(path: Path) -> Entry:
    """What the spool hands back of an object that it took."""
    stage = Stage(one=FakeBackend())
    await stage.endpoint([arrival(path)])
    [(_, [new], _)] = stage.spool.took
    return Entry(1, "scp", new.path, new.size_bytes, 0.0, new.metadata, new.request_id)


def content(path: Path) -> bytes:
    return path.read_bytes()


def add_unreadable_sequence(path: Path) -> None:
    """A private sequence of ten bytes that are no item, before the pixels."""
    before, pixels, after = path.read_bytes().rpartition(b"\xe0\x7f\x10\x00")
    sequence = b"\x01\x50\x01\x10SQ\0\0\x0a\0\0\0" + bytes(range(10))
    path.write_bytes(before + sequence + pixels + after)


@pytest.fixture
def received(tmp_path: Path) -> Path:
    """An object in the spool."""
    return Path(shutil.copy(demo_files()[0], tmp_path / "received.dcm"))


# --- in


@pytest_twisted.ensureDeferred
async def test_what_arrives_goes_into_the_spool(received: Path, tmp_path: Path) -> None:
    """A batch at a time, for each backend, with all that is known; each object has a correlation id of its own."""
    stage = Stage(one=FakeBackend(), two=FakeBackend())
    second = Path(shutil.copy(received, tmp_path / "second.dcm"))
    await stage.endpoint([arrival(received), arrival(second)])
    [(endpoint, [new, other], backends)] = stage.spool.took
    assert (endpoint, backends) == ("scp", ["one", "two"])
    assert (new.path, new.size_bytes) == (received, len(content(received)))
    assert new.request_id != other.request_id
    header = check_complete(received)
    assert new.metadata == {
        "called_aet": "GATEWAY",
        "calling_aet": "CT1",
        "peer_address": "192.0.2.7",
        "association_id": "a" * 32,
        "move_originator_aet": "MOVER",
        "sop_class_uid": header.sop_class_uid,
        "sop_instance_uid": header.sop_instance_uid,
        "study_instance_uid": header.study_instance_uid,
        "series_instance_uid": header.series_instance_uid,
        "transfer_syntax_uid": header.transfer_syntax_uid,
    }


@pytest_twisted.ensureDeferred
async def test_a_damaged_object_is_put_aside(tmp_path: Path) -> None:
    """With its size, who sent it, and what is wrong."""
    path = tmp_path / "torn"
    path.write_bytes(b"torn")
    stage = Stage(one=FakeBackend())
    await stage.endpoint.damaged(path, ASSOCIATION, "ends in its header")
    [(endpoint, new, reason)] = stage.spool.aside
    assert (endpoint, new.path, new.size_bytes, reason) == ("scp", path, 4, "ends in its header")
    assert (new.metadata["calling_aet"], new.metadata["sop_instance_uid"]) == ("CT1", "")


# --- out


@pytest_twisted.ensureDeferred
async def test_an_envelope(received: Path) -> None:
    """The backend gets the object as it lies on disk, and all that is known of it."""
    entry = await entry_of(received)
    backend = FakeBackend()
    assert await Stage(one=backend).endpoint.deliver("one", [entry]) == [Delivered()]
    [request] = backend.got
    assert backend.bodies == [content(received)]
    assert (request.protocol, request.method, request.path) == ("dicom", "C-STORE", "/")
    assert request.uri == f"dicom://GATEWAY/{entry.metadata['sop_instance_uid']}"
    assert request.metadata == {**entry.metadata, "dimse_op": "store"}
    assert request.headers == {"content-type": "application/dicom"}
    assert (request.id, request.body.length) == (entry.request_id, entry.size_bytes)
    assert request.normalized is None


@pytest_twisted.ensureDeferred
async def test_middleware_sees_the_object(received: Path) -> None:
    """With middleware in the pipeline there is a JSON view, without bulk data."""
    backend = FakeBackend()
    entry = await entry_of(received)
    await Stage(Passthru("m"), one=backend).endpoint.deliver("one", [entry])
    view = backend.got[0].normalized
    assert view["00080018"]["Value"] == [entry.metadata["sop_instance_uid"]]
    assert "InlineBinary" not in view.get("7FE00010", {})


@pytest_twisted.ensureDeferred
async def test_an_object_without_a_json_view(received: Path) -> None:
    """A whole object that we cannot show to middleware still reaches the backend."""
    add_unreadable_sequence(received)
    backend = FakeBackend()
    assert await Stage(Passthru("m"), one=backend).endpoint.deliver("one", [await entry_of(received)]) == [Delivered()]
    assert backend.bodies == [content(received)]
    assert backend.got[0].normalized is None


@pytest.mark.parametrize("middleware", [[], [Passthru("m")]])
@pytest_twisted.ensureDeferred
async def test_a_file_that_is_gone_is_in_nobodys_way(
    received: Path, tmp_path: Path, middleware: list[Middleware]
) -> None:
    """It fails by itself; what was to be delivered together with it is."""
    entry = await entry_of(received)
    gone = replace(entry, id=2, path=tmp_path / "gone")
    results = await Stage(*middleware, one=FakeBackend()).endpoint.deliver("one", [gone, entry])
    assert results == [Failed("No such file or directory"), Delivered()]


class LeavesOut(Passthru):
    """Lets nothing through to any backend."""

    async def on_request(self, request: RequestEnvelope) -> None:
        request.metadata["skip_backends"] = "true"


@pytest_twisted.ensureDeferred
async def test_a_backend_that_middleware_leaves_out(received: Path) -> None:
    """For this backend the object is done with."""
    backend = FakeBackend()
    stage = Stage(LeavesOut("m"), one=backend)
    assert await stage.endpoint.deliver("one", [await entry_of(received)]) == [Delivered()]
    assert backend.got == []


@pytest.mark.parametrize(
    "answer",
    [
        RemoteUnreachable("refused"),
        AssociationRejected("not now"),
        UpstreamUnreachable("no route"),
        Unavailable("the queue is full"),
        StorageFull("no room"),
        DimseTimeout("no connection", timeout="connect"),
        DimseTimeout("no association", timeout="association"),
        DimseFailure.from_status("C-STORE", 0xA700, "out of resources", None),
        DimseFailure.from_status("C-STORE", 0xA7FF, "out of resources", None),
        ResponseEnvelope(status=503),
        ResponseEnvelope(status=429),
        ResponseEnvelope(status=507),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_backend_that_is_away(received: Path, answer: Any) -> None:
    """What is about the backend keeps no object from being tried again for as long as it takes."""
    [result] = await Stage(one=FakeBackend(answer)).endpoint.deliver("one", [await entry_of(received)])
    assert isinstance(result, Failed)
    assert result.is_away
    assert result.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (DimseFailure.from_status("C-STORE", 0xC000, "cannot understand", None), "status 0xC000"),
        (DimseFailure.from_status("C-STORE", 0xA900, "does not match", None), "status 0xA900"),
        (ResponseEnvelope(status=400), "status 400"),
        (ResponseEnvelope(status=500), "status 500"),
        (AssociationAborted("it hung up"), "it hung up"),
        (DimseTimeout("too slow", timeout="operation"), "too slow"),
        (HarmonydError("odd"), "odd"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "No such file"),
        (KeyError("PatientName"), "KeyError"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_object_that_is_refused(received: Path, answer: Any, reason: str) -> None:
    """What may be about the object counts as its failure; a mistake of ours is told without what was in it."""
    [result] = await Stage(one=FakeBackend(answer)).endpoint.deliver("one", [await entry_of(received)])
    assert isinstance(result, Failed)
    assert not result.is_away
    assert reason in result.reason
    assert "PatientName" not in result.reason


@pytest_twisted.ensureDeferred
async def test_an_object_that_was_not_tried(received: Path) -> None:
    """It may be tried at once."""
    [result] = await Stage(one=FakeBackend(NotTried("later"))).endpoint.deliver("one", [await entry_of(received)])
    assert result == Untried()


# --- the endpoint itself


def test_backends_and_how_much_they_take() -> None:
    """One at a time, unless the backend says otherwise."""
    assert Stage(one=FakeBackend(), two=Batching()).endpoint.backends() == {"one": 1, "two": 7}


def test_the_receiver_is_told_what_the_configuration_says() -> None:
    """Each option that a receiver has comes from the endpoint's."""
    options = DicomEndpointOptions(
        local_aet="GATEWAY",
        bind_addr="::1",
        port=104,
        max_pdu=4096,
        store_scp="per-association",
        allowed_calling_aets=("CT1",),
        max_associations=3,
        max_associations_per_peer=2,
        association_timeout_secs=5.0,
        acknowledge=PipelineAnswers(1.0),
        tls=TlsServer(Path("/own.crt"), Path("/own.key")),
        services=("find",),
    )
    config = Stage(options=options, one=FakeBackend()).config
    assert config.name == "scp"
    assert {name: getattr(config, name) for name in config.__slots__ if name != "name"} == {
        name: getattr(options, name)
        for name in options.__slots__
        if name not in ("engine", "in_order", "storage_dir", "move_destinations") and not name.startswith("commit_")
    }


@pytest_twisted.ensureDeferred
async def test_the_order_of_its_life() -> None:
    """The spool delivers before anything is received, and until nothing is any more."""
    stage = Stage(options=DicomEndpointOptions(in_order=True), one=FakeBackend())
    endpoint = stage.endpoint
    await endpoint.start()
    await endpoint.pause()
    changed = DicomEndpointOptions(port=105)
    endpoint.change(changed, Pipeline("p", [], {"other": FakeBackend()}))
    await endpoint.arrange()
    await endpoint.resume()
    assert endpoint.backends() == {"other": 1}
    await endpoint.handed_on()
    await endpoint.stop()
    assert stage.said == [
        *("spool delivers for scp in order", "scp starts", "scp pauses", "spool rearranges scp"),
        *(scp_config("scp", changed), "scp has handed on", "spool has emptied scp"),
        *("scp stops", "spool delivers nothing for scp"),
    ]


class OwnBackend(FakeBackend):
    """Says when it is started and stopped."""

    def __init__(self, said: list[Any], name: str) -> None:
        super().__init__()
        self._said = said
        self.name = name

    async def start(self) -> None:
        self._said.append(f"{self.name} starts")

    async def stop(self) -> None:
        self._said.append(f"{self.name} stops")


@pytest_twisted.ensureDeferred
async def test_a_backend_of_its_own() -> None:
    """It is started before anything is delivered to it, changed with the pipeline, and stopped at the end."""
    stage = Stage()
    first, second = (OwnBackend(stage.said, name) for name in ("first", "second"))
    stage.endpoint.change(DicomEndpointOptions(), Pipeline("p", [], {"received": first}), first)
    await stage.endpoint.start()
    await stage.endpoint.arrange()
    stage.endpoint.change(DicomEndpointOptions(), Pipeline("p", [], {"received": second}), second)
    await stage.endpoint.arrange()
    await stage.endpoint.stop()
    assert stage.said == [
        *("first starts", "spool delivers for scp", "scp starts", "spool rearranges scp"),
        *("second starts", "first stops", "spool rearranges scp"),
        *("scp stops", "spool delivers nothing for scp", "second stops"),
    ]


@pytest_twisted.ensureDeferred
async def test_deliveries_under_way_keep_their_pipeline(received: Path) -> None:
    """After a change they end as they began, and one can wait for that."""
    old, new = FakeBackend(), FakeBackend()
    old.waits = Deferred()
    stage = Stage(one=old)
    entry = await entry_of(received)
    first = Deferred.fromCoroutine(stage.endpoint.deliver("one", [entry]))
    stage.endpoint.change(DicomEndpointOptions(), Pipeline("p", [], {"one": new}))
    ended = Deferred.fromCoroutine(stage.endpoint.present_deliveries_end())
    assert not ended.called
    assert await stage.endpoint.deliver("one", [entry]) == [Delivered()]
    assert not ended.called
    old.waits.callback(None)
    assert await first == [Delivered()]
    await ended
    assert (len(old.got), len(new.got)) == (1, 1)
