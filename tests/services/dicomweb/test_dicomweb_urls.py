"""The URLs that answers have in them say how the client came."""

from __future__ import annotations

import pytest

from harmonyd.bodies import EmptyBody
from harmonyd.services.base import HttpRequest
from harmonyd.services.dicomweb.urls import base_url
from harmonyd.subject import OURSELVES


@pytest.mark.parametrize(
    ("is_secure", "public_url", "host", "expected"),
    [
        (False, "", "pacs:8080", "http://pacs:8080/dicomweb"),
        (True, "", "pacs:8443", "https://pacs:8443/dicomweb"),
        (True, "", "[::1]:8443", "https://[::1]:8443/dicomweb"),
        (False, "https://pacs.example.org", "inside:8080", "https://pacs.example.org/dicomweb"),
        (True, "", 'evil"><script>', "/dicomweb"),
    ],
)
def test_base_url(is_secure: bool, public_url: str, host: str, expected: str) -> None:
    """https where TLS was ours to end, the configured URL before all, a path when the Host is none."""
    path = "/dicomweb/studies"
    request = HttpRequest(
        "id", "GET", path, "/studies", "/dicomweb", {"host": host}, {}, EmptyBody(), OURSELVES, is_secure
    )
    assert base_url(request, public_url) == expected
