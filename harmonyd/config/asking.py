"""What callers of a dicom endpoint may ask for, as the configuration says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harmonyd.tls import TlsClient

STORE = "store"
COMMIT, STEPS = "commit", "mpps"
SERVICES = (STORE, "find", "get", "move", COMMIT, STEPS)
"""Beside C-ECHO."""


def are_asked(services: Sequence[str]) -> bool:
    """Whether callers can ask the pipeline for something, and not only send."""
    return not set(services) <= {STORE, COMMIT, STEPS}


@dataclass(frozen=True, slots=True)
class MoveDestination:
    """A node that an endpoint may send to: what a C-MOVE asks for, reports. Its AE title is its key."""

    host: str
    port: int
    tls: TlsClient | None = None
    """None: not secured."""
    connect_timeout_secs: float = 10.0
    association_timeout_secs: float = 60.0
    """Silence allowed."""
    max_associations: int = 10
