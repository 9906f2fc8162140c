"""How long who failed has to wait. Pure: the time is an argument."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["Throttle", "network_of"]

FREE = 5
"""Failures with one name from one address before there is a wait."""
FREE_OF_ADDRESS = 20
"""Failures from one address, whatever the names."""
HOT = 20
"""Failures with one name from anywhere: then each address waits from its first failure with it on."""
FIRST_SECS, LONGEST_SECS = 1.0, 60.0
FORGET_SECS = 900.0
MOST = 10_000
"""Entries that are kept; the one that failed longest ago goes."""
_Key = tuple[str, str]
_ALL = "\0"


@dataclass(slots=True)
class _Record:
    failures: int = 0
    last: float = 0.0
    until: float = 0.0


class Throttle:
    """Waits double with each failure. They are an address's own: a stranger cannot lock anybody else out."""

    def __init__(self) -> None:
        self._records: OrderedDict[_Key, _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def wait_secs(self, address: str, name: str, now: float) -> float:
        """How long this address has to wait before it may try this name (again); 0: not at all."""
        place = network_of(address)
        return max(self._until((place, _ALL), now), self._until((place, name), now), now) - now

    def failed(self, address: str, name: str, now: float) -> None:
        """Take note of wrong credentials. ``name`` may be empty."""
        place = network_of(address)
        self._fail((place, _ALL), FREE_OF_ADDRESS, now)
        if name:
            everywhere = self._fail((_ALL, name), HOT, now)
            self._fail((place, name), 0 if everywhere.failures > HOT else FREE, now)

    def succeeded(self, address: str, name: str) -> None:
        """Forget what was wrong with this name from there. What else came from the address is remembered."""
        self._records.pop((network_of(address), name), None)

    def _until(self, key: _Key, now: float) -> float:
        record = self._records.get(key)
        return record.until if record is not None and now - record.last < FORGET_SECS else 0.0

    def _fail(self, key: _Key, free: int, now: float) -> _Record:
        record = self._records.pop(key, None)
        if record is None or now - record.last >= FORGET_SECS:
            record = _Record()
        record.failures += 1
        record.last = now
        over = record.failures - free
        if over >= 0:
            record.until = now + min(LONGEST_SECS, FIRST_SECS * 2.0 ** min(over, 30))
        self._records[key] = record
        while len(self._records) > MOST:
            self._records.popitem(last=False)
        return record


def network_of(address: str) -> str:
    """An IPv4 address; of an IPv6 address the /64 that one customer has all of."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)).network_address)
    return address
