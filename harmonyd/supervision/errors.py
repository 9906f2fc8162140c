"""What can go wrong with children."""

from __future__ import annotations

from harmonyd.errors import Fault, HarmonydError, RemoteError, Unavailable


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
