"""Whom a request comes from when it came through reverse proxies of ours."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

__all__ = ["TrustedProxies", "plain_address"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
MOST_HOPS = 32


class TrustedProxies:
    """``blocks``: addresses and CIDR blocks of proxies whose X-Forwarded-For is believed, and whose alone."""

    def __init__(self, blocks: Iterable[str]) -> None:
        self._blocks = [ipaddress.ip_network(block) for block in blocks]

    def origin(self, peer: str, forwarded_for: str) -> str:
        """The address that a request came from, when ``peer`` connected to us and sent this X-Forwarded-For ("": none).

        Each proxy appends who connected to it, so the field is read from its end, as long as a trusted one wrote it;
        what stands before may be made up. Where it makes no sense, the last address that did is the answer.
        """
        found = plain_address(peer)
        if not self._blocks or not forwarded_for:
            return found
        for hop in reversed(forwarded_for.split(",")[-MOST_HOPS:]):
            if not self._trusts(found):
                break
            address = _hop(hop)
            if address is None:
                break
            found = address
        return found

    def speaks_for_others(self, peer: str, *, has_field: bool) -> bool:
        """Whether what ``peer`` sends is somebody else's request, whatever address is in its X-Forwarded-For.

        It may be the proxy's own, as of a program beside it, or none at all.
        """
        return has_field and self._trusts(plain_address(peer))

    def _trusts(self, address: str) -> bool:
        parsed = _parsed(address)
        return parsed is not None and any(parsed in block for block in self._blocks)


def plain_address(text: str) -> str:
    """An address in its usual form; IPv4 in IPv6 (RFC 4291 section 2.5.5.2) as IPv4; other text as it is."""
    parsed = _parsed(text)
    return text if parsed is None else str(parsed)


def _hop(text: str) -> str | None:
    """An element of X-Forwarded-For: an address, some proxies add a port."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    parsed = _parsed(text)
    return None if parsed is None else str(parsed)


def _parsed(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
