"""What is the native engine's own in DIMSE over TLS."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

import pytest
import pytest_twisted
from raw_scp import Raw
from scu_kit import Scu
from tls_kit import answer_once, tls_socket
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from harmonyd.dimse.errors import DimseTimeout, OurCertificateRefused, TlsFailed
from harmonyd.dimse.native import find
from harmonyd.dimse.native.blocking_tls import secured
from harmonyd.dimse.native.ping import ping
from harmonyd.testing.certificates import Authority, Issued, server_context
from harmonyd.tls import TlsClient


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


@pytest_twisted.ensureDeferred
async def test_a_peer_that_has_closed_already(
    scu: Scu, secure_scp: Any, ca: Authority, server: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In TLS 1.3 the refusal may be there, and the connection closed, before we have said a word."""

    def slowly(*args: Any) -> ssl.SSLSocket:
        made = secured(*args)
        time.sleep(0.2)
        return made

    monkeypatch.setattr("harmonyd.dimse.native.blocking.secured", slowly)
    running = secure_scp(context=server_context(server, client_ca=ca.cert))
    with pytest.raises(OurCertificateRefused) as error:
        await scu.means.in_thread(ping, scu.node(running, tls=TlsClient(ca.cert)))
    assert error.value.extra["tls"] == "client_certificate_required"


@pytest_twisted.ensureDeferred
async def test_plain_to_a_tls_port(scu: Scu) -> None:
    """An alert in answer to what we said without TLS is understood."""
    raw = Raw()
    try:
        for ask in (ping, None):
            answered = Deferred.fromCoroutine(scu.means.in_thread(answer_once, raw, "15030300020246"))
            with pytest.raises(TlsFailed, match="answers with TLS") as error:
                node = scu.node(raw)
                await (scu.means.in_thread(ask, node) if ask else find.echo(scu.means, node, scu.op()))
            assert error.value.extra["tls"] == "peer_speaks_tls"
            await answered
    finally:
        raw.close()
