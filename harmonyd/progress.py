"""How far an operation is, for those who want to know while it runs."""

from __future__ import annotations

from typing import Protocol

__all__ = ["UNTIMED", "UNWATCHED", "Progress", "SharedProgress", "Steps", "SummedProgress", "without_records"]


class Progress(Protocol):
    """Who is told. Called in the reactor's thread; cheap, and raises nothing."""

    def began(self) -> None:
        """Nothing is waited for any more: the remote node is asked. Safe to call twice."""
        ...

    def arrived(self, size_bytes: int) -> None:
        """One more record of the result is here: a match, an instance; of a store, one that the node has taken."""
        ...

    def counted(self, completed: int | None, failed: int | None, warning: int | None, remaining: int | None) -> None:
        """How the sub-operations of a C-GET or C-MOVE stand (PS3.7 section 9.1.3), or the objects of a store.

        None: the node does not say.
        """
        ...


class Steps(Protocol):
    """Who measures an operation is told its steps. Called in the reactor's thread; raises nothing."""

    def queued(self) -> None:
        """It waits until an association may be opened. Safe to call twice."""
        ...

    def began(self) -> None:
        """Nothing is waited for any more. Safe to call twice."""
        ...

    def associated(self) -> None:
        """An association is there. Safe to call twice; not every engine knows."""
        ...


class _Untimed:
    def queued(self) -> None:
        pass

    def began(self) -> None:
        pass

    def associated(self) -> None:
        pass


UNTIMED: Steps = _Untimed()
"""Nobody measures."""


class _Unwatched:
    def began(self) -> None:
        pass

    def arrived(self, size_bytes: int) -> None:
        pass

    def counted(self, completed: int | None, failed: int | None, warning: int | None, remaining: int | None) -> None:
        pass


UNWATCHED: Progress = _Unwatched()
"""Nobody wants to know."""


_Counts = tuple[int | None, int | None, int | None, int | None]


class SharedProgress(_Unwatched):
    """How one operation stands, for all who wait for what it brings; its records each of them counts by itself."""

    def __init__(self, *watchers: Progress) -> None:
        self._watchers: list[Progress] = []
        self._has_begun = False
        self._counts: _Counts | None = None
        for watcher in watchers:
            self.add(watcher)

    def add(self, watcher: Progress) -> None:
        """Tell it how the operation stands, and what becomes of that."""
        if watcher is UNWATCHED:
            return
        self._watchers.append(watcher)
        if self._has_begun:
            watcher.began()
        if self._counts is not None:
            watcher.counted(*self._counts)

    def remove(self, watcher: Progress) -> None:
        """Tell it nothing more."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def began(self) -> None:
        """See ``Progress``."""
        self._has_begun = True
        for watcher in list(self._watchers):
            watcher.began()

    def counted(self, completed: int | None, failed: int | None, warning: int | None, remaining: int | None) -> None:
        """See ``Progress``."""
        self._counts = (completed, failed, warning, remaining)
        for watcher in list(self._watchers):
            watcher.counted(*self._counts)


def without_records(progress: Progress) -> Progress:
    """The same, but for the records."""
    return progress if progress is UNWATCHED else SharedProgress(progress)


class SummedProgress:
    """How several operations stand, one after the other, as if they were one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.expected = 0
        """How many there will be, as far as is known."""
        self._counts: list[_Counts] = []

    def step(self) -> Progress:
        """For the next one."""
        if self._progress is UNWATCHED:
            return UNWATCHED
        self._counts.append((0, 0, 0, 0))
        return _Step(self, len(self._counts) - 1, self._progress)

    def tell(self, number: int, counts: _Counts) -> None:
        """Tell the sums; what the present operation does not say is not known, nor what remains before the last one."""
        self._counts[number] = counts
        completed, failed, warning, remaining = (
            None if each[-1] is None else sum(one or 0 for one in each) for each in zip(*self._counts, strict=True)
        )
        is_last = len(self._counts) >= self.expected
        self._progress.counted(completed, failed, warning, remaining if is_last else None)


class _Step:
    def __init__(self, whole: SummedProgress, number: int, progress: Progress) -> None:
        self._whole = whole
        self._number = number
        self.began, self.arrived = progress.began, progress.arrived

    def counted(self, completed: int | None, failed: int | None, warning: int | None, remaining: int | None) -> None:
        self._whole.tell(self._number, (completed, failed, warning, remaining))
