"""The engine over archives that lie, cut, hang, redirect and send rubbish: it never tells what is not so."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from archive_kit import ScriptedArchive, engine_for, operation, question, scripted_archive
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater

from harmonyd.config.archive_model import Basic, Bearer, ClientCredentials, Secret
from harmonyd.dimse.engine import QueryModel, Received, RemoteNode
from harmonyd.dimse.errors import (
    AssociationAborted,
    DimseError,
    DimseTimeout,
    NonsenseAnswer,
    NoPresentationContext,
    RemoteUnreachable,
)
from harmonyd.dimse.query_file import identifier
from harmonyd.errors import DeadlinePassed, Fault, HarmonydError
from harmonyd.services.archive.engine import ArchiveEngine
from harmonyd.services.archive.errors import ArchiveBusy, ArchiveFailure, ArchiveRefuses
from harmonyd.testing.processes import free_port

REMOTE = RemoteNode("archive", "DICOMWEB", "127.0.0.1", 1, "US")
UIDS = [f"1.2.{number}" for number in range(1, 8)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedArchive]:
    with scripted_archive(tmp_path_factory.mktemp("archive")) as running:
        yield running


@pytest_twisted.async_yield_fixture
async def engines(archive: ScriptedArchive, tmp_path: Path) -> AsyncIterator[Any]:
    made: list[ArchiveEngine] = []

    def make(behaviour: str, **options: Any) -> ArchiveEngine:
        made.append(engine_for(archive.url(behaviour), tmp_path / "storage", **options))
        return made[-1]

    yield make
    for engine in made:
        await engine.close()


async def found(engine: ArchiveEngine, max_results: int = 100, **keys: Any) -> tuple[list[str], Any]:
    """UIDs of the studies, and the outcome."""
    keys = keys or {"StudyInstanceUID": None, "PatientName": None}
    stream = engine.find(REMOTE, question(level="STUDY", **keys), operation(max_results))
    matches = [json.loads(match.json) async for match in stream]
    return [match["0020000D"]["Value"][0] for match in matches], stream.outcome


async def retrieved(engine: ArchiveEngine, study: str) -> tuple[list[Any], Any, Exception | None]:
    """The instances, the outcome, and what ended it."""
    stream = engine.get(REMOTE, question("get", StudyInstanceUID=study), operation())
    instances: list[Any] = []
    try:
        async for instance in stream:
            instances.append(instance)
    except HarmonydError as error:
        return instances, stream.outcome, error
    return instances, stream.outcome, None


async def stored(engine: ArchiveEngine, files: Any) -> list[int | None]:
    return [result.status async for result in engine.store(REMOTE, files, operation())]


# --- searches


@pytest.mark.parametrize("behaviour", ["pages", "capped", "nopaging", "fromfirst", "zipped", "moved"])
@pytest_twisted.ensureDeferred
async def test_all_matches_come_whatever_the_archive_knows_of_pages(behaviour: str, engines: Any) -> None:
    """Pages of its own size or ours, all at once, in gzip, or behind a redirect within the archive."""
    uids, outcome = await found(engines(behaviour, page_size=3))
    assert (uids, outcome.complete) == (UIDS, True)


@pytest_twisted.ensureDeferred
async def test_an_archive_that_repeats_its_first_page_is_incomplete(engines: Any) -> None:
    """Its matches come once each, and the outcome says that more may be there."""
    uids, outcome = await found(engines("nooffset", page_size=3))
    assert uids == UIDS[:3]
    assert "again" in outcome.incomplete_reason


@pytest.mark.parametrize("behaviour", ["pages", "nopaging"])
@pytest_twisted.ensureDeferred
async def test_more_than_max_results_is_told(behaviour: str, engines: Any) -> None:
    """As with a PACS."""
    uids, outcome = await found(engines(behaviour, page_size=3), max_results=4)
    assert uids == UIDS[:4]
    assert outcome.incomplete_reason == "more than max_results (4) matches; the rest was cut"


@pytest.mark.parametrize("behaviour", ["nocontent", "nothing"])
@pytest_twisted.ensureDeferred
async def test_no_matches_are_no_error(behaviour: str, engines: Any) -> None:
    """204, and 404 of an archive that is one."""
    uids, outcome = await found(engines(behaviour), PatientID="nobody", StudyInstanceUID=None)
    assert (uids, outcome.complete) == ([], True)


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        ("wrong", ArchiveFailure),
        ("forbidden", ArchiveFailure),
        ("broken", ArchiveFailure),
        ("elsewhere", ArchiveFailure),
        ("unauthorized", ArchiveRefuses),
        ("busy", ArchiveBusy),
        ("html", NonsenseAnswer),
        ("object", NonsenseAnswer),
        ("numbers", NonsenseAnswer),
        ("short", NonsenseAnswer),
        ("huge", NonsenseAnswer),
        ("circle", NonsenseAnswer),
        ("cut", AssociationAborted),
        ("zipcut", AssociationAborted),
        ("rubbish", AssociationAborted),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_answer_is_an_error_of_the_archive(behaviour: str, kind: type, engines: Any) -> None:
    """Never an empty or a shorter list; and none of its text is passed on."""
    with pytest.raises(kind) as caught:
        await found(engines(behaviour))
    assert caught.value.fault is Fault.REMOTE
    assert "secret" not in caught.value.detail and "stack" not in caught.value.detail


@pytest_twisted.ensureDeferred
async def test_when_to_try_again_is_passed_on(engines: Any) -> None:
    """Retry-After."""
    with pytest.raises(ArchiveBusy) as caught:
        await found(engines("busy"))
    assert (caught.value.extra["retry_after_secs"], caught.value.extra["http_status"]) == (17, 503)


@pytest_twisted.ensureDeferred
async def test_a_silent_archive_is_left(engines: Any) -> None:
    """By the idle timeout, by the deadline, and by who cancels."""
    with pytest.raises(DimseTimeout):
        await found(engines("hang", idle_secs=0.1))
    with pytest.raises(DeadlinePassed):
        await engines("hang").echo(REMOTE, operation(secs=0.1))
    waiting: Deferred[Any] = Deferred.fromCoroutine(found(engines("hang")))
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting


async def left(archive: ScriptedArchive, *, search: bool) -> None:
    """Return when the archive has noticed that nobody reads any more."""
    while not any(each["search"] is search for each in archive.seen("left")):
        await deferLater(reactor, 0.02)


def half_received(folder: Path) -> list[Path]:
    return list(folder.rglob("part-*"))


@pytest_twisted.ensureDeferred
async def test_a_search_without_end_is_ended(engines: Any, archive: ScriptedArchive) -> None:
    """At max_results, and the archive gets to know."""
    uids, outcome = await found(engines("endless"), max_results=5)
    assert (len(uids), outcome.complete) == (5, False)
    await left(archive, search=True)


@pytest_twisted.ensureDeferred
async def test_a_retrieve_that_nobody_wants_is_ended(engines: Any, archive: ScriptedArchive, tmp_path: Path) -> None:
    """The connection is closed, and nothing of what was half there stays."""
    query = question("get", StudyInstanceUID="1.2", SeriesInstanceUID="1.3", SOPInstanceUID="1.4")
    stream = engines("endless").get(REMOTE, query, operation())
    waiting: Deferred[Any] = Deferred.fromCoroutine(_first(stream))
    while not half_received(tmp_path):
        await deferLater(reactor, 0.02)
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting
    await stream.aclose()
    await left(archive, search=False)
    assert not half_received(tmp_path)


async def _first(stream: Any) -> Any:
    return await anext(aiter(stream))


@pytest_twisted.ensureDeferred
async def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    """As a PACS that is down."""
    engine = engine_for(f"http://127.0.0.1:{free_port()}", tmp_path)
    with pytest.raises(RemoteUnreachable):
        await engine.echo(REMOTE, operation())
    await engine.close()


@pytest_twisted.ensureDeferred
async def test_an_echo_tells_an_archive_from_others(engines: Any) -> None:
    """200 with matches and 204 are an archive, a page and 404 are none."""
    for behaviour in ("nopaging", "nocontent"):
        assert (await engines(behaviour).echo(REMOTE, operation())).status == 0
    for behaviour in ("html", "wrong"):
        with pytest.raises(DimseError):
            await engines(behaviour).echo(REMOTE, operation())


# --- retrieves


@pytest.mark.parametrize("behaviour", ["whole", "noparameter"])
@pytest_twisted.ensureDeferred
async def test_a_study_comes_as_it_is_stored(behaviour: str, engines: Any, archive: ScriptedArchive) -> None:
    """Byte by byte, counted, and with nothing left beside."""
    instances, outcome, error = await retrieved(engines(behaviour), archive.study.study_uid)
    assert error is None and outcome.complete
    assert outcome.suboperations.completed == 3
    files = {each.sop_instance_uid: each.path.read_bytes() for each in instances}
    originals = zip(archive.study.sop_uids, archive.study.files, strict=True)
    assert files == {uid: path.read_bytes() for uid, path in originals}
    assert {each.name for each in instances[0].path.parent.iterdir()} == set(archive.study.sop_uids)


@pytest_twisted.ensureDeferred
async def test_a_well_formed_answer_that_lacks_an_instance_is_incomplete(
    engines: Any, archive: ScriptedArchive
) -> None:
    """The archive's own count says so."""
    instances, outcome, error = await retrieved(engines("fewer"), archive.study.study_uid)
    assert (len(instances), error) == (2, None)
    assert outcome.incomplete_reason == "the archive counts 3 instances, 2 arrived"
    assert (outcome.suboperations.completed, outcome.suboperations.failed) == (2, 1)


@pytest.mark.parametrize("behaviour", ["unclosed", "cutparts"])
@pytest_twisted.ensureDeferred
async def test_a_cut_answer_is_never_whole(behaviour: str, engines: Any, archive: ScriptedArchive) -> None:
    """What was whole before is passed on, then it fails."""
    instances, _, error = await retrieved(engines(behaviour), archive.study.study_uid)
    assert len(instances) == 2
    assert isinstance(error, AssociationAborted)


@pytest_twisted.ensureDeferred
async def test_a_damaged_instance_is_put_aside(engines: Any, archive: ScriptedArchive) -> None:
    """And told."""
    instances, outcome, error = await retrieved(engines("damaged"), archive.study.study_uid)
    assert (len(instances), error) == (2, None)
    assert "damaged and are in quarantine" in outcome.incomplete_reason


@pytest.mark.parametrize("behaviour", ["jpegs", "page"])
@pytest_twisted.ensureDeferred
async def test_what_is_not_dicom_is_nonsense(behaviour: str, engines: Any, archive: ScriptedArchive) -> None:
    """Parts of another type, and other answers."""
    instances, _, error = await retrieved(engines(behaviour), archive.study.study_uid)
    assert not instances
    assert isinstance(error, NonsenseAnswer)


@pytest_twisted.ensureDeferred
async def test_found_and_not_delivered_is_not_nothing(engines: Any, archive: ScriptedArchive) -> None:
    """404 to the retrieve of a study that the search knows."""
    instances, outcome, error = await retrieved(engines("gone"), archive.study.study_uid)
    assert (instances, error) == ([], None)
    assert outcome.incomplete_reason == "the archive counts 3 instances, 0 arrived"


@pytest_twisted.ensureDeferred
async def test_an_instance_beyond_its_bound_ends_the_retrieve(engines: Any, archive: ScriptedArchive) -> None:
    """max_instance_gb."""
    engine = engines("whole", max_instance_bytes=1000)
    instances, _, error = await retrieved(engine, archive.study.study_uid)
    assert not instances
    assert isinstance(error, NonsenseAnswer) and "max_instance_gb" in error.detail


@pytest_twisted.ensureDeferred
async def test_a_patient_is_retrieved_study_by_study(engines: Any, archive: ScriptedArchive) -> None:
    """DICOMweb knows no patients."""
    engine = engines("nopaging")
    query = question("get", PatientID="MADE-1")
    with pytest.raises(DimseError):
        async for _ in engine.get(REMOTE, query, operation()):
            pass
    asked = [each for each in archive.seen("nopaging") if each["query"].get("00100020") == ["MADE-1"]]
    assert asked[-1]["path"] == "studies"


# --- stores


@pytest.mark.parametrize(
    ("behaviour", "statuses"),
    [
        ("takes", [0, 0, 0]),
        ("silent", [0, 0, 0]),
        ("toolarge", [0, 0, 0]),
        ("takessome", [0, 0xA900, 0xB000]),
        ("takesnone", [0x0122] * 3),
        ("forgets", [0, 0x0110, 0x0110]),
        ("xml", [0x0110] * 3),
    ],
)
@pytest_twisted.ensureDeferred
async def test_each_object_has_its_own_outcome(
    behaviour: str, statuses: list[int], engines: Any, archive: ScriptedArchive
) -> None:
    """Whatever form the archive tells it in; what it does not mention is not stored."""
    assert await stored(engines(behaviour), archive.study.files) == statuses


@pytest_twisted.ensureDeferred
async def test_a_store_is_sent_in_requests_of_bounded_size(engines: Any, archive: ScriptedArchive) -> None:
    """By number, and by size."""
    size = archive.study.files[0].stat().st_size
    before = len(archive.seen("takes"))
    await stored(engines("takes", max_store_objects=2), archive.study.files)
    await stored(engines("takes", max_store_bytes=size), archive.study.files)
    sizes = [each["size"] // size for each in archive.seen("takes")[before:]]
    assert sizes == [2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [("vanishes", AssociationAborted), ("busy", ArchiveBusy), ("forbidden", ArchiveFailure), ("html", None)],
)
@pytest_twisted.ensureDeferred
async def test_an_outcome_that_is_not_known_is_no_success(
    behaviour: str, kind: type[Exception] | None, engines: Any, archive: ScriptedArchive
) -> None:
    """It is raised, and so tried again; only a 200 that says nothing about instances is a success."""
    if kind is None:
        assert await stored(engines(behaviour), archive.study.files) == [0, 0, 0]
        return
    with pytest.raises(kind):
        await stored(engines(behaviour), archive.study.files)


# --- credentials


@pytest_twisted.ensureDeferred
async def test_what_is_in_files_is_shown(engines: Any, archive: ScriptedArchive, tmp_path: Path) -> None:
    """Basic and Bearer."""
    secret = tmp_path / "secret"
    secret.write_text("pä:ss\n")
    await found(engines("pages", credentials=Basic("me", Secret(secret))))
    secret.write_text("t0ken\n")
    await found(engines("pages", credentials=Bearer(Secret(secret))))
    shown = [each["authorization"] for each in archive.seen("pages")][-2:]
    assert shown == ["Basic bWU6cMOkOnNz", "Bearer t0ken"]


@pytest_twisted.ensureDeferred
async def test_a_token_is_got_kept_and_got_again_at_401(engines: Any, archive: ScriptedArchive, tmp_path: Path) -> None:
    """Once for requests at the same time; once more when the archive does not know it any more."""
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    engine = engines("secured", credentials=ClientCredentials(archive.url("token"), "gw", Secret(secret), "read"))
    for uids, _ in await gatherResults([Deferred.fromCoroutine(found(engine)) for _ in range(2)]):
        assert uids == UIDS
    await found(engine)
    shown = [each["authorization"] for each in archive.seen("secured")]
    assert shown == ["Bearer t0"] * 2 + ["Bearer t1"] * 3
    assert [each["method"] for each in archive.seen("token")] == ["POST", "POST"]


@pytest_twisted.ensureDeferred
async def test_no_token_says_why_and_shows_no_secret(engines: Any, archive: ScriptedArchive, tmp_path: Path) -> None:
    """The code of the token server, and what to look at."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    engine = engines("secured", credentials=ClientCredentials(archive.url("token"), "gw", Secret(secret)))
    with pytest.raises(ArchiveRefuses) as caught:
        await found(engine)
    assert "invalid_client" in caught.value.detail
    assert "hunter2" not in f"{caught.value.detail} {caught.value.hint} {caught.value.extra}"


# --- questions that came with DIMSE


@pytest_twisted.ensureDeferred
async def test_an_identifier_that_came_with_dimse_is_asked_in_full(engines: Any, archive: ScriptedArchive) -> None:
    """Whose query has its bytes, and of its keys only some."""
    whole = question(level="STUDY", PatientName="Müller*", StudyInstanceUID=None)
    received = Received(identifier(whole), "1.2.840.10008.1.2.1")
    short = question(level="STUDY", StudyInstanceUID=None)
    stream = engines("nopaging").find(REMOTE, replace(short, received=received), operation())
    assert len([match async for match in stream]) == 7
    assert archive.seen("nopaging")[-1]["query"]["00100010"] == ["Müller*"]


@pytest_twisted.ensureDeferred
async def test_a_worklist_is_refused(engines: Any) -> None:
    """No archive has one over DICOMweb."""
    query = replace(question(level="PATIENT"), model=QueryModel.WORKLIST)
    with pytest.raises(NoPresentationContext):
        await _first(engines("nopaging").find(REMOTE, query, operation()))
