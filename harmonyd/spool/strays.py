"""Files below the storage path that are in no journal, and wait for somebody: nothing here removes or moves one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from harmonyd.spool.api import Pile
from harmonyd.spool.layout import SUFFIX, Layout
from harmonyd.spool.threads import in_thread

ACKNOWLEDGED = "incoming"
"""In the receiving folder of an endpoint, where a storescp puts what it acknowledges by itself."""


def files_in(folder: Path, suffix: str = "") -> Iterator[os.stat_result]:
    """Of each file there, however deep. What vanishes meanwhile does not count. Blocking. Raises OSError."""
    try:
        with os.scandir(folder) as found:
            for item in found:
                try:
                    if item.is_dir(follow_symlinks=False):
                        yield from files_in(Path(item.path), suffix)
                    elif item.name.endswith(suffix) and item.is_file(follow_symlinks=False):
                        yield item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
    except FileNotFoundError:
        return


def pile(files: Iterator[os.stat_result]) -> Pile:
    """Counted, and how old."""
    count, size, oldest = 0, 0, None
    for figures in files:
        count, size = count + 1, size + figures.st_size
        oldest = figures.st_mtime if oldest is None else min(oldest, figures.st_mtime)
    return Pile(count, size, oldest)


def untaken(layout: Layout, endpoints: Collection[str]) -> dict[str, Pile]:
    """By the name of an endpoint that is not among these, what was acknowledged for it. Blocking. Raises OSError.

    What lies beside ``incoming`` was cut off, and acknowledged to nobody.
    """
    try:
        names = sorted(item.name for item in os.scandir(layout.receiving) if item.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return {}
    found = {name: pile(files_in(layout.receiving / name / ACKNOWLEDGED)) for name in names if name not in endpoints}
    return {name: heap for name, heap in found.items() if heap.files}


def set_aside(layout: Layout) -> Pile:
    """The objects in the quarantine folder, without their notes. Blocking. Raises OSError."""
    return pile(files_in(layout.quarantine, SUFFIX))


class Untaken:
    """What lies in the receiving folders of endpoints that are not there any more. Says so once for each, loudly."""

    _log = Logger()

    def __init__(self, reactor: Any, layout: Layout, endpoints: Callable[[], Collection[str]]) -> None:
        self._reactor = reactor
        self._layout = layout
        self._endpoints = endpoints
        self.found: Mapping[str, Pile] = {}
        """As of the last look."""

    async def now(self) -> dict[str, Pile]:
        """What lies there, unsaid: while the configuration changes an endpoint may be about to come. Raises OSError."""
        found: dict[str, Pile] = await in_thread(self._reactor, untaken, self._layout, list(self._endpoints()))
        return found

    async def look(self) -> None:
        """Say what has come, and what is gone. Raises OSError."""
        before = self.found
        self.found = found = await self.now()
        for name in found.keys() - before.keys():
            self._log.error(
                "{count} objects ({bytes} bytes) that endpoint {endpoint} has received lie in {folder}: there is no"
                " such endpoint any more, and nothing takes them",
                count=found[name].files,
                bytes=found[name].bytes,
                endpoint=name,
                folder=str(self._layout.receiving / name),
            )
        for name in before.keys() - found.keys():
            self._log.info("nothing is left of what endpoint {endpoint} had received and nothing took", endpoint=name)
