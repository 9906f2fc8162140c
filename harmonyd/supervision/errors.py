"""What can go wrong with children."""

from __future__ import annotations

from harmonyd.errors import Fault, HarmonydError, Unavailable


class SpawnError(HarmonydError):
    """A child could not be started: no such program, not executable, out of processes."""

    fault = Fault.OURS
    title = "A child process could not be started"


class ChildNotReady(Unavailable):
    """A kept child this operation needs is not RUNNING; the detail has its state and why."""

    title = "A child process this operation needs is not ready"
