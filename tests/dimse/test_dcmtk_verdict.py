"""What a finished DCMTK program means, whatever its exit code says."""

from __future__ import annotations

import dcmtk_captures as captures
import pytest
from dcmtk_captures import read

from harmonyd.dimse import failures
from harmonyd.dimse.dcmtk import verdict
from harmonyd.dimse.dcmtk.log import MAX_KEPT_LINES, ToolLog
from harmonyd.dimse.engine import RemoteNode, SubOperations
from harmonyd.dimse.errors import (
    AssociationAborted,
    AssociationRejected,
    DimseError,
    DimseFailure,
    DimseTimeout,
    EngineFailed,
    NonsenseAnswer,
    NoPresentationContext,
    RemoteUnreachable,
)
from harmonyd.errors import HarmonydError
from harmonyd.supervision.api import ExitRecord

REMOTE = RemoteNode("main", "PACS", "pacs.example", 104, "US", connect_timeout_secs=3, association_timeout_secs=7)
KINDS = {name: f"C-{name.upper()} RSP" for name in ("echo", "find", "get", "move", "store")}


def _record(exit_code: int | None = 0, signal: int | None = None) -> ExitRecord:
    return ExitRecord(pid=1, exit_code=exit_code, signal=signal, output=b"", runtime_secs=1.0)


def _failure(operation: str, text: str, record: ExitRecord | None = None) -> HarmonydError:
    """What ``final_outcome`` raises for this output."""
    with pytest.raises(HarmonydError) as caught:
        verdict.final_outcome(operation, KINDS[operation], read(text), record or _record(), REMOTE)
    return caught.value


# --- answers ----------------------------------------------------------------------------------------------------------


def test_success() -> None:
    """A final response with status Success is the only success."""
    outcome = verdict.final_outcome("find", KINDS["find"], read(captures.FOUND), _record(), REMOTE)
    assert (outcome.status, outcome.status_text, outcome.complete) == (0x0000, "Success", True)
    assert outcome.suboperations is None


def test_exit_code_0_is_no_success() -> None:
    """findscu exits with 0 when it was answered a failure status, and when it was not answered at all."""
    for text in (captures.FIND_OUT_OF_RESOURCES, captures.FIND_ABORTED, captures.FIND_HANGS, captures.FIND_GARBAGE):
        assert isinstance(_failure("find", text, _record(0)), HarmonydError)


def test_another_exit_code_is_no_failure() -> None:
    """movescu exits with 68 after a warning, others as it comes; the response is what counts."""
    outcome = verdict.final_outcome("find", KINDS["find"], read(captures.FOUND), _record(70), REMOTE)
    assert outcome.complete


def test_a_failure_status() -> None:
    """The status, its meaning and the comment become members; the hint depends on the operation."""
    error = _failure("find", captures.FIND_OUT_OF_RESOURCES)
    assert isinstance(error, DimseFailure)
    assert error.extra == {
        "dimse_status": "0xA700",
        "dimse_status_text": "Refused: out of resources",
        "dimse_comment": "told so",
    }
    assert error.hint is not None
    assert "narrow the query" in error.hint


def test_an_unknown_move_destination() -> None:
    """The hint names what has to be added, and where."""
    error = _failure("move", captures.MOVE_UNKNOWN_DESTINATION, _record(69))
    assert error.extra["dimse_status"] == "0xA801"
    assert "suboperations" not in error.extra
    assert error.hint is not None
    assert "host table" in error.hint


def test_a_partial_retrieve_is_no_error() -> None:
    """A warning status has an outcome with its counters; whether it is complete is decided with the files."""
    outcome = verdict.final_outcome("get", KINDS["get"], read(captures.GOT_HALF), _record(), REMOTE)
    assert outcome.status == 0xB000
    assert outcome.suboperations is not None
    assert (outcome.suboperations.completed, outcome.suboperations.failed) == (1, 1)


def test_a_warning_of_a_find_is_incomplete() -> None:
    """C-FIND defines no warning: what the PACS means by one is not known, so nothing is said to be complete."""
    text = captures.FOUND.replace("0x0000: Success: Matching is complete", "0xb000: Warning")
    outcome = verdict.final_outcome("find", KINDS["find"], read(text), _record(), REMOTE)
    assert not outcome.complete
    assert outcome.incomplete_reason == "the PACS ended with status 0xB000 (Warning)"


def test_a_warning_of_an_echo_is_a_failure() -> None:
    """An echo is answered with Success, or has failed."""
    error = _failure("echo", captures.ECHOED.replace("(Success)", "(Unknown Status: 0xb000)"))
    assert isinstance(error, DimseFailure)


@pytest.mark.parametrize(
    ("operation", "status"), [("find", 0x1234), ("get", 0xA702), ("store", 0xA700), ("echo", 0xFE00)]
)
def test_every_failure_status_has_a_hint(operation: str, status: int) -> None:
    """Whatever a PACS answers, somebody is told where to look."""
    assert failures.failure_status(operation, status, None, SubOperations(), REMOTE).hint


# --- no answer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "text", "kind", "said"),
    [
        ("echo", captures.REFUSED, RemoteUnreachable, "PACS@pacs.example:104: Connection refused"),
        ("get", captures.REFUSED_GETSCU, RemoteUnreachable, "Connection refused"),
        ("move", captures.UNKNOWN_HOST, RemoteUnreachable, "pacs.example is unknown"),
        ("echo", captures.SWALLOWED, DimseTimeout, "within 3 s"),
        ("find", captures.REJECTED_FINDSCU, AssociationRejected, "Local Limit Exceeded"),
        ("get", captures.REJECTED_GETSCU, AssociationRejected, "Called AE Title Not Recognized"),
        ("move", captures.REJECTED_MOVESCU, AssociationRejected, "Rejected Transient"),
        ("echo", captures.REJECTED_ECHOSCU, AssociationRejected, "Service Provider"),
        ("find", captures.NO_CONTEXTS, NoPresentationContext, "no presentation context"),
        ("get", captures.NO_CONTEXTS_GETSCU, NoPresentationContext, "no presentation context"),
        ("get", captures.ONLY_STORAGE_CONTEXTS_GETSCU, NoPresentationContext, "no presentation context"),
        ("find", captures.SILENT, DimseTimeout, "its answer to the association request"),
        ("get", captures.SILENT_GETSCU, DimseTimeout, "its answer to the association request"),
        ("move", captures.SILENT_MOVESCU, DimseTimeout, "silent for 7 s"),
        ("echo", captures.HTTP_SERVER, NonsenseAnswer, "Unrecognized PDU type: 48"),
        ("find", captures.CLOSED, AssociationAborted, "before it was established"),
        ("find", captures.FIND_ABORTED, AssociationAborted, "during the operation"),
        ("find", captures.FIND_RELEASED_BY_PEER, AssociationAborted, "during the operation"),
        ("find", captures.FIND_HANGS, DimseTimeout, "its next DIMSE message"),
        ("find", captures.FIND_GARBAGE, NonsenseAnswer, "Unrecognized PDU type: 93"),
        ("get", captures.GET_ABORTED, AssociationAborted, "during the operation"),
    ],
)
def test_what_went_wrong(operation: str, text: str, kind: type[HarmonydError], said: str) -> None:
    """Each way an association ends without an answer has its error, with a hint for somebody."""
    error = _failure(operation, text)
    assert type(error) is kind, error.detail
    assert said in error.detail
    assert error.hint


@pytest.mark.parametrize(
    ("text", "which"),
    [(captures.SWALLOWED, "connect"), (captures.SILENT_GETSCU, "association"), (captures.FIND_HANGS, "dimse")],
)
def test_which_timeout_it_was(text: str, which: str) -> None:
    """A timeout names the silence that was too long."""
    assert _failure("find", text).extra["timeout"] == which


def test_a_rejection_in_words() -> None:
    """Result, source and reason are members, and the hint names our side or theirs."""
    error = _failure("get", captures.REJECTED_GETSCU)
    assert error.extra == {
        "reject_result": "Rejected Permanent",
        "reject_source": "Service User",
        "reject_reason": "Called AE Title Not Recognized",
    }
    assert error.hint is not None
    assert error.hint.startswith("Change the backend's aet (now PACS) to the AE title of the PACS")


def test_an_unknown_condition() -> None:
    """A condition of dcmnet that is in no table is the remote's fault, and is shown."""
    error = _failure("find", "@ERROR|Find Failed: 0006:0999 Something new\n")
    assert type(error) is DimseError
    assert "Something new (0006:0999)" in error.detail


# --- our own fault ----------------------------------------------------------------------------------------------------


def test_a_tool_that_crashed() -> None:
    """A signal and no response is our failure, whatever was received before."""
    error = _failure("find", "@INFO|Received Find Response 1\n", _record(None, 11))
    assert type(error) is EngineFailed
    assert error.extra["signal"] == 11
    assert "signal 11" in error.detail


def test_a_tool_that_did_not_understand_its_command_line() -> None:
    """A usage text is shown, with the exit code."""
    error = _failure("find", "error: Unknown option --x\n", _record(1))
    assert type(error) is EngineFailed
    assert error.extra["exit_code"] == 1
    assert "Unknown option --x" in error.detail


def test_a_tool_that_said_nothing() -> None:
    """No output at all is no success either."""
    assert type(_failure("get", "")) is EngineFailed


def test_a_disk_condition_is_not_the_remotes() -> None:
    """Conditions of other modules than dcmnet say nothing about the remote node."""
    error = _failure("get", "@ERROR|cannot write DICOM file: 0001:0014 No space left on device\n", _record(1))
    assert type(error) is EngineFailed


def test_many_warnings_do_not_hide_the_cause() -> None:
    """However much a tool complained before, what ended the association is found."""
    log = ToolLog()
    for number in range(3 * MAX_KEPT_LINES):
        log.feed(f"@WARN|DICOM file already exists, overwriting: {number}".encode())
    for line in captures.GET_ABORTED.encode().splitlines():
        log.feed(line)
    assert isinstance(verdict.failure("get", log, _record(1), REMOTE), AssociationAborted)
