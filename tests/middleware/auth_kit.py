"""What the tests of middleware for identity share."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from middleware_kit import at_once
from twisted.internet.task import Clock

from harmonyd.audit.api import AuditEvent
from harmonyd.bodies import EmptyBody
from harmonyd.envelope import RequestEnvelope
from harmonyd.middleware.auth.guard import Guard
from harmonyd.passwords import PasswordHash
from harmonyd.subject import Caller

RSA = generate_rsa(65537, 2048)
EC = generate_private_key(SECP256R1())
ED = Ed25519PrivateKey.generate()


class Watched:
    """A guard with a clock of its own, and what it told the audit trail."""

    def __init__(self, in_thread: Any = at_once) -> None:
        self.clock = Clock()
        self.events: list[AuditEvent] = []
        self.guard = Guard(self.clock, in_thread, self.events.append)


def pem_of(key: Any) -> bytes:
    """The public half."""
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def request(
    headers: Mapping[str, str] | None = None, *, address: str = "192.0.2.1", caller: Caller | None = None
) -> RequestEnvelope:
    """One of an HTTP client."""
    given = {name.lower(): value for name, value in (headers or {}).items()}
    return RequestEnvelope(
        "http", "GET", "/x", "/x", EmptyBody(), headers=given, caller=caller or Caller(address), id="r"
    )


def basic(user: str, password: str) -> dict[str, str]:
    """The header field for a user."""
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")}


class Counting(PasswordHash):
    """A stored password that costs nothing, and counts how often it is compared."""

    __slots__ = ("count", "password")

    def __init__(self, password: str) -> None:
        digest = hashlib.sha256(password.encode()).digest()
        for name, value in {"ln": 14, "r": 8, "p": 1, "salt": b"", "digest": digest}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "count", 0)

    def matches(self, password: str) -> bool:
        object.__setattr__(self, "count", self.count + 1)
        return hashlib.sha256(password.encode()).digest() == self.digest
