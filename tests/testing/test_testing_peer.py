"""The scripted peer does what its script says, seen by DCMTK's own tools."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import dcmread

from harmonyd.testing.data import CHARSETS, make_study
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.peer_records import STRANGER_STUDY_UID
from harmonyd.testing.processes import dcmtk, end_group, free_port, wait_until

StartPeer = Callable[..., ScriptedPeer]
STUDY = "1.2.3.4"


@dataclass(frozen=True)
class Run:
    """What a tool did: its exit code, its log, and the files in its output folder."""

    code: int
    log: str
    files: list[Path]


def _run(tool: str, folder: Path, *arguments: str) -> Run:
    ran = subprocess.run(
        [dcmtk(tool), "-v", *arguments], check=False, capture_output=True, env={**os.environ, "TCP_NODELAY": "1"}
    )
    return Run(ran.returncode, (ran.stderr + ran.stdout).decode("utf-8", "replace"), sorted(folder.iterdir()))


def _find(peer: ScriptedPeer, folder: Path, *options: str) -> Run:
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID")
    to = ("-aec", peer.aet, "127.0.0.1", str(peer.port))
    return _run("findscu", folder, "-S", "-X", "-od", str(folder), *options, *keys, *to)


def _get(peer: ScriptedPeer, folder: Path, *options: str) -> Run:
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}")
    to = ("-aec", peer.aet, "127.0.0.1", str(peer.port))
    return _run("getscu", folder, "-S", "-od", str(folder), *options, *keys, *to)


def _move(peer: ScriptedPeer, folder: Path, destination: str = "HERE") -> Run:
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}")
    to = ("-aec", peer.aet, "-aem", destination, "127.0.0.1", str(peer.port))
    return _run("movescu", folder, "-d", "-S", *keys, *to)


# --- associations -----------------------------------------------------------------------------------------------------


def test_echo_is_answered_and_reported(peer: StartPeer, tmp_path: Path) -> None:
    """C-ECHO succeeds, and the peer tells who called and that the association was released."""
    node = peer()
    assert _run("echoscu", tmp_path, "-aet", "ME", "-aec", node.aet, "127.0.0.1", str(node.port)).code == 0
    assert node.wait_for("association")["calling"] == "ME"
    assert node.wait_for("request")["op"] == "C-ECHO"
    assert node.wait_for("released")["id"] == 1


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("reject", {}, "Reason: Local Limit Exceeded"),
        ("reject", {"reject": (1, 1, 7)}, "Reason: Called AE Title Not Recognized"),
        ("serve", {"strict_aet": True, "aet": "OTHER"}, "Reason: Called AE Title Not Recognized"),
        ("no-contexts", {}, "No Acceptable Presentation Contexts"),
        ("garbage", {}, "Unrecognized PDU type"),
        ("close", {}, "Peer aborted Association"),
        ("silent", {}, "DUL network read timeout"),
    ],
)
def test_scripts_that_refuse(
    peer: StartPeer, tmp_path: Path, script: str, options: dict[str, object], said: str
) -> None:
    """Each way to refuse an association is what DCMTK sees, and the end of the connection is reported."""
    node = peer(script, **options)
    target = ("127.0.0.1", str(node.port))
    seen = _run("echoscu", tmp_path, "-ta", "1", "-aec", "WRONG", *target)
    assert seen.code != 0
    assert said in seen.log
    assert node.wait_for("closed")["id"] == 1


# --- C-FIND -----------------------------------------------------------------------------------------------------------


def test_find_answers_and_reports_the_identifier(peer: StartPeer, tmp_path: Path) -> None:
    """As many answers as asked for, and the request's identifier as DICOM JSON."""
    node = peer(count=4)
    seen = _find(node, tmp_path)
    assert len(seen.files) == 4
    assert "Final Find Response (Success)" in seen.log
    assert node.wait_for("request")["identifier"]["00080052"]["Value"] == ["STUDY"]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0xA700, "Refused: OutOfResources"),
        (0xA900, "Error: DataSetDoesNotMatchSOPClass"),
        (0xB000, "Unknown Status: 0xb000"),
        (0xC001, "Failed: UnableToProcess"),
        (0xFE00, "Cancel: MatchingTerminatedDueToCancelRequest"),
    ],
)
def test_find_ends_with_a_status(peer: StartPeer, tmp_path: Path, status: int, said: str) -> None:
    """The final status comes after the pending answers."""
    seen = _find(peer(count=2, status=status, comment="a comment"), tmp_path)
    assert f"Received Final Find Response ({said})" in seen.log
    assert len(seen.files) == 2


def test_error_comment_is_sent(peer: StartPeer, tmp_path: Path) -> None:
    """The comment is in the final response."""
    assert "disk on fire" in _find(peer(count=0, status=0xA700, comment="disk on fire"), tmp_path, "-d").log


@pytest.mark.parametrize("then", ["abort", "drop"])
def test_find_broken_off(peer: StartPeer, tmp_path: Path, then: str) -> None:
    """After two answers the association is aborted, or the connection closed; the two arrived."""
    node = peer(count=5, after=2, then=then)
    seen = _find(node, tmp_path)
    assert "Peer aborted Association" in seen.log
    assert len(seen.files) == 2
    node.wait_for("closed")


def test_find_that_ends_in_garbage(peer: StartPeer, tmp_path: Path) -> None:
    """After an answer come bytes that are no PDU."""
    seen = _find(peer(count=5, after=1, then="garbage"), tmp_path)
    assert "Unrecognized PDU type" in seen.log
    assert len(seen.files) == 1


def test_find_that_waits(peer: StartPeer, tmp_path: Path) -> None:
    """The second answer comes when the gate is open, and not before."""
    (answers := tmp_path / "answers").mkdir()
    node = peer(count=2, after=1, then="wait", gate=str(tmp_path / "gate"))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(_find, node, answers)
        node.wait_for("waiting")
        assert node.events("response") == []
        (tmp_path / "gate").touch()
        assert len(asked.result().files) == 2


@pytest.mark.parametrize(
    ("then", "said"),
    [("hang", "No data available"), ("abort", "Peer aborted"), ("drop", "Peer aborted"), ("garbage", "PDU type: 93")],
)
def test_echo_broken_off(peer: StartPeer, tmp_path: Path, then: str, said: str) -> None:
    """With after=0 a C-ECHO is not answered either."""
    node = peer(after=0, then=then)
    to = ("-td", "1", "-aec", node.aet, "127.0.0.1", str(node.port))
    assert said in _run("echoscu", tmp_path, *to).log
    node.wait_for("closed")


def test_the_transfer_syntax_that_is_accepted(peer: StartPeer, tmp_path: Path) -> None:
    """The one that is named, where it is proposed; else Implicit VR Little Endian."""
    _find(peer(count=1, transfer_syntax="1.2.840.10008.1.2.2"), tmp_path)
    assert dcmread(tmp_path / "rsp0001.dcm").file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.2"
    _find(peer(count=1), tmp_path)
    assert dcmread(tmp_path / "rsp0001.dcm").file_meta.TransferSyntaxUID == "1.2.840.10008.1.2"


def test_find_that_hangs(peer: StartPeer, tmp_path: Path) -> None:
    """After one answer nothing more comes; the peer reports that the client gave up."""
    node = peer(after=1)
    seen = _find(node, tmp_path, "-td", "1")
    assert "0006:0207" in seen.log
    assert len(seen.files) == 1
    assert node.wait_for("hanging")["id"] == node.wait_for("closed")["id"]


def test_cancel_is_reported_and_obeyed(peer: StartPeer, tmp_path: Path) -> None:
    """A C-CANCEL ends the answers with 0xFE00."""
    node = peer(count=100, interval_secs=0.05)
    seen = _find(node, tmp_path, "--cancel", "2")
    assert node.wait_for("cancel")["id"] == 1
    assert "Cancel: MatchingTerminatedDueToCancelRequest" in seen.log
    assert node.wait_for("response")["status"] == 0xFE00


def test_answers_in_every_character_set(peer: StartPeer, tmp_path: Path) -> None:
    """``mixed`` sends each answer in another character set, which pydicom decodes by the answer's own."""
    seen = _find(peer(count=len(CHARSETS), charset="mixed"), tmp_path)
    names = [str(dcmread(path).PatientName) for path in seen.files]
    assert names == [charset.person_name for charset in CHARSETS.values()]


def test_given_records_are_sent_as_they_are(peer: StartPeer, tmp_path: Path) -> None:
    """``records`` replace the made answers, private elements and all."""
    record = {"00100020": {"vr": "LO", "Value": ["X1"]}, "00091001": {"vr": "LO", "Value": ["private"]}}
    (path,) = _find(peer(records=(record,)), tmp_path).files
    assert dcmread(path)[0x0009, 0x1001].value in ("private", b"private ")


# --- C-GET ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "arrived", "said"),
    [
        ({"count": 3}, 3, "Completed Suboperations : 3"),
        ({"count": 3, "failed": 1}, 2, "Failed Suboperations    : 1"),
        ({"count": 3, "withheld": 1}, 2, "Completed Suboperations : 3"),
        ({"count": 3, "extra": 2}, 5, "Completed Suboperations : 3"),
        ({"count": 3, "duplicate": True}, 3, "Completed Suboperations : 3"),
        ({"count": 3, "counters": False}, 3, "Completed Suboperations : 0"),
        ({"count": 3, "after": 2, "then": "abort"}, 2, "Peer aborted Association"),
        ({"count": 3, "after": 2, "then": "drop"}, 2, "Peer aborted Association"),
        ({"count": 0, "status": 0xA701}, 0, "Refused: OutOfResourcesNumberOfMatches"),
    ],
)
def test_get_delivers_and_counts(
    peer: StartPeer, tmp_path: Path, options: dict[str, object], arrived: int, said: str
) -> None:
    """What arrives and what is counted are both as the options say, true or not."""
    seen = _get(peer(**options), tmp_path)
    assert len(seen.files) == arrived
    assert said in seen.log


def test_get_that_hangs(peer: StartPeer, tmp_path: Path) -> None:
    """After one instance nothing more comes."""
    node = peer(after=1)
    assert len(_get(node, tmp_path, "-td", "1").files) == 1
    node.wait_for("closed")


def test_delivered_instances_are_of_the_study(peer: StartPeer, tmp_path: Path) -> None:
    """Instances have the Study Instance UID that was asked for; extra ones have a stranger's."""
    seen = _get(peer(count=2, extra=1), tmp_path)
    assert sorted(str(dcmread(path).StudyInstanceUID) for path in seen.files) == [STUDY, STUDY, STRANGER_STUDY_UID]


# --- C-MOVE -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A storescp: its port and its folder."""
    folder, port = tmp_path / "received", free_port()
    folder.mkdir()
    log = (tmp_path / "storescp.log").open("wb")
    argv = [dcmtk("storescp"), "-od", str(folder), str(port)]
    process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
    echo = [dcmtk("echoscu"), "-ta", "1", "127.0.0.1", str(port)]
    wait_until(lambda: subprocess.run(echo, check=False, capture_output=True).returncode == 0, "storescp answers")
    yield port, folder
    end_group(process)
    log.close()


@pytest.mark.parametrize(
    ("options", "code", "arrived", "completed"),
    [
        ({"count": 3}, 0, 3, 3),
        ({"count": 3, "failed": 1}, 68, 2, 2),
        ({"count": 3, "withheld": 1}, 0, 2, 3),
        ({"count": 3, "extra": 2}, 0, 5, 3),
        ({"count": 3, "duplicate": True, "originator": False}, 0, 3, 3),
        ({"count": 2, "status": 0xA702}, 69, 2, 2),
    ],
)
def test_move_delivers_and_counts(
    peer: StartPeer,
    receiver: tuple[int, Path],
    options: dict[str, object],
    code: int,
    arrived: int,
    completed: int,
) -> None:
    """What arrives at the destination and what is counted are both as the options say."""
    port, folder = receiver
    seen = _move(peer(destinations={"HERE": port}, **options), folder)
    assert seen.code == code
    assert len(seen.files) == arrived
    assert f"Completed Suboperations       : {completed}" in seen.log


def test_move_without_counters(peer: StartPeer, receiver: tuple[int, Path]) -> None:
    """The counters can be left out."""
    port, folder = receiver
    seen = _move(peer(destinations={"HERE": port}, counters=False), folder)
    assert len(seen.files) == 3
    assert "Completed Suboperations       : none" in seen.log


def test_move_to_an_unknown_destination(peer: StartPeer, tmp_path: Path) -> None:
    """An AE title that is not among the destinations is answered 0xA801."""
    seen = _move(peer(), tmp_path, "NOWHERE")
    assert seen.code == 69
    assert "0xa801" in seen.log


def test_late_delivery_comes_after_the_final_response(peer: StartPeer, receiver: tuple[int, Path]) -> None:
    """A late instance is missing when movescu ends, and arrives afterwards."""
    port, folder = receiver
    node = peer(destinations={"HERE": port}, count=2, late=1, late_secs=1.0)
    assert len(_move(node, folder).files) == 1
    node.wait_for("delivered-late")
    assert len(list(folder.iterdir())) == 2


# --- C-STORE ----------------------------------------------------------------------------------------------------------


def test_store_statuses_in_turn(peer: StartPeer, tmp_path: Path) -> None:
    """Each C-STORE gets the next status."""
    files = make_study(tmp_path, 3, size=8).files
    node = peer(store_statuses=(0x0000, 0xA700, 0xB000))
    _run("storescu", tmp_path, "-nh", "-aec", node.aet, "127.0.0.1", str(node.port), *map(str, files))
    assert [event["status"] for event in node.events("stored")] == [0x0000, 0xA700, 0xB000]


# --- the process ------------------------------------------------------------------------------------------------------


def test_unknown_script_is_refused() -> None:
    """A script that does not exist is an error at once, and so is an unknown option."""
    with pytest.raises(ValueError, match="unknown script"):
        ScriptedPeer("dance")
    with pytest.raises(TypeError, match="colour"):
        ScriptedPeer("serve", colour="red")


def test_waiting_for_an_event_that_never_comes(peer: StartPeer) -> None:
    """The error names the event, and what was reported instead."""
    with pytest.raises(TimeoutError, match=r"peer reports released.*listening"):
        peer("silent").wait_for("released", timeout_secs=0.1)
