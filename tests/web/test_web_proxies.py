"""Who asked, when proxies stand between: only those that are trusted are believed."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from web_kit import ask, route, say_hello

from harmonyd.config.model import HttpListener, LimitsConfig, NetworkConfig
from harmonyd.web.proxies import TrustedProxies

BLOCKS = ("10.0.0.0/8", "127.0.0.1", "2001:db8::/32")


@pytest.mark.parametrize(
    ("peer", "field", "origin"),
    [
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("127.0.0.1", "203.0.113.1, 198.51.100.7", "198.51.100.7"),
        ("127.0.0.1", "203.0.113.1, 198.51.100.7, 10.1.1.1", "198.51.100.7"),
        ("127.0.0.1", "10.2.2.2,10.1.1.1", "10.2.2.2"),
        ("::ffff:127.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("::ffff:192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("2001:db8::1", "[2001:db9::5]:4711", "2001:db9::5"),
        ("2001:db8::1", "2001:DB9:0::5", "2001:db9::5"),
        ("127.0.0.1", "198.51.100.7:4711", "198.51.100.7"),
        ("127.0.0.1", '"198.51.100.7"', "198.51.100.7"),
        ("127.0.0.1", "198.51.100.7, unknown", "127.0.0.1"),
        ("127.0.0.1", "nobody, 10.1.1.1", "10.1.1.1"),
        ("127.0.0.1", "fe80::1%eth0", "fe80::1"),
        ("", "198.51.100.7", ""),
    ],
)
def test_where_a_request_comes_from(peer: str, field: str, origin: str) -> None:
    """Read from the end, as long as a trusted proxy wrote it; what makes no sense ends it."""
    assert TrustedProxies(BLOCKS).origin(peer, field) == origin


def test_nobody_is_trusted_unless_it_is_configured() -> None:
    """The field alone says nothing."""
    assert TrustedProxies(()).origin("127.0.0.1", "198.51.100.7") == "127.0.0.1"


@given(st.text(), st.text())
def test_any_field(peer: str, field: str) -> None:
    """Whatever is sent, who is not trusted cannot say who it is."""
    assert TrustedProxies(BLOCKS).origin("192.0.2.1", field) == "192.0.2.1"
    assert isinstance(TrustedProxies(BLOCKS).origin("127.0.0.1", f"{peer},{field}"), str)


@pytest_twisted.ensureDeferred
async def test_the_address_that_endpoints_see(serve: Any) -> None:
    """``Caller.address``; a reload changes who is trusted."""
    made = route(say_hello)
    front_end = await serve(made)
    await ask(front_end.port, "GET", "/", x_forwarded_for="198.51.100.7")
    network = NetworkConfig("default", HttpListener("127.0.0.1", 1), trusted_proxies=("127.0.0.0/8",))
    front_end.serve(network, [made], LimitsConfig(), None)
    await ask(front_end.port, "GET", "/", x_forwarded_for="203.0.113.9, 198.51.100.7")
    seen = made.endpoint.seen  # type: ignore[attr-defined]
    assert [each.caller.address for each in seen] == ["127.0.0.1", "198.51.100.7"]
