"""How far an operation is, for those who want to know while it runs."""

from __future__ import annotations

from typing import Protocol

__all__ = ["UNTIMED", "UNWATCHED", "Progress", "Steps", "without_records"]


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


def without_records(progress: Progress) -> Progress:
    """The same, but for the records: who asked counts them as they come to it."""
    return progress if progress is UNWATCHED else _WithoutRecords(progress)


class _WithoutRecords(_Unwatched):
    def __init__(self, progress: Progress) -> None:
        self.began, self.counted = progress.began, progress.counted  # type: ignore[method-assign]
