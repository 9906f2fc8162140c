"""Cancelled means cancelled: clients that leave or read slowly, and deadlines, in the middle of every operation."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path

import psutil
import pytest
from misbehaving import STUDY_UID, Stage, stage
from retrieve_kit import (
    MULTIPART,
    ZIP,
    pacs_backend,
    post,
    scratch_files,
    under_way,
    wait_idle,
    wait_nothing_incoming,
)

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port, wait_until

NDJSON = "application/x-ndjson"
OPERATIONS = ("find", "get", "move")
SCRIPTS = {
    "before": {"count": 5, "after": 0, "then": "hang"},
    "after": {"count": 5, "after": 2, "then": "hang"},
    "good": {"count": 3},
}
DEADLINE_MS = 1000


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Peers that hang before the first item or after the second; one association at a time to each.

    ``short-…`` are the same with a deadline for the whole operation, ``own-…`` with a port of our own.
    """
    scripts = {name: ("serve", given) for name, given in SCRIPTS.items()}
    short = {"operation_timeout_ms": DEADLINE_MS}
    backends = {f"short-{name}": {"peer": name, **short} for name in SCRIPTS}
    backends["own-after"] = {"peer": "after", "store_scp": "per-association"}
    options = {"association_timeout_ms": 60_000, "max_associations": 1}
    with stage(tmp_path_factory.mktemp("hanging"), scripts, backends, options) as running:
        yield running


class Leaver:
    """A client that sends a request and leaves whenever it is told to."""

    def __init__(self, daemon: RunningDaemon, operation: str, backend: str, accept: str) -> None:
        self.connection: HTTPConnection = daemon.connect()
        self.connection.connect()
        body = b'{"StudyInstanceUID": "%s"}' % STUDY_UID.encode()
        headers = {"Content-Type": "application/json", "Accept": accept}
        self.connection.request("POST", f"/dicom/{operation}?backend={backend}", body=body, headers=headers)

    def read_some(self) -> bytes:
        """The first bytes of the answer's body."""
        return self.connection.getresponse().read1()

    def leave(self) -> None:
        sock = self.connection.sock
        assert sock is not None
        sock.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def hangs(hanging: Stage, peer: str, number: int) -> int:
    """Wait for the peer's ``number``-th hang; the id of its association."""
    return int(hanging.peers[peer].wait_for("hanging", number)["id"])


def wait_over(hanging: Stage, peer: str, association: int) -> None:
    """Wait until the peer has seen the association end, and nothing of the operation is left with us."""
    events = hanging.peers[peer].events
    wait_until(lambda: any(event["id"] == association for event in events("closed")), "the association is over")
    wait_idle(hanging.daemon)


def hung_so_far(hanging: Stage, peer: str) -> int:
    return len(hanging.peers[peer].events("hanging"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_leaving_before_the_first_byte(hanging: Stage, operation: str) -> None:
    """A client that leaves while nothing has come yet ends the operation and its association, and frees the slot."""
    count = hung_so_far(hanging, "before")
    for number in (count + 1, count + 2):  # the second one shows that the only slot is free again
        client = Leaver(hanging.daemon, operation, "before", "application/json")
        association = hangs(hanging, "before", number)
        assert under_way(hanging.daemon) == 1
        client.leave()
        wait_over(hanging, "before", association)
    wait_nothing_incoming(hanging.daemon)


@pytest.mark.parametrize(
    ("operation", "accept", "backend"),
    [
        ("find", NDJSON, "after"),
        ("get", MULTIPART, "after"),
        ("get", ZIP, "after"),
        ("move", MULTIPART, "after"),
        ("move", ZIP, "after"),
        ("move", MULTIPART, "own-after"),
    ],
)
def test_leaving_after_the_first_byte(hanging: Stage, operation: str, accept: str, backend: str) -> None:
    """A client that leaves in the middle of an answer ends the operation and its association, and frees the slot."""
    number = hung_so_far(hanging, "after") + 1
    client = Leaver(hanging.daemon, operation, backend, accept)
    assert client.read_some()
    association = hangs(hanging, "after", number)
    client.leave()
    wait_over(hanging, "after", association)
    assert hanging.ask("echo", backend).status == 200
    wait_nothing_incoming(hanging.daemon)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_leaving_the_queue(hanging: Stage, operation: str) -> None:
    """A client that leaves while its request waits for a slot costs the PACS nothing; those behind it move up."""
    number = hung_so_far(hanging, "after") + 1
    holder = Leaver(hanging.daemon, "find", "after", "application/json")
    association = hangs(hanging, "after", number)
    left_before = hanging.daemon.log.count("the client left before")
    asked = len(hanging.peers["after"].events("request"))
    waiting = [Leaver(hanging.daemon, operation, "after", "application/json") for _ in range(2)]
    with ThreadPoolExecutor(1) as pool:
        behind = pool.submit(hanging.ask, "echo", "after")
        for client in waiting:
            client.leave()
        wait_until(lambda: hanging.daemon.log.count("the client left before") == left_before + 2, "both have left")
        holder.leave()
        wait_over(hanging, "after", association)
        assert behind.result().status == 200
    wait_idle(hanging.daemon)
    assert [event["op"] for event in hanging.peers["after"].events("request")[asked:]] == ["C-ECHO"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_deadline_passes_before_the_first(hanging: Stage, operation: str) -> None:
    """An operation that is not done in its time is ended: 504 that says which limit, and the slot is free."""
    number = hung_so_far(hanging, "before") + 1
    answer = hanging.ask(operation, "short-before")
    assert answer.status == 504
    told = answer.json()
    assert told["timeout"] == "operation"
    assert "operation_timeout_ms" in told["hint"]
    wait_over(hanging, "before", hangs(hanging, "before", number))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_deadline_passes_under_way(hanging: Stage, operation: str) -> None:
    """What came in time is in the answer, which says what happened; forms that cannot say it are cut."""
    number = hung_so_far(hanging, "after") + 1
    told = hanging.ask(operation, "short-after").json()
    assert (told["success"], told["complete"]) == (False, False)
    assert "did not end within its time" in told["incomplete_reason"]
    assert len(told["matches" if operation == "find" else "instances"]) == 2
    wait_over(hanging, "after", hangs(hanging, "after", number))
    with pytest.raises(IncompleteRead):
        hanging.ask(operation, "short-after", Accept=NDJSON if operation == "find" else MULTIPART)
    wait_idle(hanging.daemon)


def test_the_deadline_passes_in_the_queue(hanging: Stage) -> None:
    """A deadline counts while a request waits for its slot, too."""
    number = hung_so_far(hanging, "before") + 1
    holder = Leaver(hanging.daemon, "find", "short-before", "application/json")
    association = hangs(hanging, "before", number)
    answer = hanging.ask("find", "short-before")
    assert answer.status == 504
    assert answer.json()["timeout"] in ("queue", "operation")
    holder.leave()
    wait_over(hanging, "before", association)


def test_sigterm_in_the_middle(tmp_path: Path) -> None:
    """SIGTERM while operations hang: clients are told, or cut off, all children end, and the exit code is 0."""
    scripts = {name: ("serve", given) for name, given in SCRIPTS.items()}
    with stage(tmp_path, scripts, options={"association_timeout_ms": 60_000}) as running:
        with ExitStack() as stack:
            clients = [Leaver(running.daemon, operation, "before", "application/json") for operation in OPERATIONS]
            for client in clients:
                stack.callback(client.connection.close)
            late = Leaver(running.daemon, "get", "after", MULTIPART)
            stack.callback(late.connection.close)
            response = late.connection.getresponse()
            running.peers["before"].wait_for("hanging", 3)
            running.peers["after"].wait_for("hanging")
            assert under_way(running.daemon) == 4
            running.daemon.stop()
            for client in clients:
                answer = client.connection.getresponse()
                assert answer.status == 503
                assert "shutting down" in answer.read().decode()
            with pytest.raises(IncompleteRead):
                response.read()
        running.peers["before"].wait_for("closed", 3)
        running.peers["after"].wait_for("closed")


# --- clients that read slowly -----------------------------------------------------------------------------------------

SIZE_BYTES = 512 * 512 * 2
COUNT = 160


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    """84 MB of CT."""
    return make_study(tmp_path_factory.mktemp("heavy"), COUNT, size=512)


@pytest.fixture(scope="module")
def streaming(tmp_path_factory: pytest.TempPathFactory, heavy: MadeStudy) -> Iterator[RunningDaemon]:
    """A daemon at a dcmqrscp with the heavy study; one association at a time."""
    ports = {aet: free_port() for aet in ("HARMONY_MOVE", "TRANSIENT", "OWN_PORT")}
    with RunningPacs(tmp_path_factory.mktemp("pacs"), files=heavy.files, destinations=ports) as archive:
        backends = {
            "persistent": pacs_backend(archive, max_associations=1),
            "transient": pacs_backend(archive, "TRANSIENT", store_scp="transient", max_associations=1),
            "own": pacs_backend(archive, "OWN_PORT", store_scp="per-association", max_associations=1),
        }
        config = write_config(tmp_path_factory.mktemp("streaming"), http_port=free_port(), backends=backends)
        with RunningDaemon(config) as running:
            yield running


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("get", MULTIPART),
        ("get", ZIP),
        ("move", MULTIPART),
        ("move?backend=transient", MULTIPART),
        ("move?backend=own", MULTIPART),
    ],
)
def test_a_slow_reader(streaming: RunningDaemon, heavy: MadeStudy, path: str, accept: str) -> None:
    """While a client takes its time the daemon's memory stays flat, and neither slot nor turn is held for it."""
    process = psutil.Process(streaming.pid)
    post(streaming, path, {"StudyInstanceUID": STUDY_UID})
    idle_bytes = process.memory_info().rss
    query = {"StudyInstanceUID": heavy.study_uid}
    connection = streaming.connect()
    connection.connect()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    try:
        response = streaming.send(connection, "POST", f"/dicom/{path}", json=query, headers={"Accept": accept})
        received = len(response.read(SIZE_BYTES))
        wait_until(lambda: not under_way(streaming), "the retrieve is over, though nobody has read it", 30)
        assert post(streaming, path, {"StudyInstanceUID": STUDY_UID}, timeout_secs=10).status == 404
        most = process.memory_info().rss
        while chunk := response.read(4 * SIZE_BYTES):
            received += len(chunk)
            most = max(most, process.memory_info().rss)
    finally:
        connection.close()
    assert received > COUNT * SIZE_BYTES
    assert most - idle_bytes < 40_000_000
    assert not scratch_files(streaming)


Started = Callable[..., RunningDaemon]


def test_a_client_that_stops_reading(daemon: Started, heavy: MadeStudy, tmp_path: Path) -> None:
    """One that reads nothing for request_timeout_secs is cut off, and all is cleaned up."""
    with RunningPacs(tmp_path / "pacs", files=heavy.files) as archive:
        backend = {"aet": archive.aet, "host": "127.0.0.1", "port": archive.port}
        gateway = daemon(backends={"pacs": backend}, sections={"limits": {"request_timeout_secs": 1}})
        connection = gateway.connect()
        try:
            query = {"StudyInstanceUID": heavy.study_uid}
            response = gateway.send(connection, "POST", "/dicom/get", json=query, headers={"Accept": MULTIPART})
            wait_until(lambda: "the answer was cut off" in gateway.log, "the client is given up")
            with pytest.raises((IncompleteRead, ConnectionError)):
                response.read()
        finally:
            connection.close()
        wait_idle(gateway)
