"""A client that does not read its answer keeps nobody else waiting, longer than its operation lasts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, wait_until

STUDY = {"StudyInstanceUID": "1.2.3"}


@pytest.mark.parametrize("operation", ["get", "move"])
def test_slow_reader(
    operation: str, daemon: Callable[..., RunningDaemon], peer: Callable[..., ScriptedPeer]
) -> None:
    """With one association allowed and one receiver, a second client gets its answer while the first reads nothing."""
    port = free_port()
    node = peer("serve", count=30, size=1024, destinations={"HARMONY_SCU": port})
    backend = {
        "aet": node.aet, "host": "127.0.0.1", "port": node.port, "incoming_store_port": port,
        "max_associations": 1, "max_queue": 5, "operation_timeout_ms": 30_000,
    }
    running = daemon(backends={"pacs": backend})
    connection = running.connect(30.0)
    try:
        accept = {"Accept": 'multipart/related; type="application/dicom"'}
        response = running.send(connection, "POST", f"/dicom/{operation}", json=STUDY, headers=accept)
        assert response.status == 200
        answer = running.http("POST", f"/dicom/{operation}", json=STUDY)
        assert (answer.status, answer.json()["file_count"], answer.json()["complete"]) == (200, 30, True)
        assert response.read().count(b"Content-Type: application/dicom") == 30
    finally:
        connection.close()
    wait_until(lambda: running.log.count("30 instances received") == 2, "both are told in the log")
