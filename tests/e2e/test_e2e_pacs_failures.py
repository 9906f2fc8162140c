"""What a client is told when the PACS is not there, refuses, hangs, breaks off, fails or talks nonsense."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import IncompleteRead
from typing import Any

import pytest
from misbehaving import OPERATIONS, STUDY_UID, Stage, lines_of, problem_of, stage

from harmonyd.testing.daemon import Answer
from harmonyd.testing.processes import free_port

COMMENT = "the disk is on fire"
STATUSES = (0xA700, 0xA801, 0xA900, 0xC001, 0xFE00, 0x0122)
ENDS = ("hang", "abort", "drop", "garbage")
SILENCE_SECS = 3
"""association_timeout_ms towards those that fall silent: a slow machine's peer still accepts an association in it."""
MULTIPART = 'multipart/related; type="application/dicom"'
SILENT = ("silent", "hang_first", "hang_later")
RUBBISH = "".join(map(chr, range(0x91, 0xFF))) * 4

SCRIPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "busy": ("reject", {"reject": (2, 3, 2)}),
    "no_called": ("reject", {"reject": (1, 1, 7)}),
    "no_calling": ("reject", {"reject": (1, 1, 3)}),
    "no_contexts": ("no-contexts", {}),
    "silent": ("silent", {}),
    "closing": ("close", {}),
    "web_server": ("garbage", {}),
    "rubbish": ("garbage", {"garbage": RUBBISH}),
    **{f"{end}_first": ("serve", {"after": 0, "then": end}) for end in ENDS},
    **{f"{end}_later": ("serve", {"after": 2, "then": end}) for end in ENDS},
    **{f"s{code:04X}": ("serve", {"count": 0, "status": code, "comment": COMMENT}) for code in STATUSES},
    "warning": ("serve", {"count": 2, "status": 0xB000, "comment": COMMENT}),
    "nothing_and_warning": ("serve", {"count": 0, "status": 0xB000, "comment": COMMENT}),
    "refused_later": ("serve", {"count": 2, "status": 0xA700, "comment": COMMENT}),
}


@contextmanager
def _full_backlog() -> Iterator[int]:
    """A port on which no TCP connection is completed: nobody accepts, and the kernel's queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        while True:
            caller = stack.enter_context(socket.socket())
            caller.settimeout(0.2)
            try:
                caller.connect(listener.getsockname())
            except TimeoutError:
                break
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Every misbehaving peer, and nodes that are not there."""
    folder = tmp_path_factory.mktemp("bad")
    with _full_backlog() as full_port:
        local = {"aet": "PEER", "host": "127.0.0.1"}
        nodes: dict[str, dict[str, Any]] = {
            **{name: {"peer": name, "association_timeout_ms": SILENCE_SECS * 1000} for name in SILENT},
            "not_there": {**local, "port": free_port()},
            "unknown_host": {**local, "host": "nowhere.invalid", "port": 104},
            "swallowed": {**local, "port": full_port, "connect_timeout_ms": 1000},
            "short": {"peer": "hang_first", "association_timeout_ms": 60_000, "operation_timeout_ms": 500},
            "longer": {"peer": "hang_later", "association_timeout_ms": 60_000, "operation_timeout_ms": 4000},
        }
        with stage(folder, SCRIPTS, nodes) as running:
            yield running


# --- no association ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "status", "kind", "said", "hint"),
    [
        ("not_there", 502, "remote-unreachable", "Connection refused", "host and port"),
        ("unknown_host", 502, "remote-unreachable", "nowhere.invalid is unknown", "host, or DNS"),
        ("swallowed", 504, "dimse-timeout", "No TCP connection", "firewall"),
        ("busy", 502, "association-rejected", "Local Limit Exceeded", "its limits"),
        ("no_called", 502, "association-rejected", "Called AE Title Not Recognized", "Change the backend's aet"),
        ("no_calling", 502, "association-rejected", "Calling AE Title Not Recognized", "Add our AE title HARMONY_SCU"),
        ("no_contexts", 502, "no-presentation-context", "no presentation context", "enable it there"),
        ("silent", 504, "dimse-timeout", f"silent for {SILENCE_SECS} s", "association_timeout_ms"),
        ("closing", 502, "association-aborted", "before it was established", "its log"),
        ("web_server", 502, "nonsense-answer", "does not speak DICOM", "not HTTP"),
        ("rubbish", 502, "nonsense-answer", "does not speak DICOM", "host and port"),
    ],
)
def test_no_association(bad: Stage, backend: str, status: int, kind: str, said: str, hint: str) -> None:
    """Each operation tells what kept the association from being made, and which side to fix."""
    for operation, answer in bad.ask_all(backend).items():
        members = problem_of(answer, status, operation, backend)
        assert members["type"] == f"urn:harmonyd:problem:{kind}", members
        assert said in members["detail"]
        assert hint in members["hint"]
        assert members.get("timeout") == {"swallowed": "connect", "silent": "association"}.get(backend)


def test_a_rejection_in_words(bad: Stage) -> None:
    """Result, source and reason of an A-ASSOCIATE-RJ are members of the answer, for every operation."""
    for answer in bad.ask_all("busy").values():
        members = answer.json()
        assert members["reject_result"] == "Rejected Transient"
        assert members["reject_source"].startswith("Service Provider")
        assert members["reject_reason"] == "Local Limit Exceeded"


# --- before the first result ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "status", "kind", "said"),
    [
        ("hang", 504, "dimse-timeout", "its next DIMSE message did not come"),
        ("abort", 502, "association-aborted", "during the operation"),
        ("drop", 502, "association-aborted", "during the operation"),
        ("garbage", 502, "nonsense-answer", "Unrecognized PDU type"),
    ],
)
def test_broken_off_before_the_first_result(bad: Stage, end: str, status: int, kind: str, said: str) -> None:
    """An association that stood and came to nothing is a problem detail for every operation."""
    for operation, answer in bad.ask_all(f"{end}_first").items():
        members = problem_of(answer, status, operation, f"{end}_first")
        assert members["type"] == f"urn:harmonyd:problem:{kind}", members
        assert said in members["detail"]
        assert members.get("timeout") == ("dimse" if end == "hang" else None)


@pytest.mark.parametrize("code", STATUSES)
def test_failure_status(bad: Stage, code: int) -> None:
    """A failure status is told with its number, its meaning and the comment of the PACS; no exit code hides it."""
    for operation, answer in bad.ask_all(f"s{code:04X}").items():
        members = problem_of(answer, 502, operation, f"s{code:04X}")
        assert members["type"] == "urn:harmonyd:problem:dimse-failure"
        assert members["dimse_status"] == f"0x{code:04X}"
        assert members["dimse_status_text"] in members["detail"]
        assert members["dimse_comment"] == COMMENT
        assert COMMENT in members["detail"]


@pytest.mark.parametrize(
    ("operation", "code", "text", "hint"),
    [
        ("find", 0xA700, "Refused: out of resources", "narrow the query"),
        ("move", 0xA801, "Refused: move destination unknown", "host table"),
        ("find", 0xA900, "Failed: the identifier does not match the SOP class", "query_model"),
        ("get", 0xC001, "Failed: unable to process", "its log"),
        ("find", 0xFE00, "Cancelled: matching terminated on request", "did not ask"),
        ("echo", 0x0122, "Refused: SOP class not supported", "enable it there"),
    ],
)
def test_meaning_of_a_status(bad: Stage, operation: str, code: int, text: str, hint: str) -> None:
    """The words for a status are those of the operation it answers, and the hint names the side that can act."""
    members = bad.ask(operation, f"s{code:04X}").json()
    assert members["dimse_status_text"] == text
    assert hint in members["hint"]


def test_an_unknown_move_destination(bad: Stage) -> None:
    """A hint about the host table is only for those who asked for a move."""
    hints = {operation: answer.json()["hint"] for operation, answer in bad.ask_all("sA801").items()}
    assert [operation for operation in OPERATIONS if "host table" in hints[operation]] == ["move"]


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_a_warning_is_no_success(bad: Stage) -> None:
    """What ended with a warning is given, and said to be incomplete; for an echo, only Success is success."""
    answers = bad.ask_all("warning")
    for operation in ("find", "get", "move"):
        members = answers[operation].json()
        assert answers[operation].status == 200
        assert len(members["matches" if operation == "find" else "instances"]) == 2
        assert members["complete"] is False
        assert "0xB000" in members["incomplete_reason"]
        assert members["dimse_comment"] == COMMENT
    assert problem_of(answers["echo"], 502, "echo", "warning")["dimse_status"] == "0xB000"


def test_a_warning_without_any_instance(bad: Stage) -> None:
    """A retrieve that brought nothing and ended with a warning failed; that nothing matched would be a guess."""
    for operation in ("get", "move"):
        members = problem_of(bad.ask(operation, "nothing_and_warning"), 502, operation, "nothing_and_warning")
        assert members["dimse_status"] == "0xB000"
        assert members["dimse_comment"] == COMMENT
        assert members["suboperations"]["completed"] == 0
    assert bad.ask("find", "nothing_and_warning").json()["complete"] is False


# --- after the first result -------------------------------------------------------------------------------------------

REASONS = {
    "hang_later": "its next DIMSE message did not come",
    "abort_later": "during the operation",
    "drop_later": "during the operation",
    "garbage_later": "Unrecognized PDU type",
    "refused_later": "0xA700 (Refused: out of resources)",
}


@pytest.mark.parametrize("backend", REASONS)
def test_json_ends_well_formed(bad: Stage, backend: str) -> None:
    """What arrived is given; then complete is false, with the reason and the hint."""
    for operation, answer in bad.ask_all(backend, ("find", "get", "move")).items():
        members = answer.json()
        assert answer.status == 200
        assert members["operation"] == operation
        assert members["success"] is False
        assert members["complete"] is False
        assert REASONS[backend] in members["incomplete_reason"]
        assert REASONS[backend] in members["error"]
        assert members["hint"]
        count, items = ("count", "matches") if operation == "find" else ("file_count", "instances")
        assert members[count] == len(members[items]) == 2


@pytest.mark.parametrize("backend", REASONS)
def test_other_forms_are_cut(bad: Stage, backend: str) -> None:
    """A form that cannot say that it is not whole is cut: the client sees the end of the stream missing."""
    wanted = {"application/x-ndjson": "find", "application/dicom+json": "find", MULTIPART: "get"}
    with ThreadPoolExecutor(len(wanted)) as pool:
        asked = [pool.submit(bad.ask, operation, backend, Accept=form) for form, operation in wanted.items()]
        lines, array, parts = (_cut(one) for one in asked)
    assert len(lines_of(lines)) == 2
    assert len(json.loads(array + b"]")) == 2
    assert parts.count(b"Content-Type: application/dicom") == 2
    assert not parts.endswith(b"--\r\n")


def _cut(answer: Future[Answer]) -> bytes:
    """What was received of an answer that did not end."""
    with pytest.raises(IncompleteRead) as cut:
        answer.result()
    return cut.value.partial


def test_the_log_says_why_an_answer_was_cut(bad: Stage) -> None:
    """The reason is in the log and the operation's record, with the request's id: the client could not be told."""
    with pytest.raises(IncompleteRead):
        bad.ask("get", "refused_later", **{"Accept": MULTIPART, "X-Request-ID": "test-why"})
    lines = [line for line in bad.daemon.log.splitlines() if "test-why" in line]
    assert any("cut off" in line and "0xA700" in line for line in lines), lines
    _, record = bad.record("test-why")
    assert record["complete"] is False
    assert "0xA700" in record["incomplete_reason"], record


# --- the operation's own time -----------------------------------------------------------------------------------------


def test_operation_timeout(bad: Stage) -> None:
    """An operation whose time is over is ended, whatever silence is allowed, and the answer names the setting."""
    for operation, answer in bad.ask_all("short").items():
        members = problem_of(answer, 504, operation, "short")
        assert members["timeout"] == "operation"
        assert "operation_timeout_ms" in members["hint"]


def test_operation_timeout_after_the_first_result(bad: Stage) -> None:
    """What arrived in time is given, and said to be incomplete."""
    members = bad.ask("find", "longer").json()
    assert members["count"] == 2
    assert members["complete"] is False
    assert members["timeout"] == "operation"
    assert "within its time" in members["incomplete_reason"]


# --- and then ---------------------------------------------------------------------------------------------------------


def test_request_id_without_one(bad: Stage) -> None:
    """A request that brings no correlation id gets one, the same in header and body."""
    answer = bad.daemon.http("POST", "/dicom/find?backend=not_there", json={"StudyInstanceUID": STUDY_UID})
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"] != ""


def test_all_is_given_back(bad: Stage) -> None:
    """After failures no program that asked runs any more, and each peer saw its associations end."""
    assert bad.ask("find", "abort_first").status == 502
    for peer in bad.peers.values():
        if associations := len(peer.events("association")):
            peer.wait_for("closed", associations)
    assert not [child for child in bad.daemon.children() if child.name().endswith("scu")]
