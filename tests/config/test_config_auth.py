"""Middleware for identity in the configuration: what is taken, and that mistakes are told without the secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from config_kit import MAIN, Loaded, Problems, Write
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from harmonyd.permit import Element, Rule
from harmonyd.testing.certificates import Authority

HASH = "$scrypt$ln=14,r=8,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaGhhc2g"
DIGEST = "a" * 64
REMOTE = MAIN.replace("127.0.0.1", "0.0.0.0")
MANAGED = "[management]\nenabled = true\nnetwork = 'default'\n"


def table(kind: str, rest: str) -> str:
    return f"[middleware.m]\ntype = '{kind}'\n{rest}"


def test_users_in_the_table_and_in_a_file(loaded: Loaded, tmp_path: Path) -> None:
    """Both ways, with roles; comments and empty lines mean nothing."""
    users = tmp_path / "users"
    users.write_text(f"# who\n\nbob:{HASH}:a, b\nèva:{HASH}\n", "utf-8")
    users.chmod(0o600)
    text = f"users_path = 'users'\noptional = true\nusers.ann = {{ password_hash = '{HASH}', roles = ['x'] }}\n"
    config = loaded(table("basic_auth", text))
    options = config.middleware["m"].options
    assert {name: sorted(roles) for name, (_, roles) in options["users"].items()} == {
        "ann": ["x"],
        "bob": ["a", "b"],
        "èva": [],
    }
    assert options["optional"]
    assert not [warning for warning in config.warnings if "chmod" in warning]
    users.chmod(0o644)
    assert [warning for warning in loaded(table("basic_auth", text)).warnings if "chmod" in warning]


def test_harmonys_one_user(loaded: Loaded) -> None:
    """A password as it is works, with a warning that does not show it."""
    config = loaded(table("basic_auth", "username = 'u'\npassword = 'hunter2'\ntoken_path = 'x'\nroles = ['r']\n"))
    stored, roles = config.middleware["m"].options["users"]["u"]
    assert stored.matches("hunter2")
    assert not stored.matches("hunter3")
    assert roles == {"r"}
    assert any("hash-password" in warning for warning in config.warnings)
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    ("kind", "text", "what"),
    [
        ("basic_auth", "", "there is no user"),
        ("basic_auth", "users_path = 'nowhere'\n", "cannot be read"),
        ("basic_auth", "users.a = { password_hash = 'hunter2' }\n", "hash-password"),
        ("basic_auth", "users.a = { password = 'hunter2' }\n", "missing"),
        ("basic_auth", f"users.'a:b' = {{ password_hash = '{HASH}' }}\n", "no colon"),
        ("basic_auth", f"users.a = {{ password_hash = '{HASH}', roles = ['*'] }}\n", "everybody"),
        ("basic_auth", f"realm = 'a\"b'\nusers.a = {{ password_hash = '{HASH}' }}\n", "backslash"),
        ("basic_auth", "username = 'u'\npassword = ''\n", "empty"),
        ("api_key", "", "there is no key"),
        ("api_key", "keys.a = { sha256 = 'hunter2' }\n", "SHA-256"),
        ("api_key", f"header = 'Authorization'\nkeys.a = {{ sha256 = '{DIGEST}' }}\n", "something else"),
        ("client_certificate", "", "no certificate is known"),
        ("calling_aet", "aets.TOOLONGFORANAETITLE = { roles = ['x'] }\n", "AE title"),
        ("calling_aet", "aets.A = { addresses = ['10.0.0.1/8'] }\n", "not an address"),
        ("jwt_auth", "", "nothing says whose tokens"),
        ("jwt_auth", "use_hs256 = false\n", "nothing says whose tokens"),
        ("jwt_auth", "use_hs256 = true\nhs256_secret = 'hunter2'\n", "too short"),
        ("jwt_auth", "jwks_url = 'http://id.example/keys'\n", "this machine only"),
        ("jwt_auth", "jwks_url = 'https://u:p@id.example/keys'\n", "user name"),
        ("jwt_auth", "jwks_url = 'https://id.example/keys'\nalgorithms = ['none']\n", "not one of"),
        ("jwt_auth", "jwks_url = 'https://id.example/keys'\nalgorithms = ['HS256']\n", "not one of"),
        ("jwt_auth", "jwks_url = 'https://id.example/keys'\nalgorithms = []\n", "empty"),
        ("jwt_auth", "jwks_url = 'https://id.example/keys'\npublic_key_path = 'x'\n", "several sources"),
        ("authorize", "", "missing"),
        ("authorize", "rules = []\n", "empty"),
        ("authorize", "rules = [{ roles = ['a'], allow = ['retreive'] }]\n", "no action"),
        ("authorize", "rules = [{ roles = [], allow = ['find'] }]\n", "empty"),
        ("authorize", "rules = [{ roles = ['a'], allow = ['find'], only = {} }]\n", "empty"),
        ("authorize", "rules = [{ roles = ['a'], allow = ['find'], only = { PatientID = '*' } }]\n", "everything"),
        ("authorize", "rules = [{ roles = ['a'], allow = ['find'], only = { PatientId = 'x' } }]\n", "keyword"),
        ("authorize", "rules = [{ roles = ['a'], allow = ['find'], only = { PixelData = 'x' } }]\n", "VR"),
        ("authorize", "rules = [{ roles = ['a'], allow = ['find'], backends = ['nope'] }]\n", "not defined"),
    ],
)
def test_mistakes(problems: Problems, kind: str, text: str, what: str) -> None:
    """Each is told, and no secret with it."""
    found = problems(table(kind, text))
    assert any(what in f"{each.what} {each.remedy}" for each in found), found
    assert "hunter2" not in repr(found)


def test_tokens(loaded: Loaded, problems: Problems, tmp_path: Path) -> None:
    """A key file is looked at; without issuer and audience there is a warning."""
    key = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "bad.pem").write_bytes(b"nothing")
    (tmp_path / "set.json").write_text(json.dumps({"keys": []}), "utf-8")
    config = loaded(table("jwtauth", "public_key_path = 'key.pem'\nissuer = 'i'\naudience = ['a', 'b']\n"))
    options = config.middleware["m"].options
    assert (options["public_key"], options["audience"]) == (key, ("a", "b"))
    assert options["algorithms"] == ("RS256", "ES256", "EdDSA")
    warnings = loaded(table("jwtauth", "public_key_path = 'key.pem'\n")).warnings
    assert sum("made for others" in warning for warning in warnings) == 2
    assert problems(table("jwtauth", "public_key_path = 'bad.pem'\n"))[0].key == "public_key_path"
    assert problems(table("jwtauth", "jwks_path = 'set.json'\n"))[0].key == "jwks_path"


def test_rules(loaded: Loaded) -> None:
    """They come as they are written."""
    rule = "{ roles = ['a', '*'], allow = ['find'], only = { InstitutionName = 'X*', '00100020' = ['1', '2'] } }"
    config = loaded(table("authorize", f"rules = [{rule}]\n"))
    only = (Element("00080080", "InstitutionName", ("X*",)), Element("00100020", "PatientID", ("1", "2")))
    assert config.middleware["m"].options["rules"] == (
        Rule(frozenset({"a", "*"}), frozenset({"find"}), frozenset(), only),
    )


def test_a_network_has_middleware_for_identity(loaded: Loaded, problems: Problems) -> None:
    """Names have to be there, and of a type that needs to know nothing of the request."""
    guard = "[middleware.p]\ntype = 'passthru'\n" + table("basic_auth", f"users.a = {{ password_hash = '{HASH}' }}\n")
    main = MAIN.replace("[network.default.http]", "[network.default]\nmiddleware = ['m']\n[network.default.http]")
    assert loaded(guard, main=main).networks["default"].middleware == ("m",)
    assert "not defined" in problems(guard, main=main.replace("'m'", "'x'"))[0].what
    assert "for pipelines" in problems(guard, main=main.replace("'m'", "'p'"))[0].what


def test_the_management_api_is_local_or_guarded(write: Write, loaded: Loaded, problems: Problems) -> None:
    """On a network that others reach it needs middleware that asks who they are."""
    guard = table("basic_auth", f"users.a = {{ password_hash = '{HASH}' }}\n")
    found = problems(guard, main=REMOTE + MANAGED)
    assert "nothing asks who it is" in found[0].what
    main = REMOTE.replace("[network.default.http]", "[network.default]\nmiddleware = ['m']\n[network.default.http]")
    assert loaded(guard, main=main + MANAGED).management.enabled
    open_to_all = table("basic_auth", f"optional = true\nusers.a = {{ password_hash = '{HASH}' }}\n")
    assert "nothing asks who it is" in problems(open_to_all, main=main + MANAGED)[0].what


@pytest.mark.parametrize(
    ("chain", "complaint"),
    [
        (("keys",), "everybody passes"),
        (("keys", "rules"), ""),
        (("rules", "keys"), "comes after authorize"),
        (("users",), ""),
    ],
)
def test_chains_that_keep_nobody_out(loaded: Loaded, chain: tuple[str, ...], complaint: str) -> None:
    """Optional credentials without rules, and rules before anybody is known, are told."""
    text = f"""
[middleware.users]
type = "basic_auth"
users.a = {{ password_hash = "{HASH}" }}
[middleware.keys]
type = "api_key"
optional = true
keys.a = {{ sha256 = "{DIGEST}" }}
[middleware.rules]
type = "authorize"
rules = [{{ roles = ["*"], allow = ["find"] }}]
[endpoints.e]
service = "echo"
options.path_prefix = "/"
[backends.b]
service = "echo"
[pipelines.p]
networks = ["default"]
endpoints = ["e"]
backends = ["b"]
middleware = {list(chain)}
"""
    found = [warning for warning in loaded(text).warnings if "everybody passes" in warning or "authorize" in warning]
    assert bool(found) == bool(complaint)
    assert complaint in " ".join(found)


@pytest.mark.parametrize(
    ("web", "dicom", "optional", "names"),
    [
        ("ca", "", False, "endpoint in asks nobody"),
        ("", "ca", False, "network default asks nobody"),
        ("ca", "ca", False, ""),
        ("ca", "", True, ""),
        ("tls", "tls", True, "network default asks nobody"),
    ],
)
def test_certificates_are_shown_only_where_somebody_asks(
    write: Write, problems: Problems, loaded: Loaded, tmp_path: Path, web: str, dicom: str, optional: bool, names: str
) -> None:
    """client_certificate needs a ca_file wherever its requests come from; optional, at one place at least."""
    Authority(tmp_path).issue("own")
    own = "tls = { cert_file = 'own.crt', key_file = 'own.key'"
    tables = {"": "", "tls": f"{own} }}\n", "ca": f"{own}, ca_file = 'ca.crt' }}\n"}
    text = f"""
[middleware.m]
type = "client_certificate"
optional = {str(optional).lower()}
other_roles = []
[endpoints.in]
service = "dicom"
options.port = 11112
options.engine = "native"
{tables[dicom] and "options." + tables[dicom]}
[endpoints.web]
service = "echo"
options.path_prefix = "/"
[backends.b]
service = "echo"
[pipelines.p]
networks = ["default"]
endpoints = ["in", "web"]
backends = ["b"]
middleware = ["m"]
"""
    main = MAIN.replace("[network.default.http]\n", f"[network.default.http]\n{tables[web]}")
    if not names:
        assert loaded(text, main=main).middleware["m"]
        return
    [problem] = problems(text, main=main)
    assert (problem.table, problem.key) == ("pipelines.p", "middleware")
    assert names in problem.what


def test_a_network_that_asks_for_no_certificate(problems: Problems) -> None:
    """Nobody would pass its middleware."""
    guard = table("client_certificate", "other_roles = []\n")
    main = MAIN.replace("[network.default.http]", "[network.default]\nmiddleware = ['m']\n[network.default.http]")
    [problem] = problems(guard, main=main)
    assert (problem.table, "asks nobody" in problem.what) == ("network.default", True)


def test_no_dicom_sender_has_a_password(problems: Problems) -> None:
    """A pipeline that receives with DICOM cannot demand one."""
    text = f"""
[middleware.m]
type = "basic_auth"
users.a = {{ password_hash = "{HASH}" }}
[endpoints.e]
service = "dicom"
[backends.b]
service = "echo"
[pipelines.p]
networks = ["default"]
endpoints = ["e"]
backends = ["b"]
middleware = ["m"]
"""
    assert "no DICOM sender has" in problems(text)[0].what


@pytest.mark.parametrize(
    ("address", "networks", "pipelines", "warns"),
    [
        ("0.0.0.0", [], [], True),
        ("::", [], [], True),
        ("127.0.0.1", [], [], False),
        ("systemd:http", [], [], False),
        ("0.0.0.0", ["m"], [], False),
        ("0.0.0.0", [], ["m"], False),
    ],
)
def test_what_others_reach_without_being_asked_is_told(
    loaded: Loaded, address: str, networks: list[str], pipelines: list[str], warns: bool
) -> None:
    """A network beyond this machine, and nothing that asks who it is: a warning."""
    guarded = f"[network.default]\nmiddleware = {networks}\n[network.default.http]"
    main = MAIN.replace("127.0.0.1", address).replace("[network.default.http]", guarded)
    if address.startswith("systemd:"):
        main = main.replace("bind_port = 8080\n", "")
    text = f"""
[middleware.m]
type = "basic_auth"
users.a = {{ password_hash = "{HASH}" }}
[endpoints.e]
service = "echo"
options.path_prefix = "/"
[backends.b]
service = "echo"
[pipelines.p]
networks = ["default"]
endpoints = ["e"]
backends = ["b"]
middleware = {pipelines}
"""
    warnings = loaded(text, main=main).warnings
    assert any("no middleware asks who it is" in warning for warning in warnings) == warns
