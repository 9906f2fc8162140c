"""``basic_auth``: who gets in, what it costs, and who has to wait."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from auth_kit import Counting, Watched, basic, request
from twisted.internet.defer import Deferred

from harmonyd.errors import TooManyRequests, Unauthorized, Unavailable
from harmonyd.middleware.auth.basic import BasicAuth
from harmonyd.middleware.auth.guard import AT_ONCE, KNOWN_SECS, MOST_OF_ADDRESS, MOST_WAITING
from harmonyd.middleware.auth.throttle import FREE, MOST, Throttle, network_of
from harmonyd.passwords import hash_password, parse

PASSWORD = "grün:es \u4f60"


def chain(watched: Watched, **options: Any) -> tuple[BasicAuth, Counting]:
    stored = Counting(PASSWORD)
    given = {"users": {"jürgen": (stored, frozenset({"reader"}))}, "realm": "here", "optional": False, **options}
    return BasicAuth("who", given, watched.guard), stored


@pytest_twisted.ensureDeferred
async def test_a_right_password() -> None:
    """Colons belong to the password, text is UTF-8, and the field is ours: it goes no further."""
    link, _ = chain(Watched())
    asked = request(basic("jürgen", PASSWORD))
    assert await link.on_request(asked) is None
    assert asked.subject is not None
    assert (asked.subject.name, asked.subject.roles, asked.subject.scheme) == ("jürgen", {"reader"}, "basic_auth")
    assert asked.consumed == {"authorization"}


@pytest.mark.parametrize(
    "value",
    [
        *("Basic", "Basic ===", "Basic Zm9v", "basic Og==", "Basic YTpi\x00", "Basic /////w==", "Basic 4pi6"),
        basic("nobody", "x")["authorization"],
        basic("jürgen", "")["authorization"],
        basic("jürgen", PASSWORD + " ")["authorization"],
        basic("jürgen", "x" * 2000)["authorization"],
        basic("j" * 300, PASSWORD)["authorization"],
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_wrong_gets_the_same_answer(value: str) -> None:
    """Whatever is wrong is not told, and neither the log nor the audit trail has what was sent."""
    watched = Watched()
    link, _ = chain(watched)
    asked = request({"authorization": value})
    with pytest.raises(Unauthorized) as caught:
        await link.on_request(asked)
    assert caught.value.extra["www_authenticate"] == 'Basic realm="here", charset="UTF-8"'
    assert asked.subject is None
    assert caught.value.detail == "The credentials are wrong, or not valid any more."
    assert [event.details["reason"] in ("password", "malformed") for event in watched.events] == [True]
    assert value.partition(" ")[2][:8] not in repr(watched.events) or len(value) < 14


@pytest_twisted.ensureDeferred
async def test_none_or_another_kind() -> None:
    """Who shows none is told what would do; where that is allowed, it passes as nobody."""
    link, _ = chain(Watched())
    with pytest.raises(Unauthorized, match="has none"):
        await link.on_request(request({"authorization": "Bearer x"}))
    link, stored = chain(Watched(), optional=True)
    asked = request({"authorization": "Bearer x"})
    assert await link.on_request(asked) is None
    assert (asked.subject, asked.challenges, asked.consumed) == (None, (link.challenge,), frozenset())
    assert stored.count == 0


@pytest_twisted.ensureDeferred
async def test_an_unknown_user_costs_as_much_as_a_known_one() -> None:
    """For both one hash is computed."""
    link, stored = chain(Watched())
    for user in ("jürgen", "nobody", "somebody"):
        with pytest.raises(Unauthorized):
            await link.on_request(request(basic(user, "wrong")))
    assert stored.count == 3


@pytest_twisted.ensureDeferred
async def test_a_verified_password_is_known_for_a_while() -> None:
    """The next request costs no hashing; later ones do again."""
    watched = Watched()
    link, stored = chain(watched)
    for _ in range(5):
        await link.on_request(request(basic("jürgen", PASSWORD)))
    assert stored.count == 1
    watched.clock.advance(KNOWN_SECS)
    await link.on_request(request(basic("jürgen", PASSWORD)))
    assert stored.count == 2


@pytest_twisted.ensureDeferred
async def test_ten_thousand_wrong_passwords() -> None:
    """A few are compared, the others wait; another address, and who is known already, are not held up."""
    watched = Watched()
    link, stored = chain(watched)
    await link.on_request(request(basic("jürgen", PASSWORD)))
    refused = {Unauthorized: 0, TooManyRequests: 0}
    for number in range(10_000):
        try:
            await link.on_request(request(basic(f"u{number}" if number % 2 else "jürgen", f"p{number}")))
        except (Unauthorized, TooManyRequests) as error:
            refused[type(error)] += 1
            if type(error) is TooManyRequests:
                assert 1 <= error.extra["retry_after_secs"] <= 60
    assert refused[Unauthorized] < 50
    assert refused[Unauthorized] + refused[TooManyRequests] == 10_000
    assert stored.count == refused[Unauthorized] + 1
    assert len(watched.events) <= 3
    await link.on_request(request(basic("jürgen", PASSWORD)))
    await link.on_request(request(basic("jürgen", PASSWORD), address="192.0.2.2"))


@pytest_twisted.ensureDeferred
async def test_a_stranger_cannot_lock_somebody_out() -> None:
    """Many addresses that fail with a name make each of them wait earlier, and nobody else."""
    watched = Watched()
    link, _ = chain(watched)
    for number in range(100):
        with pytest.raises(Unauthorized):
            await link.on_request(request(basic("jürgen", "x"), address=f"198.51.100.{number}"))
    with pytest.raises(TooManyRequests):
        await link.on_request(request(basic("jürgen", "x"), address="198.51.100.99"))
    await link.on_request(request(basic("jürgen", PASSWORD), address="192.0.2.7"))


@pytest_twisted.ensureDeferred
async def test_few_are_hashed_at_once() -> None:
    """Of an address few wait, of all not many; the same credentials are looked at once; turns go on."""
    begun: list[Deferred[bool]] = []

    def in_thread(function: Any, *args: Any) -> Deferred[bool]:
        begun.append(Deferred())
        return begun[-1]

    watched = Watched(in_thread)
    link, _ = chain(watched)

    def ask(user: str, address: str) -> Deferred[Any]:
        return Deferred.fromCoroutine(link.on_request(request(basic(user, "x"), address=address)))

    mine = [ask(f"u{number}", "192.0.2.1") for number in range(MOST_OF_ADDRESS)]
    same = ask("u0", "192.0.2.1")
    with pytest.raises(TooManyRequests):
        await ask("one-more", "192.0.2.1")
    others = [ask("u", f"198.51.100.{number}") for number in range(MOST_WAITING - MOST_OF_ADDRESS + AT_ONCE)]
    with pytest.raises(Unavailable):
        await ask("u", "203.0.113.1")
    assert len(begun) == AT_ONCE
    while begun:
        begun.pop(0).callback(False)
    for each in (*mine, same, *others):
        with pytest.raises(Unauthorized):
            await each


def test_waits_double_and_are_forgotten() -> None:
    """The fifth failure with a name costs a second, each further one twice as much, a minute at most."""
    throttle = Throttle()
    now, waits = 0.0, []
    for _ in range(FREE + 8):
        throttle.failed("192.0.2.1", "u", now)
        waits.append(throttle.wait_secs("192.0.2.1", "u", now))
        now += waits[-1]
    assert waits == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert throttle.wait_secs("192.0.2.1", "u", now + 1000) == 0
    assert throttle.wait_secs("192.0.2.2", "u", 0.0) == 0
    throttle.succeeded("192.0.2.1", "u")
    throttle.failed("192.0.2.1", "u", now)
    assert throttle.wait_secs("192.0.2.1", "u", now) == 0


def test_the_table_has_a_bound() -> None:
    """However many fail, the memory for it is bounded."""
    throttle = Throttle()
    for number in range(MOST):
        throttle.failed(f"2001:db8:{number:x}::1", f"u{number}", float(number % 7))
    assert len(throttle) == MOST


def test_one_customer_is_one_address() -> None:
    """All of an IPv6 /64 counts as one, and an IPv4 address is itself in both spellings."""
    assert network_of("2001:db8:1:2:3:4:5:6") == network_of("2001:db8:1:2::1") == "2001:db8:1:2::"
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("") == ""


def test_a_line_is_for_one_password() -> None:
    """A hash is salted, and the password may come composed or decomposed."""
    line = hash_password("Zo\u00eb")
    assert line != hash_password("Zo\u00eb")
    assert parse(line).matches("Zoe\u0308")
    assert not parse(line).matches("Zoe")
    assert "digest" not in repr(parse(line))


@pytest.mark.parametrize(
    "line",
    [
        *("", "password", "$2b$12$abcdefghijklmnopqrstuv", "$scrypt$ln=4,r=8,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA"),
        *("$scrypt$ln=20,r=8,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA", "$scrypt$ln=14,r=8,p=99$c2FsdHNhbHQ$aGFzaGhhc2g"),
    ],
)
def test_weak_and_costly_hashes_are_refused(line: str) -> None:
    """One that is quick to guess, or takes all memory, is none."""
    with pytest.raises(ValueError, match="scrypt"):
        parse(line)
