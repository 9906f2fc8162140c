"""Who measures operations, and how an operation ended, in a few words that metrics can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from twisted.internet.defer import CancelledError

from harmonyd.dimse.errors import (
    AssociationRejected,
    DimseFailure,
    NoPresentationContext,
    RemoteUnreachable,
    TlsFailed,
)
from harmonyd.errors import DeadlinePassed, Fault, HarmonydError, NotFound, RemoteError, StorageFull, Unavailable
from harmonyd.progress import UNTIMED, Steps

__all__ = ["CANCELLED", "OUTCOMES", "UNMETERED", "Measure", "Meter", "outcome_of", "outcome_of_error"]

COMPLETE, INCOMPLETE, CANCELLED = "complete", "incomplete", "cancelled"
_CALLER, _OURS = "caller_error", "our_error"
_ERRORS: Mapping[type[BaseException], str] = {
    CancelledError: CANCELLED,
    GeneratorExit: CANCELLED,
    NotFound: "nothing_found",
    RemoteUnreachable: "unreachable",
    AssociationRejected: "no_association",
    NoPresentationContext: "no_association",
    TlsFailed: "no_association",
    DimseFailure: "failure_status",
    DeadlinePassed: "timeout",
    RemoteError: "remote_error",
    Unavailable: "busy",
    StorageFull: "disk_full",
}
OUTCOMES = (COMPLETE, INCOMPLETE, *dict.fromkeys(_ERRORS.values()), _CALLER, _OURS)
"""All there are."""


class Measure(Protocol):
    """Of one operation. Called in the reactor's thread."""

    @property
    def steps(self) -> Steps:
        """What the engine tells."""
        ...

    def arrived(self, count: int, size_bytes: int) -> None:
        """So many more results are here."""
        ...

    def first(self) -> None:
        """The first result is here, whether or not anybody takes it."""
        ...

    def ended(self, outcome: str) -> None:
        """Once; ``outcome`` is one of ``OUTCOMES``."""
        ...


class Meter(Protocol):
    """Measures operations. Names of backends and operations come from the configuration and from us alone."""

    def begin(self, backend: str, operation: str) -> Measure:
        """An operation begins."""
        ...


class _Nothing:
    steps = UNTIMED

    def begin(self, backend: str, operation: str) -> Measure:
        return self

    def arrived(self, count: int, size_bytes: int) -> None:
        pass

    def first(self) -> None:
        pass

    def ended(self, outcome: str) -> None:
        pass


UNMETERED: Meter = _Nothing()
"""Nobody measures."""


def outcome_of_error(error: BaseException) -> str:
    """How an operation ended that raised this."""
    for kind in type(error).__mro__:
        if kind in _ERRORS:
            return _ERRORS[kind]
    is_callers = isinstance(error, HarmonydError) and error.fault is Fault.CALLER
    return _CALLER if is_callers else _OURS


def outcome_of(summary: Mapping[str, Any]) -> str:
    """How the operation ended that has this summary."""
    given = summary.get("outcome")
    if given is not None:
        return str(given)
    return COMPLETE if summary.get("complete", True) else INCOMPLETE
