"""The backends that run, as the management API and the metrics see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure

from harmonyd.services.base import Backend
from harmonyd.services.dicom.backend import DicomBackend

REFRESH_SECS = 10.0
"""Who asks how the nodes are gets what is known by then."""


class OperatedBackends:
    """Implements ``control.backends.Backends``."""

    def __init__(self, reactor: Any, running: Callable[[], Mapping[str, Backend]]) -> None:
        self._reactor = reactor
        self._running = running

    def figures(self) -> Mapping[str, Mapping[str, Any]]:
        """By name; of those that are no DICOM nodes only what they are."""
        return {name: _figures(backend) for name, backend in self._running().items()}

    def nodes(self) -> Mapping[str, Mapping[str, Any]]:
        """The same of the DICOM nodes alone."""
        return {name: each.figures() for name, each in self._running().items() if isinstance(each, DicomBackend)}

    async def refresh(self, names: Sequence[str]) -> None:
        """A C-ECHO at each of these at the same time."""
        found = [self._running().get(name) for name in names]
        looks = [Deferred.fromCoroutine(each.guard.look()) for each in found if isinstance(each, DicomBackend)]
        for look in looks:
            look.addTimeout(REFRESH_SECS, self._reactor).addErrback(_late)
        await gatherResults(looks)


def _late(failure: Failure) -> None:
    failure.trap(DeferredTimeout)  # type: ignore[no-untyped-call]


def _figures(backend: Backend) -> dict[str, Any]:
    if not isinstance(backend, DicomBackend):
        return {"service": type(backend).__name__.removesuffix("Backend").lower()}
    if isinstance(url := getattr(backend, "url", None), str):
        return {"service": "dicomweb", "url": url, **backend.figures()}
    remote = backend.remote
    node = {"service": "dicom", "aet": remote.aet, "host": remote.host, "port": remote.port}
    return {**node, **backend.figures()}
