"""Passwords as they are kept: scrypt (RFC 7914) in a line of text, ``$scrypt$ln=14,r=8,p=5$SALT$HASH``."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import unicodedata
from dataclasses import dataclass, field

__all__ = ["MOST_BYTES", "PasswordHash", "PlainPassword", "Stored", "digest_of_key", "hash_password", "parse"]

MOST_BYTES = 1024
"""Of a password."""
_LINE = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]{11,88})\$([A-Za-z0-9+/]{22,88})\Z")
_LN, _R, _P = 14, 8, 5
"""16 MiB, about a fifth of a second; one of the equals that OWASP recommends."""
_LEAST_LN, _MOST_LN = 14, 16
_MOST_R, _MOST_P = 8, 16


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """What a password is compared with."""

    ln: int
    r: int
    p: int
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    def matches(self, password: str) -> bool:
        """Tell whether it is this one, in constant time. Blocking: it costs what it is meant to cost."""
        found = _scrypt(password, self.salt, self.ln, self.r, self.p, len(self.digest))
        return hmac.compare_digest(found, self.digest)


@dataclass(frozen=True, slots=True)
class PlainPassword:
    """A password that a configuration names as it is."""

    password: str = field(repr=False)

    def matches(self, password: str) -> bool:
        """Tell whether it is this one, in constant time."""
        one, other = (hashlib.sha256(_normal(each)).digest() for each in (self.password, password))
        return hmac.compare_digest(one, other)


Stored = PasswordHash | PlainPassword


def hash_password(password: str) -> str:
    """Return the line for a password. Blocking. Raises ``ValueError`` for one that is empty or too long."""
    if not password or len(_normal(password)) > MOST_BYTES:
        raise ValueError(f"a password has 1 to {MOST_BYTES} bytes")
    salt = os.urandom(16)
    digest = _scrypt(password, salt, _LN, _R, _P, 32)
    return f"$scrypt$ln={_LN},r={_R},p={_P}${_b64(salt)}${_b64(digest)}"


def parse(line: str) -> PasswordHash:
    """Return what a line says. Raises ``ValueError`` that says what is wrong, for people."""
    found = _LINE.match(line)
    if found is None:
        raise ValueError("not a line of `harmonyd hash-password`: it begins with $scrypt$ln=")
    ln, r, p = (int(number) for number in found.groups()[:3])
    if not _LEAST_LN <= ln <= _MOST_LN or not _R <= r <= _MOST_R or not 1 <= p <= _MOST_P:
        raise ValueError(f"scrypt has ln {_LEAST_LN} to {_MOST_LN}, r {_R} and p 1 to {_MOST_P} here")
    try:
        salt, digest = (base64.b64decode(text + "=" * (-len(text) % 4), validate=True) for text in found.groups()[3:])
    except binascii.Error:
        raise ValueError("salt or hash is not base64") from None
    return PasswordHash(ln, r, p, salt, digest)


def digest_of_key(key: str) -> str:
    """Return what is kept of an API key: SHA-256 in hex. It is long and random, so nothing slow is needed."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _scrypt(password: str, salt: bytes, ln: int, r: int, p: int, length: int) -> bytes:
    n = 1 << ln
    return hashlib.scrypt(_normal(password), salt=salt, n=n, r=r, p=p, maxmem=128 * r * (n + p + 8), dklen=length)


def _normal(password: str) -> bytes:
    """The same keys pressed give the same bytes on each system (RFC 8265 section 4.2.1)."""
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogateescape")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")
