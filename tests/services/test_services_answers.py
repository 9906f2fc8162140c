"""Results as the bytes of an HTTP answer, in each media type."""

from __future__ import annotations

import email
import email.policy
import io
import json
import os
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from service_fakes import FakeRecord, FakeResults, instances, records
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from harmonyd.bodies import CHUNK_BYTES, BytesBody
from harmonyd.dimse.errors import DimseFailure
from harmonyd.errors import NotAcceptable, NotFound
from harmonyd.multipart import read_parts
from harmonyd.services.http.answers import serialise
from harmonyd.services.http.errors import IncompleteAnswer
from harmonyd.services.http.media import DICOM, DICOM_JSON, JSON, MULTIPART_DICOM, NDJSON, ZIP

INCOMPLETE = {"success": False, "complete": False, "incomplete_reason": "the limit was reached"}
CUT_TYPES = [DICOM_JSON, NDJSON]


async def chunks_of(results: FakeResults) -> list[bytes]:
    return [chunk async for chunk in (await serialise(results, "r1")).chunks]


async def whole(results: FakeResults) -> bytes:
    return b"".join(await chunks_of(results))


async def until_cut(chunks: AsyncIterator[bytes], error: type[Exception] = IncompleteAnswer) -> bytes:
    """What comes out before the given error, which has to come."""
    data = b""
    with pytest.raises(error):
        async for chunk in chunks:
            data += chunk
    return data


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_json_lists_records_and_summary() -> None:
    """The object has the operation, the records under their key, and the summary."""
    results = FakeResults(records(b'{"a": 1}', b'{"b": 2}'), summary={"success": True, "complete": True, "count": 2})
    answer = await serialise(results, "r1")
    data = b"".join([chunk async for chunk in answer.chunks])
    assert (answer.content_type, answer.length) == (JSON, None)
    assert list(json.loads(data).items()) == [
        ("operation", "find"),
        ("matches", [{"a": 1}, {"b": 2}]),
        ("success", True),
        ("complete", True),
        ("count", 2),
    ]
    assert results.closed


@pytest.mark.parametrize(("media_type", "expected"), [(DICOM_JSON, b"[]\n"), (NDJSON, b"")])
@pytest_twisted.ensureDeferred
async def test_nothing_found_is_an_empty_answer(media_type: str, expected: bytes) -> None:
    """No records give an empty list in every spelling."""
    assert await whole(FakeResults(media_type=media_type)) == expected
    assert json.loads(await whole(FakeResults()))["matches"] == []


@pytest_twisted.ensureDeferred
async def test_echo_is_one_object_of_known_length() -> None:
    """An operation without records gives its summary."""
    answer = await serialise(FakeResults(operation="echo", items_key=None), "r1")
    data = b"".join([chunk async for chunk in answer.chunks])
    assert json.loads(data) == {"operation": "echo", "success": True, "complete": True}
    assert answer.length == len(data)


@pytest_twisted.ensureDeferred
async def test_array_and_lines_hold_every_record() -> None:
    """The bare array is one JSON text; lines are one text each, line breaks inside a record removed."""
    texts = [b'{"a":1}', b'{\n"b": 2\n}', '{"c": "ä\\n"}'.encode()]
    expected = [{"a": 1}, {"b": 2}, {"c": "ä\n"}]
    assert json.loads(await whole(FakeResults(records(*texts), media_type=DICOM_JSON))) == expected
    lines = (await whole(FakeResults(records(*texts), media_type=NDJSON))).splitlines()
    assert [json.loads(line) for line in lines] == expected


@pytest.mark.parametrize("media_type", [JSON, DICOM_JSON, NDJSON])
@pytest_twisted.ensureDeferred
async def test_records_leave_as_they_arrive(media_type: str) -> None:
    """What is there leaves at once and together; nothing waits for a record that is yet to come."""
    gate: Deferred[None] = Deferred()
    results = FakeResults([*records(b'{"a":1}', b'{"b":2}'), gate, *records(b'{"c":3}')], media_type=media_type)
    answer = await serialise(results, "r1")
    first = await anext(answer.chunks)
    assert b'"a"' in first
    assert b'"b"' in first
    following = Deferred.fromCoroutine(anext(answer.chunks))  # type: ignore[arg-type]
    assert not following.called
    gate.callback(None)
    assert b'"c"' in await following
    await answer.chunks.aclose()  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_many_records_are_joined_into_bounded_chunks() -> None:
    """A thousand records that are ready make a few chunks, not a thousand and not one."""
    chunks = await chunks_of(FakeResults(records(*[b'"%s"' % (b"x" * 998)] * 1000)))
    assert len(json.loads(b"".join(chunks))["matches"]) == 1000
    assert 10 < len(chunks) < 30
    assert max(map(len, chunks)) < 70_000


@pytest.mark.parametrize("media_type", [JSON, DICOM_JSON, NDJSON, MULTIPART_DICOM, ZIP, DICOM])
@pytest_twisted.ensureDeferred
async def test_a_failure_before_the_first_record_is_raised(media_type: str) -> None:
    """What fails before there is anything to send is raised, and the results are closed."""
    results = FakeResults([DimseFailure("refused")], media_type=media_type)
    with pytest.raises(DimseFailure, match="refused"):
        await serialise(results, "r1")
    assert results.closed


@pytest_twisted.ensureDeferred
async def test_json_ends_well_formed_after_a_failure() -> None:
    """A failure under way is told in the object: not complete, with reason, error and what the error knows."""
    failure = DimseFailure.from_status("C-FIND", 0xA700, "Out of resources", None)
    results = FakeResults([*records(b'{"a":1}', b'{"b":2}'), failure], summary={"success": True, "complete": True})
    found = json.loads(await whole(results))
    assert found["matches"] == [{"a": 1}, {"b": 2}]
    assert (found["success"], found["complete"], found["dimse_status"]) == (False, False, "0xA700")
    assert found["incomplete_reason"] == found["error"] == failure.detail
    assert results.closed


@pytest_twisted.ensureDeferred
async def test_json_tells_that_it_is_incomplete() -> None:
    """An incomplete result is told by its own summary, whose reason also wins over an error's."""
    assert json.loads(await whole(FakeResults(records(b"{}"), summary=INCOMPLETE))) == {
        "operation": "find",
        "matches": [{}],
        **INCOMPLETE,
    }
    failed = json.loads(await whole(FakeResults([*records(b"{}"), DimseFailure("aborted")], summary=INCOMPLETE)))
    assert (failed["incomplete_reason"], failed["error"]) == ("the limit was reached", "aborted")


@pytest.mark.parametrize("media_type", CUT_TYPES)
@pytest_twisted.ensureDeferred
async def test_lists_are_cut_after_a_failure(media_type: str) -> None:
    """Spellings that cannot tell of a failure are not ended: the records leave, then an error is raised."""
    results = FakeResults([*records(b'{"a":1}', b'{"b":2}'), DimseFailure("aborted")], media_type=media_type)
    data = await until_cut((await serialise(results, "r1")).chunks)
    assert b'{"b":2}' in data
    assert b"]" not in data
    assert results.closed


@pytest.mark.parametrize("media_type", CUT_TYPES)
@pytest_twisted.ensureDeferred
async def test_lists_are_cut_when_incomplete(media_type: str) -> None:
    """A result that is not complete does not end cleanly; when it is empty that is said before the first byte."""
    answer = await serialise(FakeResults(records(b"{}"), media_type=media_type, summary=INCOMPLETE), "r1")
    assert b"]" not in await until_cut(answer.chunks)
    with pytest.raises(IncompleteAnswer, match="the limit was reached"):
        await serialise(FakeResults(media_type=media_type, summary=INCOMPLETE), "r1")


@pytest_twisted.ensureDeferred
async def test_a_defect_cuts_the_json_object() -> None:
    """What is no error of ours on purpose is not told to the client: the object is not ended."""
    answer = await serialise(FakeResults([*records(b"{}"), ZeroDivisionError("secret")]), "r1")
    assert b"secret" not in await until_cut(answer.chunks, ZeroDivisionError)


# --- closing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", [JSON, DICOM_JSON, NDJSON, MULTIPART_DICOM, ZIP])
@pytest.mark.parametrize("taken", [0, 1])
@pytest_twisted.ensureDeferred
async def test_an_answer_that_is_given_up_closes_its_results(tmp_path: Path, media_type: str, taken: int) -> None:
    """Closing the chunks, started or not, closes the results and ends what was being read ahead."""
    gate: Deferred[None] = Deferred()
    results = FakeResults([*instances(tmp_path, [b"x" * CHUNK_BYTES * 2]), gate], media_type=media_type)
    answer = await serialise(results, "r1")
    for _ in range(taken):
        await anext(answer.chunks)
    await answer.chunks.aclose()  # type: ignore[attr-defined]
    assert results.closed
    assert gate.called == results.is_waiting


@pytest.mark.parametrize("media_type", [JSON, NDJSON, MULTIPART_DICOM, ZIP])
@pytest_twisted.ensureDeferred
async def test_a_cancelled_reader_closes_the_results(tmp_path: Path, media_type: str) -> None:
    """Cancelling who waits for the next chunk ends the operation behind it."""
    from twisted.internet import reactor

    gate: Deferred[None] = Deferred()
    results = FakeResults([*instances(tmp_path, [b"x"]), gate], media_type=media_type)
    answer = await serialise(results, "r1")

    async def read_on() -> None:
        async for _ in answer.chunks:
            pass

    reading = Deferred.fromCoroutine(read_on())
    while not results.is_waiting:
        await deferLater(reactor, 0)  # type: ignore[arg-type]
    reading.cancel()
    with pytest.raises(CancelledError):
        await reading
    assert gate.called
    assert results.closed


# --- instances --------------------------------------------------------------------------------------------------------

SIZES = [b"", b"one", b"x" * CHUNK_BYTES, b"y" * (CHUNK_BYTES * 2 + 1)]


def retrieved(folder: Path, media_type: str, contents: list[bytes], **options: Any) -> FakeResults:
    return FakeResults(
        instances(folder, contents), media_type=media_type, operation="get", items_key="instances", **options
    )


@pytest_twisted.ensureDeferred
async def test_multipart_has_one_part_an_instance(tmp_path: Path) -> None:
    """Parts of any size come out whole, for our own reader and for the standard library's."""
    answer = await serialise(retrieved(tmp_path, MULTIPART_DICOM, SIZES), "r1")
    chunks = [chunk async for chunk in answer.chunks]
    data = b"".join(chunks)
    assert max(map(len, chunks)) <= CHUNK_BYTES + 200
    target = tmp_path / "read"
    target.mkdir()
    parts = await read_parts(BytesBody(data), answer.content_type, target)
    assert [part.path.read_bytes() for part in parts] == SIZES
    assert [part.headers["content-length"] for part in parts] == [str(len(content)) for content in SIZES]
    message = email.message_from_bytes(
        f"Content-Type: {answer.content_type}\r\n\r\n".encode() + data, policy=email.policy.HTTP
    )
    assert [part.get_content_type() for part in message.iter_parts()] == ["application/dicom"] * 4


@pytest_twisted.ensureDeferred
async def test_boundaries_are_not_reused(tmp_path: Path) -> None:
    """Every answer has a boundary of its own, which nobody can have put into an object."""
    kinds = {(await serialise(retrieved(tmp_path, MULTIPART_DICOM, [b"1"]), "r1")).content_type for _ in range(5)}
    assert len(kinds) == 5


@pytest_twisted.ensureDeferred
async def test_zip_has_one_entry_an_instance(tmp_path: Path) -> None:
    """The archive is valid, stored, and names its entries after the instances."""
    results = retrieved(tmp_path, ZIP, SIZES)
    old = tmp_path / "file1"
    os.utime(old, (0, 0))
    with zipfile.ZipFile(io.BytesIO(await whole(results))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["1.1.dcm", "1.2.dcm", "1.3.dcm", "1.4.dcm"]
        assert [archive.read(name) for name in archive.namelist()] == SIZES
        assert archive.infolist()[0].date_time[0] == 1980
        assert archive.infolist()[1].date_time[0] == time.localtime().tm_year
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("media_type", [MULTIPART_DICOM, ZIP])
@pytest_twisted.ensureDeferred
async def test_instances_leave_as_they_arrive(tmp_path: Path, media_type: str) -> None:
    """An instance is sent before the next one is there."""
    gate: Deferred[None] = Deferred()
    first, second = instances(tmp_path, [b"first instance", b"second instance"])
    answer = await serialise(FakeResults([first, gate, second], media_type=media_type, operation="get"), "r1")
    assert b"first instance" in await anext(answer.chunks)
    gate.callback(None)
    assert b"second instance" in b"".join([chunk async for chunk in answer.chunks])


@pytest.mark.parametrize(("media_type", "end"), [(MULTIPART_DICOM, b"--\r\n"), (ZIP, b"PK\x01\x02")])
@pytest_twisted.ensureDeferred
async def test_instances_are_cut_unless_whole(tmp_path: Path, media_type: str, end: bytes) -> None:
    """Without all instances there is no closing boundary and no zip directory."""
    incomplete = retrieved(tmp_path, media_type, [b"one"], summary=INCOMPLETE)
    failed = FakeResults([*instances(tmp_path, [b"one"]), DimseFailure("aborted")], media_type=media_type)
    for results, error in [(incomplete, IncompleteAnswer), (failed, DimseFailure)]:
        data = await until_cut((await serialise(results, "r1")).chunks, error)
        assert b"one" in data
        assert end not in data
        assert results.closed


@pytest.mark.parametrize("media_type", [MULTIPART_DICOM, ZIP, DICOM])
@pytest_twisted.ensureDeferred
async def test_a_file_that_is_gone_is_not_sent_as_whole(tmp_path: Path, media_type: str) -> None:
    """A file that cannot be read, or is no file at all, ends the answer with an error."""
    results = retrieved(tmp_path, media_type, [b"one"])
    (tmp_path / "file1").unlink()
    with pytest.raises(FileNotFoundError):
        await whole(results)
    with pytest.raises(IncompleteAnswer):
        await whole(FakeResults([FakeRecord()], media_type=media_type))


@pytest.mark.parametrize("media_type", [MULTIPART_DICOM, ZIP, DICOM])
@pytest_twisted.ensureDeferred
async def test_a_file_that_shrinks_under_way_is_cut(tmp_path: Path, media_type: str) -> None:
    """A file that loses its end while it is sent ends the answer with an error."""
    results = retrieved(tmp_path, media_type, [b"x" * CHUNK_BYTES * 3])
    answer = await serialise(results, "r1")
    await anext(answer.chunks)
    os.truncate(tmp_path / "file1", CHUNK_BYTES)
    await until_cut(answer.chunks)


@pytest_twisted.ensureDeferred
async def test_one_instance_is_sent_as_it_is(tmp_path: Path) -> None:
    """A single instance has its length, and the bytes of its file."""
    content = b"x" * (CHUNK_BYTES + 5)
    answer = await serialise(retrieved(tmp_path, DICOM, [content]), "r1")
    assert (answer.content_type, answer.length) == (DICOM, len(content))
    assert b"".join([chunk async for chunk in answer.chunks]) == content


@pytest_twisted.ensureDeferred
async def test_two_instances_are_not_acceptable_as_one(tmp_path: Path) -> None:
    """More than one instance cannot be application/dicom; the error says what can hold them."""
    results = retrieved(tmp_path, DICOM, [b"1", b"2"])
    with pytest.raises(NotAcceptable) as refused:
        await serialise(results, "r1")
    assert "multipart/related" in str(refused.value.hint)
    assert results.closed


@pytest_twisted.ensureDeferred
async def test_one_instance_of_an_incomplete_retrieve_is_not_sent(tmp_path: Path) -> None:
    """An instance that should have had company is not passed off as all there is."""
    with pytest.raises(IncompleteAnswer):
        await serialise(retrieved(tmp_path, DICOM, [b"1"], summary=INCOMPLETE), "r1")


@pytest.mark.parametrize("media_type", [MULTIPART_DICOM, ZIP, DICOM])
@pytest_twisted.ensureDeferred
async def test_no_instance_is_not_found(media_type: str) -> None:
    """There is no answer of instances without one."""
    with pytest.raises(NotFound):
        await serialise(FakeResults(media_type=media_type, operation="get"), "r1")
