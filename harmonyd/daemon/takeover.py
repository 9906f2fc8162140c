"""Taking over a changed configuration while requests run: what did not change goes on, what did is replaced.

It happens whole or not at all. ``prepare`` builds and checks all that can fail, and binds new HTTP listeners last; when
it raises, everything is as before. ``commit`` puts the new parts in place within one turn of the reactor. ``finish``
ends, with its grace, what is not needed any more, and starts what is new.

An operation ends with what it has begun with: the route that its request was admitted for leads to the old pipeline
and backends, and these stay until it is done.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from harmonyd.config.model import Config
from harmonyd.daemon.build import Builder, Parts
from harmonyd.daemon.engines import engines_in
from harmonyd.daemon.named import asked_backends
from harmonyd.daemon.takeover_dicom import DicomTakeover, Grace
from harmonyd.daemon.takeover_http import HttpTakeover
from harmonyd.errors import HarmonydError
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.services.base import Backend
from harmonyd.supervision.process import in_thread
from harmonyd.telemetry.logging import start_logging


class NotStarted(HarmonydError):
    """The new configuration is in force, but something of it does not run."""

    title = "Not all of the configuration runs"


class Takeover:
    """One transition of ``parts`` from ``old`` to ``new``: ``prepare``, ``commit``, ``finish``, each once."""

    _log = Logger()

    def __init__(self, reactor: Any, builder: Builder, parts: Parts, old: Config, new: Config, grace: Grace) -> None:
        self._reactor = reactor
        self._builder = builder
        self._parts = parts
        self._old = old
        self._new = new
        self._http = HttpTakeover(builder, parts, new)
        self._dicom = DicomTakeover(reactor, builder, parts, old, new, grace)
        self._backends: dict[str, Backend] = {}
        self._pipelines: dict[str, Pipeline] = {}
        self._started: list[Backend] = []

    async def prepare(self) -> None:
        """Raises ``HarmonydError`` or OSError; then nothing has changed."""
        new = self._new
        engines = self._parts.engines
        await in_thread(self._reactor, engines.require, engines_in(new))
        await engines.start()
        self._backends = self._builder.backends(new, engines, self._unchanged())
        self._pipelines = self._builder.pipelines(new, self._backends)
        await self._dicom.prepare()
        try:
            await self._http.prepare(self._pipelines)
            if new.logging != self._old.logging:
                start_logging(new.logging)
        except BaseException:
            await self._http.undo()
            raise

    def commit(self) -> None:
        """From now on new requests and objects go the new way."""
        parts = self._parts
        parts.engines.limit_unasked(self._new.spool.max_unasked_bytes)
        kept = set(map(id, self._backends.values()))
        known = set(map(id, parts.backends.values()))
        parts.leaving.backends += [backend for backend in parts.backends.values() if id(backend) not in kept]
        self._started = [backend for backend in self._backends.values() if id(backend) not in known]
        parts.backends = self._backends
        self._http.commit(self._pipelines)
        self._dicom.commit(self._pipelines)

    async def finish(self) -> None:
        """End what leaves and start what is new. Raises ``NotStarted`` with all that does not run."""
        Deferred.fromCoroutine(self._backends_leave()).addErrback(
            lambda failure: self._log.failure("a backend did not end as it should", failure=failure)
        )
        await self._http.finish()
        problems = await self._dicom.finish()
        for backend in self._started:
            try:
                await backend.start()
            except (HarmonydError, OSError) as error:
                problems.append(f"backend:{backend.name}: {error}")
        if problems:
            raise NotStarted("; ".join(problems), hint="Mend that, and reload once more.")

    def _unchanged(self) -> dict[str, Backend]:
        old, new = self._old, self._new
        before, after = asked_backends(old), asked_backends(new)
        return {
            name: backend
            for name, backend in self._parts.backends.items()
            if old.backends[name] == new.backends.get(name) and (name in before) == (name in after)
        }

    async def _backends_leave(self) -> None:
        parts, leaving = self._parts, list(self._parts.leaving.backends)
        for front_end in parts.front_ends:
            await front_end.present_requests_end()
        await self._builder.operations.present_end()
        for endpoint in parts.dicom_endpoints:
            await endpoint.present_deliveries_end()
        for backend in leaving:
            if backend in parts.leaving.backends:
                parts.leaving.backends.remove(backend)
                await backend.stop()
