"""Strict JSON decoding."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonyd.dimse.identifier import decode_json
from harmonyd.errors import BadRequest

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


@pytest.mark.parametrize("data", [b"", b" \r\n\t", b"\xef\xbb\xbf", b"null"])
def test_nothing_is_none(data: bytes) -> None:
    """An empty body is no document."""
    assert decode_json(data) is None


def test_a_byte_order_mark_is_tolerated() -> None:
    """Some clients write one."""
    assert decode_json(b'\xef\xbb\xbf{"a": [1, 2.5, "\xc3\xa4"]}') == {"a": [1, 2.5, "ä"]}


def test_brackets_in_text_are_not_nesting() -> None:
    """Only structure counts for the depth."""
    assert decode_json(json.dumps(["[{" * 500 + '"']).encode()) == ["[{" * 500 + '"']


@pytest.mark.parametrize(
    ("data", "position"),
    [
        (b'{"a":\n x}', "line 2, column 2"),
        (b'{"a": 1} {}', "line 1, column 10"),
        (b'{"a": "\xff"}', "byte 7"),
        ('{"a": "ü"}'.encode("latin-1"), "byte 7"),
        ('{"a": 1}'.encode("utf-16"), "byte 0"),
        (b'{"a": "x\ny"}', "line 1, column 9"),
        (b'{"a": NaN}', "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "number of 5 characters"),
        (b"[" + b"1" * 5000 + b"]", "number of 5000 digits"),
        (b'{"a": 1, "b": 2, "a": 1}', "'a'"),
        (b'[{"\\ud800": 1, "\\ud800": 2}]', "ud800"),
        (b"[" * 33 + b"]" * 33, "line 1, column 33"),
        (b"[" * 1_000_000, "line 1, column 33"),
        (b'{"a":\n' * 40, "line 33, column 1"),
    ],
)
def test_bad_json_is_refused_with_its_position(data: bytes, position: str) -> None:
    """The error says where, and can itself be encoded."""
    with pytest.raises(BadRequest) as caught:
        decode_json(data)
    assert position in caught.value.extra["position"]
    caught.value.detail.encode()


@given(JSON)
def test_valid_json_comes_back(value: Any) -> None:
    """What another encoder wrote is decoded to the same value."""
    assert decode_json(json.dumps(value).encode()) == value


@given(st.binary() | st.text(alphabet='{}[]":,\\ 0e-', max_size=60).map(str.encode))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    """No input raises anything but ``BadRequest``."""
    try:
        decode_json(data)
    except BadRequest as error:
        assert error.extra["position"]
