"""Rewrites files for whoever waits: in threads, compressed pixels decoded where regions of them are to be blanked."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from harmonyd.errors import NotAcceptable, StorageFull
from harmonyd.rewriting.editor import Editor
from harmonyd.rewriting.errors import BadObject, Compressed
from harmonyd.rewriting.objects import Objects, Rewritten
from harmonyd.rewriting.report import Report

InThread = Callable[..., Awaitable[Any]]
Decode = Callable[[Path], Awaitable[Path]]
"""Returns a new file beside another one, whose pixels are not compressed. Raises ``NotAcceptable``."""


class Rewriter:
    """Of one middleware. ``decode``: None where nothing can be decoded."""

    def __init__(
        self, name: str, objects: Objects, in_thread: InThread, report: Report, decode: Decode | None = None
    ) -> None:
        self.name = name
        self._objects = objects
        self._in_thread = in_thread
        self._report = report
        self._decode = decode

    @property
    def editor(self) -> Editor:
        """What data sets are changed by."""
        return self._objects.editor

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Work in a thread. Raises ``StorageFull`` for a disk, or table, that does not take it."""
        try:
            return await self._in_thread(function, *args)
        except (OSError, sqlite3.Error) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise StorageFull(
                f"What middleware {self.name} rewrites cannot be written: {why}.", hint="Look after the storage path."
            ) from error

    async def rewrite(self, request_id: str, source: Path, target: Path, *, forward: bool) -> Rewritten:
        """Write an object anew; the folder of ``target`` is made where it is missing.

        Raises ``BadObject``, ``CannotRewrite`` and ``StorageFull``.
        """
        try:
            return await self._written(request_id, source, target, forward=forward)
        except Compressed:
            if self._decode is None:
                raise
            link = target.with_name(target.name + ".link")
            await self.run(lambda: link.symlink_to(source.absolute()))
            try:
                decoded = await self._decoded(link)
                try:
                    return await self._written(request_id, decoded, target, forward=forward)
                finally:
                    await self.run(decoded.unlink, True)
            finally:
                await self.run(link.unlink, True)

    async def _decoded(self, source: Path) -> Path:
        assert self._decode is not None, "the caller has looked"
        try:
            return await self._decode(source)
        except NotAcceptable as error:
            raise BadObject(
                "The object has regions of pixels to be blanked, and its pixels cannot be decoded.", hint=error.hint
            ) from error

    async def _written(self, request_id: str, source: Path, target: Path, *, forward: bool) -> Rewritten:
        rewritten: Rewritten = await self.run(self._write, request_id, source, target, forward)
        return rewritten

    def _write(self, request_id: str, source: Path, target: Path, forward: bool) -> Rewritten:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        rewritten = self._objects.rewrite(source, target, forward=forward)
        self._report.write(request_id, rewritten)
        return rewritten

    async def remove(self, folder: Path) -> None:
        """Remove a folder with all that is in it, if it is there."""
        await self._in_thread(shutil.rmtree, folder, True)
