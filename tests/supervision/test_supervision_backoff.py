"""Delays between restarts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harmonyd.supervision.backoff import Backoff


def make(random: float = 0.5, give_up_after: int = 5) -> Backoff:
    return Backoff(1.0, 60.0, give_up_after, lambda: random)


def test_delays_double_to_their_cap() -> None:
    """Slow failures are tried again after 1, 2, 4 … 60 seconds, and never given up."""
    backoff = make()
    delays = [backoff.failed(now=100.0 * n) for n in range(9)]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]


@given(st.floats(0, 1), st.integers(0, 20))
def test_jitter_stays_within_a_fifth(random: float, earlier: int) -> None:
    """Randomness moves a delay by at most 20 %."""
    exact, jittered = make(0.5), make(random)
    for n in range(earlier):
        exact.failed(1000.0 * n), jittered.failed(1000.0 * n)
    delay, plain = jittered.failed(1e6), exact.failed(1e6)
    assert delay is not None and plain is not None
    assert 0.8 * plain - 1e-9 <= delay <= 1.2 * plain + 1e-9


def test_fast_failures_are_given_up() -> None:
    """The fifth failure within a minute is one too many, and so is each later one until a reset."""
    backoff = make()
    assert [backoff.failed(now) for now in (0, 1, 3, 7, 15)] == [1, 2, 4, 8, None]
    assert backoff.failed(now=1000) is None
    backoff.reset()
    assert backoff.failed(now=1001) == 1


def test_failures_spread_over_more_than_a_minute_are_not_fast() -> None:
    """Five failures in 61 seconds are no reason to give up."""
    backoff = make()
    assert None not in [backoff.failed(now) for now in (0, 15, 30, 45, 61)]
