"""How long a peer may say nothing, and take nothing of what was written to it."""

from __future__ import annotations

import fcntl
import socket
import termios
from collections.abc import Callable
from typing import Any

_LOOK_AGAIN_SECS = 1.0


class SilenceWatch:
    """One timer that is seldom set anew, instead of one for each message.

    Behind a slow line a peer is not silent as long as it takes what was written long ago: two looks show whether.
    """

    def __init__(self, reactor: Any, secs: float, unsent: Callable[[], int], over: Callable[[], None]) -> None:
        """``unsent``: how many bytes still wait to be taken. ``over`` is called after ``secs`` of silence."""
        self.secs = secs
        self._reactor = reactor
        self._unsent = unsent
        self._over = over
        self._quiet_since = 0.0
        self._unsent_bytes = 0
        """At the first look."""
        self._call: Any = None

    def broken(self) -> None:
        """Something was said or written: a silence begins anew."""
        self._quiet_since = self._reactor.seconds()
        self._unsent_bytes = 0

    def begin(self) -> None:
        """Somebody waits from now on; it may be called again."""
        if self._call is None:
            self._watch(self.secs)

    def stop(self) -> None:
        """Nobody waits any more."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def allow(self, secs: float) -> None:
        """From now on another time."""
        self.secs = secs
        if self._call is not None:
            self.stop()
            self.begin()

    def _watch(self, secs: float) -> None:
        self._call = self._reactor.callLater(secs, self._look)

    def _look(self) -> None:
        self._call = None
        left_secs = self._quiet_since + self.secs - self._reactor.seconds()
        if left_secs <= 0:
            left_secs = self._time_to_take()
        if left_secs > 0:
            self._watch(left_secs)
        else:
            self._over()

    def _time_to_take(self) -> float:
        unsent, before = self._unsent(), self._unsent_bytes
        self._unsent_bytes = 0
        if before:
            return self.secs if unsent < before else 0.0
        self._unsent_bytes = unsent
        return _LOOK_AGAIN_SECS if unsent else 0.0


def unsent_bytes(transport: Any) -> int:
    """What was written and is in Twisted's buffer, or in the kernel's without an acknowledgement; 0 if unknown."""
    sock = transport.getHandle()
    if not isinstance(sock, socket.socket):
        return 0
    try:
        queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    buffered = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    return int(buffered) + int.from_bytes(queued, "little")
