"""What kept children say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs

from harmonyd.supervision.logs import ChildLog, RingBuffer, RotatedFile, log_file_name, severity


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (b"F: cannot", LogLevel.critical),
        (b"E: broken", LogLevel.error),
        (b"W: odd", LogLevel.warn),
        (b"I: fine", LogLevel.info),
        (b"D: detail", LogLevel.debug),
        (b"no prefix", LogLevel.info),
        (b"", LogLevel.info),
    ],
)
def test_severity_follows_dcmtks_prefix(line: bytes, level: LogLevel) -> None:
    """DCMTK's first letter is the level."""
    assert severity(line) is level


@pytest.mark.parametrize(
    "line",
    [
        b"W: DcmElement: Invalid value (ZQNAME^X) for element PatientName (0010,0010)",
        b"E: Cannot select source character set: SpecificCharacterSet (0008,0005) value 'ZQNAME' not supported",
        b'W: DcmItem: "ZQNAME" is odd',
        b"E: No file for [ZQNAME]: can't be, and won't be",
        b"E: cannot write DICOM file: /var/lib/harmonyd/CT.ZQNAME: No space left on device",
        b"W: DIMSE Warning: SOP Instance UID: ZQNAME",
    ],
)
def test_what_a_complaint_quotes_is_withheld(line: bytes, tmp_path: Path) -> None:
    """Of a data set, or of a peer: in the log, in the file and for who asks for the last lines."""
    log = ChildLog("storescp:x", RingBuffer(1000), RotatedFile(tmp_path / "log", 1000, 0, Clock().seconds))
    with capturedLogs() as captured:
        log.lines(1, [line, b"E: can't bind: it isn't (0006:031c) free: /run/x/CT.1.2.3: Address already in use"])
    log.close()
    said = [str(event["line"]) for event in captured]
    kept = (tmp_path / "log").read_text()
    assert "ZQNAME" not in said[0] + kept + str(log.last_lines(2))
    assert said[0][:6] == line[:6].decode()
    assert said[1] == "E: can't bind: it isn't (0006:031c) free: /run/x/CT.1.2.3: Address already in use"


@given(st.lists(st.binary(max_size=12), max_size=20), st.integers(0, 20), st.integers(0, 30))
def test_the_ring_keeps_the_end(writes: list[bytes], size: int, wanted: int) -> None:
    """The buffer holds the last bytes of the stream, and knows the position of its end."""
    ring = RingBuffer(size)
    for data in writes:
        ring.write(data)
    whole = b"".join(writes)
    kept = whole[max(0, len(whole) - size) :]
    assert ring.tail(size) == kept
    assert ring.tail(wanted) == kept[max(0, len(kept) - wanted) :]
    assert ring.total_bytes == len(whole)


def test_the_ring_follows_a_position() -> None:
    """What came after a position is returned, as far as it is still there."""
    ring = RingBuffer(5)
    ring.write(b"abc")
    position = ring.total_bytes
    ring.write(b"de")
    assert ring.since(position) == b"de"
    ring.write(b"fghij")
    assert ring.since(position) == b"fghij"
    ring.clear()
    assert ring.tail(5) == b""


def test_files_rotate_by_size(tmp_path: Path) -> None:
    """The youngest backup is .1, and only the configured number of backups stays."""
    file = RotatedFile(tmp_path / "new" / "x.log", max_bytes=10, backups=2, clock=Clock().seconds)
    for text in (b"first\n", b"second\n", b"third\n", b"fourth\n"):
        file.write(text)
    file.close()
    found = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert found == {"x.log": b"fourth\n", "x.log.1": b"third\n", "x.log.2": b"second\n"}


def test_no_backups_means_starting_over(tmp_path: Path) -> None:
    """With no backups the full file is dropped."""
    file = RotatedFile(tmp_path / "x.log", max_bytes=4, backups=0, clock=Clock().seconds)
    file.write(b"one\n")
    file.write(b"two\n")
    file.close()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"two\n"]


def test_a_failed_write_is_said_once_a_minute_and_stops_nothing(tmp_path: Path) -> None:
    """An unwritable file is an error in the log at most once a minute; writing goes on when it can."""
    clock = Clock()
    in_the_way = tmp_path / "x.log"
    in_the_way.mkdir()
    file = RotatedFile(in_the_way, max_bytes=100, backups=1, clock=clock.seconds)
    with capturedLogs() as events:
        for _ in range(3):
            file.write(b"lost\n")
        clock.advance(61)
        file.write(b"lost\n")
    assert len(events) == 2
    in_the_way.rmdir()
    file.write(b"kept\n")
    file.close()
    assert in_the_way.read_bytes() == b"kept\n"


def test_lines_reach_ring_file_and_daemon_log(tmp_path: Path) -> None:
    """Warnings and errors keep their level in the daemon's log, everything else is debug; fields name child and pid."""
    log = ChildLog("storescp:x", RingBuffer(100), RotatedFile(tmp_path / "x.log", 1000, 1, Clock().seconds))
    with capturedLogs() as events:
        log.lines(42, [b"I: fine", b"E: broken \xff", b"\x1b[2J"])
    log.close()
    assert [event["log_level"] for event in events] == [LogLevel.debug, LogLevel.error, LogLevel.debug]
    assert events[1]["child"] == "storescp:x" and events[1]["pid"] == 42
    assert log.last_lines(2) == [b"E: broken \xff", b"\x1b[2J"]
    assert (tmp_path / "x.log").read_bytes() == b"I: fine\nE: broken \xff\n\x1b[2J\n"


def test_file_names_hold_nothing_harmful() -> None:
    """A name cannot lead out of the log folder."""
    assert log_file_name("storescp", "in-1") == "storescp-in-1.log"
    assert log_file_name("a", "../b c") == "a-.._b_c.log"
