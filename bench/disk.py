"""What the disk can take: files of 0.5 MB, each in a new inode, flushed in different ways, from some threads at once.

Usage: python bench/disk.py [--files 120] [--rounds 7] [--threads 1,4,16] [--folder /tmp]

The ways take turns; medians. This is the limit of a receiver that answers when an object is on the disk.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SIZE_BYTES = 512 * 1024
CONTENT = mmap.mmap(-1, SIZE_BYTES)
"""On a page's boundary, as O_DIRECT wants it."""


def write(path: Path, *, flags: int = 0, flush: bool = True, reserve: bool = False) -> None:
    """One file."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600)
    try:
        if reserve:
            os.posix_fallocate(number, 0, SIZE_BYTES)
        os.write(number, CONTENT)
        if flush:
            os.fsync(number)
    finally:
        os.close(number)


def write_and_flush_folder(path: Path) -> None:
    """One file and its name."""
    write(path)
    number = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


WAYS: Mapping[str, Callable[[Path], None]] = {
    "no flush": lambda path: write(path, flush=False),
    "fsync": write,
    "fsync, and the folder's": write_and_flush_folder,
    "O_DSYNC": lambda path: write(path, flags=os.O_DSYNC, flush=False),
    "O_DIRECT, fsync": lambda path: write(path, flags=os.O_DIRECT),
    "reserved, fsync": lambda path: write(path, reserve=True),
}


def rate(way: Callable[[Path], None], count: int, threads: int, parent: Path) -> float:
    """Files a second."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as name, ThreadPoolExecutor(threads) as pool:
        os.sync()
        began_at = time.perf_counter()
        list(pool.map(way, [Path(name, str(number)) for number in range(count)]))
        return count / (time.perf_counter() - began_at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", default="1,4,16")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    CONTENT.write(os.urandom(SIZE_BYTES))
    for threads in map(int, options.threads.split(",")):
        found: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(options.rounds):
            for name, rates in found.items():
                rates.append(rate(WAYS[name], options.files, threads, options.folder))
        for name, rates in found.items():
            print(f"{threads:2} threads  {name:<24} {statistics.median(rates):6.0f} files/s"
                  f"  ({min(rates):.0f}-{max(rates):.0f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
