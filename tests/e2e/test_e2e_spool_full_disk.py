"""A disk that fills up while objects arrive: what was acknowledged is delivered, or told as an alarm that names it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from endpoint_kit import (
    MODES,
    Sender,
    acknowledged,
    assert_kept,
    associate,
    endpoint,
    entries,
    senders,
    spooled,
    status_of,
    wait_more,
)
from retrieve_kit import NATIVE

from harmonyd.spool.api import EntryState
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import make_study
from harmonyd.testing.processes import free_port, port_is_free, wait_until

DISK_BYTES = 32_000_000
SPOOL = {"spool": {"min_free_mb": 8, "ballast_mb": 2, "retry_max_secs": 1}}
SIZES = {"under 4 KB": 16, "0.5 MB": 512}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def cramped(tmp_path: Path, disk: Path, mode: str) -> Iterator[tuple[RunningDaemon, int]]:
    """A daemon that receives on this disk and keeps what it received on another one; and its port."""
    port = free_port()
    config = write_config(
        tmp_path / "host",
        http_port=free_port(),
        endpoints=endpoint(port, store_scp=mode),
        backends={"kept": {"service": "storage", "path": str(tmp_path / "kept")}},
        sections={"storage": {"options": {"path": str(disk)}}, **SPOOL},
    )
    with RunningDaemon(config) as running:
        wait_until((disk / "spool" / "ballast").exists, "the ballast is there")
        yield running, port


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """While inside, somebody else has taken all room that there was."""
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            file.write(bytes(shutil.disk_usage(disk).free))
        yield
    finally:
        filler.unlink()


def refusal(running: RunningDaemon) -> str:
    """Why nothing is received, as /readyz tells it; empty while it is ready."""
    answer = running.http("GET", "/readyz")
    return "" if answer.status == 200 else answer.body.decode()


def assert_refused(port: int, mode: str) -> None:
    """A new association is rejected for temporary congestion (PS3.8 section 9.3.4), or has nowhere to connect to."""
    if mode == "persistent" and not NATIVE:
        wait_until(lambda: port_is_free(port), "nobody listens any more")
        return
    assoc = associate(port)
    wait_until(lambda: assoc.is_rejected, "it is rejected")  # which pynetdicom notes in a thread of its own
    answer: Any = assoc.acceptor.primitive
    assert (answer.result, answer.result_source, answer.diagnostic) == (2, 3, 1)


def alarms(running: RunningDaemon) -> str:
    """What the spool and the log say of damaged objects."""
    told = in_state(running, EntryState.DAMAGED)
    text = " ".join(info.entry.metadata["sop_instance_uid"] + info.deliveries[0].reason for info in told)
    lines = [line for line in running.log.splitlines() if "an acknowledged object is damaged" in line]
    assert len(lines) == len(told)
    return text + "".join(lines)


def settle(running: RunningDaemon) -> None:
    """Wait until it receives again, and all that is whole is handed on."""
    wait_until(lambda: not refusal(running), "it is ready again", 60)
    # What could not be taken is offered again by a sweep, every 30 s.
    wait_until(lambda: len(spooled(running)) == len(entries(running)) and not waiting(running), "all is handed on", 120)


def waiting(running: RunningDaemon) -> list[Any]:
    return in_state(running, EntryState.WAITING)


def in_state(running: RunningDaemon, state: EntryState) -> list[Any]:
    """Entries with a delivery in this state; one that has just been handed on has none any more."""
    return [info for info in entries(running) if any(delivery.state is state for delivery in info.deliveries)]


@pytest.mark.root
@pytest.mark.deadline(240)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("mode", MODES)
def test_an_association_that_goes_on(tmp_path: Path, disk: Path, mode: str, size: int) -> None:
    """Space runs out under an open association: each object is delivered, refused, or named in an alarm."""
    study = make_study(tmp_path / "made", 60, size=size)
    statuses: dict[str, int | None] = {}
    with cramped(tmp_path, disk, mode) as (running, port):
        assoc = associate(port)
        for number, (uid, path) in enumerate(zip(study.sop_uids, study.files, strict=True)):
            if number != 10:
                statuses[uid] = status_of(assoc, path) if assoc.is_established else None
                continue
            with full(disk):
                # While nothing may be received, or as long as the association is left to go on.
                for late, later in zip(study.sop_uids[10:50], study.files[10:50], strict=True):
                    statuses[late] = status_of(assoc, later) if assoc.is_established else None
                wait_until(lambda: "receiving" in refusal(running), "it is not ready")
                assert_refused(port, mode)
            break
        if assoc.is_established:
            assoc.release()
        settle(running)
        taken = {uid: path for uid, path in zip(study.sop_uids, study.files, strict=True) if statuses.get(uid) == 0}
        kept = {path.stem for path in (tmp_path / "kept").glob("*/*/*.dcm")}
        told = alarms(running)
        assert not [uid for uid in taken if uid not in kept and uid not in told]
        assert set(study.sop_uids[:10]) <= kept
        again = associate(port)
        assert [status_of(again, path) for path in study.files] == [0] * len(study.files)
        again.release()
        settle(running)
        assert_kept(tmp_path / "kept", dict(zip(study.sop_uids, study.files, strict=True)), study.sop_uids)


@pytest.mark.root
@pytest.mark.deadline(240)
@pytest.mark.parametrize("mode", MODES)
def test_senders_that_go_on(tmp_path: Path, disk: Path, mode: str) -> None:
    """The disk is full twice while others send without end: nothing acknowledged is lost, and it goes on by itself."""
    with cramped(tmp_path, disk, mode) as (running, port):
        with senders(tmp_path, lambda: port) as sending:
            for _ in range(2):
                wait_more(sending, 40)
                with full(disk):
                    wait_until(lambda: "receiving" in refusal(running), "it is not ready")
                    assert_refused(port, mode)
                wait_until(lambda: not refusal(running), "it is ready again", 60)
            wait_more(sending, 40)
        settle(running)
        told = alarms(running)
    lost = {uid: path for uid, path in acknowledged(sending).items() if uid in told}
    delivered = {uid: path for uid, path in acknowledged(sending).items() if uid not in lost}
    assert_kept(tmp_path / "kept", delivered, sent(sending))


def sent(sending: list[Sender]) -> list[str]:
    return [uid for sender in sending for uid in sender.sent]
