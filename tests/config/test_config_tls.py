"""``use_tls`` and ``tls`` of a dicom backend: what reaches the model, and what is wrong with certificates."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from harmonyd.testing.certificates import Authority, of_version_2
from harmonyd.tls import TlsClient

BACKEND = (
    "[backends.b]\nservice = 'dicom'\n[backends.b.options]\naet = 'PACS'\nhost = 'pacs'\nport = 2762\n"
    "engine = 'native'\nuse_tls = true\n"
)
OWN = "tls = { cert_file = 'own.crt', key_file = 'own.key' }\n"


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    """An authority whose certificate ``ca.crt`` lies beside config.toml."""
    return Authority(tmp_path)


def test_the_system_is_trusted_by_default(loaded):
    """``use_tls`` alone is enough where the PACS has a certificate that this system trusts."""
    assert loaded(BACKEND).backends["b"].options.tls == TlsClient()


def test_no_tls_is_the_default(loaded):
    """Without ``use_tls`` nothing is secured; a table that waits for it is said to have no effect."""
    config = loaded(BACKEND.replace("true", "false") + "tls = { ca_file = 'none.crt' }\n")
    assert config.backends["b"].options.tls is None
    assert "no effect without use_tls" in config.warnings[0]


def test_everything_reaches_the_model(loaded, ca, tmp_path):
    """Paths are relative to config.toml's folder; a fingerprint may be written as openssl shows it."""
    ca.issue("own")
    pin = ":".join(["AB"] * 32)
    text = (
        "[backends.b.options.tls]\nca_file = 'ca.crt'\ncert_file = 'own.crt'\nkey_file = 'own.key'\n"
        f"server_name = 'pacs.example'\npinned_sha256 = ['{pin}']\n"
    )
    config = loaded(BACKEND + text)
    assert config.backends["b"].options.tls == TlsClient(
        tmp_path / "ca.crt", tmp_path / "own.crt", tmp_path / "own.key", "pacs.example", ("ab" * 32,)
    )
    assert any("ca_file" in warning and "pinned" in warning for warning in config.warnings)


def test_either_engine(loaded, ca):
    """The engine makes no difference."""
    text = BACKEND.replace("'native'", "'dcmtk'") + "tls = { ca_file = 'ca.crt' }\n"
    options = loaded(text).backends["b"].options
    assert (options.engine, options.tls) == ("dcmtk", TlsClient(ca.cert))


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ("tls = { ca_file = 'none.crt' }", "ca_file", "No such file"),
        ("tls = { ca_file = 'config.toml' }", "ca_file", "nothing usable"),
        ("tls = { ca_file = 'v2.crt' }", "ca_file", "nothing usable"),
        ("tls = { cert_file = 'own.crt' }", "key_file", "missing"),
        ("tls = { key_file = 'own.key' }", "cert_file", "missing"),
        ("tls = { cert_file = 'own.key', key_file = 'own.key' }", "cert_file", "nothing usable"),
        ("tls = { cert_file = 'own.crt', key_file = 'own.crt' }", "key_file", "nothing usable"),
        ("tls = { cert_file = 'own.crt', key_file = 'ca.key' }", "key_file", "not the key"),
        ("tls = { cert_file = 'old.crt', key_file = 'old.key' }", "cert_file", "expired on"),
        ("tls = { server_name = 'a b' }", "server_name", "not a host name"),
        ("tls = { pinned_sha256 = ['abc'] }", "pinned_sha256", "64 hex digits"),
        ("tls = { pinned_sha256 = 'abc' }", "pinned_sha256", "not a list"),
        ("tls = { ca = 'x' }", "ca", "unknown key"),
        ("tls = 'x'", "tls", "not a table"),
    ],
)
def test_one_mistake(problems, tmp_path, ca, text, key, what):
    """Each mistake is told once, at its key."""
    own = ca.issue("own")
    (tmp_path / "v2.crt").write_text(of_version_2(own.cert))
    ca.issue("old", days=-1)
    [found] = problems(BACKEND + text)
    assert found.key == key
    assert what in found.what


def test_an_encrypted_key(problems, ca):
    """A key with a password is refused with the reason: nobody is there to be asked for it."""
    issued = ca.issue("own")
    key = load_pem_private_key(issued.key.read_bytes(), None)
    issued.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    [found] = problems(BACKEND + OWN)
    assert (found.key, found.what) == ("key_file", "the key is encrypted")


@pytest.mark.parametrize(("days", "is_told"), [(29, True), (31, False)])
def test_expiry_is_told_before(loaded, ca, days, is_told):
    """Thirty days before it expires, our certificate is in a warning."""
    ca.issue("own", days=days)
    assert any("expires on" in warning for warning in loaded(BACKEND + OWN).warnings) is is_told
