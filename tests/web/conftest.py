"""A front end on a free port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from harmonyd.config.model import HttpListener, LimitsConfig, NetworkConfig
from harmonyd.telemetry.health import Health
from harmonyd.tls import TlsServer
from harmonyd.web.front_end import HttpFrontEnd, Route
from harmonyd.web.secure import OnRefusal

Serve = Callable[..., Awaitable[HttpFrontEnd]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``await serve(route, ..., limits=..., health=...)`` starts a front end; it is stopped at the end of the test."""
    from twisted.internet import reactor

    running: list[HttpFrontEnd] = []

    async def start(
        *routes: Route,
        limits: LimitsConfig | None = None,
        health: Health | None = None,
        address: str = "127.0.0.1",
        tls: TlsServer | None = None,
        hsts_max_age_secs: int = 0,
        on_refusal: OnRefusal = lambda address, why: None,
    ) -> HttpFrontEnd:
        network = NetworkConfig("default", HttpListener(address, 0), tls=tls, hsts_max_age_secs=hsts_max_age_secs)
        given = list(routes), limits or LimitsConfig(), health
        front_end = HttpFrontEnd(reactor, network, *given, on_refusal=on_refusal)
        await front_end.start()
        running.append(front_end)
        return front_end

    yield start
    for front_end in running:
        pytest_twisted.blockon(Deferred.fromCoroutine(front_end.stop(grace_secs=0.1)))
