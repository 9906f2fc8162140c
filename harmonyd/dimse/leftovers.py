"""What associations of an earlier run left in their folders, or the handler would not take: offered again."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path

from twisted.logger import Logger

from harmonyd.dimse.accept import instance_of
from harmonyd.dimse.engine import Arrival, Association, ObjectHandler
from harmonyd.dimse.part10 import InstanceHeader

LOOK_SECS = 0.5
"""How often a receiver that ends looks whether anything is left to be taken."""
_CUT = "it was received last before harmonyd was ended: the transfer was cut short, or else it was acknowledged; "


class Leftovers:
    """Implements ``taking.Source`` for one folder. Of the association nothing is known but what its files say."""

    _log = Logger()

    def __init__(self, folder: Path, called_aet: str, handler: ObjectHandler) -> None:
        self.folder = folder
        self._called_aet = called_aet
        self._handler = handler
        self._paths = set(_files(folder))
        self._newest = max(self._paths, key=_modified, default=None)

    @property
    def paths(self) -> list[Path]:
        """What is to be offered, oldest first."""
        return sorted(self._paths, key=_modified)

    def arrival(self, path: Path, header: InstanceHeader) -> Arrival:
        """See ``taking.Source``."""
        return Arrival(instance_of(path, header), self._association(header.source_aet))

    async def damaged(self, path: Path, reason: str) -> None:
        """See ``taking.Source``. Only the newest one may be a transfer that nobody was told the success of."""
        await self._handler.damaged(path, self._association(""), (_CUT if path == self._newest else "") + reason)

    def settled(self, path: Path) -> None:
        """See ``taking.Source``."""
        self._paths.discard(path)
        if not self._paths:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def failed(self, path: Path) -> None:
        """See ``taking.Source``: the next sweep makes it a left-over again."""
        self._paths.discard(path)

    def _association(self, calling_aet: str) -> Association:
        name = self.folder.name
        is_id = len(name) == 32 and all(digit in "0123456789abcdef" for digit in name)
        return Association(name if is_id else uuid.uuid4().hex, self._called_aet, calling_aet)


def folders_in(parent: Path) -> list[Path]:
    """The folders of associations. Blocking."""
    return [folder for folder in parent.iterdir() if folder.is_dir() and not folder.is_symlink()]


def find_leftovers(
    parent: Path, folders: Sequence[Path], called_aet: str, handler: ObjectHandler
) -> list[Leftovers]:
    """What lies in ``parent`` itself, and in those of its folders that nothing writes to. Blocking.

    Folders in which nothing is left are removed.
    """
    found = [Leftovers(folder, called_aet, handler) for folder in (parent, *folders)]
    for leftovers in found[1:]:
        if not leftovers.paths:
            leftovers.settled(leftovers.folder)
    return found


def holds_files(parent: Path) -> bool:
    """Whether anything lies there, or in the folders of associations. Blocking."""
    try:
        return any(_files(folder) for folder in (parent, *folders_in(parent)))
    except FileNotFoundError:
        return False


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
    except FileNotFoundError:
        return []


def _modified(path: Path) -> tuple[int, str]:
    try:
        return path.stat().st_mtime_ns, path.name
    except FileNotFoundError:
        return 0, path.name
