"""The way to the PACS: its name, its addresses, a secure connection."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from harmonyd.dimse import failures
from harmonyd.dimse.errors import CertificateRefused
from harmonyd.dimse.native.blocking import connected
from harmonyd.dimse.native.blocking_tls import certificate_of
from harmonyd.doctor.case import Case
from harmonyd.doctor.report import Result, Side, Step, failed
from harmonyd.errors import HarmonydError
from harmonyd.tls import fingerprint

_MAX_ADDRESSES = 16
_WARN_DAYS = 30


def resolve(case: Case) -> Step:
    """All addresses of the host's name."""
    host = case.remote.host
    found = _addresses(host, case.remote.connect_timeout_secs)
    if found is None:
        secs = f"{case.remote.connect_timeout_secs:g} s"
        hint = "Check the name servers of this machine (/etc/resolv.conf), or enter an address as the backend's host."
        return Step("resolve", Result.ERROR, f"No answer within {secs}: which address has {host}?", hint, Side.NETWORK)
    if not found:
        return failed("resolve", failures.unknown_host(case.remote), host=host, addresses=[])
    case.addresses = found
    text = host if found == [host] else f"{host} is {', '.join(found)}"
    return Step("resolve", Result.OK, text, details={"host": host, "addresses": found})


def _addresses(host: str, secs: float) -> list[str] | None:
    """None: no answer in time. The resolver takes no time limit; its thread is left to end by itself."""
    found: list[list[str]] = []

    def look() -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            answers = []
        found.append(list(dict.fromkeys(str(address[0]) for *_, address in answers))[:_MAX_ADDRESSES])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(secs)
    return found[0] if found else None


def tcp(case: Case) -> Step:
    """A connection to each address, closed again."""
    tried = [_tried(case, address) for address in case.addresses]
    text = ", ".join(_tried_text(one, case.remote.port) for one in tried)
    details = {"port": case.remote.port, "addresses": tried}
    good = [one["address"] for one in tried if one["error"] is None]
    if not good:
        late = all(one["error"] == _NO_ANSWER for one in tried)
        hint = failures.connect_timeout(case.remote).hint if late else failures.unreachable(case.remote, "").hint
        return Step("tcp", Result.ERROR, text, hint, Side.NETWORK, details=details)
    bad = [one["address"] for one in tried if one["error"] is not None and ":" not in one["address"]]
    if not bad:
        return Step("tcp", Result.OK, text, details=details)
    hint = f"Have {', '.join(bad)} removed from the name server, or let the PACS listen there, too: some programs try "
    return Step("tcp", Result.WARNING, text, hint + "the first address only.", Side.NETWORK, details=details)


_NO_ANSWER = "no answer"


def _tried(case: Case, address: str) -> dict[str, Any]:
    began_at = time.monotonic()
    error = None
    try:
        with socket.create_connection((address, case.remote.port), case.remote.connect_timeout_secs) as sock:
            if case.address is None:
                case.address, case.our_address = address, str(sock.getsockname()[0])
    except TimeoutError:
        error = _NO_ANSWER
    except OSError as failure:
        error = failure.strerror or type(failure).__name__
    return {"address": address, "ms": _ms_since(began_at) if error is None else None, "error": error}


def _tried_text(one: dict[str, Any], port: int) -> str:
    return f"{one['address']} port {port}: " + (one["error"] or f"connected in {one['ms']:g} ms")


def _ms_since(began_at: float) -> float:
    return round((time.monotonic() - began_at) * 1000, 1)


def tls(case: Case) -> Step:
    """A handshake as the daemon makes it; and what the certificate says, also when it is not trusted."""
    settings = case.remote.tls
    if settings is None:
        return Step("tls", Result.SKIPPED, "not used (use_tls)")
    try:
        sock = connected(case.remote, case.address)
    except CertificateRefused as error:
        known = _untrusted(case)
        step = failed("tls", error, verified=False, certificate=known)
        return step if known is None else replace(step, text=f"{step.text}; it is {_certificate_text(known)}")
    except HarmonydError as error:
        return failed("tls", error, verified=False, certificate=None)
    assert isinstance(sock, ssl.SSLSocket)
    with sock:
        version, cipher, der = sock.version(), sock.cipher(), sock.getpeercert(binary_form=True)
    known = described(der or b"")
    details = {"version": version, "cipher_suite": cipher and cipher[0], "verified": True, "certificate": known}
    text = f"{version}, {cipher and cipher[0]}; the certificate is {_certificate_text(known)}"
    if known["days_left"] >= _WARN_DAYS or settings.pinned_sha256:
        return Step("tls", Result.OK, text, details=details)
    hint = f"The PACS needs a new certificate within {known['days_left']} days."
    return Step("tls", Result.WARNING, text, hint, Side.PACS, details=details)


def _certificate_text(known: dict[str, Any]) -> str:
    names = ", ".join(known["names"]) or "no name"
    return f"{known['subject']} for {names}, from {known['issuer']}, good until {known['not_after']}"


def _untrusted(case: Case) -> dict[str, Any] | None:
    assert case.remote.tls is not None
    try:
        sock = socket.create_connection((case.address, case.remote.port), case.remote.connect_timeout_secs)
    except OSError:
        return None
    der = certificate_of(sock, case.remote, case.remote.tls, case.remote.connect_timeout_secs)
    return described(der) if der else None


def described(der: bytes) -> dict[str, Any]:
    """A certificate for people and machines; times in UTC."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        until = certificate.not_valid_after_utc
        return {
            "subject": certificate.subject.rfc4514_string(),
            "issuer": certificate.issuer.rfc4514_string(),
            "names": _names(certificate),
            "not_before": certificate.not_valid_before_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "not_after": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "days_left": (until - datetime.now(UTC)).days,
            "sha256": fingerprint(der),
        }
    except (ValueError, x509.InvalidVersion):
        unknown = dict.fromkeys(("issuer", "not_before", "not_after"), "unknown")
        return {"subject": "(not readable)", **unknown, "names": [], "days_left": 0, "sha256": fingerprint(der)}


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return []
    return [str(name.value) for name in found if isinstance(name, x509.DNSName | x509.IPAddress)]
