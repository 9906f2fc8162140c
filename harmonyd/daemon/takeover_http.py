"""HTTP listeners and what they serve, from one configuration to the next."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from harmonyd.config.model import Config, HttpListener
from harmonyd.daemon.build import Builder, Parts
from harmonyd.daemon.named import listeners
from harmonyd.errors import HarmonydError
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.tls_port import ServerConnections
from harmonyd.web.front_end import HttpFrontEnd
from harmonyd.web.secure import connections_for


class HttpTakeover:
    """The part of ``Takeover`` that is about HTTP: a front end, with its connections, stays as long as its listener."""

    _log = Logger()

    def __init__(self, builder: Builder, parts: Parts, new: Config) -> None:
        self._builder = builder
        self._parts = parts
        self._new = new
        self._bound: dict[HttpListener, HttpFrontEnd] = {}
        self._secured: dict[HttpListener, ServerConnections | None] = {}
        self._interrupted: list[HttpFrontEnd] = []
        self._removed: list[HttpFrontEnd] = []

    async def prepare(self, pipelines: Mapping[str, Pipeline]) -> None:
        """Read certificates, bind new listeners. Raises ``HarmonydError`` or OSError; call ``undo`` then."""
        for listener, name in listeners(self._new).items():
            self._secured[listener] = connections_for(self._new.networks[name].tls)
            if listener not in self._parts.listeners:
                await self._make_room(listener)
                front_end = self._builder.front_end(self._new, self._new.networks[name], pipelines)
                await front_end.start()
                self._bound[listener] = front_end

    async def _make_room(self, listener: HttpListener) -> None:
        """The same port on another address (127.0.0.1, then 0.0.0.0) is ours to give up first."""
        wanted = listeners(self._new)
        for old, front_end in self._parts.listeners.items():
            if old not in wanted and old.bind_port == listener.bind_port and front_end not in self._interrupted:
                self._interrupted.append(front_end)
                await front_end.stop_accepting()

    async def undo(self) -> None:
        """Listen as before."""
        for front_end in self._bound.values():
            await front_end.stop(grace_secs=0)
        for front_end in self._interrupted:
            try:
                await front_end.start()
            except (HarmonydError, OSError):
                self._log.failure("a listener that a failed reload interrupted cannot go on")

    def commit(self, pipelines: Mapping[str, Pipeline]) -> None:
        """Put the new routes in place."""
        parts, new, wanted = self._parts, self._new, listeners(self._new)
        for listener, name in wanted.items():
            front_end = parts.listeners.get(listener)
            if front_end is not None:
                routes = self._builder.routes(new, name, pipelines)
                health = self._builder.open_health_on(new, name)
                front_end.serve(new.networks[name], routes, new.limits, health, self._secured.get(listener))
        self._removed = [front_end for listener, front_end in parts.listeners.items() if listener not in wanted]
        known = parts.listeners | self._bound
        parts.listeners = {listener: known[listener] for listener in wanted}
        parts.leaving.front_ends += self._removed

    async def finish(self) -> None:
        """Stop accepting at listeners that are gone; requests that run there go on in the background."""
        for front_end in self._removed:
            await front_end.stop_accepting()
            Deferred.fromCoroutine(self._leave(front_end)).addErrback(
                lambda failure: self._log.failure("a listener did not end as it should", failure=failure)
            )

    async def _leave(self, front_end: HttpFrontEnd) -> None:
        await front_end.drain()
        self._parts.leaving.front_ends.remove(front_end)
