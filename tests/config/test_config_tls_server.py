"""TLS on ports of ours: ``tls`` of a dicom endpoint, ``incoming_store_tls`` of a dicom backend."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from harmonyd.testing.certificates import Authority, self_signed
from harmonyd.tls import TlsServer

ENDPOINT = "[endpoints.e]\nservice = 'dicom'\n[endpoints.e.options]\nengine = 'native'\n"
BACKEND = (
    "[backends.b]\nservice = 'dicom'\n[backends.b.options]\naet = 'PACS'\nhost = 'pacs'\nport = 104\n"
    "engine = 'native'\n"
)
OWN = "cert_file = 'own.crt', key_file = 'own.key'"
PLACES = [(ENDPOINT, "tls"), (BACKEND, "incoming_store_tls")]


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    """An authority whose certificate ``ca.crt`` lies beside config.toml, with ``own.crt`` that it issued."""
    made = Authority(tmp_path)
    made.issue("own")
    return made


def found(config, key):
    """What reached the model."""
    return config.endpoints["e"].options.tls if key == "tls" else config.backends["b"].options.incoming_store_tls


@pytest.mark.parametrize(("text", "key"), PLACES)
def test_no_tls_is_the_default(loaded, text, key):
    """Without the table nothing is secured."""
    assert found(loaded(text), key) is None


@pytest.mark.parametrize(("text", "key"), PLACES)
def test_a_certificate_is_enough(loaded, ca, tmp_path, text, key):
    """Callers are then not asked for one; paths are relative to config.toml's folder."""
    config = loaded(text + f"{key} = {{ {OWN} }}\n")
    assert found(config, key) == TlsServer(tmp_path / "own.crt", tmp_path / "own.key")


@pytest.mark.parametrize(("more", "required"), [("", True), (", require_client_certificate = false", False)])
def test_an_authority_for_callers(loaded, ca, tmp_path, more, required):
    """With one, callers need a certificate, unless that is switched off."""
    config = loaded(ENDPOINT + f"tls = {{ {OWN}, ca_file = 'ca.crt', min_version = '1.3'{more} }}\n")
    files = tmp_path / "own.crt", tmp_path / "own.key", tmp_path / "ca.crt"
    assert found(config, "tls") == TlsServer(*files, required, "1.3")


@pytest.mark.parametrize(
    ("table", "key", "what"),
    [
        ("{ key_file = 'own.key' }", "cert_file", "missing"),
        ("{ cert_file = 'own.crt' }", "key_file", "missing"),
        ("{ cert_file = 'none.crt', key_file = 'own.key' }", "cert_file", "No such file"),
        ("{ cert_file = 'own.crt', key_file = 'ca.key' }", "key_file", "not the key"),
        ("{ cert_file = 'old.crt', key_file = 'old.key' }", "cert_file", "expired on"),
        (f"{{ {OWN}, ca_file = 'own.key' }}", "ca_file", "nothing usable"),
        (f"{{ {OWN}, require_client_certificate = true }}", "require_client_certificate", "nothing says"),
        (f"{{ {OWN}, min_version = '1.1' }}", "min_version", "not one of the known values"),
        (f"{{ {OWN}, server_name = 'x' }}", "server_name", "unknown key"),
        ("true", "tls", "not a table"),
    ],
)
def test_one_mistake(problems, ca, table, key, what):
    """Each mistake is told once, at its key."""
    ca.issue("old", days=-1)
    [problem] = problems(ENDPOINT + f"tls = {table}\n")
    assert problem.key == key
    assert what in problem.what


def test_a_key_that_is_too_short(problems, ca, tmp_path):
    """What OpenSSL would refuse later is told now."""
    key = rsa.generate_private_key(65537, 1024)
    self_signed(tmp_path, "own", key)
    [problem] = problems(ENDPOINT + f"tls = {{ {OWN} }}\n")
    assert (problem.key, problem.what) == ("cert_file", "OpenSSL does not take it: ee key too small")


def test_an_empty_table(problems):
    """It secures nothing, and is no way to say so."""
    assert {problem.key for problem in problems(ENDPOINT + "tls = {}\n")} == {"cert_file", "key_file"}


@pytest.mark.parametrize(("text", "key"), PLACES)
def test_the_dcmtk_engine_listens_by_itself(loaded, problems, ca, text, key):
    """A storescp listens without TLS, to everybody: what it would do is done per association, or is a mistake."""
    text = text.replace("'native'", "'dcmtk'") + f"{key} = {{ {OWN} }}\n"
    config = loaded(text)
    chosen = config.endpoints["e"] if key == "tls" else config.backends["b"]
    assert chosen.options.store_scp == "per-association"
    assert any("was chosen" in warning and key in warning for warning in config.warnings)
    assert not any("was chosen" in each for each in loaded(text + "store_scp = 'per-association'\n").warnings)
    [problem] = problems(text + "store_scp = 'persistent'\n")
    assert problem.key == key
    assert 'store_scp = "per-association"' in problem.remedy


@pytest.mark.parametrize("persistent", ["true", "false"])
def test_programs_that_listen_for_deliveries(problems, ca, persistent):
    """Neither storescp nor movescu has a port with TLS, however the mode is spelled."""
    more = f"incoming_store_tls = {{ {OWN} }}\npersistent_store_scp = {persistent}\n"
    [problem] = problems(BACKEND.replace("'native'", "'dcmtk'") + more)
    assert problem.key == "incoming_store_tls"


def test_use_tls_is_of_a_backend(problems, ca):
    """At an endpoint the table alone says it."""
    [problem] = problems(ENDPOINT + f"use_tls = true\ntls = {{ {OWN} }}\n")
    assert problem.key == "use_tls"
    assert "a table tls" in problem.remedy


PIPELINE = (
    "[network.n.http]\nbind_address = '127.0.0.1'\nbind_port = 8000\n"
    "[endpoints.h]\nservice = 'http'\n[endpoints.h.options]\npath_prefix = '/h'\n"
    "[pipelines.p]\nnetworks = ['n']\nendpoints = ['e', 'f', 'h']\nbackends = ['b']\n"
    "[endpoints.e]\nservice = 'dicom'\n[endpoints.e.options]\nengine = 'native'\nport = 11123\nlocal_aet = 'E'\n{e}\n"
    "[endpoints.f]\nservice = 'dicom'\n[endpoints.f.options]\nengine = 'native'\nport = 11123\nlocal_aet = 'F'\n{f}\n"
    + BACKEND
    + "{b}\n"
)
TLS = f"tls = {{ {OWN} }}"


def test_a_shared_port(loaded, ca):
    """Endpoints and deliveries share a port with the same TLS."""
    config = loaded(PIPELINE.format(e=TLS, f=TLS, b=f"incoming_store_{TLS}"))
    assert config.endpoints["e"].options.tls == config.backends["b"].options.incoming_store_tls != None  # noqa: E711


@pytest.mark.parametrize("odd", ["e", "f", "b"])
def test_a_shared_port_with_different_tls(problems, ca, odd):
    """One that differs is told with whom it does."""
    tables = {"e": TLS, "f": TLS, "b": f"incoming_store_{TLS}", odd: ""}
    assert {problem.key for problem in problems(PIPELINE.format(**tables))} <= {"port", "incoming_store_port"}
    told = problems(PIPELINE.format(**tables))
    assert len(told) == 2
    assert all("TLS there is not the same" in problem.what for problem in told)
