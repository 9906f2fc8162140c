"""Public keys that tokens are verified with: PEM, and JSON Web Key Sets (RFC 7517)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["MOST_BYTES", "Key", "key_of_pem", "parse_key_set"]

MOST_BYTES = 256 * 1024
"""Of a key set."""
MOST_KEYS = 100
LEAST_RSA_BITS = 2048
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")


@dataclass(frozen=True, slots=True)
class Key:
    """A key, and the only algorithms that it is used with: a token cannot choose another kind."""

    algorithms: frozenset[str]
    material: Any
    kid: str = ""


def key_of_pem(data: bytes) -> Key:
    """Return the public key in a PEM file, or that of a certificate. Raises ``ValueError`` that says what is wrong."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        if b"BEGIN CERTIFICATE" in data:
            key: Any = x509.load_pem_x509_certificate(data).public_key()
        else:
            key = load_pem_public_key(data)
    except (ValueError, TypeError) as error:
        raise ValueError("not a public key, or certificate, in PEM") from error
    return Key(_algorithms(key), key)


def parse_key_set(data: bytes) -> list[Key]:
    """Return the keys for signatures in a JSON Web Key Set; others are left out.

    Raises ``ValueError`` for what is none, and for one without a usable key.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > MOST_KEYS:
        raise ValueError(f"it is not a JSON Web Key Set of {MOST_KEYS} keys at most")
    keys = [key for entry in entries if isinstance(entry, dict) and (key := _key(entry)) is not None]
    if not keys:
        raise ValueError("it has no key that verifies RS256, ES256 or EdDSA")
    return keys


def _key(entry: Mapping[str, Any]) -> Key | None:
    from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

    kinds: Mapping[Any, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
    kind = entry.get("kty")
    kid = entry.get("kid", "")
    if entry.get("use", "sig") != "sig" or not isinstance(kind, str) or kind not in kinds or not isinstance(kid, str):
        return None
    try:
        # A private key that somebody published by mistake is used as what it should have been.
        public = {name: value for name, value in entry.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
        material = kinds[kind].from_jwk(public)
        algorithms = _algorithms(material)
    except Exception:  # noqa: BLE001 - one key that is none does not spoil the others
        return None
    named = entry.get("alg")
    return Key(algorithms if named is None else algorithms & {named}, material, kid)


def _algorithms(key: Any) -> frozenset[str]:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(key, RSAPublicKey):
        if key.key_size < LEAST_RSA_BITS:
            raise ValueError(f"an RSA key of {key.key_size} bits; {LEAST_RSA_BITS} is the least")
        return frozenset(_RSA)
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return frozenset({_CURVES[key.curve.name]})
    if isinstance(key, Ed25519PublicKey):
        return frozenset({"EdDSA"})
    raise ValueError("neither an RSA key, nor one of the NIST curves, nor Ed25519")
