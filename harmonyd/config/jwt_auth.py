"""``type = "jwt_auth"``: whose tokens are taken, and what has to be in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.x509 import load_pem_x509_certificates

from harmonyd.config import checks
from harmonyd.config.auth import common
from harmonyd.config.control import secret
from harmonyd.config.fields import Section
from harmonyd.jwk import MOST_BYTES, key_of_pem, parse_key_set

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_DEFAULT = ("RS256", "ES256", "EdDSA")
_LEAST_SECRET_BYTES = 32
"""As long as the hash (RFC 7518 section 3.2)."""
_SOURCES = ("public_key_path", "jwks_path", "jwks_url", "use_hs256")


def options(base: Path, section: Section) -> Mapping[str, Any]:
    """One source of keys, and the claims. ``base``: the folder of config.toml."""
    wants_secret = section.flag("use_hs256", False)
    section.raw("hs256_secret")
    given = [key for key in _SOURCES if key in section and (key != "use_hs256" or wants_secret)]
    if len(given) != 1:
        what = "nothing says whose tokens are taken" if not given else f"several sources of keys: {', '.join(given)}"
        section.problem(None, what, f"give one of {', '.join(_SOURCES)} = true")
    found: dict[str, Any] = {
        "hs256_secret": _secret(section, base) if wants_secret else "",
        "public_key": _public_key(section, base),
        "jwks_path": _key_set(section, base),
        "jwks_url": section.text("jwks_url", "", _url),
        "jwks_ca": _certificates(section, base),
        "jwks_refresh_secs": section.number("jwks_refresh_secs", 600.0, 30, 24 * 3600),
        "issuer": section.text("issuer", "", _claim) or None,
        "audience": _audience(section),
        "leeway_secs": section.number("leeway_secs", 30.0, 0, 300),
        "subject_claim": section.text("subject_claim", "sub", _claim),
        "roles_claim": tuple(section.text("roles_claim", "roles", _claim).split(".")),
        **common(section),
    }
    if not wants_secret:
        section.refuse("hs256_secret", "use_hs256 is not true", "remove it, or set use_hs256 = true")
    chosen = section.strings("algorithms", _algorithm)
    if wants_secret and chosen:
        section.problem("algorithms", "with use_hs256 it is HS256", "remove it")
    if "algorithms" in section and section.sound and not chosen:
        section.problem("algorithms", "empty: no token would be taken", f"write for example {list(_DEFAULT)}")
    found["algorithms"] = ("HS256",) if wants_secret else chosen or _DEFAULT
    for key in ("issuer", "audience"):
        if not found[key] and section.sound:
            section.warn(key, "missing: tokens that were made for others with the same keys are taken, too")
    section.finish()
    return found


def _secret(section: Section, base: Path) -> str:
    section.require("hs256_secret")
    found = secret(section, "hs256_secret", base)
    if found and len(found.encode()) < _LEAST_SECRET_BYTES:
        section.problem("hs256_secret", "too short", f"{_LEAST_SECRET_BYTES} bytes at least, at random")
    return found


def _audience(section: Section) -> tuple[str, ...]:
    value = section.raw("audience")
    if isinstance(value, list):
        return section.strings("audience", _claim)
    one = section.text("audience", "", _claim)
    return (one,) if one else ()


def _file(section: Section, key: str, base: Path) -> Path | None:
    given = section.text(key, "", checks.path)
    if not given:
        return None
    path = (base / given).resolve()
    if _data(section, key, path) is None:
        return None
    return path


def _certificates(section: Section, base: Path) -> bytes:
    path = _file(section, "jwks_ca_path", base)
    data = (_data(section, "jwks_ca_path", path) if path is not None else None) or b""
    if path is not None and section.sound:
        try:
            load_pem_x509_certificates(data)
        except ValueError:
            section.problem("jwks_ca_path", f"{path} has no certificate in PEM", "write the authority's into it")
    return data


def _public_key(section: Section, base: Path) -> bytes:
    path = _file(section, "public_key_path", base)
    data = _data(section, "public_key_path", path) if path is not None else None
    if data is None:
        return b""
    try:
        key_of_pem(data)
    except ValueError as error:
        section.problem("public_key_path", f"{path}: {error}", "write the issuer's public key into it")
    return data


def _key_set(section: Section, base: Path) -> Path | None:
    path = _file(section, "jwks_path", base)
    data = _data(section, "jwks_path", path) if path is not None else None
    if data is not None:
        try:
            parse_key_set(data)
        except ValueError as error:
            section.problem("jwks_path", f"{path}: {error}", "write the issuer's key set into it")
    return path


def _data(section: Section, key: str, path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except OSError as error:
        section.problem(key, f"{path} cannot be read: {error.strerror}", "name a file that this user may read")
        return None


def _url(value: str) -> str | None:
    """Whoever can change what is read there can make tokens, so that it is https, but for this machine."""
    parts = urlsplit(value)
    plain = parts._replace(query="").geturl()
    complaint = checks.base_url(plain)
    if complaint:
        return complaint
    is_here = parts.hostname == "localhost" or checks.is_loopback(parts.hostname or "")
    return None if parts.scheme == "https" or is_here else "http is for this machine only (127.0.0.1): write https"


def _claim(value: str) -> str | None:
    return None if 1 <= len(value) <= 500 and value.isprintable() else "1 to 500 printable characters"


def _algorithm(value: str) -> str | None:
    return None if value in ALGORITHMS else f"not one of {', '.join(ALGORITHMS)}"
