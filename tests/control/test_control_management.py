"""The documents of the management API, and the route that serves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from harmonyd import __version__
from harmonyd.bodies import EmptyBody
from harmonyd.config import load
from harmonyd.control.management import Management
from harmonyd.errors import Forbidden, MethodNotAllowed, NotFound
from harmonyd.services.base import HttpRequest
from harmonyd.supervision.figures import Figures
from harmonyd.testing.config_files import write_config
from harmonyd.testing.control import FakeChild, FakeDaemon
from harmonyd.web.management import management_route

EXAMPLE = Path(__file__).parents[2] / "examples/default/config.toml"


class Kit:
    """A management with a clock that stands still, and operations to be filled in."""

    def __init__(self) -> None:
        self.daemon = FakeDaemon()
        self.running: dict[str, set[str]] = {}
        self.refreshed = 0
        self.management = Management(load(EXAMPLE), self.daemon, self._refresh, lambda: self.running, lambda: 1000.0)

    async def _refresh(self) -> None:
        self.refreshed += 1


@pytest.fixture
def kit() -> Kit:
    """One for each test."""
    return Kit()


@pytest_twisted.ensureDeferred
async def test_info(kit) -> None:
    """Who we are, and that we stop when we do."""
    info = await kit.management.info()
    assert (info["id"], info["version"], info["state"]) == ("harmonyd-example", __version__, "RUNNING")
    assert (info["uptime_secs"], info["started_at"]) == (0.0, "1970-01-01T00:16:40Z")
    kit.daemon.is_stopping = True
    assert (await kit.management.info())["state"] == "STOPPING"


@pytest_twisted.ensureDeferred
async def test_children(kit) -> None:
    """State, uptime, restarts and figures; fresh ones are asked for."""
    kit.daemon.members = [
        FakeChild(name="b", started_at=940.0, starts=3, figures=Figures(12_000_000, 1.5, 7), exit_code=1),
        FakeChild(name="a", state="FATAL", pid=None, note="no port", started_at=0.0, starts=0),
        FakeChild(group="findscu", name="x", is_kept=False, started_at=990.0),
    ]
    find, a, b = await kit.management.children()
    assert kit.refreshed == 1
    assert [child["name"] for child in (find, a, b)] == ["findscu:x", "storescp:a", "storescp:b"]
    assert (find["kind"], b["kind"]) == ("once", "kept")
    assert (b["state"], b["pid"], b["uptime_secs"], b["restarts"]) == ("RUNNING", 4711, 60.0, 2)
    assert (b["rss_bytes"], b["cpu_percent"], b["fds"], b["last_exit_code"]) == (12_000_000, 1.5, 7, 1)
    assert (a["description"], a["uptime_secs"], a["restarts"], a["started_at"]) == ("no port", None, 0, None)


@pytest_twisted.ensureDeferred
async def test_operations(kit) -> None:
    """What runs has its child; what waits for an association has none yet."""
    kit.running = {"pacs": {"1", "2"}}
    kit.daemon.members = [FakeChild(group="findscu", name="2", is_kept=False, started_at=997.5)]
    waiting, running = await kit.management.operations()
    assert (waiting["id"], waiting["backend"], waiting["operation"], waiting["pid"]) == ("1", "pacs", None, None)
    assert (running["operation"], running["child"], running["runs_since_secs"]) == ("find", "findscu:2", 2.5)


@pytest_twisted.ensureDeferred
async def test_pipelines_and_routes(kit) -> None:
    """The configuration that runs, as JSON, without anything secret."""
    pipelines = await kit.management.pipelines()
    services = {part["service"] for pipeline in pipelines for part in pipeline["endpoints"] + pipeline["backends"]}
    assert {"http", "dicom"} <= services
    assert all("port" in backend for pipeline in pipelines for backend in pipeline["backends"])
    routes = await kit.management.routes()
    served = [(route["path"], route["network"], route["port"]) for route in routes]
    assert sorted(served) == [("/dicom", "default", 8080), ("/dicomweb", "default", 8080)]
    json.dumps([pipelines, routes])


@pytest_twisted.ensureDeferred
async def test_a_storage_backend_has_its_path(kit, tmp_path) -> None:
    """Where objects are kept is no secret."""
    given = {"endpoints": {"scp": {"service": "dicom"}}, "backends": {"kept": {"service": "storage", "path": "/srv"}}}
    kit.management.config = load(write_config(tmp_path, http_port=8080, **given))
    [pipeline] = await kit.management.pipelines()
    assert pipeline["backends"] == [{"name": "kept", "service": "storage", "path": "/srv"}]


def request(path: str, host: str = "127.0.0.1:8080", method: str = "GET") -> HttpRequest:
    """What the front end hands over."""
    return HttpRequest("1", method, f"/admin{path}", path, "/admin", {"host": host}, {}, EmptyBody(), "127.0.0.1")


async def get(kit: Kit, path: str) -> Any:
    """The body at a path below the base."""
    route = management_route("/admin", kit.management.documents, {})
    envelope = route.endpoint.request(request(path))
    answer = await route.endpoint.answer(envelope, await route.handle(envelope))
    assert answer.chunks is not None
    return json.loads(b"".join([chunk async for chunk in answer.chunks]))


@pytest.mark.parametrize("name", ["info", "pipelines", "routes", "children", "operations"])
@pytest_twisted.ensureDeferred
async def test_each_document_is_served(kit, name) -> None:
    """By its name, with a slash at the end or without."""
    assert type(await get(kit, f"/{name}")) is type(await get(kit, f"/{name}/"))


@pytest.mark.parametrize("path", ["/", "/nothing", "/info/more", "/documents"])
@pytest_twisted.ensureDeferred
async def test_nothing_else_is_served(kit, path) -> None:
    """404, with what there is."""
    with pytest.raises(NotFound) as caught:
        await get(kit, path)
    assert "/admin/children" in caught.value.hint


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "OPTIONS"])
@pytest_twisted.ensureDeferred
async def test_documents_are_only_read(kit, method) -> None:
    """Nothing of them can be changed."""
    route = management_route("/admin", kit.management.documents, {})
    with pytest.raises(MethodNotAllowed) as caught:
        await route.handle(route.endpoint.request(request("/info", method=method)))
    assert caught.value.extra["allow"] == ("GET", "HEAD")


def test_every_document_is_described(kit) -> None:
    """What the management API serves, and what the OpenAPI document says that it does, is the same."""
    route = management_route("/admin", kit.management.documents, {"spool": None})
    described = [item for item in route.described.operations if not item.path.startswith("/spool")]
    assert {item.path for item in described} == {f"/{name}" for name in kit.management.documents}
    assert {item.method for item in described} == {"GET"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "", "127.0.0.1.evil.example", "a:b"])
def test_names_of_others_are_refused(kit, host) -> None:
    """A web page could have pointed its own name at this machine."""
    with pytest.raises(Forbidden):
        management_route("/admin", kit.management.documents, {}).endpoint.request(request("/info", host))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8080", "[::1]:8080", "LOCALHOST"])
def test_own_names_are_answered(kit, host) -> None:
    """Addresses and localhost, with and without a port."""
    endpoint = management_route("/admin", kit.management.documents, {}).endpoint
    assert endpoint.request(request("/info", host)).path == "/info"
