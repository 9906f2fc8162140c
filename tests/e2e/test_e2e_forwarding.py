"""The ``http`` backend end to end: a real upstream server, big bodies both ways, and all that can go wrong there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.client import IncompleteRead
from pathlib import Path

import psutil
import pytest
from upstream_server import CHUNK, Upstream, upstream

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import free_port, wait_until

BIG_BYTES = 200 * 1024 * 1024
FLAT_BYTES = 40 * 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, server: Upstream) -> Iterator[RunningDaemon]:
    """Three backends: the server, the same with little patience, and one that is down."""
    config = write_config(
        tmp_path_factory.mktemp("gateway"),
        http_port=free_port(),
        endpoints={"up": {"service": "http", "path_prefix": "/up"}},
        backends={
            "well": {"service": "http", "base_url": server.base_url},
            "impatient": {"service": "http", "base_url": server.base_url, "operation_timeout_ms": 300},
            "down": {"service": "http", "base_url": f"http://127.0.0.1:{free_port()}"},
            "unknown": {"service": "http", "base_url": "http://no-such-host.invalid"},
        },
    )
    with RunningDaemon(config) as running:
        yield running


def peak_bytes(daemon: RunningDaemon) -> int:
    """The most memory that the daemon has held since ``forget_peak`` (proc(5), VmHWM)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].removesuffix(" kB")) * 1024


def forget_peak(daemon: RunningDaemon) -> int:
    """Begin to measure anew; what the daemon holds now."""
    Path(f"/proc/{daemon.pid}/clear_refs").write_text("5")
    return int(psutil.Process(daemon.pid).memory_info().rss)


def test_requests_and_answers_pass_through(gateway: RunningDaemon) -> None:
    """Method, path below the prefix, query, headers and body reach the server; its answer reaches the client."""
    headers = {"X-Request-ID": "through.1", "X-Thing": "a", "Connection": "X-Hop", "X-Hop": "secret", "Accept": "a/b"}
    answer = gateway.http("PUT", "/up/some%20path/x?a=1&a=2&b=%C3%A4", body=b"hello", headers=headers)
    assert (answer.status, answer.headers["X-Upstream"], answer.headers["X-Request-ID"]) == (200, "yes", "through.1")
    said = answer.json()
    assert (said["method"], said["path"]) == ("PUT", "/base/some%20path/x?a=1&a=2&b=%C3%A4")
    assert said["body"] == {"size": 5, "sha256": hashlib.sha256(b"hello").hexdigest()}
    assert (said["headers"]["x-request-id"], said["headers"]["x-thing"]) == ("through.1", "a")
    assert said["headers"]["accept"] == "a/b"
    assert "x-hop" not in said["headers"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "POST"])
def test_every_method(gateway: RunningDaemon, method: str) -> None:
    """Also those without a body, and an answer without one."""
    answer = gateway.http(method, "/up/x")
    assert answer.status == 200
    assert answer.body == b"" if method == "HEAD" else answer.json()["method"] == method


@pytest.mark.parametrize("status", [201, 304, 404, 418, 503])
def test_the_servers_status_is_the_answers(gateway: RunningDaemon, status: int) -> None:
    """What the upstream server says is passed on, errors too."""
    assert gateway.http("GET", f"/up/x?status={status}").status == status


def test_a_path_cannot_leave_the_base_url(gateway: RunningDaemon, server: Upstream) -> None:
    """Dots, encoded or not, are refused before the server is asked."""
    asked = len(server.requests)
    for path in ("/up/../secret", "/up/%2e%2e/secret", "/up/a/%2E%2E%2Fsecret", "/up/..%5Csecret"):
        assert gateway.http("GET", path).status in (400, 404)
    assert len(server.requests) == asked


def test_a_big_upload_stays_out_of_memory(gateway: RunningDaemon, tmp_path: Path) -> None:
    """200 MB go up; the server got every byte, and the daemon's memory stayed flat."""
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(BIG_BYTES)
    before = forget_peak(gateway)
    connection = gateway.connect()
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(BIG_BYTES)}
    with big.open("rb") as body:
        connection.request("POST", "/up/upload", body=body, headers=headers)
        answer = connection.getresponse()
        said = answer.read()
    connection.close()
    assert answer.status == 200
    assert f'"size": {BIG_BYTES}'.encode() in said
    assert peak_bytes(gateway) - before < FLAT_BYTES


@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_upload_is_sent_on_while_it_comes(gateway: RunningDaemon, server: Upstream, is_chunked: bool) -> None:
    """The server has the beginning of a body before the client sent its end; its length is passed on where known."""
    server.began.clear()
    connection = gateway.connect()
    connection.putrequest("POST", "/up/upload")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader(*(("Transfer-Encoding", "chunked") if is_chunked else ("Content-Length", str(2 * len(CHUNK)))))
    connection.endheaders()
    framed = b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK) if is_chunked else CHUNK
    connection.send(framed)
    assert server.began.wait(10)
    connection.send(framed + b"0\r\n\r\n" if is_chunked else framed)
    said = json.loads(connection.getresponse().read())
    connection.close()
    assert said["body"] == {"size": 2 * len(CHUNK), "sha256": hashlib.sha256(2 * CHUNK).hexdigest()}
    assert said["headers"].get("content-length") == (None if is_chunked else str(2 * len(CHUNK)))


def test_an_upload_that_breaks_off_never_looks_whole(gateway: RunningDaemon, server: Upstream) -> None:
    """A client that leaves in the middle ends the server's connection as well, without a last chunk."""
    server.began.clear()
    server.cut.clear()
    connection = gateway.connect()
    connection.putrequest("POST", "/up/upload")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    connection.send(b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
    assert server.began.wait(10)
    connection.close()
    assert server.cut.wait(10)


def test_nothing_is_uploaded_for_a_server_that_is_down(gateway: RunningDaemon) -> None:
    """A client that asks before it sends is told 502 instead of being told to go on."""
    connection = gateway.connect()
    connection.putrequest("POST", "/up/upload?backend=down")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", str(BIG_BYTES))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    assert connection.sock.recv(65536).startswith(b"HTTP/1.1 502 ")
    connection.close()


def test_a_big_download_stays_out_of_memory(gateway: RunningDaemon) -> None:
    """200 MB come down as they arrive, with their length; the daemon's memory stayed flat, with a slow reader too."""
    before = forget_peak(gateway)
    connection = gateway.connect()
    response = gateway.send(connection, "GET", f"/up/download?bytes={BIG_BYTES}")
    assert response.headers["Content-Length"] == str(BIG_BYTES)
    read = len(response.read(1))
    wait_until(lambda: _is_blocked(gateway), "the daemon waits for the client")
    while data := response.read(1024 * 1024):
        read += len(data)
    connection.close()
    assert read == BIG_BYTES
    assert peak_bytes(gateway) - before < FLAT_BYTES


def _is_blocked(daemon: RunningDaemon) -> bool:
    """Whether it used no processor time for a while: nothing moves, although much is there to be moved."""
    process = psutil.Process(daemon.pid)
    used = sum(process.cpu_times()[:2])
    process.cpu_percent(0.2)
    return sum(process.cpu_times()[:2]) - used < 0.02


@pytest.mark.parametrize("query", ["", "?chunked=1"])
def test_a_cut_answer_is_cut_for_the_client(gateway: RunningDaemon, query: str) -> None:
    """The server breaks off in the middle: the client can tell, and the log says why."""
    with pytest.raises(IncompleteRead) as cut:
        gateway.http("GET", f"/up/cut{query}", headers={"X-Request-ID": "cut.1"})
    assert len(cut.value.partial) <= len(CHUNK)
    assert "the answer was cut off: The upstream server broke off" in gateway.log


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/up/x?backend=down", 502, "cannot be reached"),
        ("/up/x?backend=unknown", 502, "cannot be reached"),
        ("/up/nonsense", 502, "not HTTP"),
        ("/up/slow?backend=impatient", 504, "did not answer in time"),
    ],
)
def test_what_goes_wrong_before_the_answer(gateway: RunningDaemon, path: str, status: int, said: str) -> None:
    """Down, unknown, talking nonsense or too slow: a problem detail that names the backend and whose fault it is."""
    answer = gateway.http("GET", path)
    members = answer.json()
    assert (answer.status, members["fault"]) == (status, "remote")
    assert said in members["detail"]
    assert members["backend"] in members["detail"]
    assert members["request_id"] == answer.headers["X-Request-ID"]


def test_an_answer_that_stalls_is_cut_at_the_deadline(gateway: RunningDaemon) -> None:
    """A deadline that passes in the middle of the body ends both connections."""
    with pytest.raises(IncompleteRead):
        gateway.http("GET", "/up/stall?backend=impatient")


def test_a_client_that_leaves_ends_the_upstream_answer(gateway: RunningDaemon, server: Upstream) -> None:
    """The server's connection is closed at once, in the middle of what it was sending."""
    connection = gateway.connect()
    response = gateway.send(connection, "GET", "/up/endless")
    assert response.read(1000) == bytes(1000)
    response.close()
    connection.close()
    assert server.left.wait(10)
