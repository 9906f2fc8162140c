"""How long to wait before something is tried again."""

from __future__ import annotations

FIRST_SECS = (1.0, 5.0, 15.0, 60.0)
"""Waits after the first failures; then they double."""
JITTER = 0.2
_MAX_DOUBLINGS = 20


def wait_secs(failures: int, most_secs: float, random: float) -> float:
    """After so many failures (1 or more); ``random``, from 0 to 1, makes it up to a fifth shorter or longer.

    Never longer than ``most_secs``, except for that fifth.
    """
    doublings = min(max(0, failures - len(FIRST_SECS)), _MAX_DOUBLINGS)
    plain = FIRST_SECS[min(failures, len(FIRST_SECS)) - 1] * 2**doublings
    return float(min(plain, most_secs) * (1 + JITTER * (2 * random - 1)))
