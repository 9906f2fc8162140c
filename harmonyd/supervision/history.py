"""When the processes of a kept child started and ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class History:
    """Times are those of the reactor's clock; 0 for never."""

    starts: int = 0
    """How many processes it has had."""
    started_at: float = 0.0
    """When the latest one started."""
    stopped_at: float = 0.0
    """When one exited last."""

    def started(self, now: float) -> None:
        """One more."""
        self.starts += 1
        self.started_at = now
