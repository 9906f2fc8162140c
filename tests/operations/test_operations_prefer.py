"""Reading the Prefer header field (RFC 7240)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonyd.operations.prefer import MAX_WAIT_SECS, Preferences, parse_prefer


@pytest.mark.parametrize(
    ("field", "asynchronous", "wait_secs"),
    [
        (None, False, None),
        ("", False, None),
        ("respond-async", True, None),
        ("Respond-Async, WAIT=10", True, 10),
        ('wait="5", respond-async', True, 5),
        ("respond-async; x=1, return=minimal", True, None),
        ("respond-async=yes", True, None),
        ("wait=3, wait=9", False, 3),
        ("wait=99999", False, MAX_WAIT_SECS),
        ("wait=99999999999999999999", False, None),
        ("wait=-1", False, None),
        ("wait=soon, respond-async", True, None),
        ("wait=٣", False, None),
        ('foo="a, respond-async"', False, None),
        (",,;=,", False, None),
    ],
)
def test_what_is_meant(field: str | None, asynchronous: bool, wait_secs: int | None) -> None:
    """Names are in any case, values may be quoted, the first of two counts, and the rest is ignored."""
    assert parse_prefer(field) == Preferences(asynchronous, wait_secs)


@given(st.text())
def test_nothing_that_a_client_sends_is_an_error(field: str) -> None:
    """A preference that cannot be read is none."""
    wait = parse_prefer(field).wait_secs
    assert wait is None or 0 <= wait <= MAX_WAIT_SECS
