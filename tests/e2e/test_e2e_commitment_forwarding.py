"""Storage Commitment after forwarding: the spool keeps what the PACS has not committed to, through kill -9, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from commitment_kit import MODALITY, Modality
from endpoint_kit import entries, spooled
from pydicom import dcmread

from harmonyd.spool.api import EntryState
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import make_study
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, wait_until

_NUMBERS = count()
KEPT = {"commit": "after_forwarding", "release": "committed", "commit_hold_ms": 500}


def study(folder: Path, instances: int = 2) -> list[Path]:
    return list(make_study(folder / "study", instances, patient_id=f"FORWARD{next(_NUMBERS)}", size=16).files)


def uids(files: list[Path]) -> set[str]:
    return {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files}


def configured(
    folder: Path, peer: ScriptedPeer, port: int, *, asker: ScriptedPeer | None = None, **options: Any
) -> RunningDaemon:
    """Not started."""
    destination = {"host": "127.0.0.1", "port": asker.port if asker else 1}
    config = write_config(
        folder,
        http_port=free_port(),
        backends={"pacs": {"engine": "native", "aet": peer.aet, "host": "127.0.0.1", "port": peer.port,
                           "local_aet": "HARMONY", **options}},
        endpoints={
            "inbound": {
                "service": "dicom", "engine": "native", "local_aet": "HARMONY", "bind_addr": "127.0.0.1", "port": port,
                "services": ["store", "commit"], "move_destinations": {MODALITY: destination},
                "commit_same_association": False, "commit_wait_secs": 1,
            }
        },
        sections={"spool": {"max_attempts": 2}},
    )  # fmt: skip
    return RunningDaemon(config)


def send(port: int, files: list[Path]) -> None:
    modality = Modality("HARMONY", port)
    modality.store(files)
    modality.release()


def asked(peer: ScriptedPeer) -> list[set[str]]:
    return [set(event["references"]) for event in peer.events("n-action")]


@contextmanager
def pacs(*commits: str, **options: Any) -> Iterator[ScriptedPeer]:
    with ScriptedPeer(commits=commits, **options) as peer:
        yield peer


def test_the_spool_lets_go_of_what_is_committed(tmp_path: Path) -> None:
    """One object is not committed to: it is sent again, and committed to then; the others go at once."""
    files = study(tmp_path, 3)
    port = free_port()
    with pacs("fail", "same") as peer, configured(tmp_path, peer, port, **KEPT) as daemon:
        send(port, files)
        first = wait_until(lambda: asked(peer), "the PACS is asked", 20)[0]
        assert first == uids(files)
        left = wait_until(lambda: _only(daemon, 1), "one is left", 20)
        assert "0x0112" in left[0].deliveries[0].reason
        wait_until(lambda: not spooled(daemon), "all is committed", 60)
        stored = [event["sop_instance_uid"] for event in peer.events("stored")]
        assert len(stored) == 4
        assert set(stored) == uids(files)


def test_a_report_after_kill_9_is_for_what_was_asked_before(tmp_path: Path) -> None:
    """The PACS reports to the next run, over an association of its own; nothing is sent again."""
    files = study(tmp_path)
    port = free_port()
    with pacs("late", destinations={"HARMONY": port}, gate=str(tmp_path / "gate")) as peer:
        daemon = configured(tmp_path, peer, port, **KEPT)
        daemon.start()
        send(port, files)
        peer.wait_for("n-action")
        wait_until(lambda: _only(daemon, 2), "the spool keeps them", 20)
        daemon.kill9()
        with daemon:
            assert len(spooled(daemon)) == 2
            (tmp_path / "gate").touch()
            wait_until(lambda: not spooled(daemon), "all is committed", 30)
            assert peer.wait_for("reported")["status"] == 0
        assert len(peer.events("n-action")) == 1
        assert len(peer.events("stored")) == 2


def test_a_demand_outlives_kill_9(tmp_path: Path) -> None:
    """A modality was told that its request is taken: it is told what became of it by the next run."""
    files = study(tmp_path)
    port = free_port()
    with ScriptedPeer(aet=MODALITY) as asker:
        nobody = ScriptedPeer(port=free_port())  # not started
        daemon = configured(tmp_path, nobody, port, asker=asker)
        daemon.start()
        modality = Modality("HARMONY", port)
        modality.store(files)
        status, uid = modality.ask(files)
        assert status == 0
        daemon.kill9()
        with daemon:
            report = asker.wait_for("n-event-report")["report"]
        assert report["00081195"]["Value"] == [uid]
        assert {item["00081155"]["Value"][0] for item in report["00081198"]["Value"]} == uids(files)


def test_what_is_released_already_is_asked_about_all_the_same(tmp_path: Path) -> None:
    """With release = "stored" the spool is empty at once; a failure is an error in the log."""
    files = study(tmp_path)
    port = free_port()
    with pacs("fail") as peer, configured(tmp_path, peer, port, commit="after_forwarding") as daemon:
        send(port, files)
        wait_until(lambda: not spooled(daemon), "the spool lets go", 20)
        peer.wait_for("n-action")
        wait_until(lambda: "it is released already" in daemon.log, "the failure is told", 20)


def _only(daemon: RunningDaemon, number: int) -> list[Any]:
    found = entries(daemon)
    waits = [each for each in found if all(d.state is EntryState.WAITING for d in each.deliveries)]
    return waits if len(found) == len(waits) == number and all(each.deliveries[0].reason for each in waits) else []
