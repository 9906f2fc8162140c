"""The spool in the management API, asked over HTTP."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from spool_filled_kit import DAMAGED, ENDPOINT, QUARANTINED, WAITING, Backends, fill, make
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from harmonyd.config.model import HttpListener, LimitsConfig, NetworkConfig
from harmonyd.control.spool import SpoolResource
from harmonyd.errors import NotFound
from harmonyd.web.front_end import HttpFrontEnd
from harmonyd.web.management import management_route


class Api:
    """A management API with nothing but a filled spool."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.backends = Backends()
        self.spool = make(reactor, folder / "storage")
        route = management_route("/admin", {"info": self._info}, {"spool": SpoolResource(self.spool, reactor.seconds)})
        network = NetworkConfig("default", HttpListener("127.0.0.1", 0))
        self.front_end = HttpFrontEnd(reactor, network, [route], LimitsConfig(), None)

    async def _info(self) -> dict[str, Any]:
        return {}

    async def start(self, folder: Path) -> None:
        await fill(self.spool, self.backends, folder / "incoming")
        await self.front_end.start()

    async def stop(self) -> None:
        await self.front_end.stop(grace_secs=0.1)
        await self.spool.stop()

    async def ask(self, method: str, path: str, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, document and headers of an answer; ``sec_fetch_site="…"`` is the header Sec-Fetch-Site."""
        answer: tuple[int, Any, dict[str, str]] = await deferToThread(self._ask, method, path, headers)
        return answer

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.front_end.port, timeout=30)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, f"/admin{path}", headers=named)
            response = connection.getresponse()
            body = response.read()
            return response.status, json.loads(body) if body else None, dict(response.getheaders())
        finally:
            connection.close()

    async def get(self, path: str) -> Any:
        status, document, _ = await self.ask("GET", path)
        assert status == 200, document
        return document

    async def ids(self, path: str = "/spool/entries") -> list[int]:
        return [entry["id"] for entry in (await self.get(path))["entries"]]


@pytest.fixture
def api(started_reactor: Any, tmp_path: Path) -> Iterator[Api]:
    """With one entry in each state."""
    made = Api(started_reactor, tmp_path)
    pytest_twisted.blockon(Deferred.fromCoroutine(made.start(tmp_path)))
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.stop()))


@ensureDeferred
async def test_the_summary(api):
    """Counts, bytes and ages for each endpoint and backend, and whether anything is refused."""
    document = await api.get("/spool")
    assert (document["entries"], document["bytes"], document["damaged"], document["refusal"]) == (3, 3000, 1, None)
    archive, pacs = document["backends"]
    assert (archive["endpoint"], archive["backend"], archive["quarantined"]) == (ENDPOINT, "archive", 1)
    assert (archive["oldest_waits_since"], archive["oldest_waits_secs"]) == (None, None)
    assert (pacs["waiting"], pacs["quarantined"], pacs["away_reason"]) == (1, 0, "connection refused")
    assert pacs["oldest_waits_since"].endswith("Z")
    assert 0 <= pacs["oldest_waits_secs"] < 60


@ensureDeferred
async def test_an_entry(api):
    """Where it came from, and for each delivery state, attempts, next attempt and reason."""
    entry = await api.get(f"/spool/entries/{WAITING}")
    assert (entry["id"], entry["endpoint"], entry["size_bytes"]) == (WAITING, ENDPOINT, 1000)
    assert (entry["request_id"], entry["received_at"][-1]) == ("request-1.2.1", "Z")
    assert (entry["metadata"]["sop_instance_uid"], entry["metadata"]["calling_aet"]) == ("1.2.1", "CT1")
    (delivery,) = entry["deliveries"]
    assert (delivery["backend"], delivery["state"], delivery["attempts"]) == ("pacs", "WAITING", 0)
    assert (delivery["reason"], delivery["next_attempt_at"][-1]) == ("connection refused", "Z")
    (given_up,) = (await api.get(f"/spool/entries/{QUARANTINED}"))["deliveries"]
    assert (given_up["state"], given_up["attempts"], given_up["next_attempt_at"]) == ("QUARANTINED", 1, None)
    (damaged,) = (await api.get(f"/spool/entries/{DAMAGED}"))["deliveries"]
    assert (damaged["backend"], damaged["state"]) == (None, "DAMAGED")


@ensureDeferred
async def test_no_patient_data(api):
    """Of what is known about an entry only UIDs, AE titles and addresses are shown."""
    assert "DOE" not in json.dumps(await api.get("/spool/entries"))


@ensureDeferred
async def test_entries_by_state_and_endpoint(api):
    """All, or those in a state, of an endpoint, or both."""
    assert await api.ids() == [WAITING, QUARANTINED, DAMAGED]
    assert await api.ids("/spool/entries/?state=QUARANTINED") == [QUARANTINED]
    assert await api.ids("/spool/entries?endpoint=other") == [DAMAGED]
    assert await api.ids(f"/spool/entries?endpoint={ENDPOINT}&state=DAMAGED") == []


@ensureDeferred
async def test_entries_page_by_page(api):
    """``next_after`` is what to ask next, until there is nothing more."""
    first = await api.get("/spool/entries?limit=2")
    assert ([entry["id"] for entry in first["entries"]], first["next_after"]) == ([WAITING, QUARANTINED], QUARANTINED)
    rest = await api.get(f"/spool/entries?limit=2&after={first['next_after']}")
    assert ([entry["id"] for entry in rest["entries"]], rest["next_after"]) == ([DAMAGED], None)


@ensureDeferred
async def test_retry_one(api):
    """An object that was given up is delivered; one that is damaged cannot be, and that is said."""
    api.backends.mended = True
    _, document, _ = await api.ask("POST", f"/spool/entries/{QUARANTINED}/retry")
    assert document == {"deliveries": 1}
    while QUARANTINED in await api.ids():
        pass
    assert QUARANTINED in api.backends.got
    status, document, _ = await api.ask("POST", f"/spool/entries/{DAMAGED}/retry")
    assert (status, document["title"]) == (409, "Not possible in this state")
    assert "is damaged, there is nothing to deliver: damaged: the file is" in document["detail"]
    assert (await api.ask("POST", f"/spool/entries/{QUARANTINED}/retry"))[0] == 404


@ensureDeferred
async def test_retry_all(api):
    """What waits and what was given up is delivered."""
    api.backends.mended = True
    assert (await api.ask("POST", "/spool/retry"))[:2] == (200, {"deliveries": 2})
    await api.spool.emptied(ENDPOINT)
    assert await api.ids() == [DAMAGED]


@ensureDeferred
async def test_discard(api):
    """An entry is gone for good, once."""
    assert (await api.ask("DELETE", f"/spool/entries/{DAMAGED}"))[:2] == (200, {"discarded": 1})
    assert DAMAGED not in await api.ids()
    assert (await api.ask("DELETE", f"/spool/entries/{DAMAGED}"))[0] == 404


@pytest.mark.parametrize(
    "query",
    [
        *("state=LOST", "state=", "limit=0", "limit=1001", "limit=x", "after=-1", "after=9223372036854775808"),
        *("after=%C2%B2", "limit=1&limit=2", "endpoint=a&endpoint=b", "stat=WAITING"),
    ],
)
@ensureDeferred
async def test_wrong_queries(api, query):
    """400, and the key that is meant."""
    status, document, _ = await api.ask("GET", f"/spool/entries?{query}")
    assert (status, document["key"]) == (400, query.partition("=")[0])
    assert document["key"] in document["detail"]


@ensureDeferred
async def test_a_query_where_none_is_known(api):
    """A key without an effect is refused, and nothing is done."""
    status, document, _ = await api.ask("DELETE", f"/spool/entries/{WAITING}?dry=1")
    assert (status, document["key"]) == (400, "dry")
    assert WAITING in await api.ids()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/spool", "GET, HEAD"),
        ("POST", "/info", "GET, HEAD"),
        ("DELETE", "/info", "GET, HEAD"),
        ("DELETE", "/spool/entries", "GET, HEAD"),
        ("POST", "/spool/entries/1", "GET, HEAD, DELETE"),
        ("GET", "/spool/retry", "POST"),
        ("HEAD", "/spool/entries/1/retry", "POST"),
        ("PUT", "/spool/entries/1", "GET, HEAD, DELETE"),
        ("OPTIONS", "/spool/retry", "POST"),
    ],
)
@ensureDeferred
async def test_wrong_methods(api, method, path, allowed):
    """405, and what is allowed."""
    status, _, headers = await api.ask(method, path)
    assert (status, headers["Allow"]) == (405, allowed)


@pytest.mark.parametrize(
    "path",
    [
        *("/spool/nothing", "/spool/entries/x", "/spool/entries/0", "/spool/entries/99", "/spool/entries/1/more"),
        *("/spool/entries/9223372036854775808", "/spool/entries/%C2%B2", "/spool/entries//retry", "/info/more"),
    ],
)
@ensureDeferred
async def test_nothing_else_is_there(api, path):
    """404 for what is no path, no id, or no entry."""
    assert (await api.ask("GET", path))[0] == 404


@ensureDeferred
async def test_head(api):
    """What GET answers, without a body."""
    assert (await api.ask("HEAD", "/spool"))[:2] == (200, None)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://203.0.113.7:8080"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": "http://127.0.0.1.evil.example"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "cross-site", "origin": "http://localhost"},
    ],
)
@ensureDeferred
async def test_pages_of_other_sites_change_nothing(api, headers):
    """A browser says whose page asks: 403 for those of others, though they may be sent to read."""
    for method, path in (("DELETE", f"/spool/entries/{WAITING}"), ("POST", "/spool/retry")):
        assert (await api.ask(method, path, **headers))[0] == 403
    assert WAITING in await api.ids()
    assert (await api.ask("GET", "/spool", **headers))[0] == 200


@pytest.mark.parametrize("origin", ["http://127.0.0.1:9", "http://localhost:8080", "http://[::1]:8080"])
@ensureDeferred
async def test_pages_of_this_machine_may(api, origin):
    """A page that this machine serves may change what it shows."""
    headers = {"origin": origin, "sec_fetch_site": "same-origin"}
    assert (await api.ask("DELETE", f"/spool/entries/{WAITING}", **headers))[0] == 200


@ensureDeferred
async def test_a_spool_that_does_not_run(api):
    """While it stops, or cannot be used: 503, which says so."""
    await api.spool.stop()
    status, document, _ = await api.ask("GET", "/spool")
    assert (status, document["detail"]) == (503, "the spool cannot do this: it is stopped")


@ensureDeferred
async def test_without_a_spool(started_reactor, tmp_path):
    """Without a dicom endpoint there is none: it is empty, but what moves have put aside is shown."""
    resource = SpoolResource(make(started_reactor, tmp_path), started_reactor.seconds)
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine" / "1.dcm").write_bytes(bytes(9))
    document = await resource("GET", [], {})
    assert (document["entries"], document["bytes"], document["damaged"], document["backends"]) == (0, 0, 0, [])
    assert (document["quarantine_folder"]["files"], document["untaken"]) == (1, [])
    assert await resource("GET", ["entries"], {}) == {"entries": [], "next_after": None}
    assert await resource("POST", ["retry"], {}) == {"deliveries": 0}
    for method, path in (("GET", ["entries", "1"]), ("POST", ["entries", "1", "retry"]), ("DELETE", ["entries", "1"])):
        with pytest.raises(NotFound):
            await resource(method, path, {})
    assert not (tmp_path / "spool").exists()
