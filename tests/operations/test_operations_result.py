"""Answers in files: written whole or not at all, sent whole or in ranges."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonyd.bodies import EmptyBody
from harmonyd.operations.result import Result, kept, write_result
from harmonyd.services.base import HttpAnswer, HttpRequest
from harmonyd.web.stream import BrokenAnswer

CONTENT = bytes(range(200)) * 5


async def at_once(function: Any, *args: Any) -> Any:
    return function(*args)


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def run(coroutine: Any) -> Any:
    """Nothing here waits for a reactor."""
    return asyncio.run(coroutine)


def asked(**headers: str) -> HttpRequest:
    return HttpRequest("r", "GET", "/", "/", "", headers, {}, EmptyBody(), "")


async def body(answer: HttpAnswer) -> bytes:
    assert answer.chunks is not None
    return b"".join([chunk async for chunk in answer.chunks])


def written(path: Path, chunks: Sequence[bytes], length: int | None = None) -> tuple[Result, list[int]]:
    sizes: list[int] = []
    answer = HttpAnswer(200, {"Content-Type": "text/plain"}, pieces(*chunks), length)
    return run(write_result(answer, path, '"tag"', at_once, sizes.append)), sizes


@given(st.lists(st.binary(max_size=300_000), max_size=6))
def test_what_is_written_is_what_came(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]) -> None:
    """Every byte is in the file, and was reserved before."""
    path = tmp_path_factory.mktemp("result") / "result"
    result, sizes = written(path, chunks)
    whole = b"".join(chunks)
    assert result.size_bytes == sum(sizes) == len(whole)
    assert (result.path.read_bytes() if result.path else b"") == whole


def test_an_answer_of_another_length_is_none(tmp_path: Path) -> None:
    """What was announced with a length and has another is an error, as it is for a client that waits."""
    with pytest.raises(BrokenAnswer):
        written(tmp_path / "result", [b"abc"], 4)


def test_a_limit_ends_the_writing(tmp_path: Path) -> None:
    """What ``reserve`` raises comes through, the answer is closed, and the file too."""
    closed: list[bool] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(300_000)
        finally:
            closed.append(True)

    def reserve(_size: int) -> None:
        if (tmp_path / "result").exists():
            raise MemoryError

    with pytest.raises(MemoryError):
        run(write_result(HttpAnswer(200, {}, endless()), tmp_path / "result", '"t"', at_once, reserve))
    assert closed == [True]
    assert (tmp_path / "result").stat().st_size == 300_000


@given(st.one_of(st.integers(0, 2000), st.none()), st.one_of(st.integers(0, 2000), st.none()))
def test_ranges(tmp_path_factory: pytest.TempPathFactory, first: int | None, last: int | None) -> None:
    """A range is answered with its bytes, 416 beyond the end, and with the whole when it is none (RFC 9110, 14.1.2)."""
    result, _ = written(tmp_path_factory.mktemp("result") / "result", [CONTENT])
    spelled = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    answer = run(kept(result, asked(range=spelled), at_once))
    if (first is None and last is None) or (first is not None and last is not None and last < first):
        assert (answer.status, answer.length) == (200, len(CONTENT))
        return
    end = None if last is None else last + 1
    suffix = CONTENT[-last:] if last else b""
    wanted = suffix if first is None else CONTENT[first:end]
    assert answer.status == (206 if wanted else 416)
    if wanted:
        begin = len(CONTENT) - len(wanted) if first is None else first
        assert run(body(answer)) == wanted
        assert len(wanted) == answer.length
        assert answer.headers["content-range"] == f"bytes {begin}-{begin + len(wanted) - 1}/{len(CONTENT)}"


@pytest.mark.parametrize("field", ["", "bytes", "bytes=", "bytes=a-b", "lines=0-1", "bytes=0-1,3-4", "bytes=-", "٣"])
def test_what_is_no_range_is_ignored(tmp_path: Path, field: str) -> None:
    """The whole is sent."""
    result, _ = written(tmp_path / "result", [CONTENT])
    answer = run(kept(result, asked(range=field), at_once))
    assert (answer.status, run(body(answer))) == (200, CONTENT)
