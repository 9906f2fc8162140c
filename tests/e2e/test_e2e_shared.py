"""An endpoint and moves on one AE title and port: whatever ends the daemon, what modalities sent is the endpoint's."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from threading import Event, Thread

import pytest
from endpoint_kit import AET, acknowledged, assert_kept, senders, settle, wait_more
from retrieve_kit import peer_backend, post, quarantined

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port

MODE = "per-association"
KILLS = 3


@pytest.mark.deadline(150)
def test_killed_again_and_again(tmp_path: Path) -> None:
    """While moves run and modalities send: all that was acknowledged is kept, and nothing is in quarantine."""
    port, ended = free_port(), Event()
    with ScriptedPeer(count=5, destinations={AET: port}) as peer:
        config = write_config(
            tmp_path,
            http_port=free_port(),
            endpoints={
                "http": {"service": "http", "path_prefix": "/dicom"},
                "inbound": {"service": "dicom", "port": port, "local_aet": AET, "store_scp": MODE},
            },
            backends={
                "pacs": peer_backend(peer, store_scp=MODE),
                "kept": {"service": "storage", "path": str(tmp_path / "kept")},
            },
            pipelines={
                "asking": {"networks": ["default"], "endpoints": ["http"], "backends": ["pacs"]},
                "receiving": {"networks": ["default"], "endpoints": ["inbound"], "backends": ["kept"]},
            },
        )
        with RunningDaemon(config) as running:

            def move() -> None:
                while not ended.is_set():
                    try:
                        post(running, "move", {"StudyInstanceUID": "2.25.7"})
                    except (OSError, HTTPException):
                        ended.wait(0.1)

            moving = Thread(target=move)
            moving.start()
            try:
                with senders(tmp_path / "sent", lambda: port) as sending:
                    for _ in range(KILLS):
                        wait_more(sending, 20)
                        running.kill9()
                        running.start()
                    wait_more(sending, 20)
            finally:
                ended.set()
                moving.join()
            settle(running)
            moved = {path.stem for path in (tmp_path / "kept").glob("2.25.7/*/*.dcm")}
            sent = {uid for sender in sending for uid in sender.sent}
            assert_kept(tmp_path / "kept", acknowledged(sending), sent | moved)
            assert quarantined(running) == {}
