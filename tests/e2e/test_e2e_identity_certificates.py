"""Certificates of clients as who asks, over HTTPS and over DICOM, and destinations of C-MOVE with TLS."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage
from query_kit import AET, STUDY_ROOT_FIND, dataset, endpoint

from harmonyd.testing.certificates import Authority, Issued, server_context
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study, uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
SUCCESS, REFUSED = 0x0000, 0x0124


@dataclass
class Site:
    web_port: int
    dicom_port: int
    ca: Authority
    known: dict[str, Issued]
    received: list[str]
    north: MadeStudy
    south: MadeStudy
    pacs: RunningPacs

    def context(self, who: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca.cert))
        if who is not None:
            context.load_cert_chain(self.known[who].cert, self.known[who].key)
        return context

    def http(self, who: str | None, path: str, document: Any) -> tuple[int, Any]:
        connection = HTTPSConnection("127.0.0.1", self.web_port, timeout=30, context=self.context(who))
        try:
            connection.request("POST", path, json.dumps(document), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def dicom(self, who: str, *sop_classes: str) -> Any:
        ae = AE(ae_title="ANYBODY")
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        for uid in sop_classes:
            ae.add_requested_context(uid)
        tls = (self.context(who), "127.0.0.1")
        assoc = ae.associate("127.0.0.1", self.dicom_port, ae_title=AET, tls_args=tls)
        assert assoc.is_established
        return assoc

    def find(self, who: str) -> tuple[int, list[str]]:
        assoc = self.dicom(who, STUDY_ROOT_FIND)
        ds = dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID="")
        answers: list[tuple[Dataset, Dataset | None]] = list(assoc.send_c_find(ds, STUDY_ROOT_FIND))
        assoc.release()
        return answers[-1][0].Status, [str(found.StudyInstanceUID) for _, found in answers if found is not None]

    def move(self, who: str, destination: str) -> Dataset:
        assoc = self.dicom(who, STUDY_ROOT_MOVE)
        ds = dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID=self.north.study_uid)
        final: Dataset = list(assoc.send_c_move(ds, destination, STUDY_ROOT_MOVE))[-1][0]
        assoc.release()
        return final

    def store(self, who: str, path: Path) -> int:
        assoc = self.dicom(who, CTImageStorage)
        status = int(assoc.send_c_store(dcmread(path)).Status)
        assoc.release()
        return status


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "ca").mkdir()
    (folder / "strangers").mkdir()
    ca, strangers = Authority(folder / "ca"), Authority(folder / "strangers")
    own = ca.issue("own")
    known = {name: ca.issue(name, (f"{name}.example.org",)) for name in ("viewer", "archive", "other")}
    north = make_study(folder / "north", 2, study_uid=uid_for("tls north"), patient_id="NORTH-1", size=16)
    south = make_study(folder / "south", 1, study_uid=uid_for("tls south"), patient_id="SOUTH-1", size=16)
    received: list[str] = []
    ports = {name: free_port() for name in ("web", "dicom", "GOOD", "STRANGE")}

    def stored(event: evt.Event) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    def destination(port: int, issued: Issued) -> Any:
        node = AE(ae_title="DESTINATION")
        node.add_supported_context(CTImageStorage)
        context = server_context(issued, client_ca=ca.cert)
        handlers: Any = [(evt.EVT_C_STORE, stored)]
        return node.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers, ssl_context=context)

    servers = [
        destination(ports["GOOD"], ca.issue("good")),
        destination(ports["STRANGE"], strangers.issue("strange")),
    ]
    tls = {"cert_file": str(own.cert), "key_file": str(own.key), "ca_file": str(ca.cert)}
    client = {"ca_file": str(ca.cert), "cert_file": str(own.cert), "key_file": str(own.key)}
    destinations = {
        name: {"host": "127.0.0.1", "port": ports[name], "tls": client} for name in ("GOOD", "STRANGE")
    }
    reading = {"roles": ["reader"], "allow": ["find", "retrieve"], "only": {"PatientID": "NORTH*"}}
    writing = {"roles": ["writer"], "allow": ["store"]}
    certificates = {
        "viewer.example.org": {"roles": ["reader"]},
        known["archive"].sha256: {"roles": ["writer"]},
    }
    middleware = {
        "certificates": {"type": "client_certificate", "certificates": certificates},
        "rules": {"type": "authorize", "rules": [reading, writing]},
    }
    given = {"acknowledge": "pipeline", "move_destinations": destinations, "tls": tls}
    try:
        with RunningPacs(folder / "pacs", files=[*north.files, *south.files]) as pacs:
            config = write_config(
                folder / "config",
                http_port=free_port(),
                backends={"pacs": {"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port, "engine": "native"}},
                endpoints={
                    "qr": endpoint(ports["dicom"], ["store", "find", "get", "move"], **given),
                    "http": {"service": "http", "path_prefix": "/dicom"},
                },
                middleware=middleware,
                pipelines={
                    "qr": {
                        "description": "for those who may",
                        "networks": ["secure"],
                        "endpoints": ["qr", "http"],
                        "middleware": ["certificates", "rules"],
                        "backends": ["pacs"],
                    }
                },
                sections={
                    "network": {
                        "secure": {
                            "http": {
                                "bind_address": "127.0.0.1",
                                "bind_port": ports["web"],
                                "tls": {**tls, "require_client_certificate": False},
                            }
                        }
                    }
                },
            )
            with RunningDaemon(config) as daemon:
                yield Site(ports["web"], ports["dicom"], ca, known, received, north, south, pacs)
                assert "Traceback" not in daemon.log
    finally:
        for server in servers:
            server.shutdown()


def test_over_https(site: Site) -> None:
    """By a name or a fingerprint; another one of the same authority, and none, are 401."""
    asked = {"level": "STUDY"}
    status, found = site.http("viewer", "/dicom/find", asked)
    assert (status, [each["0020000D"]["Value"][0] for each in found["matches"]]) == (200, [site.north.study_uid])
    assert site.http("viewer", "/dicom/get", {"StudyInstanceUID": site.south.study_uid})[0] == 404
    assert site.http("archive", "/dicom/find", asked)[0] == 403
    for who in ("other", None):
        assert site.http(who, "/dicom/find", asked)[0] == 401


def test_over_dicom(site: Site) -> None:
    """The same, whatever AE title is told."""
    assert site.find("viewer") == (SUCCESS, [site.north.study_uid])
    assert site.find("archive") == (REFUSED, [])
    assert site.find("other") == (REFUSED, [])


def test_a_store_over_dicom(site: Site, tmp_path: Path) -> None:
    """Who sent it is known when it is delivered."""
    study = make_study(tmp_path, 1, study_uid=uid_for("tls new"), patient_id="NEW", size=16)
    assert site.store("viewer", study.files[0]) == REFUSED
    assert site.store("other", study.files[0]) == REFUSED
    assert site.store("archive", study.files[0]) == SUCCESS
    assert study.sop_uids[0] in {str(dcmread(path).SOPInstanceUID) for path in site.pacs.layout.area.glob("*.dcm")}


def test_a_move_to_a_destination_with_tls(site: Site) -> None:
    """It gets the objects over TLS, with our certificate; one whose certificate nobody trusts gets nothing."""
    site.received.clear()
    assert site.move("viewer", "GOOD").Status == SUCCESS
    assert sorted(site.received) == sorted(site.north.sop_uids)
    site.received.clear()
    assert site.move("viewer", "STRANGE").Status not in (SUCCESS, 0xB000)
    assert site.received == []
