"""Who asks: where a request comes from, and whom the credentials that it shows belong to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The certificate that a peer proved to hold, after its chain was verified."""

    subject: str
    """RFC 4514."""
    names: tuple[str, ...]
    """Subject alternative names: DNS names, mail addresses, URIs; then the common name."""
    sha256: str
    """Fingerprint, in hex."""


def to_text(certificate: PeerCertificate) -> str:
    """What is known of a certificate, as it is kept."""
    return json.dumps(asdict(certificate))


def from_text(text: str) -> PeerCertificate | None:
    """The same again; None of ""."""
    if not text:
        return None
    kept = json.loads(text)
    return PeerCertificate(kept["subject"], tuple(kept["names"]), kept["sha256"])


@dataclass(frozen=True, slots=True)
class Caller:
    """Where a request comes from, as far as the network tells."""

    address: str = ""
    """IP address; "" for ourselves."""
    certificate: PeerCertificate | None = None
    aet: str = ""
    """Calling AE title, for what came over DICOM."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom credentials belong to, after they were checked."""

    name: str
    roles: frozenset[str] = frozenset()
    scheme: str = ""
    """How it was checked: the type of the middleware, or "certificate"."""


OURSELVES = Caller()
