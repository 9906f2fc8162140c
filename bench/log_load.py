"""Children that log a lot: is a line lost, and does the daemon answer meanwhile? Run by ``supervision.py logs``."""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import dcmtk, free_port, wait_until

CHILDREN = 10
PER_WRITE = 10
BASELINE_SECS = 10.0

STORESCP = """#!/bin/sh
[ "$1" = --version ] && exec {storescp} --version
{python} -I -S {chatter} {go} {count} {rate} &
exec {storescp} "$@"
"""
"""A storescp beside which another process of its session writes into the same pipe."""

CHATTER = f"""
import os, sys, time
go, count, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
while not os.path.exists(go):
    time.sleep(0.05)
began_at = time.monotonic()
for first in range(0, count, {PER_WRITE}):
    time.sleep(max(0.0, began_at + first / rate - time.monotonic()))
    numbers = range(first, first + {PER_WRITE})
    os.write(1, "".join(f"I: a line as DCMTK writes it, number #{{number}}#\\n" for number in numbers).encode())
os.write(1, b"I: all is said after %d ms\\n" % ((time.monotonic() - began_at) * 1000))
"""


def write_programs(folder: Path, count: int, rate: float) -> None:
    """Put a storescp that chatters into ``folder``."""
    (folder / "chatter.py").write_text(CHATTER)
    script = folder / "storescp"
    script.write_text(
        STORESCP.format(
            storescp=dcmtk("storescp"),
            python=sys.executable,
            chatter=folder / "chatter.py",
            go=folder / "go",
            count=count,
            rate=rate,
        )
    )
    script.chmod(0o755)


def latencies(running: RunningDaemon, secs: float) -> list[float]:
    """Milliseconds of GET /livez on one connection, about 50 a second."""
    connection, found = HTTPConnection(running.host, running.port, timeout=30), []
    end_at = time.perf_counter() + secs
    while (began_at := time.perf_counter()) < end_at:
        connection.request("GET", "/livez")
        connection.getresponse().read()
        found.append((time.perf_counter() - began_at) * 1000)
        time.sleep(0.02)
    connection.close()
    return found


def told(what: str, values: list[float]) -> None:
    """Print p50 and p99."""
    print(f"GET /livez {what}: p50 {statistics.median(values):.2f} ms, "
          f"p99 {statistics.quantiles(values, n=100)[98]:.2f} ms, longest {max(values):.1f} ms")  # fmt: skip


def text_of(log: Path) -> str:
    """What a child has said: rotated files, oldest first, and the one that is written."""
    rotated = sorted(log.parent.glob(f"{log.name}.*"), key=lambda path: -int(path.suffix[1:]))
    return "".join(path.read_text("utf-8", "replace") for path in [*rotated, log])


def logs(arguments: argparse.Namespace) -> None:
    """Latency without load, then with it; then every number must be there once and in order."""
    rate = arguments.lines / CHILDREN
    count = int(rate * arguments.secs)
    with tempfile.TemporaryDirectory(prefix="hd") as name:
        folder = Path(name)
        write_programs(folder, count, rate)
        endpoints = {f"in{number}": {"service": "dicom", "port": free_port()} for number in range(CHILDREN)}
        pipelines = {each: {"networks": [], "endpoints": [each], "backends": []} for each in endpoints}
        sections = {
            "proxy": {"log_level": "info"},
            "supervision": {"log_max_bytes": 1_000_000, "log_backups": 99},
        }
        config = write_config(
            folder, http_port=free_port(), backends={}, endpoints=endpoints, pipelines=pipelines, sections=sections
        )
        with RunningDaemon(config, env={"PATH": f"{folder}:{os.environ['PATH']}"}) as running:
            told("without load", latencies(running, BASELINE_SECS))
            (folder / "go").touch()
            told(f"with {arguments.lines} lines/s for {arguments.secs:g} s", latencies(running, arguments.secs))
            files = [folder / "tmp/log" / f"storescp-{each}.log" for each in endpoints]
            wait_until(lambda: all("all is said" in text_of(file) for file in files), "all lines are written", 300)
            texts = [text_of(file) for file in files]
            rotated = sum(1 for _ in (folder / "tmp/log").glob("*.log.*"))
    numbers = [[int(found) for found in re.findall(r"#(\d+)#", text)] for text in texts]
    whole = sum(found == list(range(count)) for found in numbers)
    took_ms = [int(found) for text in texts for found in re.findall(r"all is said after (\d+) ms", text)]
    kept = sum(map(len, numbers))
    print(f"{kept} of {CHILDREN * count} lines in {CHILDREN} files and {rotated} rotated ones")
    print(f"{whole} of {CHILDREN} children complete and in order; the slowest took {max(took_ms) / 1000:.1f} s")
