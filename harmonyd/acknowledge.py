"""How a C-STORE is answered when the outcome of the pipeline decides, not the spool."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PipelineAnswers:
    """The statuses for what can go wrong, 16 bit (PS3.4 table B.2-1, PS3.7 Annex C). Validated by the configuration."""

    timeout_secs: float = 30.0
    """For the whole delivery, from the moment that the object is here."""
    refused: int = 0x0124
    """Middleware refused it. Refused: not authorized; alone of these it may be a warning."""
    failed: int | None = None
    """A backend does not take it; None: what that node answered, or Processing failure where it has no such status."""
    away: int = 0xA700
    """A backend cannot be reached or used now. Refused: out of resources."""
    deadline: int = 0xA700
    """The time is over, or the daemon stops: whether a backend has it is not known."""
