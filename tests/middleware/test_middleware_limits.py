"""``rate_limit`` and ``concurrency``: whom they count, how much they let through, and what they forget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from middleware_kit import RESOURCES
from pytest_twisted import ensureDeferred
from twisted.internet.task import Clock

from harmonyd.bodies import EmptyBody
from harmonyd.config.model import MiddlewareConfig
from harmonyd.envelope import Occasion, RequestEnvelope, ResponseEnvelope
from harmonyd.errors import TooManyRequests
from harmonyd.middleware.base import Middleware
from harmonyd.middleware.limiting import LimitState
from harmonyd.middleware.registry import build
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.subject import Caller, Subject


class Kit:
    """A clock, what was counted, and which middleware refused something."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.refused: list[str] = []
        self.state = LimitState(self.clock.seconds, self.refused.append)

    def made(self, kind: str, **options: Any) -> Middleware:
        """As after each reload: a new one, which counts on."""
        common = {"by": "subject", "per_secs": 60.0, "max_callers": 100}
        resources = replace(RESOURCES, reactor=self.clock, limits=self.state)
        return build(MiddlewareConfig("mine", kind, {**common, **options}), resources)


@pytest.fixture
def kit() -> Kit:
    return Kit()


def request(address: str = "192.0.2.1", subject: str = "", **given: Any) -> RequestEnvelope:
    who = Subject(subject) if subject else None
    asked = {"protocol": "http", "method": "POST", "occasion": Occasion(), **given}
    return RequestEnvelope(uri="/", path="/", body=EmptyBody(), caller=Caller(address), subject=who, **asked)


async def lets_through(link: Middleware, *requests: RequestEnvelope) -> list[bool]:
    """For each in turn."""
    return [await _passes(link, each) for each in requests]


async def _passes(link: Middleware, asked: RequestEnvelope) -> bool:
    try:
        assert await link.on_request(asked) is None
    except TooManyRequests:
        return False
    return True


@ensureDeferred
async def test_a_burst_and_then_its_rate(kit: Kit) -> None:
    """``burst`` at once; then one whenever its time has come, and Retry-After says when."""
    link = kit.made("rate_limit", requests=6, burst=3)
    assert await lets_through(link, *(request() for _ in range(4))) == [True, True, True, False]
    with pytest.raises(TooManyRequests) as raised:
        await link.on_request(request())
    assert raised.value.extra["retry_after_secs"] == 10
    kit.clock.advance(9.9)
    assert await lets_through(link, request()) == [False]
    kit.clock.advance(0.2)
    assert await lets_through(link, request(), request()) == [True, False]
    kit.clock.advance(3600)
    assert await lets_through(link, *(request() for _ in range(4))) == [True, True, True, False]
    assert set(kit.refused) == {"mine"}


@ensureDeferred
async def test_each_caller_has_a_limit_of_its_own(kit: Kit) -> None:
    """A subject wherever it asks from; without one the address; an IPv6 network as one caller."""
    link = kit.made("rate_limit", requests=1, burst=1)
    asked = [
        request("192.0.2.1", "ann"), request("192.0.2.2", "ann"), request("192.0.2.1", "bob"),
        request("192.0.2.1"), request("192.0.2.1"), request("192.0.2.2"),
        request("2001:db8:1:1::1"), request("2001:db8:1:1:ffff::2"), request("2001:db8:1:2::1"),
        request("a socket"), request("a socket"),
    ]  # fmt: skip
    assert await lets_through(link, *asked) == [
        *(True, False, True),
        *(True, False, True),
        *(True, False, True),
        *(True, False),
    ]


@ensureDeferred
async def test_who_is_somebody_else(kit: Kit) -> None:
    """The same name shown in another way, and IPv4 in IPv6, where each address is one of its own."""
    link = kit.made("rate_limit", requests=1, burst=1)
    ann, other = request(subject="ann"), request()
    other.subject = Subject("ann", scheme="jwt_auth")
    mapped = [request("::ffff:192.0.2.1"), request("::ffff:192.0.2.2"), request("192.0.2.2")]
    assert await lets_through(link, ann, other, *mapped) == [True, True, True, True, False]


@ensureDeferred
async def test_by_address_subjects_share_it(kit: Kit) -> None:
    """``by = "address"`` is for who tries many names."""
    link = kit.made("rate_limit", requests=1, burst=1, by="address")
    assert await lets_through(link, request("192.0.2.1", "ann"), request("192.0.2.1", "bob")) == [True, False]


@ensureDeferred
async def test_who_is_not_counted(kit: Kit) -> None:
    """Objects that were received, and what harmonyd asks itself; a query over DICOM is."""
    for link in (kit.made("rate_limit", requests=1, burst=1), kit.made("concurrency", limit=1)):
        stores = [request(protocol="dicom", method="C-STORE") for _ in range(3)]
        ours = [request("") for _ in range(3)]
        assert await lets_through(link, *stores, *ours) == [True] * 6
        queries = [request("192.0.2.9", protocol="dicom", method="C-FIND") for _ in range(2)]
        assert await lets_through(link, *queries) == [True, False]


@ensureDeferred
async def test_questions_of_one_request_count_once(kit: Kit) -> None:
    """A search of DICOMweb asks the PACS several times, and is never cut off in the middle."""
    for link in (kit.made("rate_limit", requests=1, burst=1), kit.made("concurrency", limit=1)):
        search = request()
        assert await lets_through(link, search, search.part(), search.part(), request()) == [True, True, True, False]


@ensureDeferred
async def test_the_table_is_bounded(kit: Kit) -> None:
    """Of more callers than ``max_callers`` the one that asked longest ago is forgotten."""
    link = kit.made("rate_limit", requests=1, burst=1, max_callers=50)
    for number in range(1000):
        assert await lets_through(link, request(f"198.51.{number // 250}.{number % 250}")) == [True]
    assert len(kit.state.buckets("mine")) == 50
    assert await lets_through(link, request("198.51.3.249"), request("198.51.0.0")) == [False, True]


@ensureDeferred
async def test_a_clock_that_is_set_back_locks_nobody_out(kit: Kit) -> None:
    """The time between counts, and less than none does not."""
    kit.clock.advance(1_000_000)
    link = kit.made("rate_limit", requests=60, burst=1)
    assert await lets_through(link, request(), request()) == [True, False]
    kit.clock.rightNow -= 500_000
    assert await lets_through(link, request()) == [False]
    kit.clock.advance(1.1)
    assert await lets_through(link, request()) == [True]


@ensureDeferred
async def test_a_reload_forgets_nothing(kit: Kit) -> None:
    """The middleware is made anew; who had used up its limit still has, and who leaves is still counted out."""
    spent, running = request(), request()
    assert await lets_through(kit.made("rate_limit", requests=1, burst=1), spent) == [True]
    assert await lets_through(kit.made("rate_limit", requests=1, burst=1), request()) == [False]
    assert await lets_through(kit.made("concurrency", limit=1), running) == [True]
    link = kit.made("concurrency", limit=1)
    assert await lets_through(link, request()) == [False]
    assert running.occasion is not None
    running.occasion.end()
    assert await lets_through(link, request()) == [True]


@ensureDeferred
async def test_a_slot_is_held_until_the_answer_was_given(kit: Kit) -> None:
    """Not until the first byte: the end of the occasion frees it, once, and the table is empty again."""
    link = kit.made("concurrency", limit=2)
    first, second = request(), request()
    assert await lets_through(link, first, second, request(), request("192.0.2.2")) == [True, True, False, True]
    for _ in range(2):
        assert first.occasion is not None
        first.occasion.end()
    assert await lets_through(link, request(), request()) == [True, False]
    assert len(kit.state.counts("mine")) == 2
    assert kit.refused == ["mine", "mine"]


class _Backend:
    def __init__(self, answer: ResponseEnvelope | Exception) -> None:
        self.answer = answer

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@ensureDeferred
async def test_a_question_that_belongs_to_no_request(kit: Kit) -> None:
    """Whoever asks a pipeline without an occasion holds the slot until it closes the answer, or there is none."""
    link = kit.made("concurrency", limit=1)
    pipeline = Pipeline("p", [link], {"b": _Backend(ResponseEnvelope())})
    response = await pipeline.handle(request(occasion=None))
    with pytest.raises(TooManyRequests):
        await pipeline.handle(request(occasion=None))
    await response.close()
    failing = Pipeline("p", [link], {"b": _Backend(ValueError("broken"))})
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            await failing.handle(request(occasion=None))
    assert len(kit.state.counts("mine")) == 0
