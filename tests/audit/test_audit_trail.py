"""The trail against a real collector over TLS: nothing is lost, nothing is out of order, nobody waits."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audit_kit import Collector, alert, event_type, text

from harmonyd.audit import sender, sinks, syslog, trail
from harmonyd.audit.backlog import NAME, Backlog
from harmonyd.audit.file import AuditFile
from harmonyd.audit.syslog import framed
from harmonyd.audit.trail import AuditTrail, AuditUnusable
from harmonyd.config.audit_model import AuditConfig
from harmonyd.testing.certificates import Authority
from harmonyd.testing.processes import wait_until
from harmonyd.tls import TlsClient


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "FIRST_WAIT_SECS", 0.02)
    monkeypatch.setattr(sender, "MOST_WAIT_SECS", 0.05)
    monkeypatch.setattr(sinks, "RETRY_SECS", 0.02)
    monkeypatch.setattr(trail, "RETRY_SECS", 0.02)
    monkeypatch.setattr(trail, "STOP_SEND_SECS", 0.3)


@pytest.fixture
def collector(tmp_path: Path) -> Collector:
    return Collector(tmp_path / "collector")


@pytest.fixture
def trails() -> Iterator[list[AuditTrail]]:
    """Those that are to be stopped."""
    made: list[AuditTrail] = []
    yield made
    for each in made:
        each.stop()


def started(trails: list[AuditTrail], folder: Path, **settings: Any) -> AuditTrail:
    made = AuditTrail(folder, AuditConfig(enabled=True, source_id="gw", **settings))
    trails.append(made)
    made.start()
    return made


def texts(collector: Collector) -> list[str]:
    return [text(message) for message in collector.messages]


def numbered(count: int, start: int = 0) -> list[str]:
    return [f"alert {number}" for number in range(start, start + count)]


def send(made: AuditTrail, said: list[str]) -> None:
    for each in said:
        made(alert(each))


# --- the way to the collector


def test_messages_arrive_in_order(tmp_path: Path, collector: Collector, trails: list[AuditTrail]) -> None:
    """With priority, time, host and MSGID as PS3.15 section A.6 has them; then nothing waits any more."""
    with collector:
        made = started(trails, tmp_path, syslog=collector.settings)
        send(made, numbered(100))
        collector.wait(100)
        assert texts(collector) == numbered(100)
        assert set(collector.priorities) == {84}, "failures are warnings"
        figures = wait_until(lambda: None if made.figures().waiting else made.figures(), "nothing waits")
        assert figures is not None
        assert (figures.written, figures.delivered, figures.oldest_at) == (100, 100, None)
        assert figures.connected
        assert not any(figures.dropped.values())
        assert collector.connections == 1


def test_a_flood_is_taken_at_once(tmp_path: Path, collector: Collector, trails: list[AuditTrail]) -> None:
    """10,000 alerts: none is lost where there is room, and whoever tells of them never waits for a disk."""
    with collector:
        made = started(trails, tmp_path, syslog=collector.settings)
        send(made, numbered(10_000))
        wait_until(lambda: made.figures().delivered == 10_000, "all were delivered", 30)
    assert texts(collector) == numbered(10_000)


def test_while_the_collector_is_away_messages_wait_on_disk(
    tmp_path: Path, collector: Collector, trails: list[AuditTrail]
) -> None:
    """They are there after a restart, and come when the collector does, before what is newer."""
    made = started(trails, tmp_path, syslog=collector.settings)
    send(made, numbered(5))
    wait_until(lambda: made.figures().waiting == 5, "all are on disk")
    oldest = made.figures().oldest_at
    assert oldest is not None
    assert oldest <= time.time()
    assert made.figures().connected is False
    made.stop()
    again = started(trails, tmp_path, syslog=collector.settings)
    assert again.figures().waiting == 5
    send(again, numbered(5, 5))
    with collector:
        collector.wait(10)
        assert texts(collector) == numbered(10)


def test_what_a_collector_did_not_read_comes_again(
    tmp_path: Path, collector: Collector, trails: list[AuditTrail], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops reading, then dies: the next one gets everything, in order, some of it twice at most."""
    monkeypatch.setattr(syslog, "SEND_SECS", 0.3)
    made = started(trails, tmp_path, syslog=collector.settings)
    with collector:
        send(made, ["first"])
        collector.wait(1)
        collector.reads.clear()
        send(made, numbered(2000))
        wait_until(lambda: made.figures().written == 2001, "all are on disk")
        wait_until(lambda: not made.figures().connected, "it was given up")
    collector.received.clear()
    collector.reads.set()
    with collector:
        wait_until(lambda: made.figures().waiting == 0, "all were sent", 30)
        found = texts(collector)
    assert found[-1] == "alert 1999"
    firsts = list(dict.fromkeys(found))
    assert firsts == numbered(2000)[-len(firsts) :], "without a gap"
    taken_before = 2000 - len(firsts)
    assert taken_before * 1000 < 4_000_000, "no more than fits the buffers between us"


def test_a_stranger_gets_nothing(tmp_path: Path, collector: Collector, trails: list[AuditTrail]) -> None:
    """A certificate of another authority, or for another name, or not the pinned one: no message leaves."""
    other = Authority(tmp_path / "collector", "other-ca")
    wrong = [
        replace(collector.settings, tls=TlsClient(ca_file=other.cert)),
        replace(collector.settings, tls=TlsClient(ca_file=collector.authority.cert, server_name="other.example")),
        replace(collector.settings, tls=TlsClient(pinned_sha256=("00" * 32,))),
    ]
    right = replace(collector.settings, tls=TlsClient(pinned_sha256=(collector.issued.sha256,)))
    with collector:
        made = started(trails, tmp_path, syslog=wrong[0])
        made(alert("secret"))
        for settings in wrong:
            made.configure(AuditConfig(enabled=True, syslog=settings))
            failures = made._sender._failures
            wait_until(lambda before=failures: made._sender._failures > before + 1, "it was tried")  # type: ignore[misc]
            assert not collector.received
        made.configure(AuditConfig(enabled=True, syslog=right))
        collector.wait(1)


def test_where_it_goes_can_change(tmp_path: Path, collector: Collector, trails: list[AuditTrail]) -> None:
    """Another collector, and none, and a file, without a restart; nothing that waits is lost."""
    second = Collector(tmp_path / "second")
    with collector, second:
        made = started(trails, tmp_path, syslog=collector.settings)
        made(alert("one"))
        collector.wait(1)
        wait_until(lambda: made.figures().waiting == 0, "the collector is known to have it")
        made.configure(AuditConfig(enabled=True, syslog=second.settings))
        made(alert("two"))
        second.wait(1)
        made.configure(AuditConfig())
        made(alert("nobody hears this"))
        made.configure(AuditConfig(enabled=True, file=tmp_path / "audit.log"))
        made(alert("three"))
        wait_until(lambda: made.figures().written == 3, "the file has it")
        assert made.figures().connected is None
    assert (texts(collector), texts(second)) == (["one"], ["two"])
    assert (tmp_path / "audit.log").read_bytes().count(b"\n") == 1


# --- the file


def test_the_file_can_be_rotated(tmp_path: Path, trails: list[AuditTrail]) -> None:
    """Mode 0640; renamed or removed, it is made again, and a reload opens it anew."""
    path = tmp_path / "audit.log"
    made = started(trails, tmp_path, file=path)
    for number, name in enumerate(("1", "2", "3"), 1):
        made(alert(f"alert {name}"))
        wait_until(lambda number=number: made.figures().written == number, "it is written")  # type: ignore[misc]
        assert stat.S_IMODE(path.stat().st_mode) & ~0o640 == 0
        path.rename(tmp_path / f"audit.log.{name}")
        made.configure(made._config)
    for name in ("1", "2", "3"):
        assert f"alert {name}<".encode() in (tmp_path / f"audit.log.{name}").read_bytes()


def test_a_full_disk_costs_nothing_within_bounds(
    tmp_path: Path, trails: list[AuditTrail], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written waits in memory; beyond the bound it is dropped, counted, and an alert tells of it."""
    monkeypatch.setattr(sinks, "MOST_WAITING", 20)
    path = tmp_path / "audit.log"
    made = started(trails, tmp_path, file=path)
    is_full = True
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    send(made, numbered(50))
    wait_until(lambda: made.figures().dropped.get("file") == 30, "30 were dropped")
    assert path.read_bytes() == b"", "no line is there in part"
    is_full = False
    wait_until(lambda: path.read_bytes().count(b"\n") == 21, "all others, and the alert, are written")
    lines = path.read_text().splitlines()
    assert all(f"alert {number}<" in lines[number] for number in range(20))
    assert "30 audit messages were dropped: there was no room in file" in lines[-1]
    assert 'originalText="Audit Recording Stopped"' in lines[-1]

@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_makes_no_echoes(tmp_path: Path, disk: Path, collector: Collector) -> None:
    """What was delivered and cannot be removed from the disk is not sent again and again."""
    made = AuditTrail(disk, AuditConfig(enabled=True, source_id="gw", syslog=collector.settings))
    made.start()
    try:
        send(made, numbered(450))
        wait_until(lambda: made.figures().waiting == 450, "all are on disk")
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with collector:
            wait_until(lambda: made.figures().waiting == 0, "all were delivered")
            assert made.figures().oldest_at is None
            filler.unlink()
            send(made, numbered(3, 450))
            wait_until(lambda: made.figures().delivered == 453, "the rest was delivered")
            assert texts(collector) == numbered(453)
    finally:
        made.stop()
    with sqlite3.connect(disk / "audit" / NAME) as db:
        assert db.execute("SELECT count(*) FROM messages").fetchone() == (0,)
    db.close()


def test_a_full_backlog_keeps_what_came_first(tmp_path: Path, collector: Collector, trails: list[AuditTrail]) -> None:
    """Who floods the trail cannot wash away what it has; the loss is told when there is room."""
    made = started(trails, tmp_path, syslog=collector.settings, max_backlog_bytes=50_000)
    made(alert("the break-in"))
    send(made, numbered(200))
    wait_until(lambda: made.figures().dropped.get("syslog", 0) > 0 and made.figures().written == 201, "it is full")
    assert made.figures().waiting_bytes <= 50_000
    kept, dropped = made.figures().waiting, made.figures().dropped["syslog"]
    assert kept + dropped == 201
    with collector:
        found = collector.wait(kept + 1)
    assert text(found[0]) == "the break-in"
    assert text(found[-1]) == f"{dropped} audit messages were dropped: there was no room in syslog"
    assert event_type(found[-1]) == "Audit Recording Stopped"


def test_a_disk_that_hangs_holds_nobody(
    tmp_path: Path, trails: list[AuditTrail], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Telling the trail returns at once; what it cannot hold is counted."""
    import threading

    goes_on = threading.Event()
    made = started(trails, tmp_path, file=tmp_path / "audit.log")
    monkeypatch.setattr(trail, "MOST_EVENTS", 100)
    monkeypatch.setattr(AuditFile, "append", lambda *_: goes_on.wait(30))
    send(made, numbered(1000))
    assert made.figures().dropped["memory"] >= 600
    goes_on.set()
    wait_until(lambda: made.figures().written > 100, "it goes on")


def test_a_trail_that_cannot_be_written_is_told_at_the_start(tmp_path: Path, trails: list[AuditTrail]) -> None:
    """Not by the first message."""
    with pytest.raises(AuditUnusable, match="No such file or directory"):
        started(trails, tmp_path, file=tmp_path / "nowhere" / "audit.log")


# --- parts


def test_a_damaged_backlog_is_put_aside(tmp_path: Path) -> None:
    """What comes matters more than what cannot be read; that stays to be looked at."""
    (tmp_path / NAME).write_bytes(b"no database at all" * 1000)
    backlog = Backlog(tmp_path, 1000)
    assert backlog.add([(1.0, b"x")]) == 1
    assert [each.body for each in backlog.first(10)] == [b"x"]
    assert len(list(tmp_path.glob(f"{NAME}.damaged-*"))) == 1
    backlog.close()
    with sqlite3.connect(tmp_path / NAME) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_frames_count_octets() -> None:
    """RFC 5425 section 4.3.1, RFC 5424 section 6; a host name is printable ASCII or nothing."""
    frame = framed(b"<x/>", 0.0, 5, "gw\n\u00e9", 7)
    assert frame == b"67 <85>1 1970-01-01T00:00:00.000Z gw?? harmonyd 7 DICOM+RFC3881 - <x/>"
    assert len(frame.partition(b" ")[2]) == int(frame.partition(b" ")[0])
    assert b"Z - harmonyd" in framed(b"", 0.0, 5, "", 7)


@pytest.mark.parametrize(("failures", "low", "high"), [(1, 0.25, 0.5), (3, 1.0, 2.0), (50, 30.0, 60.0)])
def test_waiting_grows_to_a_bound(failures: int, low: float, high: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From half a second to a minute, spread."""
    monkeypatch.setattr(sender, "FIRST_WAIT_SECS", 0.5)
    monkeypatch.setattr(sender, "MOST_WAIT_SECS", 60.0)
    assert sender.wait_secs(failures, 0.0) == low
    assert sender.wait_secs(failures, 1.0) == high
