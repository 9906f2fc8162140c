"""Limits in the middleware of a network: they last as long as the answer, and count once with those of the pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from harmonyd.bodies import EmptyBody
from harmonyd.config.model import HttpEndpointOptions
from harmonyd.envelope import Occasion
from harmonyd.errors import TooManyRequests
from harmonyd.middleware.limiting import LimitState
from harmonyd.middleware.limits import Concurrency, RateLimit
from harmonyd.services.base import HttpRequest
from harmonyd.services.echo import EchoEndpoint
from harmonyd.subject import Caller
from harmonyd.web.network_chain import identified
from harmonyd.web.route import Route

REQUEST = HttpRequest("r", "GET", "/echo", "/", "/echo", {}, {}, EmptyBody(), Caller("192.0.2.1"))


async def never(request: Any) -> Any:
    raise AssertionError("the network's middleware alone is asked here")


def route(*chain: Any) -> Route:
    return Route(EchoEndpoint("echo", HttpEndpointOptions("/echo")), never, chain=chain)


@pytest_twisted.ensureDeferred
async def test_a_slot_is_held_until_the_answer_ends() -> None:
    """The second request of a caller is refused as long as the first has not been answered."""
    state = LimitState(Clock().seconds)
    network = route(Concurrency("c", {"limit": 1, "by": "address"}, state))
    first = Occasion()
    await identified(network, REQUEST, first)
    with pytest.raises(TooManyRequests):
        await identified(network, REQUEST, Occasion())
    first.end()
    await identified(network, REQUEST, Occasion())


@pytest_twisted.ensureDeferred
async def test_network_and_pipeline_count_once() -> None:
    """The same middleware in the network's chain and in the pipeline's takes one token of a request, not two."""
    options = {"requests": 2, "per_secs": 3600.0, "burst": 2, "by": "address", "max_callers": 10}
    limit = RateLimit("r", options, LimitState(Clock().seconds))
    for _ in range(2):
        occasion = Occasion()
        asked = (await identified(route(limit), REQUEST, occasion)).without_body()
        asked.occasion = occasion
        assert await limit.on_request(asked) is None
    with pytest.raises(TooManyRequests):
        await identified(route(limit), REQUEST, Occasion())
