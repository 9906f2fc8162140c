"""TLS to archives: who they are is looked at as with a PACS, and errors are told in the same words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from archive_kit import ScriptedArchive, engine_for, operation, scripted_archive

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import CertificateRefused, TlsFailed
from harmonyd.testing.certificates import Authority, Issued, self_signed
from harmonyd.tls import TlsClient

REMOTE = RemoteNode("archive", "DICOMWEB", "127.0.0.1", 1, "US")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue("archive")


@pytest.fixture(scope="module")
def archive(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, issued: Issued
) -> Iterator[ScriptedArchive]:
    folder = tmp_path_factory.mktemp("archive")
    with scripted_archive(folder, (issued.cert, issued.key, authority.cert)) as running:
        yield running


async def ask(url: str, folder: Path, tls: TlsClient) -> None:
    engine = engine_for(url, folder, tls=tls)
    try:
        await engine.echo(REMOTE, operation())
    finally:
        await engine.close()


@pytest_twisted.ensureDeferred
async def test_an_archive_that_is_known_is_asked(
    archive: ScriptedArchive, authority: Authority, issued: Issued, tmp_path: Path
) -> None:
    """By its authority, or by its certificate."""
    await ask(archive.url("nopaging"), tmp_path, TlsClient(ca_file=authority.cert))
    await ask(archive.url("nopaging"), tmp_path, TlsClient(pinned_sha256=(issued.sha256,)))


@pytest_twisted.ensureDeferred
async def test_a_stranger_is_not_asked(archive: ScriptedArchive, authority: Authority, tmp_path: Path) -> None:
    """Of another authority, with another certificate than the pinned one, or for another name."""
    other = self_signed(tmp_path)
    for settings, word in (
        (TlsClient(ca_file=other.cert), "unknown_ca"),
        (TlsClient(pinned_sha256=(other.sha256,)), "not_pinned"),
        (TlsClient(ca_file=authority.cert, server_name="elsewhere.example.org"), "host_name"),
    ):
        with pytest.raises(CertificateRefused) as caught:
            await ask(archive.url("nopaging"), tmp_path, settings)
        assert caught.value.extra["tls"] == word


@pytest_twisted.ensureDeferred
async def test_https_to_a_server_without_it_is_told(tmp_path: Path) -> None:
    """As a PACS that speaks no TLS."""
    with scripted_archive(tmp_path / "plain") as plain, pytest.raises(TlsFailed) as caught:
        await ask(plain.url("nopaging").replace("http:", "https:"), tmp_path, TlsClient())
    assert caught.value.extra["tls"] == "peer_speaks_plain"
