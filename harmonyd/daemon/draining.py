"""The grace that inbound associations get before their storescp is ended."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from twisted.internet.task import deferLater

from harmonyd.daemon.engines import Engines
from harmonyd.dimse.accepting import Answered
from harmonyd.supervision.ports import established
from harmonyd.supervision.process import in_thread
from harmonyd.supervision.runner import ProcessSupervisor

_POLL_SECS = 0.1


async def associations_end(
    reactor: Any,
    supervisor: ProcessSupervisor,
    engines: Engines,
    grace_secs: float,
    only: Collection[Answered] | None = None,
) -> int:
    """Wait until nobody is connected to a child, at most ``grace_secs``; return how many connections are left.

    Associations that ``engines`` have accepted themselves are waited for, too. ``only``: what is to end (others on the
    same port go on, and are not waited for); None: all. A storescp cannot be told to accept no more: what begins
    meanwhile is waited for, too.
    """
    until = reactor.seconds() + grace_secs
    while True:
        ports = [child.spec.port for child in supervisor.children() if child.pid is not None]
        if only is not None:
            ports = [port for port in ports if port in {item.port for item in only}]
        count: int = await in_thread(reactor, lambda ports=ports: sum(map(established, ports)))
        count += engines.association_count(only)
        if not count or reactor.seconds() >= until:
            return count
        await deferLater(reactor, _POLL_SECS)
