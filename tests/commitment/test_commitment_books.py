"""The ledger for the reactor: one work at a time, whoever stops waiting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from harmonyd.commitment.books import Books
from harmonyd.commitment.ledger import Ledger


class Threads:
    """Work is done when a test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        done: Deferred[None] = Deferred()
        self.waiting.append(lambda: done.callback(None))
        await done
        return function(*args)

    def finish(self) -> None:
        """What is under way."""
        while self.waiting:
            self.waiting.pop(0)()


def test_a_thread_goes_on_when_nobody_waits(tmp_path: Path) -> None:
    """The connection belongs to one thread at a time: the next work begins when the one before has ended."""
    threads = Threads()
    books = Books(tmp_path, threads)
    done: list[str] = []

    def work(name: str) -> Deferred[None]:
        def note(_: Ledger) -> None:
            done.append(name)

        return Deferred.fromCoroutine(books.do(note))

    opening = work("opened")
    threads.finish()
    first, second = work("first"), work("second")
    first.cancel()
    assert first.called
    first.addErrback(lambda failure: failure.trap(CancelledError))
    assert len(threads.waiting) == 1, "only one is in a thread"
    assert done == ["opened"]
    threads.finish()
    assert done == ["opened", "first", "second"]
    assert opening.called
    assert second.called
    closing = Deferred.fromCoroutine(books.close())
    threads.finish()
    assert closing.called


def test_what_went_wrong_is_told(tmp_path: Path) -> None:
    """To who has asked, and the next one gets its turn."""
    threads = Threads()
    books = Books(tmp_path, threads)

    def fail(_: Ledger) -> None:
        raise ValueError("no")

    bad = Deferred.fromCoroutine(books.do(fail))
    good = Deferred.fromCoroutine(books.do(lambda ledger: len(ledger.demands("scp"))))
    threads.finish()
    errors: list[BaseException] = []
    bad.addErrback(lambda failure: errors.append(failure.value))
    assert isinstance(errors[0], ValueError)
    found: list[int] = []
    good.addCallback(found.append)
    assert found == [0]
    closing = Deferred.fromCoroutine(books.close())
    threads.finish()
    assert closing.called


def test_the_ledger_is_made_when_needed(tmp_path: Path) -> None:
    """Not before."""
    books = Books(tmp_path, Threads())
    assert not books.exists
    closing = Deferred.fromCoroutine(books.close())
    assert closing.called
    with pytest.raises(FileNotFoundError):
        books.path.stat()
