"""Answers of one piece: which part, and whether at all; frames by where they lie."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from io import BytesIO
from pathlib import Path

import pytest
from dicomweb_fakes import request
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, get_frame
from pydicom.uid import ExplicitVRLittleEndian
from pytest_twisted import ensureDeferred
from service_fakes import FakeResults
from twisted.internet.defer import Deferred

from harmonyd.bodies import EmptyBody
from harmonyd.dimse.engine import RemoteNode
from harmonyd.envelope import RequestEnvelope
from harmonyd.errors import RangeNotSatisfiable
from harmonyd.services.dicom.keeping import document_for, key_of, wants_fresh
from harmonyd.services.dicomweb.accept import OCTETS, Offer
from harmonyd.services.dicomweb.bulkdata import streamed
from harmonyd.services.dicomweb.images import MAX_BYTES, Images
from harmonyd.services.dicomweb.pixel_file import _joined, frame_extents
from harmonyd.services.dicomweb.results import Held
from harmonyd.services.dicomweb.single import FilePiece, has_already, wanted_range
from harmonyd.services.http.answers import ClosingIterator
from harmonyd.services.http.errors import IncompleteAnswer

TAG = '"abc"'


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 100)),
        ("bytes=90-1000", (90, 100)),
        ("BYTES = 0-9", None),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes=0-1,5-6", None),
        ("bytes=9-0", None),
        ("bytes=a-b", None),
        ("bytes=-", None),
        ("pages=0-1", None),
        ("", None),
    ],
)
def test_the_one_range_that_is_asked_for(given: str, found: tuple[int, int] | None) -> None:
    """Several, and what is not understood, are the whole (RFC 9110 section 14.2)."""
    assert wanted_range(request(range=given), 100, TAG) == found


@pytest.mark.parametrize("given", ["bytes=100-", "bytes=100-200", "bytes=-0", f"bytes={10**17}-"])
def test_a_range_that_is_not_there(given: str) -> None:
    """It is told how much there is."""
    with pytest.raises(RangeNotSatisfiable) as caught:
        wanted_range(request(range=given), 100, TAG)
    assert caught.value.extra["content_range"] == "bytes */100"


@pytest.mark.parametrize(
    ("condition", "tag", "is_part"),
    [
        (TAG, TAG, True),
        ('"other"', TAG, False),
        (f"W/{TAG}", f"W/{TAG}", False),
        (TAG, None, False),
        ("Wed, 21 Oct 2015 07:28:00 GMT", TAG, False),
    ],
)
def test_a_range_of_what_the_client_has(condition: str, tag: str | None, is_part: bool) -> None:
    """If-Range compares strongly; a date never matches, since there is none (RFC 9110 section 13.1.5)."""
    assert (wanted_range(request(range="bytes=0-1", if_range=condition), 100, tag) is not None) == is_part


@pytest.mark.parametrize(
    ("given", "tag", "has"),
    [
        (TAG, TAG, True),
        (f'"x", W/{TAG}', TAG, True),
        (TAG, f"W/{TAG}", True),
        ("*", TAG, True),
        ("*", None, False),
        ('"x"', TAG, False),
        ("abc", TAG, False),
    ],
)
def test_who_has_it_already(given: str, tag: str | None, has: bool) -> None:
    """If-None-Match compares weakly (RFC 9110 section 13.1.2)."""
    assert has_already(request(if_none_match=given), tag) is has


@ensureDeferred
async def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    """The answer is cut, not filled up or ended."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert [chunk async for chunk in FilePiece(path, 2, 8).chunks(1, 3)] == [b"345"]
    with pytest.raises(IncompleteAnswer):
        async for _ in FilePiece(path, 2, 9).chunks(0, 9):
            pass


FRAMES = [bytes([number]) * (10 + 2 * number) for number in range(1, 5)]


@pytest.mark.parametrize(
    ("value", "frames"),
    [
        (encapsulate(FRAMES), FRAMES),
        (encapsulate(FRAMES, has_bot=False), FRAMES),
        (encapsulate(FRAMES, fragments_per_frame=2), FRAMES),
        (encapsulate(FRAMES[:1], fragments_per_frame=3, has_bot=False), FRAMES[:1]),
        (encapsulate_extended(FRAMES)[0], FRAMES),
    ],
)
def test_frames_lie_where_pydicom_finds_them(value: bytes, frames: list[bytes]) -> None:
    """With and without an offset table, in one fragment and in several."""
    file = BytesIO(b"before" + value + b"\xfe\xff\xdd\xe0\0\0\0\0")
    file.seek(6)
    extents = frame_extents(file, len(frames))
    assert file.tell() == 6
    for index, (start, end) in enumerate(extents):
        found = _joined(file.getvalue()[start:end])
        assert found == get_frame(value, index, number_of_frames=len(frames))
        assert found.startswith(frames[index])
    assert len(extents) == len(frames)


def test_frames_that_cannot_be_told_apart() -> None:
    """Five fragments without offsets may be any two frames."""
    value = encapsulate(FRAMES, has_bot=False)
    assert frame_extents(BytesIO(value + b"\xfe\xff\xdd\xe0\0\0\0\0"), 2) == []


def test_offsets_that_are_nonsense() -> None:
    """Nothing is read by offsets that do not grow."""
    value = bytearray(encapsulate(FRAMES, fragments_per_frame=2))
    value[8:16] = bytes(value[12:16] + value[8:12])
    assert frame_extents(BytesIO(bytes(value) + b"\xfe\xff\xdd\xe0\0\0\0\0"), 4) == []


@ensureDeferred
async def test_images_that_are_opened_again(tmp_path: Path) -> None:
    """Those of the cache are known; the most recently used ones of a bounded size."""
    ds = Dataset()
    ds.Rows = ds.Columns = 1
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2", "1.3"
    ds.add_new(0x00281201, "OW", bytes(8_000_000))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    paths = [tmp_path / f"{number}" for number in range(6)]
    for path in paths:
        ds.save_as(path, enforce_file_format=True)
    images = Images()
    opened = [await images.open(path, is_kept=True) for path in paths]
    assert await images.open(paths[-1], is_kept=True) is opened[-1]
    assert await images.open(paths[0], is_kept=True) is not opened[0]
    assert await images.open(paths[-1], is_kept=False) is not opened[-1]
    assert sum(image.weight for image in images._known.values()) <= MAX_BYTES


REMOTE = RemoteNode("pacs", "AET", "host", 104, "OURS")
UIDS = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "SOPInstanceUID": "1.4"}


def envelope(**fields: dict[str, str]) -> RequestEnvelope:
    return RequestEnvelope("http", "GET", "/", "/", EmptyBody(), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("level", "count"), [("STUDY", 1), ("SERIES", 2), ("IMAGE", 3)])
def test_which_retrieves_may_be_kept(level: str, count: int) -> None:
    """Those of one study, series or instance, and what is asked for then is the same."""
    document = {**dict(list(UIDS.items())[:count]), "level": level, "query_model": "study"}
    key = key_of(REMOTE, envelope(), document)
    assert key is not None
    assert document_for(key) == document


@pytest.mark.parametrize(
    "document",
    [
        {**UIDS, "level": "SERIES", "query_model": "study"},
        {"StudyInstanceUID": "1.2\\1.3", "level": "STUDY", "query_model": "study"},
        {"StudyInstanceUID": "../etc", "level": "STUDY", "query_model": "study"},
        {"StudyInstanceUID": "1.2", "PatientID": "7", "level": "STUDY", "query_model": "study"},
        {"StudyInstanceUID": "1.2", "level": "STUDY"},
        {"level": "STUDY", "query_model": "study"},
        {"PatientID": "1", "level": "PATIENT", "query_model": "study"},
        [],
        None,
    ],
)
def test_which_retrieves_are_not_kept(document: object) -> None:
    """Those that are about more, or less, than UIDs say."""
    assert key_of(REMOTE, envelope(), document) is None


def test_a_key_that_middleware_forces_is_not_in_the_uids() -> None:
    """What it finds depends on more than the UIDs."""
    document = {"StudyInstanceUID": "1.2", "level": "STUDY", "query_model": "study"}
    assert key_of(REMOTE, envelope(metadata={"identifier.PatientID": "7"}), document) is None


@pytest.mark.parametrize(("given", "fresh"), [("no-cache", True), ("max-age=0, No-Cache", True), ("max-age=0", False)])
def test_what_a_client_says_of_caches(given: str, fresh: bool) -> None:
    """RFC 9111 section 5.2.1.4."""
    assert wants_fresh(envelope(headers={"cache-control": given})) is fresh


class _SlowlyClosed:
    """Content whose end takes a while, as that of a file which a thread closes."""

    length = 2

    def __init__(self) -> None:
        self.closing: Deferred[None] = Deferred()

    async def chunks(self, start: int, length: int) -> AsyncGenerator[bytes, None]:
        try:
            yield b"a"
            yield b"b"
        finally:
            await self.closing


@ensureDeferred
async def test_a_client_that_leaves_a_large_value_waits_for_its_end() -> None:
    """The file is closed before the results are, which may remove it."""
    content, results = _SlowlyClosed(), FakeResults()
    answer = streamed(Offer(OCTETS, multipart=True), Held(Path("unused"), results), content, None)
    chunks = answer.chunks
    assert isinstance(chunks, ClosingIterator)
    assert [(await anext(chunks))[:2], await anext(chunks)] == [b"--", b"a"]
    ended = Deferred.fromCoroutine(chunks.aclose())
    assert (ended.called, results.closed) == (False, 0)
    content.closing.callback(None)
    assert (ended.called, results.closed) == (True, 1)
