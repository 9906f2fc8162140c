"""Every limit is kept, and hitting one is said: queues, bodies, many clients, retention, a full disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from retrieve_kit import (
    DICOM,
    JSON,
    MULTIPART,
    NATIVE,
    artifact_folders,
    assert_same_objects,
    by_study,
    ct_bytes,
    multipart,
    pacs_backend,
    parts_of,
    peer_backend,
    post,
    scratch_files,
    together,
    wait_idle,
)

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import demo_files, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, wait_until

Peers = Callable[..., ScriptedPeer]
Daemons = Callable[..., RunningDaemon]
QUERY = {"StudyInstanceUID": "1.2.826.0.1.1"}
STUDIES = by_study(demo_files())


# --- the queue in front of a PACS -------------------------------------------------------------------------------------


@contextmanager
def waiting(daemon: RunningDaemon, count: int, path: str = "/dicom/find") -> Iterator[None]:
    """So many clients that have asked, and wait for an answer."""
    clients: list[HTTPConnection] = []
    try:
        for _ in range(count):
            client = daemon.connect()
            client.request("POST", path, body=b"{}", headers={"Content-Type": JSON})
            clients.append(client)
        yield
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize("max_queue", [0, 2])
def test_a_full_queue(peer: Peers, daemon: Daemons, max_queue: int) -> None:
    """What does not fit into the queue of a backend is 503 with Retry-After at once; afterwards there is room again."""
    node = peer(count=3, after=1)
    gateway = daemon(backends={"peer": peer_backend(node, max_associations=1, max_queue=max_queue)})
    with waiting(gateway, 1):
        node.wait_for("hanging")
        with waiting(gateway, max_queue):
            answer = wait_until(lambda: refused(gateway), "the queue is full")
            assert int(answer.headers["Retry-After"]) > 0
            told = answer.json()
            assert (told["fault"], told["success"], told["backend"]) == ("ours", False, "peer")
            assert "max_associations" in told["hint"]
        assert len(node.events("association")) == 1
    wait_idle(gateway)
    wait_until(lambda: post(gateway, "echo").status == 200, "there is room again")


def refused(gateway: RunningDaemon) -> Any:
    """The answer to an echo that is refused; None when it would have had to wait."""
    try:
        answer = post(gateway, "echo", timeout_secs=0.5)
    except TimeoutError:
        return None
    return answer if answer.status == 503 else None


def test_no_more_associations_than_allowed(peer: Peers, daemon: Daemons) -> None:
    """Twelve clients of a backend with max_associations = 3 get their answers over three associations at a time."""
    node = peer(count=4, interval_secs=0.05)
    gateway = daemon(backends={"peer": peer_backend(node, max_associations=3)})
    answers = together(12, lambda _: post(gateway, "find", {"query_level": "STUDY"}))
    assert [answer.json()["count"] for answer in answers] == [4] * 12
    most = now = 0
    for event in sorted(node.events(), key=lambda event: event["at"]):
        now += {"association": 1, "released": -1}.get(event["event"], 0)
        most = max(most, now)
    assert most <= 3


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon with small limits for bodies, and no PACS behind it."""
    backends = {"pacs": {"aet": "NONE", "host": "127.0.0.1", "port": free_port()}}
    sections = {"limits": {"max_json_bytes": 10_000, "max_body_bytes": 20_000_000}}
    config = write_config(
        tmp_path_factory.mktemp("small"), http_port=free_port(), backends=backends, sections=sections
    )
    with RunningDaemon(config) as running:
        yield running


@pytest.mark.parametrize("chunked", [False, True])
def test_json_that_is_too_large(small: RunningDaemon, chunked: bool) -> None:
    """A document beyond max_json_bytes is 413, whether its length is told beforehand or not."""
    body = b'{"patient_name": "%s"}' % (b"x" * 10_000)
    answer = small.http("POST", "/dicom/find", body=iter([body]) if chunked else body, headers={"Content-Type": JSON})
    assert answer.status == 413
    assert answer.json()["limit_bytes"] == 10_000


HUNDRED_MB = 100_000_000
CHUNK = bytes(250_000)


@pytest.mark.parametrize("path", ["find", "store"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_mb(small: RunningDaemon, path: str, chunked: bool) -> None:
    """It is refused with 413 while it comes in, and never in memory or left on disk."""
    process = psutil.Process(small.pid)
    before = process.memory_info().rss
    most = 0

    def chunks() -> Iterator[bytes]:
        nonlocal most
        for _ in range(HUNDRED_MB // len(CHUNK)):
            most = max(most, process.memory_info().rss)
            yield CHUNK

    headers = {"Content-Type": JSON if path == "find" else DICOM}
    if not chunked:
        headers["Content-Length"] = str(HUNDRED_MB)
    answer = small.http("POST", f"/dicom/{path}", body=chunks(), headers=headers)
    assert answer.status == 413
    assert most - before < 20_000_000
    wait_until(lambda: not artifact_folders(small), "nothing of it is left on disk")
    assert small.http("GET", "/livez").status == 200


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('{"patient_id": }', 1, 16),
        ('{"patient_id": "1",\n "query_level" "STUDY"}', 2, 16),
        ("{", 1, 2),
        ("nonsense", 1, 1),
    ],
)
def test_malformed_json(small: RunningDaemon, text: str, line: int, column: int) -> None:
    """JSON that cannot be read is 400, and the answer says where it goes wrong."""
    answer = small.http("POST", "/dicom/find", body=text.encode(), headers={"Content-Type": JSON})
    assert answer.status == 400
    assert f"line {line}" in answer.json()["detail"]
    assert f"column {column}" in answer.json()["detail"]


# --- many clients -----------------------------------------------------------------------------------------------------


def test_fifty_clients(pacs: RunningPacs, daemon: Daemons) -> None:
    """Fifty clients at once, asking for different things, all get their own right answers."""
    backends = {"pacs": pacs_backend(pacs, max_associations=8)}
    gateway = daemon(backends=backends)
    studies = sorted(STUDIES)

    def one(number: int) -> None:
        study = studies[number % len(studies)]
        kind = number % 4
        if kind == 0:
            assert post(gateway, "echo").json()["success"] is True
        elif kind == 1:
            found = post(gateway, "find", {"StudyInstanceUID": study, "query_level": "IMAGE", "SOPInstanceUID": None})
            if found.status == 502:  # dcmqrscp wants the series, too
                found = post(gateway, "find", {"StudyInstanceUID": study})
            assert {match["0020000D"]["Value"][0] for match in found.json()["matches"]} == {study}
        else:
            operation = "get" if kind == 2 else "move"
            answer = post(gateway, operation, {"StudyInstanceUID": study}, accept=MULTIPART, timeout_secs=50)
            assert_same_objects(parts_of(answer), STUDIES[study])

    together(50, one)
    wait_idle(gateway)
    assert not scratch_files(gateway)


# --- retention --------------------------------------------------------------------------------------------------------

DAY_SECS = 86_400


def _old_artifact(folder: Path, name: str, age_secs: float, size: int = 10) -> Path:
    made = folder / name
    made.mkdir(parents=True)
    made.joinpath("file.dcm").write_bytes(bytes(size))
    when = time.time() - age_secs
    os.utime(made / "file.dcm", (when, when))
    os.utime(made, (when, when))
    return made


def test_retention_by_age_and_size(tmp_path: Path) -> None:
    """At the start old artifacts go, then the oldest until the rest fits; what was received never goes."""
    own = tmp_path / "tmp"
    names = iter(f"dcmtk_get_{number:032x}" for number in range(100))
    too_old = [_old_artifact(own, next(names), days * DAY_SECS) for days in (3, 2)]
    too_much = _old_artifact(own, next(names).replace("get", "find"), 7200, 600_000)
    fits = [_old_artifact(own, next(names), age_secs, size) for age_secs, size in ((3600, 600_000), (60, 10_000))]
    strangers = [_old_artifact(own, name, 9 * DAY_SECS) for name in ("dcmtk_get_mine", "notes", "received")]
    kept = [
        _old_artifact(own / "quarantine", "x", 9 * DAY_SECS),
        _old_artifact(own / "spool" / "receiving" / "inbound", "incoming", 9 * DAY_SECS),
        _old_artifact(own / "incoming" / "11123", "y", 9 * DAY_SECS),
    ]
    sections = {"storage": {"options": {"retention_max_age_hours": 24, "retention_max_gb": 0.001}}}
    config = write_config(tmp_path, http_port=free_port(), backends={"echo": {"service": "echo"}}, sections=sections)
    with RunningDaemon(config):
        wait_until(lambda: not any(path.exists() for path in [*too_old, too_much]), "what is too much is gone")
        assert all((path / "file.dcm").exists() for path in [*fits, *strangers, *kept])


# --- a full disk ------------------------------------------------------------------------------------------------------

DISK_BYTES = 12_000_000


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 12 MB."""
    folder = tmp_path_factory.mktemp("disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory, disk: Path) -> Iterator[RunningDaemon]:
    """A daemon whose storage path is that file system."""
    made = tmp_path_factory.mktemp("made")
    study = make_study(made, 4, size=256, patient_id="DISK", study_uid=QUERY["StudyInstanceUID"])
    ports = {aet: free_port() for aet in ("HARMONY_MOVE", "TRANSIENT", "OWN_PORT")}
    with RunningPacs(tmp_path_factory.mktemp("pacs"), files=study.files, destinations=ports) as archive:
        backends = {
            "persistent": pacs_backend(archive),
            "transient": pacs_backend(archive, "TRANSIENT", store_scp="transient"),
            "own": pacs_backend(archive, "OWN_PORT", store_scp="per-association"),
        }
        sections = {"storage": {"options": {"path": str(disk)}}}
        config = write_config(
            tmp_path_factory.mktemp("cramped"), http_port=free_port(), backends=backends, sections=sections
        )
        with RunningDaemon(config) as running:
            yield running


def _used_bytes(disk: Path) -> int:
    """By files that have a name."""
    return sum(os.lstat(Path(folder, name)).st_blocks * 512 for folder, _, names in os.walk(disk) for name in names)


@contextmanager
def full(disk: Path, left_bytes: int = 0) -> Iterator[None]:
    """While inside there is no room on the disk, or only so much."""
    # What is removed takes up room while a child that is about to end has it open.
    wait_until(lambda: shutil.disk_usage(disk).used <= _used_bytes(disk), "what was removed has left the disk")
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            free = shutil.disk_usage(disk).free - left_bytes
            file.write(bytes(free))
        yield
    finally:
        filler.unlink()


@pytest.mark.root
@pytest.mark.parametrize("left_bytes", [0, 200_000])
@pytest.mark.parametrize("path", ["find", "get", "move", "move?backend=transient", "move?backend=own", "store"])
def test_a_full_disk(cramped: RunningDaemon, disk: Path, path: str, left_bytes: int, tmp_path: Path) -> None:
    """507 for what cannot be written, at once or under way; it works again when there is room.

    The native engine writes nothing for a find.
    """

    def ask() -> Any:
        if path == "store":
            parts = [ct_bytes(tmp_path, number, size=512) for number in (1, 2)]
            return cramped.http("POST", "/dicom/store", **multipart(parts))
        query = {"patient_id": "DISK", "query_level": "STUDY"} if path == "find" else QUERY
        return post(cramped, path, query, accept=JSON if path == "find" else DICOM)

    enough = path == "find" and (left_bytes or NATIVE)
    with full(disk, left_bytes):
        answer = ask()
        assert answer.status == (200 if enough else 507), answer.body
        if not enough:
            told = answer.json()
            assert told["fault"] == "ours"
            assert "pace" in told["hint"]
        assert cramped.http("GET", "/livez").status == 200
    for folder in artifact_folders(cramped):
        shutil.rmtree(folder)
    assert ask().status == (406 if path.startswith(("get", "move")) else 200)
    for folder in artifact_folders(cramped):
        shutil.rmtree(folder)
    shutil.rmtree(disk / "quarantine", ignore_errors=True)
    wait_idle(cramped)
