"""TLS on the ports of a daemon: senders, a PACS that moves, and a configuration that changes."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from endpoint_kit import AET, endpoint
from pydicom import dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, StudyRootQueryRetrieveInformationModelMove, Verification
from reload_kit import Host, http

from harmonyd.testing.certificates import Authority, Issued, server_context
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.processes import dcmtk, free_port, wait_until


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    return make_study(tmp_path / "made", 3)


def table(own: Issued, ca: Authority) -> dict[str, str]:
    """Callers need a certificate of this authority."""
    return {"cert_file": str(own.cert), "key_file": str(own.key), "ca_file": str(ca.cert)}


ENGINES = (pytest.param("dcmtk", marks=pytest.mark.dcmtk), "native")


def receiving(engine: str) -> dict[str, str]:
    """Options where harmonyd itself listens, with TLS or without."""
    return {"engine": engine} | ({"store_scp": "per-association"} if engine == "dcmtk" else {})


def storescu(port: int, path: Path, *tls: str) -> int:
    argv = [dcmtk("storescu"), *tls, "-aec", AET, "127.0.0.1", str(port), str(path)]
    return subprocess.run(argv, check=False, capture_output=True, stdin=subprocess.DEVNULL).returncode


def with_tls(own: Issued, ca: Authority) -> tuple[str, ...]:
    """Options of storescu."""
    return "+tls", str(own.key), str(own.cert), "+cf", str(ca.cert)


@contextmanager
def moving_pacs(study: MadeStudy, port: int, own: Issued, ca: Authority) -> Iterator[int]:
    """A PACS that moves a study over TLS to a port; the port that it listens on."""
    context = ssl.create_default_context(cafile=str(ca.cert))
    context.load_cert_chain(own.cert, own.key)
    files = [dcmread(path) for path in study.files]

    def moved(event: Any) -> Iterator[Any]:
        yield "127.0.0.1", port, {"tls_args": (context, "127.0.0.1")}
        yield len(files)
        for ds in files:
            yield 0xFF00, ds

    node: Any = AE("PACS")
    node.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    node.add_requested_context(CTImageStorage)
    started = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_MOVE, moved)])
    try:
        yield started.server_address[1]
    finally:
        started.shutdown()


@pytest.mark.parametrize("engine", ENGINES)
def test_one_port_for_senders_and_moves(tmp_path: Path, ca: Authority, study: MadeStudy, engine: str) -> None:
    """An endpoint and C-MOVE share a TLS port; a reload switches TLS off and on, and renews the certificate."""
    port = free_port()
    server, caller, renewed = (ca.issue(name) for name in ("server", "caller", "renewed"))
    kept = tmp_path / "kept"
    with moving_pacs(study, port, caller, ca) as pacs_port:

        def parts(tls: dict[str, str] | None) -> dict[str, Any]:
            pacs: dict[str, Any] = {"aet": "PACS", "host": "127.0.0.1", "port": pacs_port, **receiving(engine)}
            pacs |= {"move_destination_aet": "MOVES", "incoming_store_port": port, "dimse_retrieve_mode": "move"}
            given = {} if tls is None else {"tls": tls}
            inbound = endpoint(port, **receiving(engine), **given)["inbound"]
            return {
                "endpoints": {"inbound": inbound, "http": http("/dicom")},
                "backends": {"pacs": pacs | ({"incoming_store_tls": tls} if tls else {}),
                             "kept": {"service": "storage", "path": str(kept)}},
                "pipelines": {
                    "in": {"networks": ["default"], "endpoints": ["inbound"], "backends": ["kept"]},
                    "out": {"networks": ["default"], "endpoints": ["http"], "backends": ["pacs"]},
                },
            }  # fmt: skip

        with Host(tmp_path / "host", **parts(table(server, ca))) as host:
            assert host.status("/readyz") == 200
            assert storescu(port, study.files[0], *with_tls(caller, ca)) == 0
            assert storescu(port, study.files[0]) != 0
            wait_until(lambda: list(kept.glob(f"*/*/{study.sop_uids[0]}.dcm")), "it is kept")
            asked = {"StudyInstanceUID": study.study_uid}
            answer = host.daemon.http("POST", "/dicom/move", json=asked).json()
            assert (answer["success"], len(answer["instances"])) == (True, 3)

            host.reload(**parts(None))
            assert storescu(port, study.files[1]) == 0
            assert storescu(port, study.files[1], *with_tls(caller, ca)) != 0
            answer = host.daemon.http("POST", "/dicom/move", json=asked)
            assert answer.status != 200 or not answer.json()["success"]

            host.reload(**parts(table(renewed, ca)))
            shown = ssl.get_server_certificate(("127.0.0.1", port))
            assert shown == renewed.cert.read_text()
            assert storescu(port, study.files[2], *with_tls(caller, ca)) == 0
            log = host.daemon.log
    assert "it speaks DICOM without TLS, and this port is for TLS alone" in log
    assert "it speaks TLS, and this port does not" in log


@contextmanager
def secure_pacs(own: Issued, client_ca: Path) -> Iterator[int]:
    """A PACS that wants a certificate of this authority; the port that it listens on."""
    node: Any = AE("PACS")
    node.add_supported_context(Verification)
    context = server_context(own, client_ca=client_ca)
    started = node.start_server(("127.0.0.1", 0), block=False, ssl_context=context)
    try:
        yield started.server_address[1]
    finally:
        started.shutdown()


@pytest.mark.parametrize("engine", ENGINES)
def test_certificates_that_are_replaced(tmp_path: Path, ca: Authority, study: MadeStudy, engine: str) -> None:
    """In place, under a daemon that runs, and without a reload: the next connection goes by what the files say now."""
    other = Authority(tmp_path, "other")
    pacs_own, caller, theirs = ca.issue("pacs"), ca.issue("caller"), other.issue("theirs")
    ours = ca.issue("ours")
    files = {key: tmp_path / "used" / key for key in ("cert_file", "key_file", "ca_file")}
    files["ca_file"].parent.mkdir()

    def use(own: Issued, trusted: Authority) -> None:
        sources = {"cert_file": own.cert, "key_file": own.key, "ca_file": trusted.cert}
        for key, target in files.items():
            new = target.with_suffix(".new")
            shutil.copy(sources[key], new)
            new.replace(target)

    use(ours, ca)
    tls = {key: str(path) for key, path in files.items()}
    port = free_port()
    with secure_pacs(pacs_own, ca.cert) as pacs_port:
        pacs = {"aet": "PACS", "host": "127.0.0.1", "port": pacs_port, "engine": engine, "use_tls": True, "tls": tls}
        parts: dict[str, Any] = {
            "endpoints": {"inbound": endpoint(port, engine=engine, tls=tls)["inbound"], "http": http("/dicom")},
            "backends": {"pacs": pacs, "kept": {"service": "storage", "path": str(tmp_path / "kept")}},
            "pipelines": {
                "in": {"networks": ["default"], "endpoints": ["inbound"], "backends": ["kept"]},
                "out": {"networks": ["default"], "endpoints": ["http"], "backends": ["pacs"]},
            },
        }
        with Host(tmp_path / "host", **parts) as host:

            def echo() -> str:
                answer = host.daemon.http("POST", "/dicom/echo")
                return "" if answer.status == 200 else answer.json()["tls"]

            assert echo() == ""
            assert storescu(port, study.files[0], *with_tls(caller, ca)) == 0
            use(theirs, ca)
            assert echo() == "client_certificate_refused"
            assert storescu(port, study.files[1], *with_tls(caller, ca)) != 0
            use(ours, other)
            assert echo() == "unknown_ca"
            assert storescu(port, study.files[1], *with_tls(caller, ca)) != 0
            use(ours, ca)
            assert echo() == ""
            assert storescu(port, study.files[1], *with_tls(caller, ca)) == 0
            log = host.daemon.log
    assert "it does not accept our certificate" in log
    assert "its certificate is from no authority in ca_file" in log
