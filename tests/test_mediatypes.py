"""Parsing of media types and header lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonyd.mediatypes import MediaType, parse_media_type, split_list


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("application/json", MediaType("application", "json", {})),
        (" Application/JSON ; Charset=UTF-8 ", MediaType("application", "json", {"charset": "UTF-8"})),
        ('a/b; x="1;2, \\"3\\""; y=4', MediaType("a", "b", {"x": '1;2, "3"', "y": "4"})),
        ("multipart/related; type=application/dicom", MediaType("multipart", "related", {"type": "application/dicom"})),
        ("a/b;;x=1;", MediaType("a", "b", {"x": "1"})),
        ("a/b;x=1;x=2", MediaType("a", "b", {"x": "1"})),
        ('a/b;x="open', MediaType("a", "b", {"x": "open"})),
        ("*", MediaType("*", "*", {})),
        ("*; q=.2", MediaType("*", "*", {"q": ".2"})),
    ],
)
def test_media_types_are_parsed(text: str, expected: MediaType) -> None:
    """Case, white space, quotes and harmless slips are understood."""
    assert parse_media_type(text) == expected


@pytest.mark.parametrize("text", ["", "json", "a/", "/b", "a b/c", "a/b c", "a/b, c/d", "ä/b", '"a"/b'])
def test_other_text_is_no_media_type(text: str) -> None:
    """What is not type/subtype gives None."""
    assert parse_media_type(text) is None


def test_lists_are_split_outside_quotes() -> None:
    """Commas in quoted strings do not separate, and empty elements are dropped."""
    assert split_list('a/b; x="1,2", , c/d;y="\\",",e') == ['a/b; x="1,2"', 'c/d;y="\\","', "e"]


@given(st.text(st.sampled_from('ab/;=,"\\ *\t\n'), max_size=60))
def test_any_text_is_survived(text: str) -> None:
    """No header makes the parser fail."""
    for element in split_list(text):
        parse_media_type(element)


def test_stray_quotes_cost_linear_time() -> None:
    """A header full of quotes and backslashes is parsed without trying every way to pair them."""
    hostile = 'a/b;x="' + '\\"' * 200_000
    assert len(split_list(hostile)) == 1
    assert parse_media_type(hostile) is not None
