"""kill -9 again and again while objects arrive: what was acknowledged reaches its backend, and nothing is left over."""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path

import pytest
from inbound_kit import (
    MODES,
    Sender,
    acknowledged,
    assert_kept,
    endpoint,
    senders,
    settle,
    wait_more,
)
from pydicom import dcmread

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port, wait_until

KILLS = 25
"""In each mode."""
KILLS_WITH_A_PACS = 3
MOST_OBJECTS, MOST_LINES = 40, 25
"""A run is killed when so many objects were acknowledged, or while it starts, when it has logged so many lines."""
FAST_RETRY = {"spool": {"retry_max_secs": 1}}


def kill_again_and_again(running: RunningDaemon, of: Collection[Sender], kills: int, chance: random.Random) -> None:
    """Start it and kill it at a random point, so many times; nothing that it started may outlive it."""
    for number in range(kills):
        logged = lines(running)
        running.launch()
        if number % 5 == 4:
            goal = logged + chance.randrange(1, MOST_LINES)
            wait_until(lambda goal=goal: lines(running) >= goal, "it logs something", 30)  # type: ignore[misc]
        else:
            wait_more(of, chance.randrange(1, MOST_OBJECTS))
        running.kill9()
        running.assert_nothing_left(10)


def lines(running: RunningDaemon) -> int:
    """How many lines it has logged, over all starts."""
    return running.log_file.read_bytes().count(b"\n") if running.log_file.exists() else 0


@pytest.mark.deadline(240)
@pytest.mark.parametrize("mode", MODES)
def test_killed_under_load(tmp_path: Path, mode: str) -> None:
    """After 25 kills at random points every acknowledged object is at the backend, byte for byte."""
    port, kept = free_port(), tmp_path / "kept"
    config = write_config(
        tmp_path / "host",
        http_port=free_port(),
        endpoints=endpoint(port, store_scp=mode),
        backends={"kept": {"service": "storage", "path": str(kept)}},
        sections=FAST_RETRY,
    )
    running = RunningDaemon(config)
    try:
        with senders(tmp_path, lambda: port) as sending:
            kill_again_and_again(running, sending, KILLS, random.Random(mode))
    finally:
        running.kill9()
    with running:
        settle(running)
    arrived = acknowledged(sending)
    assert len(arrived) > KILLS
    assert_kept(kept, arrived, [uid for sender in sending for uid in sender.sent])


@pytest.mark.deadline(180)
@pytest.mark.parametrize("mode", MODES)
def test_killed_while_a_pacs_is_fed(tmp_path: Path, mode: str) -> None:
    """The same with a second PACS behind it, which has each acknowledged object, element for element."""
    port = free_port()
    with RunningPacs(tmp_path / "pacs", files=[]) as pacs:
        config = write_config(
            tmp_path / "host",
            http_port=free_port(),
            endpoints=endpoint(port, store_scp=mode),
            backends={"pacs": {"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port}},
            sections=FAST_RETRY,
        )
        running = RunningDaemon(config)
        try:
            with senders(tmp_path, lambda: port) as sending:
                kill_again_and_again(running, sending, KILLS_WITH_A_PACS, random.Random(mode))
        finally:
            running.kill9()
        with running:
            settle(running)
        stored = {str(ds.SOPInstanceUID): ds for ds in map(dcmread, pacs.layout.area.glob("*.dcm"))}
        for uid, path in acknowledged(sending).items():
            assert stored.get(uid) == dcmread(path), uid
