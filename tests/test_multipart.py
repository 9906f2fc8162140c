"""Reading multipart/related bodies."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from harmonyd.bodies import BytesBody
from harmonyd.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from harmonyd.multipart import MultipartParser, Part, PartBegin, PartEnd, read_parts

KIND = 'multipart/related; type="application/dicom"; boundary=b0'
Found = list[tuple[dict[str, str], bytes]]


class ChunksBody(BytesBody):
    """A body in given chunks; a Deferred is waited for, an exception raised."""

    def __init__(self, chunks: Sequence[bytes | Deferred[None] | Exception]) -> None:
        super().__init__(b"")
        self._given = chunks
        self.is_waiting = False

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self._given:
            if isinstance(chunk, Exception):
                raise chunk
            if isinstance(chunk, Deferred):
                self.is_waiting = True
                await chunk
            else:
                yield chunk


def parse(stream: bytes, cuts: Sequence[int] = (), boundary: str = "b0") -> Found:
    """The parts of a stream that is fed in pieces."""
    parser = MultipartParser(boundary)
    found: Found = []
    whole: list[bool] = []
    edges = [0, *sorted(cuts), len(stream)]
    for start, end in pairwise(edges):
        for event in parser.feed(stream[start:end]):
            if isinstance(event, PartBegin):
                found.append((dict(event.headers), b""))
            elif isinstance(event, PartEnd):
                whole.append(True)
            else:
                headers, data = found[-1]
                found[-1] = (headers, data + event)
    parser.close()
    assert len(whole) == len(found)
    return found


STREAMS: list[tuple[bytes, Found]] = [
    (b"--b0\r\nA: 1\r\n\r\none\r\n--b0\r\n\r\ntwo\r\n--b0--\r\n", [({"a": "1"}, b"one"), ({}, b"two")]),
    (b"--b0\r\n\r\none\r\n--b0--", [({}, b"one")]),
    (
        b"pre\r\namble --b0 \r\n--b0 \t \r\n\r\none\r\n--b0\t\r\n\r\n\r\n--b0-- \r\nepi--b0logue",
        [({}, b"one"), ({}, b"")],
    ),
    (b"\r\n--b0\r\nA: 1\r\n B\r\nC:\r\n\r\n\r\n--b0--", [({"a": "1 B", "c": ""}, b"")]),
    (b"--b0\r\nA: 1\r\n\r\n--b0\r\n\r\n--b0--", [({"a": "1"}, b""), ({}, b"")]),
    (
        b"--b0\r\n\r\n\r\n-\r\n--\r\n--b\r\r\n\r\n--b1\r\n\n--b0\r\n--b0--",
        [({}, b"\r\n-\r\n--\r\n--b\r\r\n\r\n--b1\r\n\n--b0")],
    ),
]


@pytest.mark.parametrize(("stream", "expected"), STREAMS)
def test_parts_are_the_same_at_every_single_split(stream: bytes, expected: Found) -> None:
    """Preamble, padding, empty parts and half boundaries are understood wherever the stream is cut in two."""
    assert parse(stream) == expected
    for cut in range(len(stream) + 1):
        assert parse(stream, [cut]) == expected
    assert parse(stream, range(len(stream))) == expected


_contents = st.lists(
    st.one_of(st.sampled_from([b"\r\n", b"\r", b"\n", b"--", b"-", b"b", b"\r\n--b", b"x"]), st.binary())
)


@given(st.data())
def test_any_split_gives_the_same_parts(data: st.DataObject) -> None:
    """What was framed is what is found, however the bytes arrive."""
    contents = [b"".join(pieces) for pieces in data.draw(st.lists(_contents, min_size=1, max_size=4))]
    contents = [content.replace(b"--b0", b"--c0") for content in contents]
    stream = data.draw(st.sampled_from([b"", b"\r\n", b"preamble\r\n"]))
    for number, content in enumerate(contents):
        stream += b"--b0\r\nN: %d\r\n\r\n" % number + content + b"\r\n"
    stream += b"--b0--" + data.draw(st.sampled_from([b"", b"\r\n", b"\r\n--b0\r\n"]))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    assert parse(stream, cuts) == [({"n": str(number)}, content) for number, content in enumerate(contents)]


@given(
    st.lists(st.sampled_from([b"--b0", b"--", b"\r\n", b"\r", b" ", b"A: 1", b":", b"x", b"-"]), max_size=30), st.data()
)
def test_garbage_is_judged_the_same_at_any_split(pieces: list[bytes], data: st.DataObject) -> None:
    """A stream that is not well formed is refused with BadRequest, whole or in pieces."""

    def judged(cuts: Sequence[int]) -> Found | None:
        try:
            return parse(stream, cuts)
        except BadRequest:
            return None

    stream = b"".join(pieces)
    assert judged([]) == judged(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (b"", "before its first part"),
        (b"no boundary at all", "before its first part"),
        (b"--b0\r\n\r\none", "in or after part 1"),
        (b"--b0\r\n\r\none\r\n--b0\r\n\r\ntwo\r\n--b0-", "in or after part 2"),
        (b"--b0--\r\n", "no parts"),
        (b"--b0\n\none\n--b0--\n", "other text"),
        (b"--b0 x\r\n\r\n", "other text"),
        (b"--b0" + b" " * 300, "padding"),
        (b"--b0\r\nno colon\r\n\r\n", "not a header field"),
        (b"--b0\r\nA : 1\r\n\r\n", "not a header field"),
        (b"--b0\r\nA: " + b"x" * 20_000, "longer than 16384"),
        (b"--b0\r\nA: " + b"x" * 20_000 + b"\r\n\r\n", "longer than 16384"),
    ],
)
def test_what_is_wrong_is_said(stream: bytes, complaint: str) -> None:
    """Truncated and malformed streams are refused with what is wrong."""
    with pytest.raises(BadRequest, match=complaint):
        parse(stream)


def framed(*contents: bytes, header: bytes = b"Content-Type: application/dicom\r\n") -> bytes:
    return b"".join(b"--b0\r\n" + header + b"\r\n" + content + b"\r\n" for content in contents) + b"--b0--\r\n"


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def contents_of(parts: list[Part]) -> list[bytes]:
    return [part.path.read_bytes() for part in parts]


@pytest_twisted.ensureDeferred
async def test_parts_are_written_to_files(tmp_path: Path) -> None:
    """Each part is a file of its own, with size and header."""
    contents = [b"x" * 3_000_000, b"", b"\r\n--b"]
    data = framed(*contents)
    body = ChunksBody([data[start : start + 70_000] for start in range(0, len(data), 70_000)])
    parts = await read_parts(body, KIND, tmp_path)
    assert contents_of(parts) == contents
    assert [part.size_bytes for part in parts] == [3_000_000, 0, 5]
    assert parts[0].headers == {"content-type": "application/dicom"}
    assert files_in(tmp_path) == [part.path for part in parts]


@pytest_twisted.ensureDeferred
async def test_many_small_parts_cost_little(tmp_path: Path) -> None:
    """Thousands of parts in one chunk are read without copying the chunk for each of them."""
    parts = await read_parts(BytesBody(framed(*[b"x" * 200] * 3000)), KIND, tmp_path)
    assert len(parts) == 3000


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"Content-Type: text/plain\r\n", "Part 1 is 'text/plain'"),
        (b"Content-Type: multipart/related; boundary=c\r\n", "not application/dicom"),
        (b"Content-Transfer-Encoding: base64\r\n", "base64"),
        (b"Content-Length: 4\r\n", "has 3 bytes"),
        (b"Content-Length: three\r\n", "has 3 bytes"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_parts_that_are_not_plain_dicom_are_refused(tmp_path: Path, header: bytes, complaint: str) -> None:
    """A part of another type, in an encoding, or of another length than it says, is refused, and no file is left."""
    with pytest.raises(BadRequest, match=complaint):
        await read_parts(BytesBody(framed(b"one", header=header)), KIND, tmp_path)
    assert files_in(tmp_path) == []


@pytest_twisted.ensureDeferred
async def test_headers_that_say_nothing_wrong_are_accepted(tmp_path: Path) -> None:
    """A part may leave its type out, carry parameters, and announce its length."""
    header = b"Content-Type: application/dicom; transfer-syntax=1.2.840.10008.1.2\r\nContent-Length: 3\r\n"
    assert contents_of(await read_parts(BytesBody(framed(b"one", header=header)), KIND, tmp_path)) == [b"one"]
    (tmp_path / "other").mkdir()
    assert contents_of(await read_parts(BytesBody(framed(b"1", header=b"")), KIND, tmp_path / "other")) == [b"1"]


@pytest.mark.parametrize(
    ("content_type", "error"),
    [
        ("", UnsupportedMediaType),
        ("multipart/form-data; boundary=b0", UnsupportedMediaType),
        ('multipart/related; type="image/png"; boundary=b0', UnsupportedMediaType),
        ("multipart/related", BadRequest),
        ("multipart/related; boundary=" + "x" * 71, BadRequest),
        ("multipart/related; boundary=ä", BadRequest),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_content_type_has_to_name_type_and_boundary(
    tmp_path: Path, content_type: str, error: type[Exception]
) -> None:
    """Another kind of body is unsupported; a boundary that is missing or impossible is a bad request."""
    with pytest.raises(error):
        await read_parts(BytesBody(framed(b"one")), content_type, tmp_path)


@pytest_twisted.ensureDeferred
async def test_too_many_parts_are_too_large(tmp_path: Path) -> None:
    """One part more than allowed is refused, and no file is left."""
    with pytest.raises(PayloadTooLarge, match="more than 2 parts"):
        await read_parts(BytesBody(framed(b"1", b"2", b"3")), KIND, tmp_path, max_parts=2)
    assert files_in(tmp_path) == []


@pytest_twisted.ensureDeferred
async def test_a_truncated_body_leaves_no_file(tmp_path: Path) -> None:
    """A body that ends in a part is refused, and what was written is removed."""
    with pytest.raises(BadRequest, match="without the closing boundary"):
        await read_parts(BytesBody(framed(b"1", b"2" * 100)[:-20]), KIND, tmp_path)
    assert files_in(tmp_path) == []


@pytest_twisted.ensureDeferred
async def test_a_cancellation_leaves_no_file(tmp_path: Path) -> None:
    """Cancelled while it waits for more of the body, reading removes what was written."""
    from twisted.internet import reactor

    body = ChunksBody([framed(b"1", b"2" * 2_000_000)[:-1000], Deferred()])
    reading = Deferred.fromCoroutine(read_parts(body, KIND, tmp_path))
    while not body.is_waiting:
        await deferLater(reactor, 0)  # type: ignore[arg-type]
    assert len(files_in(tmp_path)) == 2
    reading.cancel()
    with pytest.raises(CancelledError):
        await reading
    assert files_in(tmp_path) == []


@pytest_twisted.ensureDeferred
async def test_what_the_body_raises_is_raised(tmp_path: Path) -> None:
    """An error of the body itself is passed on."""
    with pytest.raises(OSError, match="broken disk"):
        await read_parts(ChunksBody([framed(b"1")[:30], OSError(errno.EIO, "broken disk")]), KIND, tmp_path)
    assert files_in(tmp_path) == []
