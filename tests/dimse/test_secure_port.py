"""TLS on a port of ours, with real senders: what gets through as it was sent, who is kept out, and how that is told."""

from __future__ import annotations

import shutil
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage
from raw_scu import ABORT, ASSOCIATE_AC, data_set_of
from sender_kit import storescu as plain_storescu
from tls_kit import TlsScu, associated, secured, storescu
from twisted.internet.defer import Deferred

from harmonyd.errors import Unavailable
from harmonyd.testing.certificates import Authority, Issued, client_context, self_signed
from harmonyd.testing.data import MadeStudy, make_ct, uid_for
from harmonyd.tls import TlsServer

ARTIM = {
    "dcmtk": "harmonyd.dimse.dcmtk.secure_handshake.ARTIM_SECS",
    "native": "harmonyd.dimse.native.connection.ARTIM_SECS",
}
NO_ASSOCIATION = (ssl.SSLError, ConnectionError)
"""What a caller sees that is not let in: an alert, or the end of the connection."""


# --- what gets through


@pytest_twisted.ensureDeferred
async def test_storescu_without_a_certificate(
    store_scp: Any, eventually: Any, study: MadeStudy, server: Issued, ca: Authority
) -> None:
    """Where none is required, DCMTK's anonymous TLS is enough; every data set arrives byte for byte."""
    running = await store_scp(tls=secured(server))
    assert await running.in_thread(storescu, running, ca, *study.files) == 0
    await eventually(lambda: len(running.spool.uids) == len(study.files))
    sent = sorted(data_set_of(path) for path in study.files)
    assert sorted(data_set_of(arrival.instance.path) for arrival in running.spool.arrivals) == sent
    assert {arrival.association.peer for arrival in running.spool.arrivals} == {"127.0.0.1"}


@pytest_twisted.ensureDeferred
async def test_storescu_with_a_certificate(
    store_scp: Any, eventually: Any, study: MadeStudy, server: Issued, ca: Authority, caller: Issued, told: Any
) -> None:
    """Where one is required, DCMTK gets through with one of our authority, and not without."""
    running = await store_scp(tls=secured(server, ca))

    def send(own: Issued | None) -> int:
        return storescu(running, ca, study.files[0], own=own)

    assert await running.in_thread(send, caller) == 0
    await eventually(lambda: running.spool.uids == [study.sop_uids[0]])
    assert told(f", certificate of CN=127.0.0.1, SHA-256 {caller.sha256}) to SCP")
    assert await running.in_thread(send, None) != 0
    assert told("it has shown no certificate, and require_client_certificate wants one")
    assert len(running.spool.uids) == 1


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest_twisted.ensureDeferred
async def test_pynetdicom(
    store_scp: Any, eventually: Any, tmp_path: Path, server: Issued, ca: Authority, newest: Any
) -> None:
    """A big object, over both versions; whoever may show a certificate, but does not, is let in."""
    running = await store_scp(tls=secured(server, ca, require_client_certificate=False))
    path = tmp_path / "big.dcm"
    uid = make_ct(path, study_uid=uid_for("s"), series_uid=uid_for("s/1"), instance_number=1, patient_id="P", size=2000)

    def send() -> int:
        scu = AE("PYNETDICOM")
        scu.add_requested_context(CTImageStorage)
        secure = client_context(ca, newest=newest), "127.0.0.1"
        assoc = scu.associate("127.0.0.1", running.port, ae_title="SCP", tls_args=secure)
        assert assoc.is_established
        status = assoc.send_c_store(dcmread(path)).Status
        assoc.release()
        return int(status)

    assert await running.in_thread(send) == 0
    await eventually(lambda: running.spool.uids)
    (arrival,) = running.spool.arrivals
    assert arrival.instance.sop_instance_uid == uid
    assert dcmread(arrival.instance.path).PixelData == dcmread(path).PixelData


# --- who is kept out


@pytest_twisted.ensureDeferred
async def test_plain_to_a_tls_port(store_scp: Any, study: MadeStudy, server: Issued, told: Any) -> None:
    """A sender without TLS is refused, and the log says why; so it does for what is neither."""
    running = await store_scp(tls=secured(server))
    assert await running.in_thread(plain_storescu, running.port, study.files[0]) != 0
    assert told("it speaks DICOM without TLS, and this port is for TLS alone")

    def browse() -> bytes:
        with socket.create_connection(("127.0.0.1", running.port), 30) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return sock.recv(100)

    await running.in_thread(browse)
    assert told("what it sent is not TLS")


@pytest_twisted.ensureDeferred
async def test_tls_to_a_plain_port(store_scp: Any, study: MadeStudy, ca: Authority, told: Any) -> None:
    """A sender with TLS is refused, and the log says why."""
    running = await store_scp()
    assert await running.in_thread(storescu, running, ca, study.files[0]) != 0
    assert told("warn: 127.0.0.1 connected to port")
    assert told("it speaks TLS, and this port does not")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("stranger", "its certificate is from no authority in ca_file"),
        ("expired", "has expired"),
        ("none", "it has shown no certificate"),
    ],
)
@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest_twisted.ensureDeferred
async def test_callers_that_are_not_trusted(
    store_scp: Any, tmp_path: Path, server: Issued, ca: Authority, told: Any, own: str, said: str, newest: Any
) -> None:
    """Nothing of DICOM is read from them, and the log says what is wrong with their certificate."""
    issued = {
        "stranger": lambda: Authority(tmp_path, "other").issue("own"),
        "expired": lambda: ca.issue("expired", days=-1),
        "none": lambda: None,
    }[own]()
    running = await store_scp(tls=secured(server, ca))
    with pytest.raises(NO_ASSOCIATION):
        await running.in_thread(associated, running.port, client_context(ca, issued, newest))
    assert told(said)
    assert not running.associations


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_was_not_required(
    store_scp: Any, tmp_path: Path, server: Issued, ca: Authority
) -> None:
    """Who shows one all the same has to show a good one."""
    running = await store_scp(tls=secured(server, ca, require_client_certificate=False))
    stranger = Authority(tmp_path, "other").issue("own")
    with pytest.raises(NO_ASSOCIATION):
        await running.in_thread(associated, running.port, client_context(ca, stranger))
    assert await running.in_thread(associated, running.port, client_context(ca)) == "TLSv1.3"


@pytest_twisted.ensureDeferred
async def test_a_caller_that_vouches_for_itself(store_scp: Any, folder: Path, server: Issued, ca: Authority) -> None:
    """A certificate without an authority is trusted when it stands in the file of the authorities itself."""
    alone = self_signed(folder)
    running = await store_scp(tls=secured(server, ca_file=alone.cert, require_client_certificate=True))
    assert await running.in_thread(associated, running.port, client_context(ca, alone)) == "TLSv1.3"
    with pytest.raises(NO_ASSOCIATION):
        await running.in_thread(associated, running.port, client_context(ca))


@pytest_twisted.ensureDeferred
async def test_a_name_in_an_old_encoding(
    store_scp: Any, tmp_path: Path, server: Issued, ca: Authority, told: Any
) -> None:
    """A certificate that OpenSSL understands gets through, though its name is Latin-1 in a TeletexString."""
    own = self_signed(tmp_path)
    made = ssl.PEM_cert_to_DER_cert(own.cert.read_text()).replace(b"\x0c\x05alone", b"\x14\x05al\xf6ne")
    own.cert.write_text(ssl.DER_cert_to_PEM_cert(made))  # nobody checks the signature of what is trusted as it is
    running = await store_scp(tls=secured(server, ca_file=own.cert, require_client_certificate=True))
    assert await running.in_thread(associated, running.port, client_context(ca, own)) == "TLSv1.3"
    assert told(f"certificate of somebody whose name cannot be read, SHA-256 {own.sha256}")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
@pytest.mark.parametrize(("least", "newest"), [("1.2", ssl.TLSVersion.TLSv1_1), ("1.3", ssl.TLSVersion.TLSv1_2)])
@pytest_twisted.ensureDeferred
async def test_old_versions(store_scp: Any, server: Issued, ca: Authority, told: Any, least: str, newest: Any) -> None:
    """The least version is kept to; the newest one gets through."""
    running = await store_scp(tls=secured(server, min_version=least))
    with pytest.raises(NO_ASSOCIATION):
        await running.in_thread(associated, running.port, client_context(ca, newest=newest))
    assert told("it speaks no version of TLS that is allowed here")
    assert await running.in_thread(associated, running.port, client_context(ca)) == "TLSv1.3"


@pytest_twisted.ensureDeferred
async def test_no_suite_in_common(store_scp: Any, server: Issued, ca: Authority, told: Any) -> None:
    """Suites without authenticated encryption are not spoken (RFC 9325)."""
    context = client_context(ca, newest=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA")
    running = await store_scp(tls=secured(server))
    with pytest.raises(NO_ASSOCIATION):
        await running.in_thread(associated, running.port, context)
    assert told("it has no cipher suite in common with us")


@pytest_twisted.ensureDeferred
async def test_a_caller_that_does_not_trust_us(store_scp: Any, eventually: Any, server: Issued, told: Any) -> None:
    """The log says whose side has to change something."""
    running = await store_scp(tls=secured(server))
    with pytest.raises(ssl.SSLCertVerificationError):
        await running.in_thread(associated, running.port, client_context(None))
    await eventually(lambda: told("it does not accept our certificate (alert: unknown ca)"))


# --- limits


@pytest_twisted.ensureDeferred
async def test_handshakes_that_do_not_end(
    store_scp: Any, eventually: Any, monkeypatch: Any, server: Issued, ca: Authority, told: Any
) -> None:
    """They cost a bounded number of connections for a bounded time, and keep nobody out."""
    running = await store_scp(tls=secured(server))
    monkeypatch.setattr(running.listener_module, "MAX_PENDING", 20)
    half = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(60)]
    for sock in half[::2]:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    await eventually(lambda: len(running.listener._pending) == 20)
    assert await running.in_thread(associated, running.port, client_context(ca)) == "TLSv1.3"
    assert len(running.listener._pending) <= 20
    monkeypatch.setattr(ARTIM[running.engine_name], 0.1)
    late = socket.create_connection(("127.0.0.1", running.port), 30)
    with pytest.raises(ConnectionResetError):
        await running.in_thread(late.recv, 100)
    await eventually(lambda: told("it did not end its TLS handshake"))
    for sock in (*half, late):
        sock.close()


@pytest_twisted.ensureDeferred
async def test_a_caller_that_says_nothing_more(
    store_scp: Any, monkeypatch: Any, server: Issued, ca: Authority
) -> None:
    """After the handshake there is no more time for an association request than without TLS."""
    running = await store_scp(tls=secured(server))
    monkeypatch.setattr(ARTIM[running.engine_name], 0.5)

    def wait() -> list[int]:
        with TlsScu(running.port, client_context(ca)) as scu:
            return scu.rest()

    assert await running.in_thread(wait) == []


@pytest_twisted.ensureDeferred
async def test_pause(store_scp: Any, server: Issued, ca: Authority) -> None:
    """Secure associations are ended as others are."""
    running = await store_scp(tls=secured(server))
    scu = await running.in_thread(TlsScu, running.port, client_context(ca))
    assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC
    rest = Deferred.fromCoroutine(running.in_thread(scu.rest))
    await running.scp.pause()
    assert await rest == ([ABORT] if running.engine_name == "native" else [])
    scu.sock.close()


# --- files


@pytest_twisted.ensureDeferred
async def test_files_that_change(store_scp: Any, tmp_path: Path, server: Issued, ca: Authority, told: Any) -> None:
    """A renewed certificate is used from the next connection on; while files make no sense, the last good ones are."""
    cert, key = Path(shutil.copy(server.cert, tmp_path / "s.crt")), Path(shutil.copy(server.key, tmp_path / "s.key"))
    running = await store_scp(tls=TlsServer(cert, key))

    def shown() -> str:
        with TlsScu(running.port, client_context(ca)) as scu:
            assert isinstance(scu.sock, ssl.SSLSocket)
            return ssl.DER_cert_to_PEM_cert(scu.sock.getpeercert(binary_form=True) or b"")

    assert await running.in_thread(shown) == server.cert.read_text()
    renewed = ca.issue("renewed")
    shutil.copy(renewed.cert, cert)
    assert await running.in_thread(shown) == server.cert.read_text()
    assert told("the certificates for TLS have changed and cannot be used")
    shutil.copy(renewed.key, key)
    assert await running.in_thread(shown) == renewed.cert.read_text()
    key.unlink()  # noqa: ASYNC240 - in a test
    assert await running.in_thread(shown) == renewed.cert.read_text()


@pytest_twisted.ensureDeferred
async def test_files_that_are_not_there(store_scp: Any, tmp_path: Path, server: Issued) -> None:
    """Nobody listens without the certificate that was asked for."""
    with pytest.raises(Unavailable, match="the certificates for TLS cannot be used: No such file"):
        await store_scp(tls=TlsServer(server.cert, tmp_path / "none.key"))
