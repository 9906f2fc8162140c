"""Is a request meant for this machine, or did a web page point a name of its own at us (DNS rebinding)?"""

from __future__ import annotations

import ipaddress
import socket


def names_this_machine(host_field: str) -> bool:
    """Whether a Host field holds an address, ``localhost`` or our own host name; with or without a port."""
    name, colon, port = host_field.rpartition(":")
    name = (name if colon and port.isdigit() else host_field).lower()
    if name in ("localhost", socket.gethostname().lower()):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
