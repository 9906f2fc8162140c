"""Operations that outlive their requests while they run: watched, cancelled, left alone, at a PACS that misbehaves."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from later_kit import ASYNC, Later, assert_no_fault, left_on_disk, start
from misbehaving import STUDY_UID, Stage, stage
from retrieve_kit import MULTIPART, ct_bytes, multipart, storage

from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import free_port, wait_until

QUERY = {"StudyInstanceUID": STUDY_UID}
COUNT, BEFORE_GATE = 5, 2


@dataclass(frozen=True)
class Scene:
    """Peers that hang, or wait for a gate, in the middle; over one engine."""

    stage: Stage
    gate: Path
    engine: str

    @property
    def daemon(self) -> RunningDaemon:
        return self.stage.daemon


@pytest.fixture(scope="module", params=["native", "dcmtk"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("ends")
    gate = folder / "gate"
    middle = {"count": COUNT, "after": BEFORE_GATE}
    scripts = {
        "gated": ("serve", {**middle, "then": "wait", "gate": str(gate)}),
        "hanging": ("serve", {**middle, "then": "hang"}),
        "aborting": ("serve", {**middle, "then": "abort"}),
    }
    options = {"association_timeout_ms": 60_000, "max_associations": 1, "engine": request.param}
    nobody = {"host": "127.0.0.1", "port": free_port(), "aet": "NOBODY"}
    with stage(folder, scripts, {"nobody": nobody}, options) as made:
        yield Scene(made, gate, request.param)
        assert_no_fault(made.daemon)


def until_half(later: Later) -> dict[str, Any]:
    """Wait until what comes before the gate has come; the state then."""
    return wait_until(lambda: (state := later.state)["instances"] == BEFORE_GATE and state, "it is half done", 30)


@pytest.mark.parametrize("operation", ["get", "move"])
def test_progress_can_be_watched(scene: Scene, operation: str) -> None:
    """While it runs, counts are told and there is no result; a watcher sees it go on to its end."""
    scene.gate.unlink(missing_ok=True)
    later = start(scene.daemon, f"{operation}?backend=gated", QUERY, MULTIPART)
    with later.watching() as events:
        state = next(state for _, _, state in events if state["instances"] == BEFORE_GATE)
        assert (state["state"], state["operation"]) == ("running", operation)
        until = wait_until(lambda: (now := later.state)["suboperations"] and now, "sub-operations are counted")
        assert until["suboperations"]["completed"] == BEFORE_GATE
        assert until["suboperations"]["remaining"] == COUNT - BEFORE_GATE
        early = later.get("/result")
        assert (early.status, early.json()["state"]) == (409, "running")
        scene.gate.touch()
        *_, (_, name, last) = events
    assert (name, last["instances"], last["suboperations"]["completed"]) == ("complete", COUNT, COUNT)
    assert later.get("/result").status == 200


def test_one_waits_for_its_turn(scene: Scene) -> None:
    """With one association to the PACS, the second operation is queued until the first one has ended."""
    scene.gate.unlink(missing_ok=True)
    first = start(scene.daemon, "get?backend=gated", QUERY)
    until_half(first)
    second = start(scene.daemon, "get?backend=gated", QUERY)
    assert (second.state["state"], second.state["started"]) == ("queued", None)
    third = start(scene.daemon, "get?backend=gated", QUERY)
    assert third.delete().json()["state"] == "cancelled"
    scene.gate.touch()
    assert [first.end()["state"], second.end()["state"]] == ["complete", "complete"]


@pytest.mark.parametrize("operation", ["find", "get", "move"])
def test_cancelled_in_the_middle(scene: Scene, operation: str) -> None:
    """DELETE ends the operation at the PACS, then the result is gone; DELETE again removes what is left of it."""
    peer = scene.stage.peers["hanging"]
    hung, cancels = len(peer.events("hanging")), len(peer.events("cancel"))
    later = start(scene.daemon, f"{operation}?backend=hanging", QUERY, "application/json")
    association = peer.wait_for("hanging", hung + 1)["id"]
    with ThreadPoolExecutor(8) as pool, later.watching() as events:
        answers = list(pool.map(lambda _: later.delete(), range(8)))
        *_, (_, name, _) = events
    assert {answer.status for answer in answers} <= {200, 204, 404}
    assert name == "cancelled"
    wait_until(lambda: any(event["id"] == association for event in peer.events("closed")), "the association is over")
    if scene.engine == "native":
        assert len(peer.events("cancel")) == cancels + 1
    assert later.delete().status in (204, 404)
    assert not later.folder.exists()


def test_the_result_of_what_was_cancelled(scene: Scene) -> None:
    """410 with the reason, until it is removed."""
    later = start(scene.daemon, "get?backend=hanging", QUERY)
    until_half(later)
    cancelled = later.delete()
    assert (cancelled.status, cancelled.json()["state"]) == (200, "cancelled")
    assert later.get("/result").status == 410
    assert later.state["problem"]["type"] == "urn:harmonyd:problem:gone"
    assert later.delete().status == 204
    assert later.get("/result").status == 404


def test_fifty_watchers(scene: Scene) -> None:
    """Fifty clients watch one operation, half of them leave, the others see its end; none of them is needed for it."""
    scene.gate.unlink(missing_ok=True)
    later = start(scene.daemon, "get?backend=gated", QUERY, MULTIPART)
    until_half(later)
    barrier = Barrier(51, timeout=30)

    def watch(stays: bool) -> str:
        with later.watching() as events:
            first = next(events)
            barrier.wait()
            return [first, *events][-1][1] if stays else "left"

    with ThreadPoolExecutor(50) as pool:
        watching = [pool.submit(watch, bool(number % 2)) for number in range(50)]
        barrier.wait()
        scene.gate.touch()
        assert sorted(each.result() for each in watching) == ["complete"] * 25 + ["left"] * 25
    assert later.end()["state"] == "complete"


def test_leaving_while_the_body_is_sent(scene: Scene, tmp_path: Path) -> None:
    """A client that leaves before its objects are here has asked for nothing, and nothing is left of it."""
    before = left_on_disk(scene.daemon)
    sent = multipart([ct_bytes(tmp_path, 1, size=512)])
    connection = scene.daemon.connect()
    connection.putrequest("POST", "/dicom/store?backend=hanging")
    for name, value in {**sent["headers"], **ASYNC, "Content-Length": str(len(sent["body"]))}.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(sent["body"][:300_000])
    wait_until(lambda: len(left_on_disk(scene.daemon)) > len(before), "it has begun")
    connection.close()
    wait_until(lambda: left_on_disk(scene.daemon) == before, "nothing is left of it")
    wait_until(lambda: not list(storage(scene.daemon).glob("dcmtk_store_*")), "nor of its objects")


@pytest.mark.parametrize(("backend", "status"), [("aborting", 502), ("nobody", 502)])
def test_a_pacs_that_fails(scene: Scene, backend: str, status: int) -> None:
    """Whatever the PACS does in the middle, the operation has failed, and nothing of a result is kept."""
    later = start(scene.daemon, f"get?backend={backend}", QUERY, MULTIPART)
    state = later.end()
    assert (state["state"], state["problem"]["status"], state["problem"]["fault"]) == ("failed", status, "remote")
    assert later.get("/result").status == status
    assert [path.name for path in later.folder.iterdir()] == ["operation.json"]
