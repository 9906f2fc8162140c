"""Nothing acknowledged is lost: the daemon is killed again and again while objects arrive and are delivered."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import pytest
from endpoint_kit import MODES
from pydicom import dcmread
from retrieve_kit import storage

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import make_ct, uid_for
from harmonyd.testing.processes import dcmtk, free_port, wait_until

KILLS = int(os.environ.get("HARMONYD_TEST_KILLS", "3"))
"""In each mode. 25 take two minutes each."""
SENDERS = 3
BATCH = 6
SMALL, BIG = 40, 512
"""Pixels; 3 KB and 0.5 MB."""
MOST_BEFORE_A_KILL = 20
ENV = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"}


class Senders:
    """Keep sending new objects, and note which were acknowledged with Success, and what was sent."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = port
        self._numbers = itertools.count()
        self._lock = Lock()
        self._ended = Event()
        self.acknowledged: dict[str, Path] = {}
        """By SOP Instance UID."""

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [Thread(target=self._work, args=(number,)) for number in range(SENDERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def _work(self, sender: int) -> None:
        while not self._ended.is_set():
            batch = [self._make(sender) for _ in range(BATCH)]
            argv = [dcmtk("storescu"), "-v", "-aec", "HARMONY_SCP", "127.0.0.1", str(self._port)]
            ran = subprocess.run([*argv, *(str(path) for _, path in batch)], env=ENV, capture_output=True, check=False)
            successes = (ran.stdout + ran.stderr).count(b"Received Store Response (Success)")
            with self._lock:
                self.acknowledged.update(batch[:successes])

    def _make(self, sender: int) -> tuple[str, Path]:
        with self._lock:
            number = next(self._numbers)
        path = self._folder / f"{number}.dcm"
        uid = make_ct(
            path,
            study_uid=uid_for(f"study {sender}"),
            series_uid=uid_for(f"series {sender}"),
            instance_number=number,
            patient_id="CRASH",
            size=BIG if number % 7 == 0 else SMALL,
        )
        return uid, path


def config_for(folder: Path, port: int, store_scp: str) -> Path:
    return write_config(
        folder,
        http_port=free_port(),
        endpoints={
            "inbound": {"service": "dicom", "port": port, "local_aet": "HARMONY_SCP", "store_scp": store_scp}
        },
        backends={"kept": {"service": "storage", "path": "kept"}},
        sections={"management": {"enabled": True, "network": "default"}, "spool": {"min_free_mb": 50}},
    )


def nothing_waits(daemon: RunningDaemon) -> bool:
    spool: Any = daemon.http("GET", "/admin/spool").json()
    receiving = storage(daemon) / "spool" / "receiving"
    return not any(item["waiting"] for item in spool["backends"]) and not any(
        path.is_file() for path in receiving.rglob("*")
    )


@pytest.mark.deadline(60 + 10 * KILLS)
@pytest.mark.parametrize("store_scp", MODES)
def test_every_acknowledged_object_is_delivered(tmp_path: Path, store_scp: str) -> None:
    """Killed at random points under load, the daemon still delivers every object that it acknowledged, unchanged."""
    chance = random.Random(store_scp)
    made = tmp_path / "made"
    made.mkdir()
    port = free_port()
    senders = Senders(made, port)
    daemon = RunningDaemon(config_for(tmp_path, port, store_scp), ready_secs=60)
    with senders.running():
        for _ in range(KILLS):
            daemon.start()
            enough = len(senders.acknowledged) + chance.randint(1, MOST_BEFORE_A_KILL)
            wait_until(lambda enough=enough: len(senders.acknowledged) >= enough, "some are acknowledged", 60)
            daemon.kill9()
            daemon.assert_nothing_left()
    with daemon:
        wait_until(lambda: nothing_waits(daemon), "everything is delivered", 60)
    kept = {path.name.removesuffix(".dcm"): path for path in (tmp_path / "kept").glob("*/*/*.dcm")}
    assert senders.acknowledged.keys() - kept.keys() == set()
    for uid, sent in senders.acknowledged.items():
        assert dcmread(kept[uid]) == dcmread(sent)
