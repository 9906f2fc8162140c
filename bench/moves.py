"""Several C-MOVEs at once to one store AE, against one after the other.

Usage: python bench/moves.py [--moves 8] [--objects 50] [--rounds 3]

As many studies of CT (0.5 MB) as moves, each moved once over HTTP into multipart answers that are thrown away; PACS:
dcmqrscp, loopback, TCP_NODELAY=1. By how harmonyd receives what the PACS delivers: natively, or by ``store_scp``.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

PIXELS = 512


def move(base_url: str, studies: Sequence[MadeStudy], at_once: int) -> float:
    """Seconds for all."""
    began_at = time.perf_counter()
    waiting, running = list(studies), list[subprocess.Popen[bytes]]()
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(_curl(base_url, waiting.pop(0)))
        if running.pop(0).wait(300):
            raise RuntimeError("a move failed")
    return time.perf_counter() - began_at


def _curl(base_url: str, study: MadeStudy) -> subprocess.Popen[bytes]:
    document = f'{{"StudyInstanceUID": "{study.study_uid}"}}'
    accept = 'Accept: multipart/related; type="application/dicom"'
    argv = ["curl", "-sS", "--fail", "-o", "/dev/null", "-H", accept, "-H", "Content-Type: application/json"]
    return subprocess.Popen([*argv, "-d", document, f"{base_url}/dicom/move"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--moves", type=int, default=8)
    parser.add_argument("--objects", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        studies = [
            make_study(scratch / f"ct{number}", options.objects, size=PIXELS, patient_id=f"MOVE-{number}")
            for number in range(options.moves)
        ]
        port = free_port()
        files = [file for study in studies for file in study.files]
        with RunningPacs(scratch / "pacs", files=files, destinations={"HARMONY_MOVE": port}) as pacs:
            for how in ("native", "per-association", "persistent"):
                mode = {"engine": "native"} if how == "native" else {"store_scp": how}
                backend = {"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port, **mode}
                backend |= {"move_destination_aet": "HARMONY_MOVE", "incoming_store_port": port}
                config = write_config(scratch / how, http_port=free_port(), backends={"pacs": backend})
                with RunningDaemon(config) as daemon:
                    move(daemon.base_url, studies[:1], 1)
                    for at_once in (1, options.moves):
                        times = [move(daemon.base_url, studies, at_once) for _ in range(options.rounds)]
                        rate = len(studies) * options.objects / statistics.median(times)
                        print(f"{how:<16} {at_once} at once: {rate:6.0f} objects/s", flush=True)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
