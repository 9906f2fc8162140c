"""The connection of an inbound association, as its storescp gets it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Protocol

_BYTES_RECEIVED = struct.Struct("=128xQ")
"""``tcpi_bytes_received`` in ``struct tcp_info`` (linux/tcp.h)."""


class Wire(Protocol):
    """Its owner closes ``sock``, which both share until then."""

    @property
    def sock(self) -> socket.socket:
        """What becomes the program's standard input."""
        ...

    @property
    def env(self) -> Mapping[str, str]:
        """What the program's environment needs for it."""
        ...

    def received_bytes(self) -> int:
        """How much has come from the peer."""
        ...


class PlainWire:
    """The accepted connection itself. Implements ``Wire``."""

    env: Mapping[str, str] = {}

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def received_bytes(self) -> int:
        """See ``Wire``."""
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
        if len(info) < _BYTES_RECEIVED.size:
            return 0
        return int(_BYTES_RECEIVED.unpack(info)[0])
