"""The endpoint half: objects a store SCP received become envelopes and run through the endpoint's pipeline."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from harmonyd.bodies import FileBody
from harmonyd.config.model import DicomEndpointOptions
from harmonyd.dimse.dataset_json import MalformedDataset, file_to_json
from harmonyd.dimse.engine import Engine, Instance, StoreScp, StoreScpConfig
from harmonyd.dimse.part10 import InstanceHeader, read_header
from harmonyd.dimse.uid import is_uid
from harmonyd.envelope import RequestEnvelope
from harmonyd.pipeline.errors import DeliveryFailed
from harmonyd.pipeline.pipeline import Pipeline

InThread = Callable[..., Awaitable[Any]]
_REMEMBERED_DELIVERIES = 10_000

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


def scp_config(name: str, options: DicomEndpointOptions) -> StoreScpConfig:
    """What the receiver of an endpoint needs to know; as long as it is equal, the same receiver can go on."""
    return StoreScpConfig(name, options.local_aet, options.bind_addr, options.port, options.max_pdu)


class DicomEndpoint:
    """Receives objects for one pipeline. Without a backend there, they are kept below ``storage_dir``."""

    _log = Logger()

    def __init__(
        self, name: str, options: DicomEndpointOptions, engine: Engine, pipeline: Pipeline, storage: Path,
        in_thread: InThread,
    ) -> None:
        self.name = name
        self._options = options
        self._pipeline = pipeline
        self._in_thread = in_thread
        self._storage = storage
        self._delivered: dict[Path, tuple[str, ...]] = {}
        self._handling = DeferredLock()
        self._scp: StoreScp = engine.store_scp(scp_config(name, options), self._handle)

    async def start(self) -> None:
        await self._scp.start()

    async def stop(self) -> None:
        await self._scp.stop()

    def change(self, options: DicomEndpointOptions, pipeline: Pipeline) -> None:
        """Pass the next object through ``pipeline``, and from the next ``resume`` on receive as ``options`` say."""
        self._options = options
        self._pipeline = pipeline

    async def pause(self) -> None:
        """Receive nothing any more; what was received is handed on all the while."""
        await self._scp.pause()

    async def resume(self) -> None:
        """Receive again. Raises what starting a receiver raises."""
        await self._scp.resume(scp_config(self.name, self._options))

    async def handed_on(self) -> None:
        """Return when nothing that was received is left to hand on."""
        await self._scp.handed_on()

    @property
    def _kept_folder(self) -> Path:
        return self._options.storage_dir or self._storage / "received" / self.name

    async def present_delivery_ends(self) -> None:
        """Return when the object that is being handed on now, if any, was taken or refused."""
        async with self._handling:
            pass

    async def _handle(self, instance: Instance, calling_aet: str | None) -> None:
        async with self._handling:
            await self._pass_on(instance, calling_aet)

    async def _pass_on(self, instance: Instance, calling_aet: str | None) -> None:
        header: InstanceHeader = await self._in_thread(read_header, instance.path)
        if self._pipeline.backends:
            await self._deliver(instance, header, calling_aet)
        else:
            target = await self._in_thread(keep, instance.path, header, self._kept_folder)
            self._log.info("kept an object from {calling} as {target}", calling=calling_aet, target=str(target))

    async def _deliver(self, instance: Instance, header: InstanceHeader, calling_aet: str | None) -> None:
        request = self._envelope(instance, header, calling_aet)
        request.normalized = await self._in_thread(_json_view, instance.path)
        done = self._delivered.get(instance.path, ())
        try:
            names = await self._pipeline.deliver(
                request, lambda: ObjectBody(instance.path, instance.size_bytes), skip=done
            )
        except DeliveryFailed as failed:
            if len(self._delivered) < _REMEMBERED_DELIVERIES:
                self._delivered[instance.path] = tuple({*done, *failed.delivered})
            raise
        finally:
            await request.body.close()
        self._delivered.pop(instance.path, None)
        self._log.info(
            "delivered an object from {calling} to {backends}",
            calling=calling_aet, backends=", ".join(names) or "no backend", request=request.id,
        )  # fmt: skip

    def _envelope(self, instance: Instance, header: InstanceHeader, calling_aet: str | None) -> RequestEnvelope:
        metadata = {
            "dimse_op": "store",
            "called_aet": self._options.local_aet,
            "calling_aet": calling_aet or "",
            "sop_class_uid": header.sop_class_uid,
            "sop_instance_uid": header.sop_instance_uid,
            "study_instance_uid": header.study_instance_uid,
            "series_instance_uid": header.series_instance_uid,
            "transfer_syntax_uid": header.transfer_syntax_uid,
        }
        return RequestEnvelope(
            protocol="dicom",
            method="C-STORE",
            uri=f"dicom://{self._options.local_aet}/{header.sop_instance_uid}",
            path="/",
            body=ObjectBody(instance.path, instance.size_bytes),
            headers={"content-type": "application/dicom"},
            metadata=metadata,
        )


def _json_view(path: Path) -> Any:
    """The object for middleware to look at, None when there is no JSON for it. Blocking."""
    try:
        return json.loads(file_to_json(path))
    except MalformedDataset as error:
        # It was received whole, and whoever it is for may be able to read it.
        _log.warn("no JSON of {name} for middleware: {why}", name=path.name, why=error.detail)
        return None


def keep(path: Path, header: InstanceHeader, folder: Path) -> Path:
    """Copy an object to ``<study>/<series>/<instance>.dcm`` below ``folder``, durably; return the file. Blocking.

    The same object is kept once. Another one of the same UID, which a sender must not make but some do, is kept beside
    it with a longer name: both were acknowledged. UIDs that are none become "unknown".
    """
    study, series, instance = (
        uid if is_uid(uid) else "unknown"
        for uid in (header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
    )
    name = instance if instance != "unknown" else path.stem
    target = folder / study / series / f"{name}.dcm"
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not filecmp.cmp(path, target, shallow=False):
        target = target.with_name(f"{name}_{path.stem}.dcm")
    temporary = target.with_name(f".{path.name}.part")
    try:
        with path.open("rb") as source, temporary.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1024 * 1024)
            copy.flush()
            os.fsync(copy.fileno())
        temporary.replace(target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    for made in (target.parent, target.parent.parent, folder):
        _sync_folder(made)
    return target


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (fsync(2): the file's own does not)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
