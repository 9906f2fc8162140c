"""DIMSE over TLS against real peers: operations, and every way in which a secure connection does not come about."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from raw_scp import Raw
from scu_kit import Scu, query, read
from tls_kit import server_context, tls_socket, tls_storescp
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from harmonyd.dimse.engine import QueryModel, RemoteNode
from harmonyd.dimse.errors import (
    AssociationAborted,
    CertificateRefused,
    DimseTimeout,
    EngineFailed,
    OurCertificateRefused,
    TlsFailed,
)
from harmonyd.dimse.native import find, get, names, store
from harmonyd.dimse.native.blocking_tls import secured
from harmonyd.dimse.native.ping import ping
from harmonyd.testing.certificates import Authority, Issued
from harmonyd.testing.data import make_ct, make_study
from harmonyd.tls import TlsClient

CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY_ROOT = QueryModel.STUDY_ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def server(ca: Authority) -> Issued:
    return ca.issue("server")


@pytest.fixture(scope="module")
def own(ca: Authority) -> Issued:
    return ca.issue("own", ("harmonyd",))


def mutual(ca: Authority, own: Issued, **more: Any) -> TlsClient:
    return TlsClient(ca.cert, own.cert, own.key, **more)


@pytest.fixture
def secure_scp(server: Issued) -> Iterator[Callable[..., Any]]:
    """``secure_scp(handlers, context)``: an SCP of pynetdicom's that speaks TLS only."""
    running: list[Any] = []

    def start(handlers: list[Any] = [], context: ssl.SSLContext | None = None) -> Any:  # noqa: B006
        node: Any = AE("SECURE")
        for uid in (names.VERIFICATION, names.FIND[STUDY_ROOT], names.GET[STUDY_ROOT]):
            node.add_supported_context(uid)
        node.add_supported_context(CT, scu_role=True, scp_role=True)
        started = node.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=context or server_context(server)
        )
        started.aet, started.port = "SECURE", started.server_address[1]
        running.append(started)
        return started

    yield start
    for each in running:
        each.shutdown()


async def echo_both(scu: Scu, node: RemoteNode) -> None:
    """With the engine, and with the blocking client of ``check --probe``."""
    assert (await find.echo(scu.means, node, scu.op())).status == 0
    await scu.means.in_thread(ping, node)


async def refused_both(
    scu: Scu, node: RemoteNode, kind: type[TlsFailed], word: str, *, vague: bool = False
) -> TlsFailed:
    """Both say the same; the engine's error. ``vague``: the blocking client cannot tell it so exactly."""
    with pytest.raises(TlsFailed if vague else kind) as by_ping:
        await scu.means.in_thread(ping, node)
    with pytest.raises(kind) as by_engine:
        await find.echo(scu.means, node, scu.op())
    assert by_engine.value.extra["tls"] == word, by_engine.value
    assert by_ping.value.extra["tls"] == ("handshake" if vague else word), by_ping.value
    assert by_engine.value.hint and by_ping.value.hint
    return by_engine.value


# --- what works


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest_twisted.ensureDeferred
async def test_echo(scu: Scu, secure_scp: Any, server: Issued, ca: Authority, host: str, newest: Any) -> None:
    """A name or an address of the certificate will do, and TLS 1.2 as well as 1.3."""
    running = secure_scp(context=server_context(server, newest=newest))
    await echo_both(scu, scu.node(running, host=host, tls=TlsClient(ca.cert)))


@pytest_twisted.ensureDeferred
async def test_real_socket_options(scu: Scu, secure_scp: Any, ca: Authority) -> None:
    """Small messages do not wait for bigger ones: the options are those of the socket below TLS."""
    node = scu.node(secure_scp(), tls=TlsClient(ca.cert))
    assert (await find.echo(scu.means, node, scu.op())).status == 0
    [connection] = scu.pool._nodes[node].connections
    sock = connection._wire().getHandle()
    assert isinstance(sock, socket.socket)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert connection.peer == "127.0.0.1"


@pytest_twisted.ensureDeferred
async def test_mutual(scu: Scu, secure_scp: Any, ca: Authority, server: Issued, own: Issued) -> None:
    """Our certificate is shown to a peer that wants one."""
    running = secure_scp(context=server_context(server, client_ca=ca.cert))
    await echo_both(scu, scu.node(running, tls=mutual(ca, own)))


@pytest_twisted.ensureDeferred
async def test_server_name(scu: Scu, secure_scp: Any, ca: Authority) -> None:
    """The certificate may be for another name than the one connected to, when that is configured."""
    running = secure_scp(context=server_context(ca.issue("named", ("pacs.example",))))
    await echo_both(scu, scu.node(running, tls=TlsClient(ca.cert, server_name="pacs.example")))


@pytest_twisted.ensureDeferred
async def test_pinned(scu: Scu, secure_scp: Any, folder: Path) -> None:
    """A pinned certificate needs neither a known authority nor the right name."""
    issued = Authority(folder, "unknown").issue("pinned", ("elsewhere.example",))
    running = secure_scp(context=server_context(issued))
    await echo_both(scu, scu.node(running, tls=TlsClient(pinned_sha256=("0" * 64, issued.sha256))))


@pytest_twisted.ensureDeferred
async def test_store_to_dcmtk(scu: Scu, tmp_path: Path, ca: Authority, server: Issued, own: Issued) -> None:
    """Many objects and a large one arrive byte for byte at storescp, which requires our certificate."""
    study = make_study(tmp_path, 100)
    files = [*study.files, tmp_path / "large.dcm"]
    make_ct(files[-1], study_uid="1.2.3", series_uid="1.2.3.4", instance_number=1, patient_id="P", size=4000)
    with tls_storescp(tmp_path / "received", server, "+cf", str(ca.cert), "-rc") as scp:
        node = scu.node(scp, tls=mutual(ca, own), idle_secs=0.0)
        await echo_both(scu, node)
        results = await read(store.store(scu.means, node, files, scu.op(50)))
        assert [result.status for result in results] == [0] * len(files)
        received = {dcmread(path).SOPInstanceUID: path for path in scp.folder.iterdir()}
        assert len(received) == len(files)
        for path in files:
            ours, theirs = dcmread(path), dcmread(received[dcmread(path).SOPInstanceUID])
            assert ours.PixelData == theirs.PixelData
        await scu.pool.close()


@pytest_twisted.ensureDeferred
async def test_find_and_get(scu: Scu, secure_scp: Any, ca: Authority, tmp_path: Path) -> None:
    """Many answers to a C-FIND, and objects over the association that asked for them, a large one too."""
    uids = []
    for number, size in ((1, 64), (2, 2500), (3, 64)):
        uids.append(make_ct(tmp_path / f"{number}.dcm", study_uid="1.2.3", series_uid="1.2.3.4",
                            instance_number=number, patient_id="P", size=size))  # fmt: skip

    def on_find(event: Any) -> Iterator[Any]:
        level = event.identifier.QueryRetrieveLevel
        for number in range(500 if level == "STUDY" else 1):
            ds = Dataset()
            ds.QueryRetrieveLevel = level
            ds.StudyInstanceUID, ds.SOPClassesInStudy, ds.SOPClassUID = f"1.2.{number}", CT, CT
            yield 0xFF00, ds
        yield 0, None

    def on_get(event: Any) -> Iterator[Any]:
        yield len(uids)
        for number in (1, 2, 3):
            yield 0xFF00, dcmread(tmp_path / f"{number}.dcm")

    node = scu.node(secure_scp([(evt.EVT_C_FIND, on_find), (evt.EVT_C_GET, on_get)]), tls=TlsClient(ca.cert))
    matches = await read(find.find(scu.means, node, query(StudyInstanceUID=""), scu.op()))
    assert len(matches) == 500
    got = await read(get.get(scu.means, node, query(StudyInstanceUID="1.2.3"), scu.op(40)))
    assert sorted(each.sop_instance_uid for each in got) == sorted(uids)


@pytest_twisted.ensureDeferred
async def test_a_release_is_quick(
    scu: Scu, secure_scp: Any, ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secure association that is released is closed, on both sides, without waiting for any time to be over."""
    for patience in ("connection.LAST_WORDS_SECS", "secure.SecureConnection.cut_secs", "client._RELEASE_SECS"):
        monkeypatch.setattr(f"harmonyd.dimse.native.{patience}", 300.0)
    node = scu.node(secure_scp(), tls=TlsClient(ca.cert))
    await find.echo(scu.means, node, scu.op())
    await scu.pool.close()


@pytest_twisted.ensureDeferred
async def test_orderly_close(scu: Scu, ca: Authority, server: Issued) -> None:
    """Our last word in TLS is a close_notify, behind the A-ABORT to a peer that says nothing."""
    with tls_socket(server_context(server)) as silent:
        node = scu.node(silent, tls=TlsClient(ca.cert), association_timeout_secs=0.3)
        with pytest.raises(DimseTimeout) as error:
            await find.echo(scu.means, node, scu.op())
        assert error.value.extra["timeout"] == "association"
        give_up = scu.reactor.seconds() + 10
        while "close_notify" not in silent.ends and scu.reactor.seconds() < give_up:
            await deferLater(scu.reactor, 0.02)
        assert silent.ends[-2:] == [bytes.fromhex("07000000000400000000"), "close_notify"]
        assert silent.versions == ["TLSv1.3"]


# --- what does not


@pytest_twisted.ensureDeferred
async def test_wrong_authority(scu: Scu, secure_scp: Any, folder: Path, ca: Authority) -> None:
    """A certificate of an authority that we do not trust is refused, and its fingerprint told."""
    stranger = Authority(folder, "stranger").issue("stranger-server")
    node = scu.node(secure_scp(context=server_context(stranger)), tls=TlsClient(ca.cert))
    error = await refused_both(scu, node, CertificateRefused, "unknown_ca")
    assert error.extra["certificate_sha256"] == stranger.sha256
    assert "tls.ca_file" in (error.hint or "")


@pytest_twisted.ensureDeferred
async def test_system_authorities(scu: Scu, secure_scp: Any) -> None:
    """Without a ca_file the system's authorities are asked, who know nothing of ours."""
    await refused_both(scu, scu.node(secure_scp(), tls=TlsClient()), CertificateRefused, "unknown_ca")


@pytest.mark.parametrize("sans", [("other.example", "127.0.0.2"), ()])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest_twisted.ensureDeferred
async def test_wrong_host(scu: Scu, secure_scp: Any, ca: Authority, host: str, sans: tuple[str, ...]) -> None:
    """A certificate for another name or address is refused; its common name counts for nothing."""
    running = secure_scp(context=server_context(ca.issue("other", sans)))
    error = await refused_both(
        scu, scu.node(running, host=host, tls=TlsClient(ca.cert)), CertificateRefused, "host_name"
    )
    assert host in error.detail
    assert "server_name" in (error.hint or "")


@pytest_twisted.ensureDeferred
async def test_expired(scu: Scu, secure_scp: Any, ca: Authority) -> None:
    """A certificate that has expired is refused."""
    running = secure_scp(context=server_context(ca.issue("expired", days=-1)))
    await refused_both(scu, scu.node(running, tls=TlsClient(ca.cert)), CertificateRefused, "expired")


@pytest_twisted.ensureDeferred
async def test_not_pinned(scu: Scu, secure_scp: Any, ca: Authority, server: Issued) -> None:
    """With a pin nothing else counts: neither its authority nor its name help another certificate."""
    node = scu.node(secure_scp(), tls=TlsClient(ca.cert, pinned_sha256=("ab" * 32,)))
    error = await refused_both(scu, node, CertificateRefused, "not_pinned")
    assert error.extra["certificate_sha256"] == server.sha256


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest_twisted.ensureDeferred
async def test_a_client_certificate_is_required(
    scu: Scu, secure_scp: Any, ca: Authority, server: Issued, newest: Any
) -> None:
    """A peer that wants a certificate of ours says so, in TLS 1.3 only when the handshake is over for us."""
    running = secure_scp(context=server_context(server, client_ca=ca.cert, newest=newest))
    node = scu.node(running, tls=TlsClient(ca.cert))
    vague = newest is ssl.TLSVersion.TLSv1_2
    error = await refused_both(scu, node, OurCertificateRefused, "client_certificate_required", vague=vague)
    assert "tls.cert_file" in (error.hint or "")


@pytest_twisted.ensureDeferred
async def test_a_peer_that_has_closed_already(
    scu: Scu, secure_scp: Any, ca: Authority, server: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In TLS 1.3 the refusal may be there, and the connection closed, before we have said a word."""

    def slowly(*args: Any) -> ssl.SSLSocket:
        made = secured(*args)
        time.sleep(0.2)
        return made

    monkeypatch.setattr("harmonyd.dimse.native.ping.secured", slowly)
    running = secure_scp(context=server_context(server, client_ca=ca.cert))
    with pytest.raises(OurCertificateRefused) as error:
        await scu.means.in_thread(ping, scu.node(running, tls=TlsClient(ca.cert)))
    assert error.value.extra["tls"] == "client_certificate_required"


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest_twisted.ensureDeferred
async def test_our_certificate_is_refused(
    scu: Scu, secure_scp: Any, folder: Path, ca: Authority, server: Issued, newest: Any
) -> None:
    """A peer that does not know the authority of ours is told apart from one that wants any."""
    ours = Authority(folder, "ours").issue("ours-client")
    running = secure_scp(context=server_context(server, client_ca=ca.cert, newest=newest))
    node = scu.node(running, tls=mutual(ca, ours))
    await refused_both(scu, node, OurCertificateRefused, "client_certificate_refused")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest_twisted.ensureDeferred
async def test_old_versions(scu: Scu, ca: Authority, server: Issued, newest: Any) -> None:
    """A peer that speaks TLS 1.0 or 1.1 at best is refused."""
    with tls_socket(server_context(server, newest=newest)) as old:
        await refused_both(scu, scu.node(old, tls=TlsClient(ca.cert)), TlsFailed, "protocol_version")
        assert not old.versions


@pytest_twisted.ensureDeferred
async def test_no_suite_in_common(scu: Scu, ca: Authority, server: Issued) -> None:
    """TLS 1.2 without authenticated encryption is refused."""
    context = server_context(server, newest=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA")
    with tls_socket(context) as old:
        await refused_both(scu, scu.node(old, tls=TlsClient(ca.cert)), TlsFailed, "cipher_suites", vague=True)


@pytest_twisted.ensureDeferred
async def test_a_plain_peer(scu: Scu, ca: Authority) -> None:
    """A peer without TLS is said to be one, when it answers in its own protocol."""
    raw = Raw()
    try:
        node = scu.node(raw, tls=TlsClient(ca.cert))
        for ask in (ping, None):
            answered = Deferred.fromCoroutine(scu.means.in_thread(_answer_once, raw, "07000000000400000201"))
            with pytest.raises(TlsFailed) as error:
                await (scu.means.in_thread(ask, node) if ask else find.echo(scu.means, node, scu.op()))
            assert error.value.extra["tls"] == "peer_speaks_plain"
            await answered
    finally:
        raw.close()


def _answer_once(raw: Raw, answer: str) -> None:
    connection = raw.accept()
    connection.recv(10)
    connection.sendall(bytes.fromhex(answer))


@pytest_twisted.ensureDeferred
async def test_a_plain_dcmtk(scu: Scu, pacs: Any, ca: Authority) -> None:
    """A dcmqrscp without TLS is told as a peer that may have none."""
    node = scu.node(pacs, tls=TlsClient(ca.cert))
    with pytest.raises(TlsFailed) as error:
        await find.echo(scu.means, node, scu.op())
    assert error.value.extra["tls"] in ("peer_speaks_plain", "closed")


@pytest_twisted.ensureDeferred
async def test_a_peer_that_waits(scu: Scu, ca: Authority) -> None:
    """A handshake that does not come is over with the time for connecting, and leaves no connection."""
    raw = Raw()
    try:
        node = scu.node(raw, tls=TlsClient(ca.cert), connect_timeout_secs=0.3)
        for ask in (ping, None):
            with pytest.raises(DimseTimeout, match="TLS handshake") as error:
                await (scu.means.in_thread(ask, node) if ask else find.echo(scu.means, node, scu.op()))
            assert error.value.extra["timeout"] == "connect"
    finally:
        raw.close()


@pytest_twisted.ensureDeferred
async def test_plain_to_a_tls_port(scu: Scu) -> None:
    """An alert in answer to what we said without TLS is understood."""
    raw = Raw()
    try:
        for ask in (ping, None):
            answered = Deferred.fromCoroutine(scu.means.in_thread(_answer_once, raw, "15030300020246"))
            with pytest.raises(TlsFailed, match="answers with TLS") as error:
                node = scu.node(raw)
                await (scu.means.in_thread(ask, node) if ask else find.echo(scu.means, node, scu.op()))
            assert error.value.extra["tls"] == "peer_speaks_tls"
            await answered
    finally:
        raw.close()


@pytest_twisted.ensureDeferred
async def test_plain_to_openssl(scu: Scu, server: Issued) -> None:
    """OpenSSL closes without an alert then: the hint says that it may be TLS."""
    with tls_socket(server_context(server)) as secure:
        for ask in (ping, None):
            node = scu.node(secure)
            with pytest.raises(AssociationAborted) as error:
                await (scu.means.in_thread(ask, node) if ask else find.echo(scu.means, node, scu.op()))
            assert "use_tls" in (error.value.hint or "")


@pytest_twisted.ensureDeferred
async def test_our_files_are_gone(scu: Scu, secure_scp: Any, folder: Path, ca: Authority, own: Issued) -> None:
    """Files of ours that cannot be used are our fault; once they are right again, they are used."""
    cert, key = folder / "moved.crt", folder / "moved.key"
    node = scu.node(secure_scp(), tls=TlsClient(ca.cert, cert, key), idle_secs=0.0)
    for ask in (ping, None):
        with pytest.raises(EngineFailed, match="cannot be used"):
            await (scu.means.in_thread(ask, node) if ask else find.echo(scu.means, node, scu.op()))
    cert.write_bytes(own.cert.read_bytes())
    key.write_bytes(own.key.read_bytes())
    await echo_both(scu, node)


