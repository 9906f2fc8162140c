"""Telling systemd how the daemon is: the protocol of sd_notify(3), without libsystemd.

One message is one datagram of ``NAME=value`` lines to the socket that ``NOTIFY_SOCKET`` names. Outside systemd there is
no such variable, and every call does nothing.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, MutableMapping

from twisted.logger import Logger

__all__ = ["Notifier", "watchdog_secs"]

MAX_STATUS = 400
"""Characters of a status text: it is shown in one line of ``systemctl status``."""
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_NOT_PRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def watchdog_secs(environ: MutableMapping[str, str], pid: int) -> float | None:
    """How long systemd waits for a sign of life before it restarts us (sd_watchdog_enabled(3)); None: it does not.

    ``pid`` is ours: the variables may be meant for somebody else.
    """
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() and int(text) > 0 else None


class Notifier:
    """Sends messages to the service manager at ``address``; to nobody when that is None.

    Nothing here blocks or raises: a manager that cannot be told is no reason to stop serving. ``monotonic_ns`` is
    the clock that systemd reads, ``CLOCK_MONOTONIC``.
    """

    _log = Logger()

    def __init__(
        self,
        address: str | None,
        watchdog_secs: float | None = None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._address = address.replace("@", "\0", 1) if address and address.startswith("@") else address
        self._monotonic_ns = monotonic_ns
        self._failed = False
        self._status = ""
        self.watchdog_secs = watchdog_secs
        """A sign of life is due this often; None: nobody waits for one."""
        self.environment: dict[str, str] = {}
        """The variables it was made from, for the process that takes our place."""

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """For the manager that ``environ`` names. The variables are taken out of it, so that nothing inherits them."""
        notifier = cls(environ.get("NOTIFY_SOCKET"), watchdog_secs(environ, os.getpid()))
        notifier.environment = {name: environ.pop(name) for name in _VARIABLES if name in environ}
        return notifier

    @property
    def enabled(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Started, or done with a reload."""
        self._send("READY=1", self._status_line(status))

    def status(self, text: str) -> None:
        """Say in one line how things are; the same text as before is not sent again."""
        if text != self._status:
            self._send(self._status_line(text))

    def reloading(self, status: str) -> None:
        """A reload has begun; ``ready`` ends it. Both lines must be in one datagram (systemd.service(5))."""
        now_usec = self._monotonic_ns() // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_usec}", self._status_line(status))

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._send("STOPPING=1", self._status_line(status))

    def alive(self) -> None:
        """The sign of life that the watchdog waits for."""
        self._send("WATCHDOG=1")

    def more_time(self, secs: float) -> None:
        """Ask for this long, from now on, for the start or the stop that is under way."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(secs * 1e6)}")

    def _status_line(self, text: str) -> str:
        self._status = text
        return f"STATUS={_NOT_PRINTABLE.sub(' ', text)[:MAX_STATUS]}"

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        message = "\n".join(lines).encode("utf-8", "replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(message, self._address)
        except OSError as error:
            if not self._failed:
                self._log.warn("systemd cannot be told how we are: {error}", error=str(error))
            self._failed = True
        else:
            self._failed = False
