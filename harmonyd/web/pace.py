"""How fast a client is: what it sends while it is waited for, and what it takes of an answer."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import termios
from typing import Any

from harmonyd.web.secure import wire

_ACKED_AT = 120
_TCP_INFO_BYTES = 128
"""Up to the end of ``tcpi_bytes_acked`` (linux/tcp.h, since Linux 4.1)."""


SOON_SECS = 5.0


class Pace:
    """What a client sends, or takes, in the time that it is waited for: of each ``secs``, at least ``least_bytes``.

    Time in which nobody waits for it, because we have not done with what it sent before, is not counted. ``clock``
    provides ``IReactorTime``.
    """

    def __init__(self, clock: Any, secs: float, least_bytes: float, marked_bytes: int = 0) -> None:
        """``marked_bytes``: what had come before."""
        self._clock = clock
        self._secs = secs
        self._least_bytes = least_bytes
        self._waits_since: float | None = None
        self._waited_secs = 0.0
        self._marked_bytes = marked_bytes

    def wait(self) -> None:
        """It is waited for, from now."""
        if self._waits_since is None:
            self._waits_since = self._clock.seconds()

    def rest(self) -> None:
        """It is not waited for any more."""
        self._waited_secs = self._waited()
        self._waits_since = None

    def look(self, received_bytes: int) -> float:
        """Return after how many seconds to look again; 0 when the client is too slow."""
        waited_secs = self._waited()
        if waited_secs < self._secs:
            return max(self._secs - waited_secs, 0.01)
        if received_bytes - self._marked_bytes < self._least_bytes:
            return 0.0
        self._marked_bytes, self._waited_secs = received_bytes, 0.0
        if self._waits_since is not None:
            self._waits_since = self._clock.seconds()
        return self._secs

    def is_behind(self, received_bytes: int) -> bool:
        """Whether it has been too slow so far, for some seconds at least; it may make up for that yet."""
        waited_secs = self._waited()
        due_bytes = self._least_bytes * min(waited_secs / self._secs, 1)
        return waited_secs >= min(SOON_SECS, self._secs) and received_bytes - self._marked_bytes < due_bytes

    def _waited(self) -> float:
        if self._waits_since is None:
            return self._waited_secs
        return self._waited_secs + float(self._clock.seconds() - self._waits_since)


def unread_bytes(transport: Any) -> int | None:
    """Return how much the kernel holds that the peer has not acknowledged (SIOCOUTQ, tcp(7)); None when not known."""
    queued = array.array("i", [0])
    try:
        fcntl.ioctl(wire(transport).getHandle().fileno(), termios.TIOCOUTQ, queued)
    except (AttributeError, OSError, ValueError):
        return None
    return queued[0]


def taken_bytes(transport: Any) -> int | None:
    """Return how much the peer has acknowledged since the connection was made (tcp(7)); None when not known."""
    try:
        info = wire(transport).getHandle().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return int(struct.unpack_from("=Q", info, _ACKED_AT)[0])
    except (AttributeError, OSError, ValueError, struct.error):
        return None
