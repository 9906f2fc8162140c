"""Endpoints that receive with DICOM, and receivers for C-MOVE, from one configuration to the next."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.config.model import Config, DicomEndpointOptions
from harmonyd.daemon.build import Builder, Parts
from harmonyd.daemon.named import dicom_endpoints, listeners, move_receivers, receiving_backends
from harmonyd.dimse.accepting import Answered
from harmonyd.errors import HarmonydError
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.services.dicom.inbound import DicomEndpoint, scp_config
from harmonyd.supervision.ports import problem_text, try_port
from harmonyd.supervision.process import in_thread
from harmonyd.web.listening import PortTaken

Grace = Callable[[set[Answered]], Coroutine[Any, Any, None]]
"""Waits until nobody is connected to these, not longer than inbound associations are given."""


class DicomTakeover:
    """The part of ``Takeover`` that is about receiving.

    A storescp stays as long as its command line does. One that changes keeps its spool: what it has received is handed
    on all the while. What a removed one has received is handed on as before, until nothing of it is left.
    """

    _log = Logger()

    def __init__(self, reactor: Any, builder: Builder, parts: Parts, old: Config, new: Config, grace: Grace) -> None:
        self._reactor = reactor
        self._builder = builder
        self._parts = parts
        self._old = old
        self._new = new
        self._grace = grace
        self._ending: dict[str, DicomEndpoint] = {}
        self._starting: dict[str, DicomEndpoint] = {}
        self._resuming: dict[str, DicomEndpoint] = {}

    async def prepare(self) -> None:
        """Raises ``PortTaken`` when somebody else has a port that is needed."""
        await in_thread(self._reactor, _require_free, _needed(self._new) - _held(self._old))

    def commit(self, pipelines: Mapping[str, Pipeline]) -> None:
        """Hand on through the new pipelines from now on."""
        parts, before, after = self._parts, dicom_endpoints(self._old), dicom_endpoints(self._new)
        endpoints = {name: self._endpoint(name, pipelines) for name in after}
        for name, endpoint in parts.endpoints.items():
            if name not in after:
                self._ending[name] = parts.leaving.endpoints[name] = endpoint
            elif scp_config(name, before[name][0]) != scp_config(name, after[name][0]):
                self._ending[name] = self._resuming[name] = endpoint
        parts.endpoints = endpoints
        parts.engines.keep_receivers(move_receivers(self._new))

    def _endpoint(self, name: str, pipelines: Mapping[str, Pipeline]) -> DicomEndpoint:
        """The one that runs, or that is just leaving, or a new one."""
        options, _ = dicom_endpoints(self._new)[name]
        leaving = self._parts.leaving
        endpoint = self._parts.endpoints.get(name)
        if endpoint is None and name in leaving.endpoints:
            endpoint = self._resuming[name] = leaving.endpoints.pop(name)
            if name in leaving.handing_on:
                leaving.handing_on.pop(name).cancel()
        if endpoint is None:
            endpoint = self._starting[name] = self._builder.endpoint(self._new, name, self._parts.engines, pipelines)
        endpoint.change(options, *self._builder.inbound_pipeline(self._new, name, pipelines))
        return endpoint

    async def finish(self) -> list[str]:
        """End what has changed or is gone, after its grace, and start what is new; return what could not be started."""
        if self._ending:
            before = dicom_endpoints(self._old)
            await self._grace({_answered(before[name][0]) for name in self._ending})
            await gatherResults([Deferred.fromCoroutine(endpoint.pause()) for endpoint in self._ending.values()])
        for name in self._ending.keys() - self._resuming.keys():
            self._leave(name)
        problems = [*await self._resume(), *await self._start()]
        for endpoint in self._parts.endpoints.values():
            await endpoint.arrange()
        return problems

    # What does not start is taken from the endpoints: the next reload finds it missing, and tries again.

    async def _resume(self) -> list[str]:
        problems = []
        for name, endpoint in self._resuming.items():
            try:
                await endpoint.resume()
            except (HarmonydError, OSError) as error:
                problems.append(f"storescp:{name}: {error}")
                self._parts.leaving.endpoints[name] = self._parts.endpoints.pop(name)
        return problems

    async def _start(self) -> list[str]:
        problems = []
        for name, endpoint in self._starting.items():
            try:
                await endpoint.start()
            except (HarmonydError, OSError) as error:
                problems.append(f"storescp:{name}: {error}")
                del self._parts.endpoints[name]
                await endpoint.stop()
        return problems

    def _leave(self, name: str) -> None:
        def ended(failure: Failure) -> None:
            if not isinstance(failure.value, CancelledError):
                self._log.failure("endpoint {name} did not end as it should", failure=failure, name=name)

        waiting = Deferred.fromCoroutine(self._hand_on_rest(name))
        self._parts.leaving.handing_on[name] = waiting
        waiting.addErrback(ended)

    async def _hand_on_rest(self, name: str) -> None:
        leaving = self._parts.leaving
        endpoint = leaving.endpoints[name]
        await endpoint.handed_on()
        del leaving.endpoints[name]
        leaving.handing_on.pop(name, None)
        await endpoint.stop()
        self._log.info("endpoint {name} is gone; all it had received was handed on", name=name)


def _answered(options: DicomEndpointOptions) -> Answered:
    return Answered(options.port, options.local_aet)


def _needed(config: Config) -> set[int]:
    """Where a storescp must be able to listen at once."""
    return {
        *(options.port for options, _ in dicom_endpoints(config).values()),
        *(options.incoming_store_port for options in receiving_backends(config) if options.incoming_store_port_set),
    }


def _held(config: Config) -> set[int]:
    """Where a daemon with this configuration listens, or may listen."""
    return {
        *_needed(config),
        *(options.incoming_store_port for options in receiving_backends(config)),
        *(listener.bind_port for listener in listeners(config)),
    }


def _require_free(ports: set[int]) -> None:
    """Raise ``PortTaken``. Blocking."""
    for port in sorted(ports):
        error = try_port(port)
        if error is not None:
            raise PortTaken(f"The new configuration needs port {port}, but {problem_text(port, error)}.")
