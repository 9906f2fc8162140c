"""Several backends: which one a client names, and the answers of all made one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import pytest_twisted
from service_fakes import FakeRecord, FakeResults
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from harmonyd.bodies import EmptyBody
from harmonyd.config.model import DicomwebEndpointOptions, HttpEndpointOptions
from harmonyd.dimse.errors import IdentifierError
from harmonyd.envelope import Record, ResponseEnvelope
from harmonyd.errors import BadRequest, NotFound, RemoteError
from harmonyd.progress import SummedProgress
from harmonyd.services.base import HttpRequest
from harmonyd.services.choosing import choose_backend
from harmonyd.services.dicom.chaining import ChainedResults, Step
from harmonyd.services.dicom.locating import KNOWN_SECS, MAX_KNOWN, Places
from harmonyd.services.dicom.merging import AT_ONCE, MergedResults, NoBackendAnswered, Source
from harmonyd.subject import Caller

STUDY = "0020000D"


# --- the choice of one


def request(path: str, query: Mapping[str, list[str]] | None = None, **headers: str) -> HttpRequest:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest("id", "GET", path, path, "/prefix", fields, query or {}, EmptyBody(), Caller("127.0.0.1"))


OPTIONS = HttpEndpointOptions("/prefix", path_backends=("lund", "malmo"), backend_header="X-PACS")
WEB = DicomwebEndpointOptions("/prefix", path_backends=("lund", "malmo"))


@pytest.mark.parametrize(
    ("asked", "backend", "prefix", "path"),
    [
        (request("/lund/find"), ["lund"], "/prefix/lund", "/find"),
        (request("/lund"), ["lund"], "/prefix/lund", "/"),
        (request("/find", x_pacs="malmo"), ["malmo"], "/prefix", "/find"),
        (request("/find", {"backend": ["gone"]}), ["gone"], "/prefix", "/find"),
        (request("/lund/find", {"backend": ["lund"]}, x_pacs=" lund "), ["lund"], "/prefix/lund", "/find"),
        (request("/find", x_pacs=""), None, "/prefix", "/find"),
        (request("/"), None, "/prefix", "/"),
    ],
)
def test_what_names_a_backend(asked: HttpRequest, backend: list[str] | None, prefix: str, path: str) -> None:
    """The first segment, the header field and the query mean the same."""
    chosen = choose_backend(asked, OPTIONS)
    assert (chosen.query.get("backend"), chosen.prefix, chosen.path) == (backend, prefix, path)


def test_two_that_differ() -> None:
    """Nobody guesses which one was meant."""
    for asked in (request("/lund/find", x_pacs="malmo"), request("/find", {"backend": ["a", "b"]})):
        with pytest.raises(BadRequest):
            choose_backend(asked, OPTIONS)


def test_a_segment_that_is_no_backend() -> None:
    """It is not passed over; DICOMweb looks at it itself."""
    with pytest.raises(NotFound):
        choose_backend(request("/lnud/find"), OPTIONS)
    assert choose_backend(request("/studies/1.2"), WEB).path == "/studies/1.2"
    plain = request("/lund/find", x_pacs="lund")
    assert choose_backend(plain, HttpEndpointOptions("/prefix")) is plain


# --- queries of all


def match(uid: str, **more: Any) -> FakeRecord:
    return FakeRecord(json.dumps({STUDY: {"vr": "UI", "Value": [uid]}, **more}).encode())


def source(name: str, *items: Any, fails: Exception | None = None, **summary: Any) -> Source:
    results = FakeResults(items, summary={"success": True, "complete": True, **summary})

    async def ask() -> ResponseEnvelope:
        if fails is not None:
            raise fails
        return ResponseEnvelope(results=results)

    return Source(name, name.upper(), ask)


async def read(results: MergedResults) -> list[tuple[str, str]]:
    await results.begin()
    found = []
    async for record in results:
        document = json.loads(await record.json())
        assert document["00080054"]["Value"]
        found.append((record.backend, document[STUDY]["Value"][0]))
    await results.aclose()
    return found


@pytest_twisted.ensureDeferred
async def test_each_match_once_in_order() -> None:
    """In the order of the sources, whichever is faster; of the same UID the first."""
    slow: Deferred[None] = Deferred()
    results = MergedResults(
        [source("a", slow, match("1"), match("2")), source("b", match("2"), match("3"))], "application/json", STUDY
    )
    reading = Deferred.fromCoroutine(read(results))
    assert not reading.called
    slow.callback(None)
    assert await reading == [("a", "1"), ("a", "2"), ("b", "3")]
    summary = results.summary()
    assert (summary["success"], summary["complete"], summary["count"]) == (True, True, 3)
    assert [each["count"] for each in summary["backends"]] == [2, 2]


@pytest_twisted.ensureDeferred
async def test_where_a_match_is_to_be_retrieved() -> None:
    """What the PACS says stands; where it says nothing, it is the PACS itself."""
    told = {"00080054": {"vr": "AE", "Value": ["OTHER"]}}
    results = MergedResults([source("a", match("1", **told), match("2"))], "application/json", STUDY)
    await results.begin()
    documents = [json.loads(await record.json()) async for record in results]
    assert [each["00080054"]["Value"] for each in documents] == [["OTHER"], ["A"]]


@pytest_twisted.ensureDeferred
async def test_failures_are_told(logged_failures: Any) -> None:
    """One that failed, at once or under way, and one that has more make an answer incomplete, and no failure."""
    sources = [
        source("a", match("1"), RemoteError("broke off")),
        source("b", fails=RemoteError("refused")),
        source("c", match("2"), complete=False, incomplete_reason="the limit"),
        source("d", fails=ZeroDivisionError("secret")),
    ]
    results = MergedResults(sources, "application/json", STUDY)
    assert await read(results) == [("a", "1"), ("c", "2")]
    summary = results.summary()
    assert (summary["success"], summary["complete"]) == (True, False)
    for said in ("a failed: broke off", "b failed: refused", "c: the limit", "d failed: something went wrong"):
        assert said in summary["incomplete_reason"]
    assert "secret" not in json.dumps(summary)
    logged_failures.flush(ZeroDivisionError)
    assert [each["success"] for each in summary["backends"]] == [False, False, True, False]


@pytest_twisted.ensureDeferred
async def test_all_failed() -> None:
    """Then there is no answer; what the caller did wrong is told as that."""
    with pytest.raises(NoBackendAnswered, match="a: refused; b: gone") as caught:
        await MergedResults(
            [source(name, fails=RemoteError(why)) for name, why in (("a", "refused"), ("b", "gone"))],
            "application/json",
            STUDY,
        ).begin()
    assert [each["error"] for each in caught.value.extra["backends"]] == ["refused", "gone"]
    with pytest.raises(IdentifierError):
        await MergedResults(
            [source("a", fails=RemoteError("x")), source("b", fails=IdentifierError("wrong"))], "x", STUDY
        ).begin()
    nothing = MergedResults([source("a"), source("b", fails=RemoteError("gone"))], "application/json", STUDY)
    assert await read(nothing) == []
    assert nothing.summary()["success"] is True and nothing.summary()["complete"] is False


@pytest_twisted.ensureDeferred
async def test_only_so_many_at_once_and_none_after_the_end() -> None:
    """Further ones wait for their turn; those that still run are ended with the answer."""
    started: list[str] = []
    ended: list[str] = []

    def hanging(name: str) -> Source:
        async def ask() -> ResponseEnvelope:
            started.append(name)
            try:
                await Deferred()
            except CancelledError:
                ended.append(name)
                raise
            raise AssertionError("nobody fires it")

        return Source(name, name, ask)

    names = [f"n{number}" for number in range(AT_ONCE + 3)]
    results = MergedResults([hanging(name) for name in names], "application/json", STUDY)
    assert started == names[:AT_ONCE]
    beginning = Deferred.fromCoroutine(results.begin())
    await results.aclose()
    assert sorted(ended) == sorted(started) == sorted(names[:AT_ONCE])
    await results.aclose()
    beginning.addErrback(lambda _: None)
    beginning.cancel()


# --- retrieves from several


def test_places_are_forgotten() -> None:
    """After a minute, or when there are too many."""
    clock = Clock()
    places = Places(clock.seconds)
    for number in range(MAX_KNOWN + 1):
        places.note(str(number), "a")
    places.note("1", "b")
    assert (places.of("0"), places.of("1"), places.of("2")) == (None, "b", "a")
    clock.advance(KNOWN_SECS)
    assert places.of("1") is None


def step(name: str, results: FakeResults) -> Step:
    async def send() -> ResponseEnvelope:
        return ResponseEnvelope(results=results)

    send_it: Callable[[], Awaitable[ResponseEnvelope]] = send
    return Step(name, send_it)


def retrieved(*names: str, complete: bool = True, **more: Any) -> FakeResults:
    counts = {"completed": len(names), "failed": 0, "warning": 0, "remaining": None}
    summary = {"success": complete, "complete": complete, "file_count": len(names), "suboperations": counts, **more}
    items = [FakeRecord(name=name) for name in names]
    return FakeResults(items, operation="get", items_key="instances", summary=summary)


async def names_of(results: AsyncIterator[Record] | ChainedResults) -> list[str]:
    return [record.name async for record in results]


@pytest_twisted.ensureDeferred
async def test_steps_follow_each_other() -> None:
    """What came already does not come again, and all files stay until the end."""
    one, two = retrieved("1", "2"), retrieved("2", "3")
    results = ChainedResults([step("a", one), step("b", two)], {"c": "gone"})
    await results.begin()
    assert (results.operation, results.media_type) == ("get", one.media_type)
    assert await names_of(results) == ["1", "2", "3"]
    assert (results.repeated, one.closed, two.closed) == (1, 0, 0)
    summary = results.summary()
    assert (summary["success"], summary["complete"], summary["file_count"]) == (True, True, 3)
    assert summary["suboperations"] == {"completed": 4, "failed": 0, "warning": 0, "remaining": None}
    assert summary["backends"] == [
        {"name": "a", "success": True},
        {"name": "b", "success": True},
        {"name": "c", "success": False, "error": "gone"},
    ]
    await results.aclose()
    assert (one.closed, two.closed) == (1, 1)


def test_how_several_stand_together() -> None:
    """What remains is not known before the last one has said it; all else is summed up as it comes."""
    told: list[Any] = []

    class Watching:
        def began(self) -> None: ...

        def arrived(self, size_bytes: int) -> None: ...

        def counted(self, *counts: int | None) -> None:
            told.append(counts)

    progress = SummedProgress(Watching())
    progress.expected = 2
    progress.step().counted(2, 1, None, 0)
    second = progress.step()
    second.counted(1, 0, 0, 4)
    second.counted(5, 0, 0, None)
    assert told == [(2, 1, None, None), (3, 1, 0, 4), (7, 1, 0, None)]


@pytest_twisted.ensureDeferred
async def test_a_step_that_is_not_whole() -> None:
    """Partial is told as partial, whichever step it was."""
    parts = [retrieved("1"), retrieved("2", complete=False, incomplete_reason="2 failed")]
    results = ChainedResults([step("a", parts[0]), step("b", parts[1])], {})
    await results.begin()
    assert await names_of(results) == ["1", "2"]
    summary = results.summary()
    assert (summary["success"], summary["complete"]) == (False, False)
    assert summary["incomplete_reason"] == "b: 2 failed"
    unread = ChainedResults([step("a", retrieved("1")), step("b", retrieved("2"))], {})
    await unread.begin()
    assert unread.summary()["complete"] is False
