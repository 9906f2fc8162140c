"""``client_certificate`` and ``calling_aet``: who asks by what the connection tells."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from harmonyd.envelope import RequestEnvelope
from harmonyd.middleware.auth.guard import Guard
from harmonyd.middleware.auth.scheme import Scheme
from harmonyd.subject import PeerCertificate, Subject

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ClientCertificate(Scheme):
    """The certificate that the connection was opened with; its chain was verified then.

    It is looked up by its fingerprint, then by its names, then by its subject.
    """

    type = "client_certificate"
    challenge = 'Certificate realm="harmonyd"'

    def __init__(self, name: str, options: Mapping[str, Any], guard: Guard) -> None:
        super().__init__(name, options, guard)
        self._known: Mapping[str, frozenset[str]] = options["certificates"]
        self._others: frozenset[str] | None = options["others"]

    def shown(self, request: RequestEnvelope) -> PeerCertificate | None:
        return request.caller.certificate

    async def checked(self, request: RequestEnvelope, shown: PeerCertificate) -> Subject:
        for name in (shown.sha256.lower(), *shown.names, shown.subject):
            if name in self._known:
                return Subject(shown.names[0] if shown.names else shown.subject, self._known[name], self.type)
        if self._others is None:
            self.wrong(request, "unknown-certificate")
        return Subject(shown.names[0] if shown.names else shown.subject, self._others, self.type)


class CallingAet(Scheme):
    """The calling AE title of what came over DICOM. It is no secret: addresses say where it may come from."""

    type = "calling_aet"

    def __init__(self, name: str, options: Mapping[str, Any], guard: Guard) -> None:
        super().__init__(name, options, guard)
        self._nodes: Mapping[str, tuple[frozenset[str], tuple[Network, ...]]] = options["aets"]

    def shown(self, request: RequestEnvelope) -> str | None:
        return request.caller.aet.strip() or None if request.protocol == "dicom" else None

    async def checked(self, request: RequestEnvelope, shown: str) -> Subject:
        node = self._nodes.get(shown)
        if node is None:
            self.wrong(request, "unknown-aet")
        roles, addresses = node
        if addresses and not _is_in(request.caller.address, addresses):
            self.wrong(request, "foreign-address", shown, known=True)
        return Subject(shown, roles, self.type)


def _is_in(address: str, networks: tuple[Network, ...]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found in network for network in networks)
