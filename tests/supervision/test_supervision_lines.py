"""Splitting output into lines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harmonyd.supervision.lines import CONTINUED, MAX_LINE_BYTES, LineSplitter


def split(chunks: list[bytes], limit: int = MAX_LINE_BYTES) -> list[bytes]:
    splitter = LineSplitter(limit)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.flush()


@given(st.lists(st.text("ab\n", max_size=8).map(str.encode), max_size=20))
def test_chunks_do_not_matter(chunks: list[bytes]) -> None:
    """However the bytes are cut, the lines are those of the whole."""
    expected = b"".join(chunks).split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert split(chunks) == expected


@given(st.lists(st.text("ab\n", max_size=30).map(str.encode), max_size=20))
def test_overlong_lines_come_in_marked_pieces(chunks: list[bytes]) -> None:
    """Pieces are bounded, each further one is marked, and together they are the line."""
    pieces = split(chunks, limit=5)
    assert all(len(piece.removeprefix(CONTINUED)) <= 5 for piece in pieces)
    joined = b"\n".join(pieces).replace(b"\n" + CONTINUED, b"")
    assert joined == b"".join(chunks).removesuffix(b"\n")


def test_a_megabyte_without_a_newline_is_survived() -> None:
    """Memory stays bounded, nothing is lost, and no piece passes for a line of its own."""
    splitter = LineSplitter()
    lines: list[bytes] = []
    for _ in range(128):
        lines += splitter.feed(b"x" * 8192)
    lines += splitter.feed(b"\nI: next\n")
    assert sum(len(line.removeprefix(CONTINUED)) for line in lines[:-1]) == 1 << 20
    assert all(line.startswith(CONTINUED) for line in lines[1:-1])
    assert lines[-1] == b"I: next"


def test_a_line_in_many_small_writes_is_one_line() -> None:
    """DCMTK writes a line piece by piece."""
    assert split([b"I", b":", b" ", b"ok", b"\n"]) == [b"I: ok"]
