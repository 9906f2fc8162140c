"""The connections of one HTTP network, and how many there may be."""

# mypy: allow-untyped-calls
# (most methods of Twisted's classes have no types)

from __future__ import annotations

from itertools import islice
from typing import Any

from twisted.web import http

from harmonyd.web.channel import Channel
from harmonyd.web.refusing import Busy
from harmonyd.web.request import Front

__all__ = ["Site"]

_MAX_BUSY = 50
_LOOKED_AT = 20
_EVICTED_AFTER_SECS = 1.0
"""A connection that waits for its client this long gives way to a new one, when there is no room for both."""


class Site(http.HTTPFactory):
    """Makes connections, up to the limit. Its own access log is off: the front end's leaves out what may be private."""

    noisy = False
    """No "Starting factory": the front end says where it listens."""

    def __init__(self, reactor: Any, front: Front) -> None:
        super().__init__(timeout=front.limits.request_timeout_secs, reactor=reactor)
        self._clock = reactor
        self.front = front
        self.connections: set[Channel] = set()
        self.waiting: dict[Channel, float] = {}
        """Connections that wait for their clients, and since when."""
        self.busy: set[Busy] = set()

    def startFactory(self) -> None:
        """Do nothing, where the base class starts its access log."""

    def stopFactory(self) -> None:
        """Do nothing, where the base class stops its access log."""

    def log(self, request: http.Request) -> None:
        """Do nothing, where the base class writes its access log."""

    def buildProtocol(self, addr: Any) -> Any:
        """Return a connection, one that says that we are busy, or None to hang up."""
        if len(self.busy) > _MAX_BUSY:
            return None
        limits = self.front.limits
        is_full = len(self.connections) >= limits.max_connections and not self._make_room()
        channel: Any = Busy() if is_full else Channel()
        channel.factory = self
        channel.callLater = self.reactor.callLater
        channel.timeOut = None if is_full else self.timeOut
        channel.MAX_LENGTH = channel.totalHeadersSize = limits.max_head_bytes
        channel.maxHeaders = limits.max_header_fields
        return channel

    def _make_room(self) -> bool:
        """End a connection that waits for its client, so that slow clients keep nobody out."""
        now = self._clock.seconds()
        for channel, since in list(islice(self.waiting.items(), _LOOKED_AT)):
            self.waiting.pop(channel)
            if now - since >= _EVICTED_AFTER_SECS and channel.gives_way():
                self.connections.discard(channel)
                channel.abort()
                return True
            self.waiting[channel] = since  # behind the others: next time these are looked at
        return False

    def forget(self, connection: Any) -> None:
        """Take note that a connection is gone."""
        self.connections.discard(connection)
        self.waiting.pop(connection, None)
        self.busy.discard(connection)
        self.front.connection_closed()

    @property
    def is_empty(self) -> bool:
        """Whether no connection is open."""
        return not self.connections and not self.busy

    def abort_all(self) -> None:
        """Reset every connection."""
        for channel in list(self.connections):
            channel.abort()
        for busy in list(self.busy):
            busy.abort()
