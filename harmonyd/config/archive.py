"""Options of the ``dicomweb`` backend: an archive that is asked over QIDO-RS, WADO-RS and STOW-RS."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from urllib.parse import urlsplit

from harmonyd.config import checks, guarding, tls
from harmonyd.config.archive_model import Basic, Bearer, ClientCredentials, DicomwebBackendOptions, Secret
from harmonyd.config.fields import Section
from harmonyd.config.model import DicomBackendOptions
from harmonyd.tls import TlsClient

NODE_NAME = "DICOMWEB"
"""Stands where a DICOM node has its AE title; an archive has none."""
MAX_SECRET_BYTES = 16 * 1024
_PORTS = {"http": 80, "https": 443}
_VARIABLE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)\Z")
_GB, _MB = 1000**3, 1000**2
_OF_A_NODE = (
    *("aet", "host", "port", "local_aet", "engine", "max_pdu", "max_associations", "association_timeout_ms"),
    *("move_destination_aet", "incoming_store_port", "dimse_retrieve_mode", "store_scp", "user_identity", "use_tls"),
)
_OF_AN_ENDPOINT = (
    *("path_prefix", "public_url", "cors_origins", "complete_attributes", "search_timeout_ms", "backend_header"),
)


def backend_options(section: Section, base: Path) -> DicomwebBackendOptions:
    """``base`` is the folder of config.toml."""
    for key in _OF_A_NODE:
        section.refuse(
            key, "a key of a dicom backend, which speaks DIMSE", "remove it; `url` says where the archive is"
        )
    for key in _OF_AN_ENDPOINT:
        section.refuse(key, "a key of a dicomweb endpoint", "it belongs in [endpoints.NAME.options]")
    section.require("url")
    url = section.text("url", "", checks.base_url).rstrip("/")
    folder = section.text("storage_dir", "", checks.path)
    result = DicomwebBackendOptions(
        url=url,
        node=_node(section, url, (base / folder).resolve() if folder else None),
        qido_prefix=_prefix(section, "qido_prefix"),
        wado_prefix=_prefix(section, "wado_prefix"),
        stow_prefix=_prefix(section, "stow_prefix"),
        tls=_tls(section, url, base),
        credentials=_credentials(section, base),
        page_size=section.integer("page_size", 500, 1, 100_000),
        fuzzy_matching=section.flag("fuzzy_matching", False),
        max_instance_bytes=round(section.number("max_instance_gb", 4.0, 0.001, 1000) * _GB),
        max_store_objects=section.integer("max_store_objects", 50, 1, 1000),
        max_store_bytes=section.integer("max_store_mb", 200, 1, 100_000) * _MB,
    )
    section.finish()
    if result.credentials is not None and url.startswith("http:") and not _is_here(url):
        section.warn("url", "credentials go over it, and nothing is encrypted: use https")
    return result


def _node(section: Section, url: str, storage_dir: Path | None) -> DicomBackendOptions:
    parts = urlsplit(url)
    return DicomBackendOptions(
        aet=NODE_NAME,
        host=parts.hostname or "",
        port=parts.port or _PORTS.get(parts.scheme, 0),
        engine="dicomweb",
        store_scp="transient",
        connect_timeout_secs=section.milliseconds("connect_timeout_ms", 30.0),
        association_timeout_secs=section.milliseconds("idle_timeout_ms", 300.0),
        operation_timeout_secs=section.milliseconds("operation_timeout_ms", 3600.0),
        max_associations=section.integer("max_connections", 10, 1, 1000),
        max_queue=section.integer("max_queue", 100, 0, 100_000),
        max_results=section.integer("max_results", 10000, 1, 10_000_000),
        storage_dir=storage_dir,
        **guarding.options(section),
    )


def _prefix(section: Section, key: str) -> str:
    return section.text(key, "", lambda value: checks.path_prefix(value) if value else None).rstrip("/")


def _tls(section: Section, url: str, base: Path) -> TlsClient:
    if "tls" in section and not url.startswith("https:"):
        section.warn("tls", "it has no effect: url begins with http")
    return tls.client(section.table("tls"), base)


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or checks.is_loopback(host)


def _credentials(section: Section, base: Path) -> Basic | Bearer | ClientCredentials | None:
    given = [key for key in ("bearer_file", "username", "oauth2") if key in section]
    if len(given) > 1:
        section.problem(
            given[1], f"beside {given[0]}: the archive is shown one kind of credentials", "keep one of them"
        )
    bearer = _secret(section, "bearer_file", base)
    username = section.text("username", "", _username)
    password = _secret(section, "password_file", base)
    oauth2 = _oauth2(section.table("oauth2"), base) if "oauth2" in section else None
    section.raw("oauth2")
    if ("username" in section) != ("password_file" in section):
        section.problem("username", "username and password_file belong together", "give both, or none")
    if bearer is not None:
        return Bearer(bearer)
    if username and password is not None:
        return Basic(username, password)
    return oauth2


def _username(value: str) -> str | None:
    if not value or not value.isprintable():
        return "empty, or with characters that cannot be printed"
    return "a colon is not allowed in it (RFC 7617)" if ":" in value else None


def _oauth2(section: Section, base: Path) -> ClientCredentials | None:
    if section.is_table:
        section.require("token_url", "client_id", "client_secret_file")
    url = section.text("token_url", "", checks.base_url)
    client_id = section.text("client_id", "", checks.plain_text)
    secret = _secret(section, "client_secret_file", base)
    scope = section.text("scope", "", checks.plain_text)
    settings = _tls(section, url, base)
    section.finish()
    if url.startswith("http:") and not _is_here(url):
        section.warn("token_url", "the client's secret goes over it, and nothing is encrypted: use https")
    return None if secret is None else ClientCredentials(url, client_id, secret, scope, settings)


def _secret(section: Section, key: str, base: Path) -> Secret | None:
    """A path, or ``env:NAME``. What is in it is only looked at; it is read again when it is used."""
    name = section.text(key, "", checks.path)
    if not name:
        return None
    found = _VARIABLE.match(name)
    secret = Secret(variable=found[1]) if found else Secret((base / name).resolve())
    try:
        if secret.file is not None and stat.S_IMODE(secret.file.stat().st_mode) & 0o007:
            section.warn(key, "everybody may read it: chmod o= is better")
        secret_text(secret)
    except OSError as error:
        section.problem(key, f"cannot be read: {error.strerror}", "paths are relative to config.toml's folder")
    except KeyError:
        section.problem(key, "there is no such variable in the environment", "set it for the service, or use a file")
    except ValueError as error:
        section.problem(key, str(error), "its first and only line is the secret")
    return secret


def secret_text(secret: Secret) -> str:
    """The secret itself. Blocks. Raises OSError, KeyError, and ValueError that does not show it."""
    if secret.file is None:
        text = os.environ[secret.variable]
    else:
        with secret.file.open("rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
        if len(data) > MAX_SECRET_BYTES:
            raise ValueError(f"more than {MAX_SECRET_BYTES} bytes")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise ValueError("not text in UTF-8") from None
    text = text.rstrip("\r\n")
    if not text or not text.isprintable():
        raise ValueError("empty" if not text else "it contains characters that cannot be printed")
    return text
