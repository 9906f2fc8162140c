"""``tls`` and ``hsts_max_age_secs`` of ``[network.NAME.http]``, and what is said of HTTP without TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmonyd.metrics.certificates import CertificateFile, certificate_files
from harmonyd.testing.certificates import Authority
from harmonyd.tls import TlsServer

MAIN = '[proxy]\nid = "test"\n[network.n.http]\nbind_port = 8080\nbind_address = '
OWN = "tls = { cert_file = 'own.crt', key_file = 'own.key' }\n"
PLAIN = "crosses the network as it is"


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.issue("own")
    return made


def test_a_certificate_makes_it_https(loaded, ca, tmp_path):
    """With HSTS of a year; both files are among those whose expiry is watched."""
    config = loaded(main=MAIN + f"'0.0.0.0'\n{OWN}")
    network = config.networks["n"]
    assert network.tls == TlsServer(tmp_path / "own.crt", tmp_path / "own.key")
    assert network.hsts_max_age_secs == 365 * 24 * 3600
    assert certificate_files(config) == [CertificateFile("network", "n", "cert_file", tmp_path / "own.crt")]
    assert not any(PLAIN in warning for warning in config.warnings)


def test_clients_certificates(loaded, ca, tmp_path):
    """An authority for them, told to be optional; HSTS off."""
    tls = OWN.replace(" }", ", ca_file = 'ca.crt', require_client_certificate = false }")
    network = loaded(main=MAIN + f"'::'\n{tls}hsts_max_age_secs = 0\n").networks["n"]
    assert network.tls == TlsServer(tmp_path / "own.crt", tmp_path / "own.key", tmp_path / "ca.crt")
    assert network.hsts_max_age_secs == 0


@pytest.mark.parametrize(
    ("address", "warned"),
    [
        *(("0.0.0.0", True), ("192.0.2.1", True), ("::", True)),
        *(("127.0.0.2", False), ("::1", False), ("systemd:web", False)),
    ],
)
def test_plain_http_is_warned_of_where_others_reach_it(loaded, address, warned):
    """Not on loopback; a socket's address is known to its unit."""
    warnings = loaded(main=MAIN + f"'{address}'\n").warnings
    assert any(PLAIN in warning and "bind_address" in warning for warning in warnings) is warned


def test_hsts_without_tls_is_said_to_be_without_effect(loaded):
    """It is never told over plain HTTP."""
    warnings = loaded(main=MAIN + "'127.0.0.1'\nhsts_max_age_secs = 60\n").warnings
    assert any("no effect without a table tls" in warning for warning in warnings)


def test_a_certificate_that_expires_soon_is_warned_of(loaded, ca):
    """30 days ahead."""
    ca.issue("own", days=29)
    warnings = loaded(main=MAIN + f"'127.0.0.1'\n{OWN}").warnings
    assert any("[network.n.http.tls] cert_file: the certificate expires on" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("tls", "key"),
    [
        ("tls = { cert_file = 'own.crt' }", "key_file"),
        ("tls = { cert_file = 'own.crt', key_file = 'ca.key' }", "key_file"),
        ("tls = { cert_file = 'gone.crt', key_file = 'own.key' }", "cert_file"),
        ("tls = { cert_file = 'own.crt', key_file = 'own.key', require_client_certificate = true }",
         "require_client_certificate"),
        ("tls = { cert_file = 'own.crt', key_file = 'own.key', min_version = '1.1' }", "min_version"),
        ("tls = { cert_file = 'own.crt', key_file = 'own.key', ca = 'ca.crt' }", "ca"),
    ],
)  # fmt: skip
def test_mistakes(problems, ca, tls, key):
    """Each is told at its key."""
    [problem] = problems(main=MAIN + f"'127.0.0.1'\n{tls}\n")
    assert (problem.table, problem.key) == ("network.n.http.tls", key)


def test_an_expired_certificate_is_a_mistake(problems, ca):
    """Every client would tell it otherwise."""
    ca.issue("own", days=-1)
    [problem] = problems(main=MAIN + f"'127.0.0.1'\n{OWN}")
    assert "expired on" in problem.what


def test_tls_that_is_no_table(problems):
    """True is not enough."""
    assert "tls" in {problem.key for problem in problems(main=MAIN + "'127.0.0.1'\ntls = true\n")}
