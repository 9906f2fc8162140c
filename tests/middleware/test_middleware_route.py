"""``route``: which backends a request may go to."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from middleware_kit import RESOURCES

from harmonyd.bodies import EmptyBody
from harmonyd.config.model import MiddlewareConfig, RouteRule
from harmonyd.envelope import RequestEnvelope
from harmonyd.middleware.registry import build
from harmonyd.subject import Caller

OBJECT = {
    "00080008": {"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL"]},
    "00080060": {"vr": "CS", "Value": ["CT"]},
    "00080080": {"vr": "LO", "Value": ["North [A]"]},
    "00081115": {"vr": "SQ", "Value": [{"0020000E": {"vr": "UI", "Value": ["1.2"]}}]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane", "Ideographic": "X"}]},
    "00100030": {"vr": "DA"},
    "00180050": {"vr": "DS", "Value": [2.0]},
    "00180088": {"vr": "DS", "Value": [0.5]},
    "00200013": {"vr": "IS", "Value": [7]},
    "7FE00010": {"vr": "OW", "InlineBinary": "AAA="},
}


async def routed(*rules: RouteRule, otherwise: Any = None, normalized: Any = OBJECT, **metadata: str) -> dict[str, str]:
    """The metadata after the rules."""
    link = build(MiddlewareConfig("m", "route", {"rules": rules, "otherwise": otherwise}), RESOURCES)
    request = RequestEnvelope("dicom", "C-STORE", "dicom://A/1", "/", EmptyBody(), metadata=metadata)
    request.normalized = normalized
    assert await link.on_request(request) is None
    return request.metadata


async def matches(key: str, *patterns: str, normalized: Any = OBJECT, **metadata: str) -> bool:
    found = await routed(RouteRule({key: patterns}, ("a",)), normalized=normalized, **metadata)
    return found.get("backend") == "a"


@pytest.mark.parametrize(
    ("key", "pattern", "expected"),
    [
        ("00080060", "CT", True),
        ("00080060", "ct", False),
        ("00080060", "C", False),
        ("00080060", "C?", True),
        ("00080060", "*", True),
        ("00080060", "", False),
        ("00080060", "[C]T", False),
        ("00080080", "North [A]", True),
        ("00080080", "North*", True),
        ("00080008", "AXIAL", True),
        ("00080008", "ORIGINAL*AXIAL", False),
        ("00080008", "", False),
        ("00100010", "Doe^*", True),
        ("00100010", "X", False),
        ("00100030", "", True),
        ("00100030", "*", False),
        ("00100020", "", True),
        ("00100020", "*", False),
        ("00180050", "2", True),
        ("00180088", "0.5", True),
        ("00200013", "7", True),
        ("00081115", "*", False),
        ("7FE00010", "*", False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_elements(key: str, pattern: str, expected: bool) -> None:
    """A pattern matches one whole value; what is missing, empty or no text matches the empty pattern alone."""
    assert await matches(key, pattern) is expected


@pytest_twisted.ensureDeferred
async def test_metadata() -> None:
    """A metadata key is compared in the same way."""
    assert await matches("calling_aet", "CT?", "MR?", calling_aet="MR1")
    assert not await matches("calling_aet", "CT?", "MR?", calling_aet="US1")
    assert await matches("move_originator_aet", "", move_originator_aet="")
    assert await matches("peer_address", "")


@pytest.mark.parametrize(
    ("address", "expected"),
    [("10.1.2.3", True), ("192.0.2.7", True), ("::ffff:10.1.2.3", True), ("2001:db8::1", True), ("192.0.3.7", False),
     ("2001:db9::1", False), ("somewhere", False), ("", False)],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_places(address: str, expected: bool) -> None:
    """An address is compared with patterns, and with blocks of addresses."""
    assert await matches("peer_address", "10.0.0.0/8", "2001:db8::/32", "192.0.2.*", peer_address=address) is expected


@pytest_twisted.ensureDeferred
async def test_what_a_request_has_without_metadata() -> None:
    """Its method, and its caller's address."""
    rules = (RouteRule({"method": ("C-*",), "peer_address": ("192.0.2.0/24",)}, ("a",)),)
    link = build(MiddlewareConfig("m", "route", {"rules": rules, "otherwise": ()}), RESOURCES)
    for method, address, expected in [("C-FIND", "192.0.2.1", "a"), ("GET", "192.0.2.1", None), ("C-FIND", "", None)]:
        request = RequestEnvelope("x", method, "/", "/", EmptyBody(), caller=Caller(address))
        assert await link.on_request(request) is None
        assert request.metadata.get("backend") == expected


@pytest.mark.parametrize("normalized", [None, [], "text", {"00080060": "CT"}, {"00080060": {"Value": "CT"}}])
@pytest_twisted.ensureDeferred
async def test_a_request_without_an_object(normalized: Any) -> None:
    """HTTP requests, and objects that cannot be shown, have metadata only: elements are missing."""
    assert not await matches("00080060", "*", normalized=normalized)
    assert await matches("path", "/ai/*", normalized=normalized, path="/ai/1")


@pytest_twisted.ensureDeferred
async def test_the_first_rule_that_matches_decides() -> None:
    """All conditions of a rule must hold; what comes after it is not looked at."""
    rules = (
        RouteRule({"00080060": ("CT",), "calling_aet": ("X",)}, ("a",)),
        RouteRule({"00080060": ("CT",), "calling_aet": ("CT1",)}, ("b", "c")),
        RouteRule({"00080060": ("CT",)}, ("d",)),
    )
    assert (await routed(*rules, calling_aet="CT1"))["backend"] == "b,c"
    assert (await routed(*rules, calling_aet="X"))["backend"] == "a"


@pytest.mark.parametrize(
    ("otherwise", "expected"),
    [(None, {"backend": "old"}), (("a",), {"backend": "a"}), ((), {"skip_backends": "true"})],
)
@pytest_twisted.ensureDeferred
async def test_what_no_rule_matches(otherwise: Any, expected: dict[str, str]) -> None:
    """It goes where ``otherwise`` says; without that the choice stays as it was."""
    rule = RouteRule({"00080060": ("MR",)}, ("x",))
    assert await routed(rule, otherwise=otherwise, backend="old") == expected


@pytest_twisted.ensureDeferred
async def test_a_rule_replaces_an_earlier_choice() -> None:
    """Also when middleware before it had left out all backends."""
    rule = RouteRule({"00080060": ("CT",)}, ("a",))
    assert await routed(rule, skip_backends="true") == {"backend": "a"}
