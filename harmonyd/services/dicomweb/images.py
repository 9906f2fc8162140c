"""Images that were opened before: what is in their headers, and where their frames are, is looked for once."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from twisted.internet.threads import deferToThread

from harmonyd.services.dicomweb.pixel_file import PixelFile

MAX_BYTES = 32 * 1024 * 1024


class Images:
    """The most recently used ones, of ``MAX_BYTES`` together; for files that never change."""

    def __init__(self) -> None:
        self._known: OrderedDict[Path, PixelFile] = OrderedDict()
        self._bytes = 0

    async def open(self, path: Path, *, is_kept: bool) -> PixelFile:
        """Open an image. Raises ``NotFound`` for an object without pixels, and ``MalformedDataset``."""
        if not is_kept:
            return await deferToThread(PixelFile, path)
        image = self._known.get(path)
        if image is None:
            image = await deferToThread(PixelFile, path)
            if path not in self._known:
                self._known[path] = image
                self._bytes += image.weight
        self._known.move_to_end(path)
        while self._bytes > MAX_BYTES:
            self._bytes -= self._known.popitem(last=False)[1].weight
        return image
