"""``storage``: a backend that keeps objects in a folder, as ``<study>/<series>/<instance>.dcm``."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harmonyd.bodies import BytesBody
from harmonyd.commitment.api import Place
from harmonyd.dimse.part10 import DamagedFile, InstanceHeader, check_complete, read_header
from harmonyd.dimse.uid import is_uid
from harmonyd.envelope import Body, RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, UnsupportedMediaType
from harmonyd.services.dicom.auditing import Witness
from harmonyd.services.dicom.objects import ObjectBody
from harmonyd.services.few_threads import FewThreads

InThread = Callable[..., Awaitable[Any]]
MAX_THREADS = 4
"""Of the process's, for one folder: one on a file system that hangs leaves some to everybody else."""
_LEFT_SECS = 24 * 3600.0
"""A file that was not written to for so long belongs to nobody; others may be at work in the same folder."""
_MAKING = threading.Lock()
_NAMING = threading.Lock()
"""Held from the look whether a name is free to its taking, where the file system cannot do both at once."""


class StorageBackend:
    """Keeps each object that it gets; what it answers says where."""

    max_batch = 16
    action = "store"
    """What a permit has to allow."""

    def __init__(self, name: str, folder: Path, in_thread: InThread, witness: Witness = Witness()) -> None:  # noqa: B008 - it is frozen
        self.name = name
        self._witness = witness
        self.folder = folder
        self._in_thread = FewThreads(in_thread, MAX_THREADS)

    async def start(self) -> None:
        """Remove what a crash left half written. The folder is made with the first object."""
        await self._in_thread(_sweep, self.folder, time.time() - _LEFT_SECS)

    async def stop(self) -> None:
        """Do nothing."""

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        """Keep the object in the request's body. Raises ``BadRequest``, ``UnsupportedMediaType``, and OSError."""
        body = request.body
        if isinstance(body, ObjectBody):
            kept: Path = await self._in_thread(_keep_whole, body.path, self.folder)
        else:
            kept = await self._keep_upload(request)
        answer = {"operation": "store", "success": True, "kept": str(kept.relative_to(self.folder))}
        headers = {"content-type": "application/json"}
        return ResponseEnvelope(headers=headers, body=BytesBody(json.dumps(answer).encode() + b"\n"))

    async def held(self, sought: Mapping[str, Place]) -> Mapping[str, str]:
        """See ``holdings.Holds``."""
        found: Mapping[str, str] = await self._in_thread(_held, self.folder, sought)
        return found

    async def _keep_upload(self, request: RequestEnvelope) -> Path:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/dicom":
            raise UnsupportedMediaType(
                f"A storage backend takes application/dicom, not {kind[:100] or 'a body without a type'}",
                hint="Send one DICOM file, with 'Content-Type: application/dicom'.",
            )
        upload = _temporary(self.folder)
        try:
            await self._write(request.body, upload)
            header: InstanceHeader
            kept: Path
            header, kept = await self._in_thread(_keep_checked, upload, self.folder)
            self._witness.kept(request, header)
            return kept
        except DamagedFile as damage:
            raise BadRequest(f"The body is not a whole DICOM file: {damage.detail}") from damage
        finally:
            await self._in_thread(upload.unlink, True)

    async def _write(self, body: Body, target: Path) -> None:
        await self._in_thread(_make_folder, self.folder)
        file = await self._in_thread(target.open, "wb")
        try:
            async for chunk in body.chunks():
                await self._in_thread(file.write, chunk)
            await self._in_thread(_flush, file)
        finally:
            await self._in_thread(file.close)  # it waits for a write that is under way


def _held(folder: Path, sought: Mapping[str, Place]) -> dict[str, str]:
    """The files that are there; their names are durable then, too. Raises OSError."""
    found, folders = {}, set()
    for uid, place in sought.items():
        path = _target(folder, place.study_instance_uid, place.series_instance_uid, uid)
        if path is not None and path.is_file():
            found[uid] = place.sop_class_uid
            folders.add(path.parent)
    for each in folders:
        _sync(each)
    return found


def _target(folder: Path, study: str, series: str, instance: str) -> Path | None:
    if not is_uid(instance):
        return None
    names = (uid if is_uid(uid) else "unknown" for uid in (study, series))
    return folder.joinpath(*names) / f"{instance}.dcm"


def _temporary(folder: Path) -> Path:
    return folder / f".{uuid.uuid4().hex}.part"


def _sweep(folder: Path, before: float) -> None:
    with suppress(OSError):
        for path in folder.glob(".*.part"):
            if path.stat().st_mtime < before:
                path.unlink(missing_ok=True)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _keep_whole(path: Path, folder: Path) -> Path:
    return keep(path, read_header(path), folder)


def _keep_checked(path: Path, folder: Path) -> tuple[InstanceHeader, Path]:
    header = check_complete(path)
    return header, keep(path, header, folder)


def keep(path: Path, header: InstanceHeader, folder: Path) -> Path:
    """Put a file at ``<study>/<series>/<instance>.dcm`` below ``folder``, durably; return it there. Blocking.

    The file that is there already stays where it is, too: a second name for it where the file system allows, else a
    copy. The same object is kept once. Another one of the same UID, which a sender must not make but some do, is kept
    beside it, its name longer by a hash of its content: both were acknowledged. UIDs that are none become "unknown",
    and an object without one is named by the hash alone.
    """
    study, series = (
        uid if is_uid(uid) else "unknown" for uid in (header.study_instance_uid, header.series_instance_uid)
    )
    instance = header.sop_instance_uid
    target = folder / study / series / f"{instance if is_uid(instance) else _hash(path)}.dcm"
    _make_folder(target.parent)
    if not _put(path, target, folder):
        target = target.with_name(f"{target.stem}_{_hash(path)}.dcm")
        if not _put(path, target, folder):
            raise FileExistsError(errno.EEXIST, "another file has the name", str(target))
    _sync(target.parent)
    return target


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _make_folder(folder: Path) -> None:
    """Make it and those above it, durably. One at a time: who finds a folder there relies on it."""
    with _MAKING:
        missing = [made for made in (folder, *folder.parents) if not made.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            _sync(made.parent)


def _put(path: Path, target: Path, folder: Path) -> bool:
    """Give the file this name, all at once; False when another object has it."""
    _sync(path)  # who received it may have left that to us; where it is done, this costs nothing
    try:
        os.link(path, target)
    except FileExistsError:
        return filecmp.cmp(path, target, shallow=False)
    except OSError:  # another file system, or one without links
        return _copy(path, target, _temporary(folder))
    return True


def _copy(path: Path, target: Path, temporary: Path) -> bool:
    try:
        with path.open("rb") as source, temporary.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1024 * 1024)
            _flush(copy)
        with _NAMING:
            if target.exists():
                return filecmp.cmp(path, target, shallow=False)
            temporary.replace(target)
            return True
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make a file durable, or the names in a folder (fsync(2): a file's own does not make its name so)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
