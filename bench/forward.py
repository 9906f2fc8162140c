"""From a sender through the gateway to a second PACS: harmonyd, and Orthanc that forwards what it gets.

Usage: python bench/forward.py [--objects 300] [--senders 1,4] [--rounds 3]

CT of 0.5 MB over loopback, TCP_NODELAY=1. The clock runs from the start of the senders until the second PACS (a bare
storescp) has written all. Orthanc forwards each instance as it arrives, from a Lua script, as its documentation shows.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from bench.ingest import PIXELS, orthanc, process, send
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import make_study
from harmonyd.testing.processes import dcmtk, free_port, wait_until

_LUA = """
function OnStoredInstance(instanceId, tags, metadata, origin)
   Delete(SendToModality(instanceId, 'second'))
end
"""


@contextmanager
def harmonyd(folder: Path, destination_port: int, **how: str) -> Iterator[int]:
    """Yields the port to send to. ``how``: options for the endpoint; its engine is the backend's, too."""
    port = free_port()
    config = write_config(
        folder,
        http_port=free_port(),
        endpoints={"scp": {"service": "dicom", "local_aet": "ANY", "port": port, **how}},
        backends={
            "second": {
                "aet": "ANY",
                "host": "127.0.0.1",
                "port": destination_port,
                "engine": how.get("engine", "dcmtk"),
            }
        },
        sections={"proxy": {"log_level": "info"}},
    )
    with RunningDaemon(config):
        yield port


@contextmanager
def forwarding_orthanc(folder: Path, destination_port: int) -> Iterator[int]:
    """Yields the port to send to."""
    script = folder.with_suffix(".lua")
    script.write_text(_LUA)
    modalities = {"second": ["ANY", "127.0.0.1", destination_port]}
    with orthanc(folder, {"DicomModalities": modalities, "LuaScripts": [str(script)]}) as running:
        yield running.port


GATEWAYS: Mapping[str, Callable[[Path, int], AbstractContextManager[int]]] = {
    "native": partial(harmonyd, engine="native"),
    "dcmtk": partial(harmonyd, store_scp="per-association"),
    "Orthanc": forwarding_orthanc,
}


def rate(name: str, files: Sequence[Path], senders: int, scratch: Path) -> float:
    """Objects a second."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    out, port = folder / "out", free_port()
    out.mkdir()
    try:
        argv = [dcmtk("storescp"), "--fork", "+B", "+uf", "+xa", "-od", str(out), str(port)]
        with process(argv, port), GATEWAYS[name](folder / "gateway", port) as entry:
            send(files[:1], 1, entry)
            wait_until(lambda: _count(out) == 1, "the first object is there", 30)
            began_at = time.perf_counter()
            send(files[1:], senders, entry)
            while _count(out) < len(files):
                time.sleep(0.01)
            return (len(files) - 1) / (time.perf_counter() - began_at)
    finally:
        shutil.rmtree(folder)


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--objects", type=int, default=300)
    parser.add_argument("--senders", default="1,4")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        study = make_study(scratch / "ct", options.objects + 1, size=PIXELS)
        for senders in map(int, options.senders.split(",")):
            found: dict[str, list[float]] = {name: [] for name in GATEWAYS}
            for _ in range(options.rounds):
                for name, rates in found.items():
                    rates.append(rate(name, study.files, senders, scratch))
            for name, rates in found.items():
                ratio = statistics.median(rates) / statistics.median(found["Orthanc"])
                print(f"{senders:2} senders  {name:<10} {statistics.median(rates):6.0f} objects/s"
                      f"  ({min(rates):.0f}-{max(rates):.0f})  {ratio:5.2f} x Orthanc", flush=True)  # fmt: skip
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
