"""Options of ``dicomweb`` backends: what is read, and every mistake with what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harmonyd.config import ConfigError, load
from harmonyd.config.archive_model import Basic, Bearer, ClientCredentials, DicomwebBackendOptions
from harmonyd.testing.config_files import write_config

ROOT = Path(__file__).parents[2]
URL = "https://archive.example.org/dicom-web/"


def loaded(folder: Path, **options: Any) -> Any:
    """The configuration with one such backend."""
    return load(write_config(folder, http_port=8080, backends={"archive": {"service": "dicomweb", **options}}))


def options_of(folder: Path, **options: Any) -> DicomwebBackendOptions:
    found = loaded(folder, **{"url": URL, **options}).backends["archive"].options
    assert isinstance(found, DicomwebBackendOptions)
    return found


def problems(folder: Path, **options: Any) -> list[str]:
    """Key and complaint of each mistake."""
    with pytest.raises(ConfigError) as caught:
        loaded(folder, **{"url": URL, **options})
    return [f"{each.key}: {each.what}" for each in caught.value.problems]


def secret(folder: Path, text: str = "s3cret\n", mode: int = 0o600) -> str:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(mode)
    return "secret"


def test_what_is_left_out_has_defaults(tmp_path: Path) -> None:
    """The URL is enough."""
    found = options_of(tmp_path)
    assert (found.url, found.node.host, found.node.port) == (URL.rstrip("/"), "archive.example.org", 443)
    assert (found.node.max_associations, found.node.max_results, found.credentials) == (10, 10000, None)


def test_what_is_given_is_read(tmp_path: Path) -> None:
    """Prefixes, limits, timeouts, what protects the archive."""
    found = options_of(
        tmp_path,
        qido_prefix="/qido/",
        max_connections=3,
        idle_timeout_ms=2000,
        max_instance_gb=0.5,
        breaker={"failures": 2},
        tls={"pinned_sha256": ["ab" * 32]},
    )
    assert (found.qido_prefix, found.node.max_associations, found.node.association_timeout_secs) == ("/qido", 3, 2)
    assert (found.max_instance_bytes, found.node.breaker.failures) == (500_000_000, 2)
    assert found.tls.pinned_sha256 == ("ab" * 32,)


def test_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind, from a file or the environment; none of them shows its secret."""
    monkeypatch.setenv("ARCHIVE_TOKEN", "t0ken")
    found = [
        options_of(tmp_path, username="me", password_file=secret(tmp_path)).credentials,
        options_of(tmp_path, bearer_file="env:ARCHIVE_TOKEN").credentials,
        options_of(
            tmp_path,
            oauth2={"token_url": "https://login.example.org/token", "client_id": "me", "client_secret_file": "secret"},
        ).credentials,
    ]
    assert [type(each) for each in found] == [Basic, Bearer, ClientCredentials]
    assert "s3cret" not in repr(found) and "t0ken" not in repr(found)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"aet": "PACS"}, "aet: a key of a dicom backend, which speaks DIMSE"),
        ({"public_url": URL}, "public_url: a key of a dicomweb endpoint"),
        ({"url": "archive.example.org"}, "url: not an absolute URL, such as http://127.0.0.1:8888"),
        ({"qido_prefix": "qido"}, "qido_prefix: "),
        ({"username": "me"}, "username: username and password_file belong together"),
        ({"username": "m:e", "password_file": "secret"}, "username: a colon is not allowed in it (RFC 7617)"),
        ({"bearer_file": "nowhere"}, "bearer_file: cannot be read: No such file or directory"),
        ({"bearer_file": "env:NOT_THERE"}, "bearer_file: there is no such variable in the environment"),
        ({"bearer_file": "secret", "oauth2": {}}, "oauth2: beside bearer_file: the archive is shown one kind"),
        ({"oauth2": {"client_id": "me"}}, "token_url: missing"),
        ({"page_size": 0}, "page_size: out of range"),
        ({"max_conections": 1}, "max_conections: unknown key"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, options: dict[str, Any], wrong: str) -> None:
    """With key and reason."""
    secret(tmp_path)
    assert any(each.startswith(wrong) for each in problems(tmp_path, **options))


def test_what_is_wrong_with_a_secret_does_not_show_it(tmp_path: Path) -> None:
    """Control characters in it, or nothing at all."""
    assert problems(tmp_path, bearer_file=secret(tmp_path, "two\nlines\n")) == [
        "bearer_file: it contains characters that cannot be printed"
    ]
    assert problems(tmp_path, bearer_file=secret(tmp_path, "\n")) == ["bearer_file: empty"]


def test_what_an_operator_should_know(tmp_path: Path) -> None:
    """A secret that everybody may read, and one that goes over http."""
    given = {"url": "http://archive.example.org/dicom-web", "bearer_file": secret(tmp_path, mode=0o644)}
    warnings = loaded(tmp_path, **given).warnings
    assert any("everybody may read it" in each for each in warnings)
    assert any("credentials go over it, and nothing is encrypted" in each for each in warnings)


def test_dicomweb_and_fan_out_take_it(tmp_path: Path) -> None:
    """Endpoints that need a dicom backend have one in it."""
    backend = {"service": "dicomweb", "url": URL}
    config = write_config(
        tmp_path,
        http_port=8080,
        backends={"one": backend, "two": {"service": "dicom", "aet": "PACS", "host": "pacs", "port": 104}},
        endpoints={"web": {"service": "dicomweb", "path_prefix": "/web"}},
        pipelines={
            "both": {
                "description": "",
                "networks": ["default"],
                "endpoints": ["web"],
                "middleware": [],
                "backends": ["one", "two"],
                "fan_out": True,
            }
        },
    )
    assert load(config).pipelines["both"].fan_out


def test_the_example() -> None:
    """``examples/dicomweb-archive`` is a configuration that loads."""
    config = load(ROOT / "examples/dicomweb-archive/config.toml")
    assert config.backends["archive"].service == "dicomweb"
    assert not config.warnings
