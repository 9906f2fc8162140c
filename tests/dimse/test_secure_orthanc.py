"""Orthanc over TLS in both directions, with certificates on both sides: every operation, with either engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from engine_kit import Asking
from orthanc_kit import Orthanc
from scu_kit import query, read
from tls_kit import secured

from harmonyd.dimse.errors import OurCertificateRefused, TlsFailed
from harmonyd.testing.certificates import Authority, Issued
from harmonyd.testing.data import MadeStudy
from harmonyd.testing.processes import free_port
from harmonyd.tls import TlsClient


class SecureOrthanc(Orthanc):
    """One, and where it moves to."""

    aet = "ORTHANC"
    move_port: int


@pytest.fixture(scope="module")
def orthanc(
    tmp_path_factory: pytest.TempPathFactory, ca: Authority, server: Issued
) -> Iterator[SecureOrthanc]:
    """Without objects."""
    port = free_port()
    folder = tmp_path_factory.mktemp("orthanc") / "secure"
    with SecureOrthanc(folder, {"DEST": port, "HARMONY_SCU": port}, (server.cert, server.key, ca.cert)) as running:
        running.move_port = port
        yield running


@pytest_twisted.ensureDeferred
async def test_every_operation(
    asking: Asking, orthanc: SecureOrthanc, study: MadeStudy, ca: Authority, server: Issued, caller: Issued
) -> None:
    """Echo, store, find, get, and a move whose objects come over TLS, too."""
    engine, op = asking.engine, asking.op
    node = asking.node(orthanc, tls=TlsClient(ca.cert, caller.cert, caller.key))
    assert (await engine.echo(node, op())).status == 0
    results = await read(engine.store(node, study.files, op()))
    assert [result.status for result in results] == [0] * len(study.files)
    matches = await read(engine.find(node, query(StudyInstanceUID=study.study_uid), op()))
    assert len(matches) == 1
    asked = query(StudyInstanceUID=study.study_uid)
    got = await read(engine.get(node, asked, op()))
    assert sorted(each.sop_instance_uid for each in got) == sorted(study.sop_uids)
    receiver = asking.receiver(orthanc.move_port, secured(server, ca))
    moving = engine.move(node, receiver, asked, op())
    moved = await read(moving)
    assert sorted(each.sop_instance_uid for each in moved) == sorted(study.sop_uids)
    assert moving.outcome.complete
    engine.keep_receivers([])


@pytest_twisted.ensureDeferred
async def test_who_is_not_let_in(
    asking: Asking, orthanc: SecureOrthanc, ca: Authority, tmp_path: Path
) -> None:
    """Without a certificate, and with one of a stranger's; both are told as such, not as an association that broke."""
    engine, op = asking.engine, asking.op
    stranger = Authority(tmp_path, "stranger").issue("own")
    with pytest.raises(OurCertificateRefused) as error:
        await engine.echo(asking.node(orthanc, tls=TlsClient(ca.cert)), op())
    assert error.value.extra["tls"] == "client_certificate_required"
    with pytest.raises(TlsFailed) as refused:
        await engine.echo(asking.node(orthanc, tls=TlsClient(ca.cert, stranger.cert, stranger.key)), op())
    assert refused.value.extra["tls"] == "client_certificate_refused"
