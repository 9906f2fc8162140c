"""C-STORE: which answer is whose, what is proposed, and that nothing of a file becomes configuration."""

from __future__ import annotations

import pytest

from harmonyd.dimse.dcmtk.log import MAX_KEPT_LINES, ToolLog
from harmonyd.dimse.dcmtk.store import _results, association_profile
from harmonyd.dimse.part10 import InstanceHeader
from harmonyd.errors import DeadlinePassed

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4.50"


def _header(uid: str = "1.2.3", sop_class: str = CT, syntax: str = EXPLICIT) -> InstanceHeader:
    return InstanceHeader(sop_class, uid, syntax, "", "", "", 0)


def _answer(log: ToolLog, number: int, status: str = "0x0000: Success", uid: str | None = "1.2.3") -> None:
    lines = [
        "===================== INCOMING DIMSE MESSAGE ====================",
        "Message Type                  : C-STORE RSP",
        f"Message ID Being Responded To : {number}",
        *([] if uid is None else [f"Affected SOP Instance UID     : {uid}"]),
        f"DIMSE Status                  : {status}",
        "======================= END DIMSE MESSAGE =======================",
    ]
    for line in lines:
        log.feed(f"@DEBUG|{line}".encode())


def test_two_objects_of_one_uid() -> None:
    """Each of two files with the same UID has its own answer."""
    log = ToolLog()
    _answer(log, 1, "0xa700: Refused: Out of resources")
    _answer(log, 2)
    assert [result.status for result in _results(log, [_header(), _header()], None)] == [0xA700, 0]


def test_an_object_that_was_not_sent() -> None:
    """A file for which there was no presentation context has no answer, and does not take another's."""
    log = ToolLog()
    _answer(log, 1, uid="1.1")
    log.feed(b"@ERROR|No presentation context for: (unknown SOP class) 1.2.3.4")
    _answer(log, 3, uid="1.3")
    results = _results(log, [_header("1.1"), _header("1.2"), _header("1.3")], None)
    assert [(result.sop_instance_uid, result.status) for result in results] == [("1.1", 0), ("1.2", None), ("1.3", 0)]


def test_an_answer_without_a_uid() -> None:
    """A node that leaves the optional Affected SOP Instance UID out (PS3.7 table 9.3-1) is understood."""
    log = ToolLog()
    _answer(log, 1, uid=None)
    assert _results(log, [_header()], None)[0].status == 0


def test_unanswered_at_the_deadline() -> None:
    """What had no answer at the deadline is told so, beside what had one."""
    log = ToolLog()
    _answer(log, 1)
    first, second = _results(log, [_header(), _header("1.4")], DeadlinePassed("too late"))
    assert (first.status, second.status) == (0, None)
    assert "too late" in second.status_text


def test_profile_of_compressed_and_uncompressed() -> None:
    """A compressed object is offered as it is only; an uncompressed one also as its alternatives."""
    text = association_profile([_header(), _header(syntax=JPEG)])
    assert f"PresentationContext1 = {CT}\\TS1" in text
    assert f"PresentationContext2 = {CT}\\Uncompressed" in text
    assert f"PresentationContext3 = {CT}\\TS2" in text
    assert f"TransferSyntax1 = {JPEG}" in text


@pytest.mark.parametrize("value", ["1.2.3\nPresentationContext9 = 1.2.3\\TS1", "1.2.3\\TS1", "", "é", "[x]", "1" * 65])
def test_profile_takes_uids_only(value: str) -> None:
    """What a file has in place of a UID never enters the profile."""
    text = association_profile([_header(sop_class=value), _header(syntax=value), _header()])
    assert text == association_profile([_header()])


def test_the_last_complaints_are_kept() -> None:
    """After any number of warnings the error that ended the program is still known, and so is the first."""
    log = ToolLog()
    for number in range(500):
        log.feed(f"@WARN|harmless {number}".encode())
    log.feed(b"@ERROR|0006:0317 Peer aborted Association (or never connected)")
    assert len(log.complaints) == MAX_KEPT_LINES
    assert log.complaints[0] == "harmless 0"
    assert "Peer aborted" in log.complaints[-1]
