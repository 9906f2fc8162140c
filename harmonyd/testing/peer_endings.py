"""How the scripted peer breaks off an association that stands: ``PeerOptions.then``."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

_NO_PDU = bytes(range(0x93, 0xFF)) * 3
_ESTABLISHED = "Sta6"  # PS3.8 section 9.2.1


def is_open(assoc: Any) -> bool:
    """Whether the association stands."""
    return bool(assoc.dul.state_machine.current_state == _ESTABLISHED)


def hang(assoc: Any) -> None:
    """Return when the other side has ended the association."""
    while is_open(assoc):
        time.sleep(0.02)


def _abort(assoc: Any) -> None:
    assoc.abort()


def _drop(assoc: Any) -> None:
    assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)


def _garbage(assoc: Any) -> None:
    assoc.dul.socket.socket.sendall(_NO_PDU)
    _drop(assoc)


ENDINGS: Mapping[str, Callable[[Any], None]] = MappingProxyType(
    {"abort": _abort, "drop": _drop, "garbage": _garbage}
)
"""Ways to end it at once."""
