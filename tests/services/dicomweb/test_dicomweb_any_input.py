"""Whatever a client writes is understood, or refused by an error of ours: never a traceback."""

from __future__ import annotations

import contextlib
import json
from xml.etree import ElementTree

import pytest
from dicomweb_fakes import SHIPPED, request
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import keyword_dict

from harmonyd.dimse.identifier import parse_query
from harmonyd.errors import HarmonydError
from harmonyd.services.dicomweb import pixel_file, rendering
from harmonyd.services.dicomweb.accept import OCTETS, Offer, accepted, choose, syntaxes
from harmonyd.services.dicomweb.entities import LEVELS, keys_to_return
from harmonyd.services.dicomweb.native_xml import to_xml
from harmonyd.services.dicomweb.pixel_file import PixelFile
from harmonyd.services.dicomweb.rendering import PNG, Rendering, parse_rendering, render
from harmonyd.services.dicomweb.resources import parse_path
from harmonyd.services.dicomweb.search_query import parse_search

WORDS = st.sampled_from(
    [
        "studies",
        "series",
        "instances",
        "1.2",
        "frames",
        "bulkdata",
        "7FE00010",
        "1",
        "\u00b2",
        "rendered",
        "metadata",
        "x",
    ]
)
NAMES = st.sampled_from(
    [*sorted(keyword_dict)[::40], "limit", "offset", "includefield", "fuzzymatching", "00100010", "a.b"]
)
VALUES = st.one_of(st.text(max_size=20), st.sampled_from(["1", "1.2,1.3", "all", "true", "19990101-", "Doe*", "-5"]))
QUERIES = st.dictionaries(st.one_of(NAMES, st.text(max_size=10)), st.lists(VALUES, min_size=1, max_size=2), max_size=4)


@given(st.one_of(st.lists(WORDS, max_size=10).map("/".join), st.text()))
def test_any_path(path: str) -> None:
    """A path is a resource or an error."""
    try:
        found = parse_path("/" + path)
    except HarmonydError:
        return
    assert found.kind


@settings(deadline=None)
@given(QUERIES, st.sampled_from(LEVELS))
def test_any_search(query: dict[str, list[str]], level: str) -> None:
    """The keys of a search are an identifier, or there is an error."""
    try:
        found = parse_search(query, level)
        for each in LEVELS[: LEVELS.index(level) + 1]:
            parse_query({**keys_to_return(each, found.include_all), "level": each} | {}, operation="find")
            parse_query({**found.keys[each], "level": each}, operation="find")
    except HarmonydError:
        pass


@given(st.dictionaries(st.sampled_from(["window", "viewport", "quality"]), st.lists(VALUES, min_size=1, max_size=2)))
def test_any_rendering(query: dict[str, list[str]]) -> None:
    """The parameters of a picture are understood or refused."""
    with contextlib.suppress(HarmonydError):
        parse_rendering(query, thumbnail=False)


@given(st.text())
def test_any_accept(text: str) -> None:
    """What is accepted is one of the offers, or none."""
    ranges = accepted(request(accept=text))
    offers = (Offer(OCTETS, multipart=True), Offer(OCTETS))
    with contextlib.suppress(HarmonydError):
        assert syntaxes(ranges, choose(ranges, offers))


@given(st.text(), st.text(), st.sampled_from(["LO", "PN", "UN"]))
def test_any_text_in_xml(text: str, creator: str, vr: str) -> None:
    """It is a well-formed document, whatever the values are."""
    value = {"Alphabetic": text} if vr == "PN" else text
    dataset = {
        "00091001": {"vr": vr, "Value": [value]},
        "00090010": {"vr": "LO", "Value": [creator]},
    }
    ElementTree.fromstring(to_xml(json.loads(json.dumps(dataset))))


def test_without_the_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the optional dependencies are not installed, the error says what to install; the rest works."""
    for module in (pixel_file, rendering):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    for ask in (
        lambda: PixelFile(SHIPPED / "MR_small_RLE.dcm").octets(1),
        lambda: render(PixelFile(SHIPPED / "CT_small.dcm"), 1, PNG, Rendering()),
    ):
        with pytest.raises(HarmonydError) as caught:
            ask()
        assert "harmonyd[dicomweb]" in (caught.value.hint or "")
    assert len(PixelFile(SHIPPED / "CT_small.dcm").octets(1)) == 32768
