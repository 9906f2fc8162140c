"""A share of the threads, for work that may hang."""

from __future__ import annotations

import threading

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThread

from harmonyd.services.few_threads import FewThreads


@pytest_twisted.ensureDeferred
async def test_results_and_errors() -> None:
    """They come as they are, however many calls there were before."""
    threads = FewThreads(deferToThread, 1)
    for _ in range(3):
        assert await threads(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await threads(divmod, 7, 0)


@pytest_twisted.ensureDeferred
async def test_what_hangs_counts_though_it_is_cancelled() -> None:
    """No more threads than allowed are taken by calls that hang; those that wait can be cancelled, and go on behind."""
    threads = FewThreads(deferToThread, 2)
    goes_on, began = threading.Event(), []
    both = threading.Barrier(3)

    def hang() -> None:
        began.append(1)
        if len(began) <= 2:
            both.wait(30)
        goes_on.wait(30)

    calls = [Deferred.fromCoroutine(threads(hang)) for _ in range(4)]
    try:
        await deferToThread(both.wait, 30)
        for call in calls[:3]:
            call.cancel()
            with pytest.raises(CancelledError):
                await call
        later = Deferred.fromCoroutine(threads(began.append, 2))
        assert await deferToThread(lambda: 3) == 3
        assert began == [1, 1]
    finally:
        goes_on.set()
    await calls[3]
    await later
    assert sorted(began) == [1, 1, 1, 2]
