"""Is a request meant for this machine, or did a web page of somebody else have a browser send it?"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit


def names_this_machine(host_field: str) -> bool:
    """Whether a Host field holds an address, ``localhost`` or our own host name; with or without a port.

    A name that somebody pointed at us (DNS rebinding) does not.
    """
    name, colon, port = host_field.rpartition(":")
    name = (name if colon and port.isdigit() else host_field).lower()
    if name in ("localhost", socket.gethostname().lower()):
        return True
    return _address(name.removeprefix("[").removesuffix("]")) is not None


def is_from_another_site(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page sent this which does not come from this machine (RFC 6454, Fetch Metadata).

    Programs, which say nothing, are not meant.
    """
    if "cross-site" in headers.get("sec-fetch-site", ""):
        return True
    origin = headers.get("origin")
    return origin is not None and not _is_ours(origin, headers.get("host", ""))


def _is_ours(origin: str, host_field: str) -> bool:
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    if name in ("localhost", socket.gethostname().lower()) or parts.netloc.lower() == host_field.lower() != "":
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
