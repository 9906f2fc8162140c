"""``harmonyd doctor``: each way in which a PACS cannot be used is told at its step, with the side that has to act."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doctor_kit import Doctor, on_find, pacs, results
from pydicom import Dataset
from pynetdicom import evt

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.native.ping import ping
from harmonyd.doctor.walk import STEPS
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port

MEMBERS = {"step", "result", "text", "hint", "side", "lines", "details"}
Peers = Callable[..., ScriptedPeer]


def skipped_after(name: str) -> dict[str, str]:
    """What stands at the steps after one that failed; our own port is looked at in any case."""
    after = STEPS[STEPS.index(name) + 1 :]
    return {step: "warning" if step == "receiver" else "skipped" for step in after}


def ends_at(steps: dict[str, Any], name: str) -> dict[str, Any]:
    """The step that failed, after which nothing was tried."""
    assert steps[name]["result"] == "error", steps[name]
    assert {step: result for step, result in results(steps).items() if step in skipped_after(name)} == skipped_after(
        name
    )
    return dict(steps[name])


def test_a_real_pacs(tmp_path: Path, doctor_of: Doctor) -> None:
    """dcmqrscp: all is well but what it does not tell; nothing in it changes, and nothing of a patient is shown."""
    with RunningPacs(tmp_path / "pacs", destinations={"HARMONY_MOVE": free_port()}) as running:
        area = {path.name: path.stat().st_size for path in running.layout.area.iterdir()}
        steps = doctor_of.examine(aet=running.aet, port=running.port, host="localhost")
        assert {path.name: path.stat().st_size for path in running.layout.area.iterdir()} == area
    assert doctor_of.status == 0
    assert tuple(steps) == STEPS
    for step in ("resolve", "tcp", "association", "storage", "echo", "find"):
        assert steps[step]["result"] == "ok", steps[step]
    assert steps["tls"]["result"] == "skipped"
    assert "127.0.0.1" in steps["resolve"]["details"]["addresses"]
    association = steps["association"]["details"]
    assert len(association["contexts"]) == 7
    assert all(context["accepted"] and context["transfer_syntax"] for context in association["contexts"])
    assert association["implementation_version_name"].startswith("OFFIS_DCMTK")
    assert association["max_pdu"] == 16384
    ct = steps["storage"]["details"]["classes"][0]
    assert (ct["name"], "1.2.840.10008.1.2" in ct["store"], "1.2.840.10008.1.2" in ct["get"]) == ("CT", True, True)
    assert steps["echo"]["details"]["latency_ms"] > 0
    # It looks at the destination only when there is something to move, and the doctor believes no such Success.
    assert steps["move"]["result"] == "warning"
    assert steps["move"]["details"]["status"] == steps["move"]["details"]["control_status"] == "0x0000"
    assert steps["move"]["details"]["known"] is None


def test_the_same_members_whatever_happens(doctor_of: Doctor, peer: Peers) -> None:
    """The JSON document has the same members when all works and when nothing does."""
    for port in (peer("serve").port, free_port()):
        steps = doctor_of.examine(port=port)
        assert doctor_of.document.keys() == {"harmonyd", "config", "result", "backends"}
        [backend] = doctor_of.document["backends"]
        expected = {"backend", "aet", "host", "port", "local_aet", "engine", "result", "steps"}
        assert backend.keys() == expected
        assert tuple(steps) == STEPS
        assert all(step.keys() == MEMBERS for step in steps.values())
        assert backend["result"] == doctor_of.document["result"] == "error"
        assert doctor_of.status == 1


def test_an_unknown_host(doctor_of: Doctor) -> None:
    """It is ours to correct; nothing else is tried."""
    failed = ends_at(doctor_of.examine(port=104, host="no-such-host.invalid"), "resolve")
    assert "no-such-host.invalid is unknown" in failed["text"]
    assert failed["side"] == "harmonyd"


def test_several_addresses(doctor_of: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is tried and told; one that does not answer is a warning, and the other one is used."""
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in ("127.0.0.9", "127.0.0.1")]
    real = socket.getaddrinfo

    def resolved(host: Any, *arguments: Any, **options: Any) -> Any:
        return answers if host == "pacs.example" else real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with pacs([]) as port:
        steps = doctor_of.examine(host="pacs.example", port=port)
    assert steps["resolve"]["details"]["addresses"] == ["127.0.0.9", "127.0.0.1"]
    tried = {one["address"]: one["error"] for one in steps["tcp"]["details"]["addresses"]}
    assert tried == {"127.0.0.9": "Connection refused", "127.0.0.1": None}
    assert steps["tcp"]["result"] == "warning"
    assert "127.0.0.9" in steps["tcp"]["hint"]
    assert steps["echo"]["result"] == "ok"


def test_a_refused_port(doctor_of: Doctor) -> None:
    """The address and the reason are told."""
    port = free_port()
    failed = ends_at(doctor_of.examine(port=port), "tcp")
    assert failed["text"] == f"127.0.0.1 port {port}: Connection refused"
    assert "the PACS runs" in failed["hint"]


def test_an_unknown_caller(doctor_of: Doctor, peer: Peers) -> None:
    """The rejection is told in words, with what to enter at the PACS."""
    steps = doctor_of.examine(port=peer("reject", reject=(1, 1, 3)).port, local_aet="US", incoming_store_port=11999)
    failed = ends_at(steps, "association")
    assert "Calling AE Title Not Recognized (Rejected Permanent, Service User)" in failed["text"]
    assert failed["side"] == "pacs"
    assert failed["lines"]["orthanc.json, DicomModalities"] == '"harmonyd-11999": ["US", "127.0.0.1", 11999]'


def test_a_wrong_called_title_and_a_busy_pacs(doctor_of: Doctor, peer: Peers) -> None:
    """The first is most probably ours; the second is the PACS's, and there is nothing to enter."""
    called = ends_at(doctor_of.examine(port=peer("reject", reject=(1, 1, 7)).port), "association")
    assert called["side"] == "harmonyd"
    busy = ends_at(doctor_of.examine(port=peer("reject", reject=(2, 3, 2)).port), "association")
    assert (busy["side"], busy["lines"]) == ("pacs", {})
    assert "Local Limit Exceeded" in busy["text"]


@pytest.mark.parametrize(
    ("script", "said", "side"),
    [
        ("silent", "was silent for 0.5 s", "pacs"),
        ("garbage", "does not speak DICOM correctly", "harmonyd"),
        ("close", "dropped the connection, before it was established", "pacs"),
    ],
)
def test_what_is_no_pacs(doctor_of: Doctor, peer: Peers, script: str, said: str, side: str) -> None:
    """Silence, another protocol and a closed connection end the walk in bounded time."""
    failed = ends_at(doctor_of.examine(port=peer(script).port, timeout_secs=0.5), "association")
    assert said in failed["text"]
    assert failed["side"] == side


def test_no_service_is_accepted(doctor_of: Doctor, peer: Peers) -> None:
    """Each context's reason is kept; what is missing for this backend is named; our port is not in question."""
    steps = doctor_of.examine(port=peer("no-contexts").port)
    failed = steps["association"]
    assert failed["result"] == "error"
    assert "C-ECHO, C-FIND (Study Root), C-MOVE (Study Root)" in failed["hint"]
    assert {context["reason"] for context in failed["details"]["contexts"]} != {None}
    assert steps["storage"]["result"] == "warning"
    assert {steps[name]["result"] for name in ("echo", "find", "move")} == {"skipped"}


@pytest.mark.parametrize("then", ["hang", "abort", "drop", "garbage"])
def test_a_pacs_that_breaks_off(doctor_of: Doctor, peer: Peers, then: str) -> None:
    """Each operation is tried in an association of its own then, and each failure is told."""
    steps = doctor_of.examine(port=peer("serve", after=0, then=then).port, timeout_secs=1.0)
    assert [steps[name]["result"] for name in ("association", "storage")] == ["ok", "ok"]
    assert [steps[name]["result"] for name in ("echo", "find", "move")] == ["error", "error", "error"]
    assert all(steps[name]["hint"] for name in ("echo", "find", "move"))


# --- C-FIND


def test_one_row_is_read_and_the_rest_cancelled(doctor_of: Doctor, peer: Peers) -> None:
    """Of many matches the PACS is asked to stop after the first; no value of any is told."""
    record = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Marked^Name"}]}}
    node = peer("serve", records=(record,) * 100, count=100, interval_secs=0.05)
    steps = doctor_of.examine(port=node.port)
    assert steps["find"]["result"] == "ok"
    assert steps["find"]["details"] == {"key": "StudyDate", "model": "study", "rows": 1, "status": "0xFE00"}
    node.wait_for("cancel")
    assert "Marked" not in str(doctor_of.document)


def test_a_pacs_that_ignores_the_cancel(doctor_of: Doctor, peer: Peers) -> None:
    """It is aborted after some hundred rows, and told."""
    steps = doctor_of.examine(port=peer("serve", count=5000, ignore_cancel=True).port)
    assert steps["find"]["result"] == "warning"
    assert "ignores C-CANCEL" in steps["find"]["hint"]
    assert steps["move"]["result"] != "skipped", "what comes after it has an association of its own"


def test_a_query_by_date_is_refused(doctor_of: Doctor) -> None:
    """A patient who does not exist is asked for instead."""

    def answer(asked: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        assert asked.QueryRetrieveLevel == "STUDY"
        yield (0xA900 if asked.get("StudyDate") else 0x0000), None

    with pacs([on_find(answer)]) as port:
        found = doctor_of.examine(port=port)["find"]
    assert found["result"] == "warning"
    assert found["details"]["key"] == "PatientID"
    assert "0xA900" in found["text"]


def test_every_query_is_refused(doctor_of: Doctor) -> None:
    """The PACS's first status is the error."""

    def answer(asked: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield (0xA700 if asked.get("StudyDate") else 0x0110), None

    with pacs([on_find(answer)]) as port:
        found = doctor_of.examine(port=port)["find"]
    assert (found["result"], found["details"]["dimse_status"]) == ("error", "0xA700")


def test_an_answer_that_comes_late(doctor_of: Doctor) -> None:
    """What follows a request that was not answered in time has an association of its own."""
    late = threading.Event()

    def wait(_: Any) -> int:
        late.wait(60)
        return 0

    with pacs([(evt.EVT_C_ECHO, wait), on_find(lambda _: iter([(0x0000, None)]))]) as port:
        try:
            steps = doctor_of.examine(port=port, timeout_secs=2.0)
        finally:
            late.set()
    assert (steps["echo"]["result"], steps["echo"]["details"]["timeout"]) == ("error", "dimse")
    assert steps["find"]["result"] == "ok", steps["find"]


def test_a_release_that_is_not_answered() -> None:
    """It is not waited for: the answer to the C-ECHO counts."""
    over, asked = threading.Event(), threading.Event()

    def wait(event: Any) -> None:
        if event.fsm_event == "Evt12":  # A-RELEASE-RQ has come (PS3.8 table 9-10)
            asked.set()
            over.wait(60)

    with pacs([(evt.EVT_FSM_TRANSITION, wait)]) as port:
        try:
            ping(RemoteNode("pacs", "PEER", "127.0.0.1", port, "HARMONYD"))
        finally:
            over.set()
    assert asked.is_set()


# --- C-MOVE


def test_an_unknown_destination(doctor_of: Doctor, peer: Peers) -> None:
    """0xA801: what to enter at the PACS, for several kinds of PACS."""
    steps = doctor_of.examine(port=peer("serve").port, incoming_store_port=11998)
    assert doctor_of.status == 1
    move = steps["move"]
    assert (move["result"], move["side"], move["details"]["known"]) == ("error", "pacs", False)
    lines = move["lines"]
    assert lines["any PACS"] == "AE title HARMONY_MOVE, host 127.0.0.1, port 11998"
    assert lines["dcmqrscp.cfg, HostTable"] == "harmonyd_11998 = (HARMONY_MOVE, 127.0.0.1, 11998)"


def test_an_unknown_destination_where_c_get_is_used(doctor_of: Doctor, peer: Peers) -> None:
    """It is no error then."""
    steps = doctor_of.examine(port=peer("serve").port, dimse_retrieve_mode="get")
    assert steps["move"]["result"] == "warning"
    assert doctor_of.status == 0


def test_a_known_destination(doctor_of: Doctor, peer: Peers) -> None:
    """Known is what is answered otherwise than a destination that does not exist."""
    node = peer("serve", count=0, destinations={"HARMONY_MOVE": peer("serve").port})
    move = doctor_of.examine(port=node.port)["move"]
    assert (move["result"], move["details"]["known"]) == ("ok", True)
    assert (move["details"]["status"], move["details"]["control_status"]) == ("0x0000", "0xA801")


def test_a_destination_that_cannot_be_reached(doctor_of: Doctor, peer: Peers) -> None:
    """A PACS that connects to it before it looks for the study tells that it cannot."""
    port = free_port()
    node = peer("serve", count=0, destinations={"HARMONY_MOVE": port})
    move = doctor_of.examine(port=node.port, incoming_store_port=port)["move"]
    assert (move["result"], move["side"], move["details"]["status"]) == ("error", "pacs", "0xA702")
    assert "could not deliver" in move["hint"]
    assert str(port) in move["lines"]["any PACS"]


def test_a_pacs_that_moves_what_was_not_asked_for(doctor_of: Doctor, peer: Peers) -> None:
    """It is aborted with its first sub-operation, and told."""
    receiver = peer("serve")
    node = peer("serve", count=500, interval_secs=0.02, destinations={"HARMONY_MOVE": receiver.port})
    move = doctor_of.examine(port=node.port, incoming_store_port=receiver.port)["move"]
    assert move["result"] == "error"
    assert "moves what was not asked for" in move["text"]
    assert len(receiver.events("stored")) < 500


def test_our_port(doctor_of: Doctor, peer: Peers) -> None:
    """Whether anybody listens on it is told; it is neither bound nor connected to."""
    node, holder, free = peer("serve"), peer("silent"), free_port()
    found = doctor_of.examine(port=node.port, incoming_store_port=holder.port)["receiver"]
    assert (found["result"], found["details"]["listening"], found["details"]["daemon"]) == ("warning", True, None)
    assert [event["event"] for event in holder.events()] == ["listening"]
    found = doctor_of.examine(port=node.port, incoming_store_port=free)["receiver"]
    assert (found["result"], found["details"]["listening"]) == ("warning", False)
    found = doctor_of.examine(port=node.port, incoming_store_port=free, dimse_retrieve_mode="get")["receiver"]
    assert found["result"] == "skipped"


def test_a_peer_that_says_a_byte_at_a_time(doctor_of: Doctor) -> None:
    """What never becomes a message ends after twice the timeout, however lively it is."""
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(0.05)
                for byte in b"\x02\x00\x00\x00\xff\xff" + bytes(10_000):
                    try:
                        sock.sendall(bytes([byte]))
                    except OSError:
                        break
                    if ended.wait(0.02):
                        break

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        failed = ends_at(doctor_of.examine(port=listening.getsockname()[1], timeout_secs=0.5), "association")
    finally:
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)
    assert "was silent" in failed["text"]
