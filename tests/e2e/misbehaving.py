"""Peers that all play their scripts at once, and one daemon with a backend for each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, wait_until

OPERATIONS = ("echo", "find", "get", "move")
STUDY_UID = "1.2.826.0.1.3680043.8.498.1"
OUR_AET = "HARMONY_SCU"
AETS = {"persistent": OUR_AET, "transient": "TRANSIENT", "per-association": "OWN_PORT"}
"""Move destinations by ``store_scp``."""
PATIENCE_SECS = 20
"""association_timeout_ms of a backend, in seconds, where nothing else is said."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Stage:
    """One daemon, and the peers that its backends of the same names lead to."""

    daemon: RunningDaemon
    peers: Mapping[str, ScriptedPeer]

    def ask(self, operation: str, backend: str, document: Any = None, **headers: str) -> Answer:
        """One operation, by default about ``STUDY_UID``, with a request id of its own."""
        return self.daemon.http(
            "POST", _path(operation, backend), json=_document(operation, document), headers=_headers(headers)
        )

    def ask_all(self, backend: str, operations: tuple[str, ...] = OPERATIONS) -> dict[str, Answer]:
        """Several operations at the same time."""
        with ThreadPoolExecutor(len(operations)) as pool:
            return dict(zip(operations, pool.map(lambda name: self.ask(name, backend), operations), strict=True))

    def record(self, request_id: str) -> tuple[Path, Any]:
        """The record of the one operation that this request asked for, when it is there, and its members."""
        return wait_until(lambda: self._records(request_id), f"there is a record of {request_id}")[0]

    def _records(self, request_id: str) -> list[tuple[Path, Any]]:
        paths = (self.daemon.config.parent / "tmp").glob("dcmtk_*.json")
        texts = [(path, path.read_text("utf-8")) for path in paths]
        return [(path, json.loads(text)) for path, text in texts if f'"{request_id}"' in text and text.endswith("}\n")]

    @contextmanager
    def stream(self, operation: str, backend: str, document: Any = None, **headers: str) -> Iterator[HTTPResponse]:
        """The response to an operation with its body unread."""
        connection = self.daemon.connect()
        try:
            document = _document(operation, document)
            yield self.daemon.send(
                connection, "POST", _path(operation, backend), json=document, headers=_headers(headers)
            )
        finally:
            connection.close()


def _path(operation: str, backend: str) -> str:
    return f"/dicom/{operation}?backend={backend}"


def _document(operation: str, document: Any) -> Any:
    return document if document is not None or operation == "echo" else {"StudyInstanceUID": STUDY_UID}


def _headers(given: Mapping[str, str]) -> dict[str, str]:
    return {"X-Request-ID": f"test-{next(_numbers)}", **given}


@contextmanager
def stage(
    folder: Path,
    scripts: Mapping[str, tuple[str, Mapping[str, Any]]],
    backends: Mapping[str, Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Stage]:
    """Start a peer for each of ``scripts`` (script, options), and a daemon. Peers can move to us.

    ``backends`` are further ones, to a node of their own or to the peer that their ``peer`` names; ``options`` are for
    all of them. Those with the same ``store_scp`` share a port.
    """
    destinations = {aet: free_port() for aet in AETS.values()}
    # Each peer is asked more often in a row than a circuit breaker would let through.
    common = {"association_timeout_ms": PATIENCE_SECS * 1000, "breaker": {"failures": 0}, **(options or {})}
    with ExitStack() as stack:
        peers = {
            name: ScriptedPeer(script, destinations=destinations, **given)
            for name, (script, given) in scripts.items()
        }
        for peer in peers.values():
            stack.callback(peer.stop)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ScriptedPeer.start, peers.values()))
        wanted = {name: {"peer": name} for name in peers} | dict(backends or {})
        tables = {name: _receiving({**common, **_node(peers, given)}, destinations) for name, given in wanted.items()}
        config = write_config(folder, http_port=free_port(), backends=tables)
        yield Stage(stack.enter_context(RunningDaemon(config)), peers)


def _receiving(options: Mapping[str, Any], destinations: Mapping[str, int]) -> dict[str, Any]:
    """The options of one backend, with the move destination of its mode."""
    aet = AETS[options.get("store_scp", "persistent")]
    return {"move_destination_aet": aet, "incoming_store_port": destinations[aet], **options}


def _node(peers: Mapping[str, ScriptedPeer], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one backend, with the address of the peer that ``peer`` names."""
    options = dict(given)
    name = options.pop("peer", None)
    return options if name is None else {"aet": "PEER", "host": "127.0.0.1", "port": peers[name].port, **options}


def problem_of(answer: Answer, status: int, operation: str, backend: str) -> Any:
    """The members of a problem detail, after the checks that hold for each one about a remote node."""
    members = answer.json()
    assert answer.status == status, members
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert members["status"] == status
    assert members["operation"] == operation
    assert members["backend"] == backend
    assert members["success"] is False
    assert members["fault"] == "remote"
    assert members["error"] == members["detail"]
    assert members["hint"], members
    assert members["request_id"] == answer.headers["X-Request-ID"]
    assert members["request_id"].startswith("test-")
    return members


def lines_of(data: bytes) -> list[Any]:
    """The records of an ndjson body."""
    return [json.loads(line) for line in data.splitlines()]


def values_of(records: list[Any], tag: str) -> list[Any]:
    """The first value of ``tag`` in each DICOM JSON data set."""
    return [record[tag]["Value"][0] for record in records]
