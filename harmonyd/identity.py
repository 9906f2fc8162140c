"""Who we say we are, beside the AE title, to a remote application entity."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user identity (PS3.7 section D.3.3.7) of type 1, or with a passcode of type 2."""

    username: str
    passcode: str | None = field(default=None, repr=False)
