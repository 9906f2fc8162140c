"""``harmonyd doctor`` and TLS: what the certificate says, trusted or not, and who has to change something."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from doctor_kit import Doctor, Steps, pacs

from harmonyd.doctor.network import described
from harmonyd.testing.certificates import Authority, Issued, of_version_2, server_context
from harmonyd.testing.peer import ScriptedPeer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Authority:
    return Authority(folder)


def examine(
    doctor: Doctor, issued: Issued, ca: Path, client_ca: Path | None = None, engine: str = "native", **tls: Any
) -> Steps:
    with pacs([], server_context(issued, client_ca=client_ca)) as port:
        return doctor.examine(port=port, engine=engine, use_tls=True, tls={"ca_file": str(ca), **tls})


@pytest.mark.parametrize("engine", ["dcmtk", "native"])
def test_a_secure_pacs(doctor_of: Doctor, ca: Authority, engine: str) -> None:
    """Version, cipher suite, names and expiry; and all that follows is done over TLS, whichever engine will do it."""
    steps = examine(doctor_of, ca.issue("server"), ca.cert, engine=engine)
    details = steps["tls"]["details"]
    assert (steps["tls"]["result"], details["verified"], details["version"]) == ("ok", True, "TLSv1.3")
    assert details["cipher_suite"].startswith("TLS_")
    certificate = details["certificate"]
    assert (certificate["subject"], certificate["issuer"]) == ("CN=127.0.0.1", "CN=ca")
    assert certificate["names"] == ["localhost", "127.0.0.1"]
    assert 363 <= certificate["days_left"] <= 365
    assert steps["echo"]["result"] == "ok"


def test_a_certificate_that_expires_soon(doctor_of: Doctor, ca: Authority) -> None:
    """It is a warning 30 days ahead, and the walk goes on."""
    steps = examine(doctor_of, ca.issue("soon", days=10), ca.cert)
    assert (steps["tls"]["result"], steps["tls"]["side"]) == ("warning", "pacs")
    assert steps["echo"]["result"] == "ok"


@pytest.mark.parametrize(
    ("sans", "days", "word", "side"),
    [
        (["pacs.example"], 365, "host_name", "pacs"),
        (["127.0.0.1"], -3, "expired", "pacs"),
    ],
)
def test_a_certificate_that_is_refused(
    doctor_of: Doctor, ca: Authority, sans: list[str], days: int, word: str, side: str
) -> None:
    """Why, and what it says all the same; nothing is asked over such a connection."""
    steps = examine(doctor_of, ca.issue(word, sans, days), ca.cert)
    found = steps["tls"]
    assert (found["result"], found["side"], found["details"]["tls"]) == ("error", side, word)
    assert found["details"]["certificate"]["names"] == sans
    assert steps["association"]["result"] == "skipped"


def test_an_unknown_authority(doctor_of: Doctor, ca: Authority, tmp_path: Path) -> None:
    """It is ours to trust it, or not: its issuer and fingerprint are told."""
    issued = ca.issue("stranger")
    found = examine(doctor_of, issued, Authority(tmp_path, "other").cert)["tls"]
    assert (found["result"], found["side"], found["details"]["tls"]) == ("error", "harmonyd", "unknown_ca")
    certificate = found["details"]["certificate"]
    assert (certificate["issuer"], certificate["sha256"]) == ("CN=ca", issued.sha256)


def test_our_certificate_is_required(doctor_of: Doctor, ca: Authority) -> None:
    """With TLS 1.3 it shows at the association."""
    steps = examine(doctor_of, ca.issue("demanding"), ca.cert, client_ca=ca.cert)
    failed = steps["association"]
    assert (failed["result"], failed["side"]) == ("error", "harmonyd")
    assert "requires a certificate of ours" in failed["text"]


def test_tls_where_there_is_none(doctor_of: Doctor, ca: Authority, peer: Callable[..., ScriptedPeer]) -> None:
    """A port that speaks plainly is the wrong one: it is ours to correct."""
    tls = {"ca_file": str(ca.cert)}
    found = doctor_of.examine(port=peer("garbage").port, engine="native", use_tls=True, tls=tls)["tls"]
    assert (found["result"], found["side"], found["details"]["tls"]) == ("error", "harmonyd", "peer_speaks_plain")


def test_a_certificate_that_is_odd(ca: Authority) -> None:
    """What cannot be read of it is left out."""
    cert = ca.issue("odd").cert
    assert described(ssl.PEM_cert_to_DER_cert(of_version_2(cert)))["subject"] == "(not readable)"
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "twice")])
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    names = [x509.DNSName("pacs.example")]
    for extension in (x509.SubjectAlternativeName(names), x509.IssuerAlternativeName(names)):
        builder = builder.add_extension(extension, critical=False)
    der = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    assert described(der)["names"] == ["pacs.example"]
    twice = described(der.replace(bytes.fromhex("0603551d12"), bytes.fromhex("0603551d11")))
    assert (twice["subject"], twice["names"]) == ("CN=twice", [])
