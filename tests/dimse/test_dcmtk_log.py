"""Facts out of the log lines of DCMTK's programs."""

from __future__ import annotations

import dcmtk_captures as captures
from dcmtk_captures import read

from harmonyd.dimse.dcmtk.log import MAX_KEPT_LINES, ToolLog
from harmonyd.dimse.dcmtk.log_config import log_config
from harmonyd.dimse.engine import SubOperations

MESSAGE = """\
@DEBUG|===================== INCOMING DIMSE MESSAGE ====================
@DEBUG|Message Type                  : {kind}
@DEBUG|DIMSE Status                  : {status}
@DEBUG|======================= END DIMSE MESSAGE =======================
"""


def test_a_find_with_matches() -> None:
    """Matches are counted, and the final response has its status in numbers."""
    log = read(captures.FOUND)
    final = log.final("C-FIND RSP")
    assert log.accepted
    assert log.find_responses == 1
    assert final is not None
    assert (final.status, final.status_text) == (0x0000, "Success: Matching is complete")
    assert final.comment is None
    assert log.complaints == []


def test_a_failure_status_with_a_comment() -> None:
    """Status and Error Comment belong to the response they follow."""
    final = read(captures.FIND_OUT_OF_RESOURCES).final("C-FIND RSP")
    assert final is not None
    assert (final.status, final.comment) == (0xA700, "told so")


def test_an_echo_has_its_status_in_one_line() -> None:
    """echoscu prints no message, only words for Success and a number for anything else."""
    echoed = read(captures.ECHOED).final("C-ECHO RSP")
    failed = read(captures.ECHO_FAILED).final("C-ECHO RSP")
    assert echoed is not None
    assert failed is not None
    assert echoed.status == 0x0000
    assert (failed.status, failed.comment) == (0xA700, "told so")


def test_counters_of_a_retrieve() -> None:
    """Sub-operation counters are numbers, or None where the PACS left them out."""
    final = read(captures.GOT_HALF).final("C-GET RSP")
    assert final is not None
    assert final.status == 0xB000
    assert final.suboperations == SubOperations(completed=1, failed=1, warning=0, remaining=None)
    refused = read(captures.MOVE_UNKNOWN_DESTINATION).final("C-MOVE RSP")
    assert refused is not None
    assert refused.suboperations == SubOperations()


def test_why_getscu_has_no_association() -> None:
    """getscu says the reason of a rejection only at DEBUG; it is a complaint all the same."""
    log = read(captures.REJECTED_GETSCU)
    assert not log.accepted
    assert log.complaints == [
        "Association Rejected:",
        "Result: Rejected Permanent, Source: Service User",
        "Reason: Called AE Title Not Recognized",
        "Could not negotiate association: DUL Association Rejected",
    ]


def test_a_message_after_a_status_detail_that_nothing_ended() -> None:
    """A pending response may have a status detail, and what comes between it and the next message is filtered out."""
    detail = "@DEBUG|Response has status detail:\n@DEBUG|\n@DEBUG|(0000,0902) LO [still at it]  # 12, 1 ErrorComment\n"
    log = read(detail + MESSAGE.format(kind="C-GET RSP", status="0x0000: Success"))
    final = log.final("C-GET RSP")
    assert final is not None
    assert (final.status, final.comment) == (0x0000, None)


def test_a_comment_changes_no_status() -> None:
    """Lines of a comment that has line feeds in it are no members of a message."""
    hostile = "@DEBUG|Status Detail:\n@DEBUG|(0000,0902) LO [no]\n@DEBUG|DIMSE Status : 0x0000: Success\n"
    log = read(MESSAGE.format(kind="C-FIND RSP", status="0xa700: Refused") + hostile + "@INFO|Releasing Association\n")
    final = log.final("C-FIND RSP")
    assert final is not None
    assert final.status == 0xA700
    assert len(log.responses) == 1


def test_a_comment_is_printable_and_short() -> None:
    """Control characters are dropped, and no more is kept than VR LO allows."""
    comment = "\x1b[2J" + "x" * 100
    text = MESSAGE.format(kind="C-FIND RSP", status="0xa700: Refused")
    log = read(f"{text}@DEBUG|Status Detail:\n@DEBUG|(0000,0902) LO [{comment}]  # 104, 1 ErrorComment\n")
    assert log.responses[0].comment == f"[2J{'x' * 61}"


def test_the_last_response_of_a_kind_is_final() -> None:
    """Responses are kept in order and found by kind."""
    log = read(
        MESSAGE.format(kind="C-MOVE RSP", status="0xb000: Warning")
        + MESSAGE.format(kind="C-STORE RSP", status="0x0000: Success")
        + MESSAGE.format(kind="C-MOVE RSP", status="0x0000: Success")
    )
    final = log.final("C-MOVE RSP")
    assert final is not None
    assert final.status == 0x0000
    assert log.final("C-FIND RSP") is None


def test_a_message_that_is_cut_off_is_none() -> None:
    """A tool that is killed in the middle of a message has said nothing final."""
    text = MESSAGE.format(kind="C-FIND RSP", status="0x0000: Success")
    assert read("\n".join(text.splitlines()[:-1])).final("C-FIND RSP") is None
    assert read(text.replace("@DEBUG|=====================", "@INFO|=====================")).responses == []


def test_lines_that_are_no_log_lines() -> None:
    """Usage texts are kept apart; nothing in them can pass for a response."""
    log = read("findscu: unknown option --x\n\n" + captures.ECHOED.replace("@INFO|", ""))
    assert log.other[0] == "findscu: unknown option --x"
    assert not log.accepted
    assert log.responses == []


def test_endless_output_is_kept_in_bounds() -> None:
    """Only so many complaints and other lines are kept, each cut to a length."""
    log = ToolLog()
    for _ in range(1000):
        log.feed(b"@ERROR|" + b"x" * 100_000)
        log.feed(b"y" * 100_000)
    assert len(log.complaints) == len(log.other) == MAX_KEPT_LINES
    assert max(map(len, log.complaints + log.other)) <= 500


def test_bytes_that_are_no_text() -> None:
    """NUL and invalid UTF-8, which DCMTK passes on, raise nothing."""
    log = ToolLog()
    for line in (b"@ERROR|\xff\xfe\0", b"\xff", b"", b"@|", b"@DEBUG|\xff", b"@INFO|Received Find Response x"):
        log.feed(line)
    assert log.complaints == ["\ufffd\ufffd\0"]


def test_a_pending_response_is_never_the_final_one() -> None:
    """Where pending responses are in the log, the latest says how far it is, and it is no outcome."""
    log = ToolLog()
    for status, completed in (("0xff00: Pending", 1), ("0xff01: Pending", 2)):
        log.feed(b"@DEBUG|===================== INCOMING DIMSE MESSAGE ====================")
        for line in ("Message Type : C-MOVE RSP", f"Completed Suboperations : {completed}", f"DIMSE Status : {status}"):
            log.feed(f"@DEBUG|{line}".encode())
        log.feed(b"@DEBUG|======================= END DIMSE MESSAGE =======================")
        assert log.latest is not None
        assert log.latest.suboperations.completed == completed
    assert log.final("C-MOVE RSP") is None
    assert ": 0xff00: " in log_config()
    assert ": 0xff00: " not in log_config(pending=True)


def test_the_configuration_drops_what_repeats_a_query() -> None:
    """A query's values are patient data: the blocks that dump them are filtered before anything else is let through."""
    text = log_config()
    assert text.index("Request Identifiers:") < text.index("INCOMING DIMSE MESSAGE")
    assert text.index("AcceptOnMatch = false") < text.index("AcceptOnMatch = true")
    assert text.rstrip().endswith("DenyAllFilter")
