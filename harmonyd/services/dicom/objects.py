"""A received object as the body of an envelope, and its JSON view."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from harmonyd.bodies import FileBody
from harmonyd.dimse.dataset_json import MalformedDataset, file_to_json

_log = Logger()


class ObjectBody:
    """A received object as a body: the file is opened when it is first read, and can be sent from where it lies."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.length: int | None = size_bytes
        self._file: FileBody | None = None

    def _opened(self) -> FileBody:
        if self._file is None:
            self._file = FileBody(self.path.open("rb"))
        return self._file

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._opened().chunks():
            yield chunk

    async def read(self, limit_bytes: int) -> bytes:
        return await self._opened().read(limit_bytes)

    async def close(self) -> None:
        if self._file is not None:
            await self._file.close()


def json_view(path: Path) -> Any:
    """The object for middleware to look at (DICOM JSON Model, no bulk data); None when there is none. Blocking."""
    try:
        return json.loads(file_to_json(path))
    except MalformedDataset as error:
        # It was received whole, and whoever it is for may be able to read it.
        _log.warn("no JSON of {name} for middleware: {why}", name=path.name, why=error.detail)
        return None
