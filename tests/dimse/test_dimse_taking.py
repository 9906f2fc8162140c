"""Objects are handed over in the order in which they came, however long each takes to be checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from harmonyd.dimse import taking
from harmonyd.dimse.taking import MAX_BATCHES, Taking
from harmonyd.dimse.threads import in_thread
from harmonyd.testing.data import make_study


class Files:
    """A ``Source``, and a handler that keeps what it was given."""

    def __init__(self) -> None:
        self.taken: list[Path] = []
        self.failed_ones: list[Path] = []

    async def __call__(self, arrivals: Sequence[Any]) -> None:
        self.taken += [each.path for each in arrivals]

    def arrival(self, path: Path, header: Any) -> Any:
        return SimpleNamespace(path=path)

    async def damaged(self, path: Path, reason: str) -> None:
        raise AssertionError(reason)

    def settled(self, path: Path) -> None: ...

    def failed(self, path: Path) -> None:
        self.failed_ones.append(path)


@pytest.mark.parametrize("fails", [False, True])
@pytest_twisted.ensureDeferred
async def test_order(started_reactor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """The first is checked until those behind it have been; it goes first all the same, or fails and holds up none."""
    paths = make_study(tmp_path, 20, size=8).files
    behind, check = Event(), taking._check_one

    def slow(source: Any, path: Path) -> Any:
        if path == paths[0] and not behind.wait(30):
            raise AssertionError("the last batch waits for the first to be checked")
        if path == paths[0] and fails:
            raise RuntimeError("a fault of ours")
        if path == paths[MAX_BATCHES - 1]:
            behind.set()
        return check(source, path)

    monkeypatch.setattr(taking, "_check_one", slow)
    files = Files()
    threads: Any = SimpleNamespace(reactor=started_reactor, in_thread=lambda *args: in_thread(started_reactor, *args))
    work = Taking(threads, files, "test")  # type: ignore[arg-type]
    for path in paths:
        work.add(files, path)
    await Deferred.fromCoroutine(work.all_settled())
    assert files.taken == (list(paths[1:]) if fails else list(paths))
    assert files.failed_ones == (list(paths[:1]) if fails else [])
