"""Content negotiation for the operations."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonyd.errors import NotAcceptable
from harmonyd.services.http.media import DICOM, DICOM_JSON, JSON, MULTIPART_DICOM, NDJSON, OFFERS, ZIP, negotiate


@pytest.mark.parametrize("operation", sorted(OFFERS))
@pytest.mark.parametrize("accept", [None, "", "*/*", "*", "garbage", "application/*", "text/html, */*;q=0.1"])
def test_the_default_answers_who_takes_anything(operation: str, accept: str | None) -> None:
    """No Accept, a wildcard, or nothing that can be understood: JSON."""
    assert negotiate(operation, accept) == JSON


@pytest.mark.parametrize(
    ("operation", "accept", "expected"),
    [
        ("find", "application/dicom+json", DICOM_JSON),
        ("find", "application/x-ndjson, application/json;q=0.5", NDJSON),
        ("find", "application/json;q=0.5, application/*;q=0.8", DICOM_JSON),
        ("find", "application/dicom+json, */*", DICOM_JSON),
        ("find", "application/x-ndjson;q=0.9, */*;q=0.9", NDJSON),
        ("find", "APPLICATION/JSON; charset=utf-8", JSON),
        ("find", "application/json;q=0, */*", DICOM_JSON),
        ("find", "application/json;q=often", JSON),
        ("find", "application/json;q=nan", JSON),
        ("find", 'text/plain;a=",", application/x-ndjson', NDJSON),
        ("get", "multipart/related", MULTIPART_DICOM),
        ("get", 'multipart/related; type="application/dicom"', MULTIPART_DICOM),
        ("get", "multipart/related; type=application/dicom", MULTIPART_DICOM),
        ("get", 'multipart/related; type="*/*"', MULTIPART_DICOM),
        ("move", 'multipart/related; type="application/dicom"; transfer-syntax=*', MULTIPART_DICOM),
        ("move", "multipart/*", MULTIPART_DICOM),
        ("move", "application/zip", ZIP),
        ("get", "application/dicom", DICOM),
        ("get", "application/json;q=0, */*", MULTIPART_DICOM),
    ],
)
def test_accept_decides(operation: str, accept: str, expected: str) -> None:
    """The highest weight wins, then the range that says more, then the order of the offers."""
    assert negotiate(operation, accept) == expected


@pytest.mark.parametrize(
    ("operation", "accept"),
    [
        ("find", "text/html"),
        ("find", "application/zip"),
        ("find", "application/json;q=0"),
        ("find", "application/json; charset=utf-16"),
        ("echo", "application/dicom+json"),
        ("get", 'multipart/related; type="application/octet-stream"'),
        ("get", 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.50'),
        ("get", "*/*;q=0"),
        ("store", "application/dicom"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_offers(operation: str, accept: str) -> None:
    """NotAcceptable lists what there is."""
    with pytest.raises(NotAcceptable) as refused:
        negotiate(operation, accept)
    assert refused.value.extra["offered"] == list(OFFERS[operation])


@given(st.text(max_size=80))
def test_any_header_gives_an_offer_or_a_refusal(accept: str) -> None:
    """No header makes the negotiation fail otherwise."""
    with contextlib.suppress(NotAcceptable):
        assert negotiate("get", accept) in OFFERS["get"]
