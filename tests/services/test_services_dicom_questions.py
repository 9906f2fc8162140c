"""The endpoint half of query and retrieve: what callers ask becomes envelopes, and what comes back becomes statuses."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pydicom import Dataset
from pydicom.filereader import read_dataset
from service_fakes import FakeRecord, FakeResults, instances, records
from twisted.internet.defer import CancelledError, Deferred

from harmonyd.bodies import BytesBody
from harmonyd.config.asking import MoveDestination
from harmonyd.config.model import DicomBackendOptions, DicomEndpointOptions
from harmonyd.config.sparing import SelectivityOptions
from harmonyd.dimse import wire
from harmonyd.dimse.engine import Association, Match, QueryModel, Received
from harmonyd.dimse.errors import (
    AssociationRejected,
    DimseError,
    DimseFailure,
    DimseTimeout,
    IdentifierError,
    NoPresentationContext,
    RemoteUnreachable,
)
from harmonyd.dimse.recode import EXPLICIT_VR_LE, IMPLICIT_VR_LE
from harmonyd.dimse.serving import FIND, GET, MOVE, Asked, NotServed, Pending
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import (
    BadRequest,
    DeadlinePassed,
    Forbidden,
    HarmonydError,
    NotFound,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from harmonyd.services.dicom.asked import ONCE, request_for
from harmonyd.services.dicom.locating import FAILED
from harmonyd.services.dicom.questions import Questions
from harmonyd.services.dicom.request import RETRIEVE, build_query, read_document
from harmonyd.services.dicom.results import MatchRecord
from harmonyd.services.dicom.selectivity import TooBroad
from harmonyd.testing.data import demo_files

BACKEND = DicomBackendOptions("PACS", "pacs", 104)
ASSOCIATION = Association("a" * 32, "GATEWAY", "WS", "192.0.2.7")
MATCH = b'{"00100020": {"vr": "LO", "Value": ["P1"]}, "0020000D": {"vr": "UI", "Value": ["1.2"]}}'


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


class Pipeline:
    """Answers with what it is given, and keeps what it was asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[RequestEnvelope] = []

    async def __call__(self, request: RequestEnvelope) -> ResponseEnvelope:
        self.asked.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def identifier(**keys: Any) -> bytes:
    ds = Dataset()
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return wire.written(ds, EXPLICIT_VR_LE)


STUDY = identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID="1.2", PatientName="")


def asked(operation: str = FIND, data: bytes = STUDY, destination: str = "") -> Asked:
    return Asked(operation, ASSOCIATION, 7, QueryModel.STUDY_ROOT, data, EXPLICIT_VR_LE, destination)


def questions(answer: Any, **options: Any) -> tuple[Questions, Pipeline]:
    pipeline = Pipeline(answer)
    return Questions(pipeline, in_thread, DicomEndpointOptions(**options)), pipeline


async def found(answer: Any, question: Asked | None = None) -> list[Pending]:
    return [match async for match in questions(answer)[0].find(question or asked())]


async def refusal(answer: Any, question: Asked | None = None) -> NotServed:
    with pytest.raises(NotServed) as raised:
        await found(answer, question)
    return raised.value


def decoded(match: Pending) -> Dataset:
    return read_dataset(BytesIO(match.data), False, True)


@pytest_twisted.ensureDeferred
async def test_a_question_as_an_envelope() -> None:
    """Middleware sees who asks for what; the identifier is JSON for it, and the caller's bytes for a backend."""
    handler, pipeline = questions(ResponseEnvelope(results=FakeResults()))
    assert [match async for match in handler.find(asked())] == []
    (request,) = pipeline.asked
    assert (request.protocol, request.method, request.metadata["dimse_op"]) == ("dicom", "C-FIND", "find")
    assert {request.metadata[key] for key in ("called_aet", "calling_aet", "peer_address")} == {
        *("GATEWAY", "WS", "192.0.2.7")
    }
    assert (request.caller.aet, request.caller.address) == ("WS", "192.0.2.7")
    assert request.normalized["0020000D"] == {"vr": "UI", "Value": ["1.2"]}
    query = build_query(request, await read_document(request), "find", BACKEND)
    assert query.received == Received(STUDY, EXPLICIT_VR_LE)


@pytest_twisted.ensureDeferred
async def test_what_middleware_changes_is_asked() -> None:
    """In the normalised view, in place or not, and with forced keys."""
    handler, pipeline = questions(ResponseEnvelope(results=FakeResults()))
    assert [match async for match in handler.find(asked())] == []
    (request,) = pipeline.asked
    request.normalized["00100020"] = {"vr": "LO", "Value": ["OWN"]}
    request.metadata["identifier.AccessionNumber"] = "A1"
    query = build_query(request, await read_document(request), "find", BACKEND)
    assert query.received is None
    assert (query.dataset.PatientID, query.dataset.AccessionNumber, query.dataset.StudyInstanceUID) == (
        *("OWN", "A1", "1.2"),
    )


@pytest_twisted.ensureDeferred
async def test_questions_that_are_too_broad() -> None:
    """Are refused for workstations as for anybody else, by all of their keys; not worklists, which have others."""
    sparing = replace(BACKEND, selectivity=SelectivityOptions())
    for name, model, is_refused in (
        ("", QueryModel.STUDY_ROOT, True),
        ("Mustermann", QueryModel.STUDY_ROOT, False),
        ("", QueryModel.WORKLIST, False),
    ):
        data = identifier(QueryRetrieveLevel="STUDY", PatientName=name)
        request = request_for(replace(asked(data=data), model=model), "id", FIND)
        document = await read_document(request)
        with pytest.raises(TooBroad) if is_refused else nullcontext():
            build_query(request, document, "find", sparing)


@pytest_twisted.ensureDeferred
async def test_matches_go_back() -> None:
    """As the node sent them, with its pending status; what was made of them as JSON is encoded."""
    explicit = identifier(PatientID="P0")
    implicit = Received(b"\x10\x00\x20\x00\x02\x00\x00\x00P2", IMPLICIT_VR_LE, 0xFF01)
    matches = [
        MatchRecord(Match(b"", Received(explicit, EXPLICIT_VR_LE)), in_thread),
        MatchRecord(Match(b"", implicit), in_thread),
        FakeRecord(MATCH),
        FakeRecord(MATCH.replace(b"P1", "Jörg".encode() * 300)),
    ]
    response = ResponseEnvelope(results=FakeResults(matches))  # type: ignore[arg-type]
    one, two, three, four = await found(response)
    assert (one.data, one.status, two.status) == (explicit, 0xFF00, 0xFF01)
    assert [decoded(match).PatientID for match in (two, three)] == ["P2", "P1"]
    assert decoded(four).SpecificCharacterSet == "ISO_IR 192"
    assert response.results.closed == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("error", "status", "comment"),
    [
        (DimseFailure.from_status("C-FIND", 0xA700, "Refused", "try later"), 0xA700, "try later"),
        (DimseFailure.from_status("C-FIND", 0xC123, "Failed: unable to process", None), 0xC123, "Failed: unable"),
        (IdentifierError("no such key", key="x"), 0xA900, "no such key"),
        (BadRequest("what?"), 0xA900, "what?"),
        (Forbidden("not this one"), 0x0124, "not this one"),
        (Unauthorized("who are you?"), 0x0124, "who are you?"),
        (TooManyRequests("slowly"), 0xA700, "slowly"),
        (Unavailable("the queue is full"), 0xA700, "the queue is full"),
        (StorageFull("no room"), 0xA700, "no room"),
        (NoPresentationContext("no Patient Root"), 0x0122, "no Patient Root"),
        (RemoteUnreachable("Cannot connect to PACS@pacs:104"), 0xC001, "Cannot connect to PACS@pacs:104"),
        (AssociationRejected("rejected"), 0xC001, "rejected"),
        (DimseTimeout("silent"), 0xC001, "silent"),
        (DeadlinePassed("too late"), 0xC001, "too late"),
        (HarmonydError("secret path"), 0xC001, "our fault; the log says more"),
        (OSError(errno.ENOSPC, "No space left on device"), 0xA700, "The disk is full."),
        (ResponseEnvelope(status=403), 0x0124, "the answer of the pipeline has status 403"),
        (ResponseEnvelope(status=400), 0xA900, "status 400"),
        (ResponseEnvelope(status=503), 0xA700, "status 503"),
        (ResponseEnvelope(status=500), 0xC001, "status 500"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_status_of_what_went_wrong(error: Any, status: int, comment: str) -> None:
    """One for each kind, with a comment for people."""
    told = await refusal(error)
    assert told.status == status
    assert told.comment.startswith(comment) or comment in told.comment


@pytest_twisted.ensureDeferred
async def test_our_fault_is_logged(logged_failures: Any) -> None:
    """The caller gets to know that it was ours, and no more."""
    told = await refusal(ZeroDivisionError("secret"))
    assert (told.status, told.comment) == (0xC001, "our fault; the log says more")
    assert logged_failures.flush(ZeroDivisionError)


@pytest_twisted.ensureDeferred
async def test_an_identifier_that_is_no_data_set() -> None:
    """Nobody is asked anything."""
    told = await refusal(ResponseEnvelope(), asked(data=b"\x10\x00\x10\x00PN\xff\xff"))
    assert told.status == 0xC001


@pytest_twisted.ensureDeferred
async def test_not_all_matches_are_no_success() -> None:
    """What came has gone on; what is missing is told."""
    summary = {"success": True, "complete": False, "incomplete_reason": "more than max_results (1) matches"}
    handler, _ = questions(ResponseEnvelope(results=FakeResults(records(MATCH), summary=summary)))
    matches = []
    with pytest.raises(NotServed, match="max_results") as raised:
        async for match in handler.find(asked()):
            matches.append(match)
    assert (len(matches), raised.value.status) == (1, 0xA700)


@pytest_twisted.ensureDeferred
async def test_a_failure_under_way() -> None:
    """Matches before it have gone on, and the results are closed."""
    results = FakeResults([*records(MATCH), DimseError("it hung up")])
    told = await refusal(ResponseEnvelope(results=results))
    assert (told.status, told.comment, results.closed) == (0xC001, "it hung up", 1)


@pytest.mark.parametrize("body", [b"[" + MATCH + b"]", b'{"operation": "find", "matches": [' + MATCH + b"]}"])
@pytest_twisted.ensureDeferred
async def test_an_answer_that_is_json(body: bytes) -> None:
    """Of middleware, or of an HTTP server: a list of data sets, alone or as ``matches``."""
    (match,) = await found(ResponseEnvelope(body=BytesBody(body)))
    assert decoded(match).PatientID == "P1"
    assert await found(ResponseEnvelope(status=204)) == []


@pytest.mark.parametrize("body", [b"<html>", b'{"error": 1}', b"[1]"])
@pytest_twisted.ensureDeferred
async def test_an_answer_that_is_something_else(body: bytes) -> None:
    """Is told as that."""
    assert (await refusal(ResponseEnvelope(body=BytesBody(body)))).status == 0xC001


@pytest_twisted.ensureDeferred
async def test_a_cancelled_question_ends_what_is_behind() -> None:
    """The results are closed, and nothing is made of the cancellation."""
    results = FakeResults([*records(MATCH), Deferred()])
    handler, _ = questions(ResponseEnvelope(results=results))
    stream = handler.find(asked())
    await anext(stream)
    waiting = Deferred.fromCoroutine(anext(stream))  # type: ignore[arg-type]
    assert results.is_waiting
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting
    assert results.closed == 1


# --- retrieves


@pytest_twisted.ensureDeferred
async def test_a_retrieve_as_an_envelope() -> None:
    """A backend chooses how it retrieves, and keeps nothing of it."""
    handler, pipeline = questions(NotFound("nothing"))
    await handler.retrieve(asked(MOVE, destination="WS2"))
    (request,) = pipeline.asked
    assert (request.method, request.metadata["dimse_op"], request.metadata[ONCE]) == ("C-MOVE", RETRIEVE, "true")
    assert request.metadata["move_destination"] == "WS2"


@pytest_twisted.ensureDeferred
async def test_instances_come_with_counts(tmp_path: Path) -> None:
    """Files that have gone on are removed where they are only for that; the node's counters say how many there are."""
    files = instances(tmp_path, [path.read_bytes() for path in demo_files()[:2]])
    results = FakeResults(files, operation="get", items_key="instances")
    handler, pipeline = questions(ResponseEnvelope(results=results))
    retrieval = await handler.retrieve(asked(GET))
    assert retrieval.total is None
    pipeline.asked[0].progress.counted(1, None, 0, 1)
    assert retrieval.total == 2
    assert [instance.path async for instance in retrieval] == [record.path for record in files]
    await retrieval.aclose()
    assert (retrieval.missed, retrieval.total, results.closed) == (0, 2, 1)


@pytest.mark.parametrize(
    ("summary", "counted", "missed"),
    [
        ({"complete": True}, None, 0),
        ({"complete": False}, None, 1),
        ({"complete": False, "suboperations": {"failed": 3}}, None, 3),
        ({"complete": True, "suboperations": {"failed": None}}, (1, 0, 0, 4), 4),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_did_not_come(tmp_path: Path, summary: Any, counted: Any, missed: int) -> None:
    """By what the node says, or how many came; at least one when it is not whole."""
    files = instances(tmp_path, [demo_files()[0].read_bytes()])
    handler, pipeline = questions(ResponseEnvelope(results=FakeResults(files, summary=summary)))
    retrieval = await handler.retrieve(asked(GET))
    if counted:
        pipeline.asked[0].progress.counted(*counted)
    assert len([instance async for instance in retrieval]) == 1
    assert (retrieval.missed, retrieval.total) == (missed, 1 + missed)


@pytest_twisted.ensureDeferred
async def test_what_came_twice_is_not_missing(tmp_path: Path) -> None:
    """Of several nodes: those that were left out were counted by their nodes."""
    results = FakeResults(instances(tmp_path, [demo_files()[0].read_bytes()]))
    results.repeated = 2  # type: ignore[attr-defined]
    handler, pipeline = questions(ResponseEnvelope(results=results))
    retrieval = await handler.retrieve(asked(GET))
    pipeline.asked[0].progress.counted(3, 0, 0, 0)
    assert len([instance async for instance in retrieval]) == 1
    assert (retrieval.missed, retrieval.total, retrieval.doubt) == (0, 1, "")


@pytest_twisted.ensureDeferred
async def test_a_node_that_could_not_be_asked() -> None:
    """May have more of it."""
    handler, _ = questions(ResponseEnvelope(results=FakeResults(), metadata={FAILED: "lund,malmo"}))
    retrieval = await handler.retrieve(asked(GET))
    assert retrieval.doubt == "there may be more: lund,malmo could not be asked"


@pytest_twisted.ensureDeferred
async def test_nothing_matches_a_retrieve() -> None:
    """Which is no error: there is nothing to send."""
    handler, _ = questions(NotFound("Nothing at the remote node matches"))
    retrieval = await handler.retrieve(asked(GET))
    assert [instance async for instance in retrieval] == []
    assert (retrieval.total, retrieval.missed) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "status", "failed"),
    [
        (Unavailable("the queue is full"), 0xA702, 0),
        (DimseFailure("failed", dimse_status="0xA702", suboperations={"failed": 4}), 0xA702, 4),
        (ResponseEnvelope(status=401), 0x0124, 0),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_retrieve_that_cannot_be(answer: Any, status: int, failed: int) -> None:
    """With what a node says has failed."""
    handler, _ = questions(answer)
    with pytest.raises(NotServed) as raised:
        await handler.retrieve(asked(GET))
    assert (raised.value.status, raised.value.failed) == (status, failed)


@pytest.mark.parametrize("results", [None, FakeResults(records(b"{}"))])
@pytest_twisted.ensureDeferred
async def test_an_answer_without_files(results: Any) -> None:
    """Is none to a retrieve."""
    handler, _ = questions(ResponseEnvelope(results=results))
    retrieval = await handler.retrieve(asked(GET))
    with pytest.raises(NotServed, match="pipeline's answer"):
        assert [instance async for instance in retrieval] == []
    await retrieval.aclose()


def test_destinations_are_configured() -> None:
    """By AE title; we call as whom the caller has called."""
    handler, _ = questions(None, move_destinations={"WS2": MoveDestination("ws2", 11113)})
    node = handler.destination(asked(MOVE, destination="WS2"))
    assert (node.aet, node.host, node.port, node.local_aet) == ("WS2", "ws2", 11113, "GATEWAY")
    with pytest.raises(NotServed, match="WS3 is no move destination") as raised:
        handler.destination(asked(MOVE, destination="WS3"))
    assert raised.value.status == 0xA801
