"""What can go wrong with children."""

from __future__ import annotations

from typing import Any

from harmonyd.errors import Fault, HarmonydError, RemoteError, Unavailable

_LOOK_THERE = "GET /readyz shows the children; what each one says is below the storage path, in log/."


class SpawnError(HarmonydError):
    """A child could not be started: no such program, not executable, out of processes."""

    fault = Fault.OURS
    title = "A child process could not be started"


class UnusableProgram(SpawnError):
    """A child can never be started as it is configured: trying again changes nothing."""


class ProbeFailed(RemoteError):
    """A C-ECHO probe got no proper answer; the detail says why."""

    title = "No answer to C-ECHO"


class ChildNotReady(Unavailable):
    """A kept child this operation needs is not RUNNING; the detail has its state and why."""

    title = "A child process this operation needs is not ready"

    def __init__(self, detail: str, *, hint: str | None = None, **extra: Any) -> None:
        super().__init__(detail, hint=hint or _LOOK_THERE, **extra)
