"""What the end-to-end tests of operations that outlive their requests share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from retrieve_kit import storage

from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.processes import wait_until

ASYNC = {"Prefer": "respond-async"}
FINAL = ("complete", "failed", "cancelled")


class Later:
    """An operation that a daemon answers later."""

    def __init__(self, daemon: RunningDaemon, accepted: Answer) -> None:
        assert accepted.status == 202, accepted.body
        assert accepted.headers["Preference-Applied"] == "respond-async"
        self.daemon = daemon
        self.path = accepted.headers["Location"]
        self.id = self.path.rpartition("/")[2]
        assert accepted.json()["id"] == self.id

    def get(self, below: str = "", **headers: str) -> Answer:
        """``GET {prefix}/operations/{id}`` and what is below it."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.daemon.http("GET", self.path + below, headers=fields)

    @property
    def state(self) -> dict[str, Any]:
        answer = self.get()
        assert answer.status == 200, answer.body
        return dict(answer.json())

    def delete(self) -> Answer:
        return self.daemon.http("DELETE", self.path)

    def end(self) -> dict[str, Any]:
        """Its state when it has ended."""
        wait_until(lambda: self.state["state"] in FINAL, "the operation ends", 30)
        return self.state

    @contextmanager
    def watching(self, **headers: str) -> Iterator[Iterator[tuple[str, str, dict[str, Any]]]]:
        """Its events as they come: id, name and state. They end with the stream."""
        connection = self.daemon.connect(60)
        try:
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            response = self.daemon.send(connection, "GET", f"{self.path}/events", headers=fields)
            assert response.status == 200, response.read()
            assert response.headers["Content-Type"] == "text/event-stream"
            yield events(response)
        finally:
            connection.close()

    @property
    def folder(self) -> Path:
        """Where its result is."""
        return storage(self.daemon) / "operations" / self.id


def events(response: HTTPResponse) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Read a stream as a browser does (WHATWG HTML section 9.2.6), as far as it is used here."""
    fields: dict[str, str] = {}
    for raw in response:
        line = raw.decode().rstrip("\n")
        if not line and "data" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def start(daemon: RunningDaemon, operation: str, query: Any, accept: str = "application/json", **headers: str) -> Later:
    """``POST /dicom/{operation}`` that is to be answered later; the operation may name a backend."""
    given = {**ASYNC, "Accept": accept, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Later(daemon, daemon.http("POST", f"/dicom/{operation}", json=query, headers=given))


def left_on_disk(daemon: RunningDaemon) -> list[str]:
    """The names below the folder of results."""
    folder = storage(daemon) / "operations"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def assert_no_fault(daemon: RunningDaemon) -> None:
    """Nothing that happened was our own fault."""
    assert "Traceback" not in daemon.log
    assert "Unhandled" not in daemon.log
