"""Methods of requests that are passed on."""

from __future__ import annotations

from harmonyd.errors import MethodNotAllowed

PASSED_ON = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Those that there usually are; others are passed on too."""
_NEVER = ("TRACE", "CONNECT")


def require_passable(method: str) -> None:
    """Raise ``MethodNotAllowed`` for what shows a request's credentials to pages, or asks for a tunnel."""
    if method in _NEVER:
        raise MethodNotAllowed(f"{method} is not passed on.", allow=PASSED_ON)
