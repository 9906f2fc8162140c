"""Syslog over TLS: messages of RFC 5424, octet counting of RFC 5425, on a blocking socket.

TLS has no word for "I have it". What the collector's TCP has acknowledged counts as delivered, unless it resets the
connection then: a process that ends with something unread does so.
"""

from __future__ import annotations

import fcntl
import re
import socket
import ssl
import struct
import termios
import time
from contextlib import suppress
from datetime import UTC, datetime

from harmonyd.config.audit_model import AuditSyslog
from harmonyd.tls import client_context, expected_name, fingerprint

FACILITY = 10
"""Security and authorization (PS3.15 section A.6)."""
CONNECT_SECS = 10.0
SEND_SECS = 15.0
"""For one batch, until it is acknowledged."""
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")


def framed(xml: bytes, at: float, severity: int, host: str, pid: int) -> bytes:
    """Return a message with its header and its length before it."""
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    name = _NOT_PRINTABLE.sub("?", host)[:255] or "-"
    head = f"<{FACILITY * 8 + severity}>1 {when} {name} harmonyd {pid} DICOM+RFC3881 - "
    line = head.encode("ascii") + xml
    return b"%d %b" % (len(line), line)


class Connection:
    """To a collector. Raises OSError wherever something is wrong (``ssl.SSLError`` is one)."""

    def __init__(self, settings: AuditSyslog) -> None:
        """Connect, and shake hands."""
        context = client_context(settings.tls)
        raw = socket.create_connection((settings.host, settings.port), CONNECT_SECS)
        try:
            self._socket = context.wrap_socket(raw, server_hostname=expected_name(settings.tls, settings.host))
        except BaseException:
            raw.close()
            raise
        pins = settings.tls.pinned_sha256
        if pins and fingerprint(self._socket.getpeercert(binary_form=True) or b"") not in pins:
            self.close()
            raise ConnectionError("its certificate is not one of pinned_sha256")

    def send(self, frames: bytes) -> None:
        """Return when the collector's TCP has acknowledged all of it."""
        until = time.monotonic() + SEND_SECS
        if self._has_ended():
            raise ConnectionError("the collector has closed the connection")
        self._socket.settimeout(SEND_SECS)
        self._socket.sendall(frames)
        pause = 0.001
        while self._unacknowledged():
            if time.monotonic() > until:
                raise TimeoutError("the collector takes nothing")
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        self._has_ended()  # raises if it was reset

    def interrupt(self) -> None:
        """From another thread: whatever waits here, fails."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Say farewell if that costs no time."""
        with suppress(OSError, ValueError):
            self._socket.settimeout(0)
            self._socket.unwrap()
        self._socket.close()

    def _unacknowledged(self) -> int:
        """Bytes in the socket's send queue (tcp(7): SIOCOUTQ)."""
        answer = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
        return int(struct.unpack("i", answer)[0])

    def _has_ended(self) -> bool:
        """Whether the collector has closed the connection. What it says is of no interest."""
        self._socket.settimeout(0)
        try:
            while self._socket.recv(4096):
                pass
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return True
        return True
