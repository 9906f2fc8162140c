"""C-GET and C-MOVE as an SCP: workstations retrieve from a PACS through the daemon."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from query_kit import RUNS_ALONE, Node, proxy

from harmonyd.testing.data import demo_files, report_files
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import dcmtk, free_port


@pytest.fixture(scope="module")
def receiver_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    folder = tmp_path_factory.mktemp("pacs")
    with RunningPacs(folder, files=[*demo_files(), *report_files()], destinations={"HARMONY_MOVE": free_port()}) as it:
        yield it


@pytest.fixture(scope="module")
def through(pacs: RunningPacs, receiver_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    backend = {
        "aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port, "engine": "native",
        "move_destination_aet": "HARMONY_MOVE", "incoming_store_port": pacs.destinations["HARMONY_MOVE"],
    }  # fmt: skip
    destinations = {"WORKSTATION": {"host": "127.0.0.1", "port": receiver_port}}
    daemon, node = proxy(tmp_path_factory.mktemp("daemon"), {"pacs": backend}, move_destinations=destinations)
    with daemon:
        yield node
        print(daemon.log_text()[-5000:] if hasattr(daemon, "log_text") else "")


def test_getscu(through: Node, pacs: RunningPacs, tmp_path: Path) -> None:
    ct = next(path for path in demo_files() if dcmread(path).Modality == "CT")
    uid = dcmread(ct).StudyInstanceUID
    wanted = sum(dcmread(path, stop_before_pixels=True).StudyInstanceUID == uid for path in demo_files())
    argv = [dcmtk("getscu"), *RUNS_ALONE, "-S", "-od", str(tmp_path), "-aet", "WS", "-aec", through.aet]
    argv += ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid}", "127.0.0.1", str(through.port)]
    done = subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    print((done.stdout + done.stderr).decode()[-3000:])
    assert len(list(tmp_path.iterdir())) == wanted


def test_movescu(through: Node, pacs: RunningPacs, receiver_port: int, tmp_path: Path) -> None:
    ct = next(path for path in demo_files() if dcmread(path).Modality == "CT")
    uid = dcmread(ct).StudyInstanceUID
    wanted = sum(dcmread(path, stop_before_pixels=True).StudyInstanceUID == uid for path in demo_files())
    argv = [dcmtk("movescu"), "-d", *RUNS_ALONE, "-S", "-aet", "WS", "-aec", through.aet, "+P", str(receiver_port)]
    argv += ["-od", str(tmp_path)]
    argv += ["-aem", "WORKSTATION"]
    argv += ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid}", "127.0.0.1", str(through.port)]
    done = subprocess.run(argv, check=False, capture_output=True, stdin=subprocess.DEVNULL)
    print((done.stdout + done.stderr).decode()[-3000:])
    assert len(list(tmp_path.iterdir())) == wanted
