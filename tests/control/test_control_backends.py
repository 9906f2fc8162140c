"""The remote nodes in the management API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from harmonyd.control.backends import BackendsResource
from harmonyd.errors import BadRequest, MethodNotAllowed, NotFound


class Nodes:
    """Two, of which one is DICOM; remembers who was to be asked."""

    def __init__(self) -> None:
        self.refreshed: list[list[str]] = []

    def figures(self) -> Mapping[str, Mapping[str, Any]]:
        echo = {"at": 1000.0, "ok": True, "latency_ms": 3.2, "error": None}
        return {
            "pacs": {"service": "dicom", "state": "open", "since_at": 940.0, "next_probe_at": None, "last_echo": echo},
            "files": {"service": "storage"},
        }

    async def refresh(self, names: Sequence[str]) -> None:
        self.refreshed.append(list(names))


PACS = {
    "name": "pacs",
    "service": "dicom",
    "state": "open",
    "since_at": "1970-01-01T00:15:40Z",
    "next_probe_at": None,
    "last_echo": {"at": "1970-01-01T00:16:40Z", "ok": True, "latency_ms": 3.2, "error": None},
}


@ensureDeferred
async def test_all_and_one() -> None:
    """A list of all, or one by its name; times as text."""
    resource = BackendsResource(Nodes())
    assert await resource("GET", [], {}) == [PACS, {"name": "files", "service": "storage"}]
    assert await resource("GET", ["pacs"], {"refresh": ["false"]}) == PACS


@ensureDeferred
async def test_refresh() -> None:
    """Asks those first that are to be told of."""
    nodes = Nodes()
    resource = BackendsResource(nodes)
    await resource("GET", [], {"refresh": [""]})
    await resource("GET", ["pacs"], {"refresh": ["true"]})
    assert nodes.refreshed == [["pacs", "files"], ["pacs"]]


@pytest.mark.parametrize(
    ("method", "path", "query", "error"),
    [
        ("GET", ["pacs", "more"], {}, NotFound),
        ("GET", ["nobody"], {"refresh": [""]}, NotFound),
        ("POST", [], {}, MethodNotAllowed),
        ("DELETE", ["pacs"], {}, MethodNotAllowed),
        ("GET", [], {"refresh": ["yes"]}, BadRequest),
        ("GET", [], {"refresh": ["", ""]}, BadRequest),
        ("GET", [], {"fresh": [""]}, BadRequest),
    ],
)
@ensureDeferred
async def test_what_is_not_there(method: str, path: list[str], query: dict[str, list[str]], error: Any) -> None:
    """Paths, methods and parameters that mean nothing ask nobody."""
    nodes = Nodes()
    with pytest.raises(error):
        await BackendsResource(nodes)(method, path, query)
    assert nodes.refreshed == []
