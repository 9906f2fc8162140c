"""Storage Commitment between endpoint, backends and spool: who has what, what is asked, what is held."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from harmonyd.commitment.api import Forwarded, ForwardState, Place, Reference, Report
from harmonyd.commitment.books import Books
from harmonyd.dimse.errors import DimseFailure, RemoteUnreachable
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, DeadlinePassed, HarmonydError
from harmonyd.services.dicom import forwarding as forwardings
from harmonyd.services.dicom.commit_request import parse_commit, summary_of
from harmonyd.services.dicom.committing import CommitmentMeans
from harmonyd.services.dicom.forwarding import Forwarding
from harmonyd.services.dicom.holdings import CannotTell, held
from harmonyd.services.storage import StorageBackend
from harmonyd.spool.api import Delivered, Entry, Failed, Held, Result
from harmonyd.testing.data import make_ct

CT = "1.2.840.10008.5.1.4.1.1.2"
ONE, TWO = Reference(CT, "1.1"), Reference(CT, "1.2")
AT = Place(CT, "2.1", "3.1")


async def in_thread(function: Any, *args: Any) -> Any:
    return function(*args)


# --- who has what


class Node:
    """Answers finds; ``answers`` by the SOP Instance UID that was asked for ("": the whole series)."""

    name = "pacs"
    queryable = True

    def __init__(self, answers: Mapping[str, Sequence[str] | Exception], *, complete: bool = True) -> None:
        self._answers = answers
        self._complete = complete
        self.asked: list[dict[str, Any]] = []

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        keys = json.loads(await request.body.read(10_000))
        self.asked.append(keys)
        answer = self._answers[keys["SOPInstanceUID"] or ""]
        if isinstance(answer, Exception):
            raise answer
        return ResponseEnvelope(results=Found(answer, self._complete))


class Found:
    operation, media_type, items_key = "find", "application/json", "matches"

    def __init__(self, uids: Sequence[str], complete: bool) -> None:
        self._uids = uids
        self._complete = complete

    async def __aiter__(self) -> AsyncIterator[Any]:
        for uid in self._uids:
            yield Match(uid)

    def summary(self) -> Mapping[str, Any]:
        return {"success": True, "complete": self._complete}

    async def aclose(self) -> None:
        pass


class Match:
    path, name = None, "match"

    def __init__(self, uid: str) -> None:
        self._uid = uid

    async def json(self) -> bytes:
        return json.dumps({"00080018": {"vr": "UI", "Value": [self._uid]}}).encode()


@pytest_twisted.ensureDeferred
async def test_a_node_is_asked_series_by_series() -> None:
    """Once for all of a series; where the answer was cut, for each that is missing."""
    node = Node({"": ["1.1", "1.9"]})
    assert await held(node, [ONE, TWO], {"1.1": AT, "1.2": AT}, "id", 1.0) == {"1.1": ""}
    assert len(node.asked) == 1
    node = Node({"": ["1.1"], "1.2": ["1.2"]}, complete=False)
    assert set(await held(node, [ONE, TWO], {"1.1": AT, "1.2": AT}, "id", 1.0)) == {"1.1", "1.2"}


@pytest_twisted.ensureDeferred
async def test_what_never_came_is_asked_for_without_its_study() -> None:
    """A node that refuses such a query does not have it; one that is away does not say."""
    refused = DimseFailure("no", dimse_status="0xC001")
    assert await held(Node({"1.1": refused}), [ONE], {}, "id", 1.0) == {}
    with pytest.raises(RemoteUnreachable):
        await held(Node({"1.1": RemoteUnreachable("away")}), [ONE], {}, "id", 1.0)


@pytest_twisted.ensureDeferred
async def test_a_folder_is_looked_into(tmp_path: Path) -> None:
    """By file; and what cannot be asked says so."""
    file = tmp_path / "kept" / "2.1" / "3.1" / "1.1.dcm"
    file.parent.mkdir(parents=True)
    make_ct(file, study_uid="2.1", series_uid="3.1", instance_number=1, patient_id="P", sop_uid="1.1", size=16)
    backend = StorageBackend("folder", tmp_path / "kept", in_thread)
    assert await held(backend, [ONE, TWO], {"1.1": AT, "1.2": AT}, "id", 1.0) == {"1.1": CT}
    assert await held(backend, [ONE], {}, "id", 1.0) == {}

    class Nobody:
        name = "http"

    with pytest.raises(CannotTell):
        await held(Nobody(), [ONE], {}, "id", 1.0)  # type: ignore[arg-type]


# --- what a client asks for


def test_references_of_a_client() -> None:
    """In each spelling, each once."""
    asked = parse_commit(
        {
            "operation": "commit",
            "references": [
                {"sop_class_uid": CT, "sop_instance_uid": "1.1"},
                {"ReferencedSOPClassUID": CT, "ReferencedSOPInstanceUID": "1.1"},
                {"SOPClassUID": CT, "SOPInstanceUID": "1.2"},
            ],
            "wait_secs": 5,
        }
    )
    assert (asked.references, asked.wait_secs) == ((ONE, TWO), 5.0)
    assert parse_commit({"study_instance_uid": "2.1"}).keys == {"StudyInstanceUID": "2.1"}


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"references": []},
        {"references": [{"sop_class_uid": CT}]},
        {"references": [{"sop_class_uid": CT, "sop_instance_uid": "x"}]},
        {"references": [{"sop_class_uid": CT, "sop_instance_uid": "1.1"}], "PatientID": "1"},
        {"references": [{"sop_class_uid": CT, "sop_instance_uid": f"1.{n}"} for n in range(5001)]},
        {"StudyInstanceUID": "*"},
        {"StudyInstanceUID": "2.1", "SOPInstanceUID": "1.1"},
        {"SeriesInstanceUID": "3.1"},
        {"PatientID": "1"},
        {"StudyInstanceUID": "2.1", "wait_secs": 0},
        {"StudyInstanceUID": "2.1", "wait_secs": "long"},
    ],
)
def test_what_no_client_may_ask(document: Any) -> None:
    """It is named before anybody is asked."""
    with pytest.raises(BadRequest):
        parse_commit(document)


def test_what_a_client_is_told() -> None:
    """Each object, and success only for all."""
    told = summary_of([ONE, TWO], Report("9.1", (ONE,), {TWO: 0x0110}))
    assert (told["success"], told["complete"], told["transaction_uid"]) == (False, True, "9.1")
    assert told["committed"] == [{"sop_class_uid": CT, "sop_instance_uid": "1.1"}]
    assert told["failed"][0]["failure_reason"] == "0x0110: processing failure"


# --- after forwarding


class Pacs:
    """A backend that was told ``answers`` to its commitments, in turn."""

    def __init__(self, *answers: Report | HarmonydError, release: str = "committed") -> None:
        self.answers = list(answers)
        self.asked: list[list[str]] = []
        options = {"commit": "after_forwarding", "release": release, "commit_timeout_secs": 60}
        self.options = type("Options", (), options)
        self.remote = type("Remote", (), {"aet": "PACS"})

    async def commit(self, references: Sequence[Reference], op: Any, uid: str) -> Report:
        self.asked.append([each.sop_instance_uid for each in references])
        answer = self.answers.pop(0)
        if isinstance(answer, HarmonydError):
            raise answer
        return answer


class Stage:
    """``Forwarding`` with a clock, a backend, and a spool that notes what it is to look at again."""

    def __init__(self, folder: Path, pacs: Pacs) -> None:
        self.clock, self.again = Clock(), list[int]()
        self.books, self.sent = Books(folder, in_thread), list[int]()
        self.pacs = pacs
        commitments: Any = None
        means = CommitmentMeans(self.clock, self.books, commitments)
        self.forwarding = Forwarding("scp", means, lambda: {"pacs": pacs}, self._look)

    async def _look(self, ids: Sequence[int]) -> None:
        self.again += ids

    async def _send(self, entries: Sequence[Entry]) -> list[Result]:
        self.sent += [entry.id for entry in entries]
        return [Delivered() for _ in entries]

    async def deliver(self, *ids: int) -> list[Result]:
        entries = [_entry(id_) for id_ in ids]
        return await self.forwarding.deliver("pacs", entries, self._send)

    async def states(self, *ids: int) -> dict[int, Forwarded]:
        return await self.books.do(lambda ledger: ledger.forwarded("scp", "pacs", ids))


def _entry(id_: int) -> Entry:
    metadata = {"sop_class_uid": CT, "sop_instance_uid": f"1.{id_}"}
    return Entry(id_, "scp", Path("/nowhere"), 1, 0.0, metadata, "r")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``Pacs`` counts as a dicom backend."""
    monkeypatch.setattr(forwardings, "DicomBackend", Pacs)
    yield


@pytest_twisted.ensureDeferred
async def test_held_until_committed(watched: None, tmp_path: Path) -> None:
    """What the report names goes; what it does not is a failure, and sent again."""
    stage = Stage(tmp_path, Pacs(Report("9.1", (ONE,)), Report("9.2", (TWO,))))
    assert [type(result) for result in await stage.deliver(1, 2)] == [Held, Held]
    stage.clock.advance(forwardings.QUIET_SECS)
    assert stage.pacs.asked == [["1.1", "1.2"]]
    assert sorted(stage.again) == [1, 2]
    first, second = await stage.deliver(1, 2)
    assert (first, type(second)) == (Delivered(), Failed)
    assert "does not name it" in second.reason
    assert [type(result) for result in await stage.deliver(2)] == [Held]
    assert stage.sent == [1, 2, 2]
    stage.clock.advance(forwardings.QUIET_SECS)
    assert await stage.deliver(2) == [Delivered()]
    assert await stage.states(1) == {}
    await stage.forwarding.stop()
    await stage.books.close()


@pytest_twisted.ensureDeferred
async def test_transactions_that_come_to_nothing(watched: None, tmp_path: Path) -> None:
    """Three of them, and the object is sent again, with the last reason; nothing was sent before."""
    late = DeadlinePassed("not reported in time")
    stage = Stage(tmp_path, Pacs(late, late, late))
    await stage.deliver(1)
    for secs in (forwardings.QUIET_SECS, 30, 30):
        assert [type(result) for result in await stage.deliver(1)] == [Held]
        stage.clock.advance(secs)
    assert len(stage.pacs.asked) == 3
    (failed,) = await stage.deliver(1)
    assert failed == Failed("not committed: not reported in time")
    assert (stage.sent, stage.again) == ([1], [1])
    await stage.forwarding.stop()
    await stage.books.close()


@pytest_twisted.ensureDeferred
async def test_the_next_run_goes_on(watched: None, tmp_path: Path) -> None:
    """What was stored and not asked about is asked about; what waits for its report is not sent again."""
    stage = Stage(tmp_path, Pacs())
    await stage.deliver(1)
    await stage.forwarding.stop()
    await stage.books.close()
    again = Stage(tmp_path, Pacs(Report("9.1", (ONE,))))
    await again.forwarding.start()
    again.clock.advance(0)
    assert again.pacs.asked == [["1.1"]]
    assert (await again.states(1))[1].state is ForwardState.COMMITTED
    assert (await again.deliver(1), again.sent) == ([Delivered()], [])
    await again.forwarding.stop()
    await again.books.close()


@pytest_twisted.ensureDeferred
async def test_what_is_released_is_asked_about(watched: None, tmp_path: Path) -> None:
    """And forgotten afterwards, whatever came of it."""
    stage = Stage(tmp_path, Pacs(Report("9.1", (), {ONE: 0x0112}), release="stored"))
    assert await stage.deliver(1) == [Delivered()]
    stage.clock.advance(forwardings.QUIET_SECS)
    assert (len(stage.pacs.asked), await stage.states(1), stage.again) == (1, {}, [])
    await stage.forwarding.stop()
    await stage.books.close()
