"""DIMSE over TLS against real peers: operations, and every way in which a secure connection does not come about."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from engine_kit import Asking
from pydicom import Dataset, dcmread
from pynetdicom import evt
from raw_scp import Raw
from raw_scu import ASSOCIATE_AC, RawScu
from scu_kit import query, read
from tls_kit import answer_once, secured, tls_socket, tls_storescp
from twisted.internet.defer import Deferred

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import (
    AssociationAborted,
    CertificateRefused,
    DimseTimeout,
    EngineFailed,
    OurCertificateRefused,
    TlsFailed,
)
from harmonyd.dimse.native.ping import ping
from harmonyd.errors import Unavailable
from harmonyd.testing.certificates import Authority, Issued, client_context, server_context
from harmonyd.testing.data import MadeStudy, make_ct, make_study
from harmonyd.testing.processes import free_port
from harmonyd.tls import TlsClient

CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture(scope="module")
def own(ca: Authority) -> Issued:
    return ca.issue("own", ("harmonyd",))


def mutual(ca: Authority, own: Issued, **more: Any) -> TlsClient:
    return TlsClient(ca.cert, own.cert, own.key, **more)


async def echo_both(asking: Asking, node: RemoteNode) -> None:
    """With the engine, and with the blocking client of ``check --probe``."""
    assert (await asking.engine.echo(node, asking.op())).status == 0
    await asking.in_thread(ping, node)


async def refused_both(
    asking: Asking, node: RemoteNode, kind: type[TlsFailed], word: str, *, vague: bool = False
) -> TlsFailed:
    """Both say the same; the engine's error. ``vague``: the blocking client cannot tell it so exactly."""
    with pytest.raises(TlsFailed if vague else kind) as by_ping:
        await asking.in_thread(ping, node)
    with pytest.raises(kind) as by_engine:
        await asking.engine.echo(node, asking.op())
    assert by_engine.value.extra["tls"] == word, by_engine.value
    assert by_ping.value.extra["tls"] == ("handshake" if vague else word), by_ping.value
    assert by_engine.value.hint and by_ping.value.hint
    return by_engine.value


# --- what works


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest_twisted.ensureDeferred
async def test_echo(asking: Asking, secure_scp: Any, server: Issued, ca: Authority, host: str, newest: Any) -> None:
    """A name or an address of the certificate will do, and TLS 1.2 as well as 1.3."""
    running = secure_scp(context=server_context(server, newest=newest))
    await echo_both(asking, asking.node(running, host=host, tls=TlsClient(ca.cert)))


@pytest_twisted.ensureDeferred
async def test_mutual(asking: Asking, secure_scp: Any, ca: Authority, server: Issued, own: Issued) -> None:
    """Our certificate is shown to a peer that wants one."""
    running = secure_scp(context=server_context(server, client_ca=ca.cert))
    await echo_both(asking, asking.node(running, tls=mutual(ca, own)))


@pytest_twisted.ensureDeferred
async def test_server_name(asking: Asking, secure_scp: Any, ca: Authority) -> None:
    """The certificate may be for another name than the one connected to, when that is configured."""
    running = secure_scp(context=server_context(ca.issue("named", ("pacs.example",))))
    await echo_both(asking, asking.node(running, tls=TlsClient(ca.cert, server_name="pacs.example")))


@pytest_twisted.ensureDeferred
async def test_pinned(asking: Asking, secure_scp: Any, folder: Path) -> None:
    """A pinned certificate needs neither a known authority nor the right name."""
    issued = Authority(folder, "unknown").issue("pinned", ("elsewhere.example",))
    running = secure_scp(context=server_context(issued))
    await echo_both(asking, asking.node(running, tls=TlsClient(pinned_sha256=("0" * 64, issued.sha256))))


@pytest_twisted.ensureDeferred
async def test_store_to_dcmtk(asking: Asking, tmp_path: Path, ca: Authority, server: Issued, own: Issued) -> None:
    """Many objects and a large one arrive byte for byte at storescp, which requires our certificate."""
    study = make_study(tmp_path, 100)
    files = [*study.files, tmp_path / "large.dcm"]
    make_ct(files[-1], study_uid="1.2.3", series_uid="1.2.3.4", instance_number=1, patient_id="P", size=4000)
    with tls_storescp(tmp_path / "received", server, "+cf", str(ca.cert), "-rc") as scp:
        node = asking.node(scp, tls=mutual(ca, own))
        await echo_both(asking, node)
        results = await read(asking.engine.store(node, files, asking.op(50)))
        assert [result.status for result in results] == [0] * len(files)
        received = {dcmread(path).SOPInstanceUID: path for path in scp.folder.iterdir()}
        assert len(received) == len(files)
        for path in files:
            ours, theirs = dcmread(path), dcmread(received[dcmread(path).SOPInstanceUID])
            assert ours.PixelData == theirs.PixelData


@pytest_twisted.ensureDeferred
async def test_find_and_get(asking: Asking, secure_scp: Any, ca: Authority, tmp_path: Path) -> None:
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

    node = asking.node(secure_scp([(evt.EVT_C_FIND, on_find), (evt.EVT_C_GET, on_get)]), tls=TlsClient(ca.cert))
    matches = await read(asking.engine.find(node, query(StudyInstanceUID=""), asking.op()))
    assert len(matches) == 500
    got = await read(asking.engine.get(node, query(StudyInstanceUID="1.2.3"), asking.op(40)))
    assert sorted(each.sop_instance_uid for each in got) == sorted(uids)


@pytest_twisted.ensureDeferred
async def test_move(
    asking: Asking, secure_scp: Any, study: MadeStudy, ca: Authority, server: Issued, own: Issued
) -> None:
    """Asked for over TLS, and delivered over TLS to a port that wants a certificate of the PACS's."""
    port = free_port()
    files = [dcmread(path) for path in study.files]

    def moved(event: Any) -> Iterator[Any]:
        yield "127.0.0.1", port, {"tls_args": (client_context(ca, own), "127.0.0.1")}
        yield len(files)
        for ds in files:
            yield 0xFF00, ds

    node = asking.node(secure_scp([(evt.EVT_C_MOVE, moved)]), tls=TlsClient(ca.cert))
    receiver = asking.receiver(port, secured(server, ca))
    stream = asking.engine.move(node, receiver, query(StudyInstanceUID=study.study_uid), asking.op())
    moved_uids = [each.sop_instance_uid for each in await read(stream)]
    assert sorted(moved_uids) == sorted(study.sop_uids)
    assert stream.outcome.complete and not stream.outcome.warnings
    # A move that still knows another configuration does not change how the port is secured.
    with pytest.raises(Unavailable, match="secured in another way"):
        await asking.engine.open_receiver(replace(asking.receiver(port), destination_aet="OTHER"))
    # A changed configuration secures the port that is open anew.
    asking.engine.keep_receivers([asking.receiver(port)])
    assert await asking.in_thread(plain_associate, port)
    asking.engine.keep_receivers([])


def plain_associate(port: int) -> bool:
    """Without TLS. Blocking."""
    with RawScu(port) as scu:
        return scu.associate(called=b"DEST")[0] == ASSOCIATE_AC and bool(scu.release())


# --- what does not


@pytest_twisted.ensureDeferred
async def test_wrong_authority(asking: Asking, secure_scp: Any, folder: Path, ca: Authority) -> None:
    """A certificate of an authority that we do not trust is refused, and its fingerprint told."""
    stranger = Authority(folder, "stranger").issue("stranger-server")
    node = asking.node(secure_scp(context=server_context(stranger)), tls=TlsClient(ca.cert))
    error = await refused_both(asking, node, CertificateRefused, "unknown_ca")
    assert error.extra["certificate_sha256"] == stranger.sha256
    assert "tls.ca_file" in (error.hint or "")


@pytest_twisted.ensureDeferred
async def test_system_authorities(asking: Asking, secure_scp: Any) -> None:
    """Without a ca_file the system's authorities are asked, who know nothing of ours."""
    await refused_both(asking, asking.node(secure_scp(), tls=TlsClient()), CertificateRefused, "unknown_ca")


@pytest.mark.parametrize("sans", [("other.example", "127.0.0.2"), ()])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest_twisted.ensureDeferred
async def test_wrong_host(asking: Asking, secure_scp: Any, ca: Authority, host: str, sans: tuple[str, ...]) -> None:
    """A certificate for another name or address is refused; its common name counts for nothing."""
    running = secure_scp(context=server_context(ca.issue("other", sans)))
    error = await refused_both(
        asking, asking.node(running, host=host, tls=TlsClient(ca.cert)), CertificateRefused, "host_name"
    )
    assert host in error.detail
    assert "server_name" in (error.hint or "")


@pytest_twisted.ensureDeferred
async def test_expired(asking: Asking, secure_scp: Any, ca: Authority) -> None:
    """A certificate that has expired is refused."""
    running = secure_scp(context=server_context(ca.issue("expired", days=-1)))
    await refused_both(asking, asking.node(running, tls=TlsClient(ca.cert)), CertificateRefused, "expired")


@pytest_twisted.ensureDeferred
async def test_not_pinned(asking: Asking, secure_scp: Any, ca: Authority, server: Issued) -> None:
    """With a pin nothing else counts: neither its authority nor its name help another certificate."""
    node = asking.node(secure_scp(), tls=TlsClient(ca.cert, pinned_sha256=("ab" * 32,)))
    error = await refused_both(asking, node, CertificateRefused, "not_pinned")
    assert error.extra["certificate_sha256"] == server.sha256


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest_twisted.ensureDeferred
async def test_a_client_certificate_is_required(
    asking: Asking, secure_scp: Any, ca: Authority, server: Issued, newest: Any
) -> None:
    """A peer that wants a certificate of ours says so, in TLS 1.3 only when the handshake is over for us."""
    running = secure_scp(context=server_context(server, client_ca=ca.cert, newest=newest))
    node = asking.node(running, tls=TlsClient(ca.cert))
    vague = newest is ssl.TLSVersion.TLSv1_2
    error = await refused_both(asking, node, OurCertificateRefused, "client_certificate_required", vague=vague)
    assert "tls.cert_file" in (error.hint or "")


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest_twisted.ensureDeferred
async def test_our_certificate_is_refused(
    asking: Asking, secure_scp: Any, folder: Path, ca: Authority, server: Issued, newest: Any
) -> None:
    """A peer that does not know the authority of ours is told apart from one that wants any."""
    ours = Authority(folder, "ours").issue("ours-client")
    running = secure_scp(context=server_context(server, client_ca=ca.cert, newest=newest))
    node = asking.node(running, tls=mutual(ca, ours))
    await refused_both(asking, node, OurCertificateRefused, "client_certificate_refused")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest_twisted.ensureDeferred
async def test_old_versions(asking: Asking, ca: Authority, server: Issued, newest: Any) -> None:
    """A peer that speaks TLS 1.0 or 1.1 at best is refused."""
    with tls_socket(server_context(server, newest=newest)) as old:
        await refused_both(asking, asking.node(old, tls=TlsClient(ca.cert)), TlsFailed, "protocol_version")
        assert not old.versions


@pytest_twisted.ensureDeferred
async def test_no_suite_in_common(asking: Asking, ca: Authority, server: Issued) -> None:
    """TLS 1.2 without authenticated encryption is refused."""
    context = server_context(server, newest=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA")
    with tls_socket(context) as old:
        await refused_both(asking, asking.node(old, tls=TlsClient(ca.cert)), TlsFailed, "cipher_suites", vague=True)


@pytest_twisted.ensureDeferred
async def test_a_plain_peer(asking: Asking, ca: Authority) -> None:
    """A peer without TLS is said to be one, when it answers in its own protocol."""
    raw = Raw()
    try:
        node = asking.node(raw, tls=TlsClient(ca.cert))
        for ask in (ping, None):
            answered = Deferred.fromCoroutine(asking.in_thread(answer_once, raw, "07000000000400000201"))
            with pytest.raises(TlsFailed) as error:
                await (asking.in_thread(ask, node) if ask else asking.engine.echo(node, asking.op()))
            assert error.value.extra["tls"] == "peer_speaks_plain"
            await answered
    finally:
        raw.close()


@pytest_twisted.ensureDeferred
async def test_a_plain_dcmtk(asking: Asking, pacs: Any, ca: Authority) -> None:
    """A dcmqrscp without TLS is told as a peer that may have none."""
    node = asking.node(pacs, tls=TlsClient(ca.cert))
    with pytest.raises(TlsFailed) as error:
        await asking.engine.echo(node, asking.op())
    assert error.value.extra["tls"] in ("peer_speaks_plain", "closed")


@pytest_twisted.ensureDeferred
async def test_a_peer_that_waits(asking: Asking, ca: Authority) -> None:
    """A handshake that does not come is over with the time for connecting, and leaves no connection."""
    raw = Raw()
    try:
        node = asking.node(raw, tls=TlsClient(ca.cert), connect_timeout_secs=0.3)
        for ask in (ping, None):
            with pytest.raises(DimseTimeout, match="TLS handshake") as error:
                await (asking.in_thread(ask, node) if ask else asking.engine.echo(node, asking.op()))
            assert error.value.extra["timeout"] == "connect"
    finally:
        raw.close()


@pytest_twisted.ensureDeferred
async def test_plain_to_openssl(asking: Asking, server: Issued) -> None:
    """OpenSSL closes without an alert then: the hint says that it may be TLS."""
    with tls_socket(server_context(server)) as secure:
        for ask in (ping, None):
            node = asking.node(secure)
            with pytest.raises(AssociationAborted) as error:
                await (asking.in_thread(ask, node) if ask else asking.engine.echo(node, asking.op()))
            assert "use_tls" in (error.value.hint or "")


@pytest_twisted.ensureDeferred
async def test_our_files_are_gone(asking: Asking, secure_scp: Any, folder: Path, ca: Authority, own: Issued) -> None:
    """Files of ours that cannot be used are our fault; once they are right again, they are used."""
    cert, key = folder / f"{asking.name}.crt", folder / f"{asking.name}.key"
    node = asking.node(secure_scp(), tls=TlsClient(ca.cert, cert, key))
    for ask in (ping, None):
        with pytest.raises(EngineFailed, match="cannot be used"):
            await (asking.in_thread(ask, node) if ask else asking.engine.echo(node, asking.op()))
    cert.write_bytes(own.cert.read_bytes())
    key.write_bytes(own.key.read_bytes())
    await echo_both(asking, node)


