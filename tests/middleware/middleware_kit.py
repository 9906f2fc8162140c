"""What the tests of middleware share."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from harmonyd.audit.api import no_audit
from harmonyd.middleware.auth.guard import Guard
from harmonyd.middleware.registry import Resources


async def at_once(function: Any, *args: Any) -> Any:
    """Stands for a thread."""
    return function(*args)


_CLOCK = Clock()
RESOURCES = Resources(_CLOCK, at_once, no_audit, Guard(_CLOCK, at_once, no_audit))
