"""Rules and what arrives with DICOM: C-FIND, C-GET, C-MOVE and C-STORE of callers that may see some patients only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from endpoint_kit import Receiver
from pydicom import Dataset, dcmread
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import CTImageStorage
from query_kit import AET, STUDY_ROOT_FIND, dataset, endpoint

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_ct, make_study, uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

STUDY_ROOT_GET, STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.3", "1.2.840.10008.5.1.4.1.2.2.2"
PENDING, SUCCESS, REFUSED = 0xFF00, 0x0000, 0x0124
"""0x0124: Refused: Not Authorized (PS3.7 section C.5.9)."""


@dataclass
class Site:
    port: int
    daemon: RunningDaemon
    pacs: RunningPacs
    receiver: Receiver
    north: MadeStudy
    south: MadeStudy

    def ask(self, aet: str, service: str, **keys: Any) -> tuple[int, list[Dataset], list[str]]:
        """Final status, matches, and SOP Instance UIDs that came over the association, of a find, get or move."""
        came: list[str] = []

        def stored(event: evt.Event) -> int:
            came.append(str(event.dataset.SOPInstanceUID))
            return 0

        ae = AE(ae_title=aet)
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        for uid in (STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE, CTImageStorage):
            ae.add_requested_context(uid)
        role = build_role(CTImageStorage, scp_role=True, scu_role=True)
        handlers = [(evt.EVT_C_STORE, stored)]
        assoc = ae.associate("127.0.0.1", self.port, ae_title=AET, ext_neg=[role], evt_handlers=handlers)
        assert assoc.is_established
        try:
            ds = dataset(**keys)
            if service == "find":
                answers = list(assoc.send_c_find(ds, STUDY_ROOT_FIND))
            elif service == "get":
                answers = list(assoc.send_c_get(ds, STUDY_ROOT_GET))
            else:
                answers = list(assoc.send_c_move(ds, "RECEIVER", STUDY_ROOT_MOVE))
        finally:
            assoc.release()
        found = [identifier for status, identifier in answers if status.Status == PENDING and identifier is not None]
        return answers[-1][0].Status, found, came

    def store(self, aet: str, path: Path) -> int:
        """The status that a sender gets."""
        ae = AE(ae_title=aet)
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        ae.add_requested_context(CTImageStorage)
        assoc = ae.associate("127.0.0.1", self.port, ae_title=AET)
        assert assoc.is_established
        try:
            return int(assoc.send_c_store(dcmread(path)).Status)
        finally:
            assoc.release()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    north = make_study(folder / "north", 2, study_uid=uid_for("dicom north"), patient_id="NORTH-1", size=16)
    south = make_study(folder / "south", 2, study_uid=uid_for("dicom south"), patient_id="SOUTH-1", size=16)
    port = free_port()
    rules = [
        {"roles": ["north"], "allow": ["find", "retrieve", "store"], "only": {"PatientID": "NORTH*"}},
        {"roles": ["finder"], "allow": ["find"]},
    ]
    aets = {
        "NORTH": {"roles": ["north"], "addresses": ["127.0.0.1"]},
        "FINDER": {"roles": ["finder"]},
        "ELSEWHERE": {"roles": ["north"], "addresses": ["192.0.2.0/24"]},
    }
    middleware = {
        "callers": {"type": "calling_aet", "aets": aets},
        "rules": {"type": "authorize", "rules": rules},
    }
    with (
        RunningPacs(folder / "pacs", files=[*north.files, *south.files]) as pacs,
        Receiver() as receiver,
    ):
        destinations = {"RECEIVER": {"host": "127.0.0.1", "port": receiver.port}}
        services = ["store", "find", "get", "move"]
        given = {"acknowledge": "pipeline", "move_destinations": destinations}
        config = write_config(
            folder / "config",
            http_port=free_port(),
            backends={"pacs": {"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port, "engine": "native"}},
            endpoints={"qr": endpoint(port, services, **given)},
            middleware=middleware,
            pipelines={
                "qr": {
                    "description": "for those who may",
                    "networks": ["default"],
                    "endpoints": ["qr"],
                    "middleware": ["callers", "rules"],
                    "backends": ["pacs"],
                }
            },
        )
        with RunningDaemon(config) as daemon:
            yield Site(port, daemon, pacs, receiver, north, south)
            assert "Traceback" not in daemon.log


def test_what_is_found(site: Site) -> None:
    """Of all studies those of the own patients, and nothing below another one's."""
    status, found, _ = site.ask("NORTH", "find", QueryRetrieveLevel="STUDY", StudyInstanceUID="")
    assert (status, [str(ds.StudyInstanceUID) for ds in found]) == (SUCCESS, [site.north.study_uid])
    status, found, _ = site.ask("NORTH", "find", QueryRetrieveLevel="STUDY", PatientID="SOUTH-1", StudyInstanceUID="")
    assert (status, found) == (SUCCESS, [])
    series = {"QueryRetrieveLevel": "SERIES", "SeriesInstanceUID": ""}
    status, found, _ = site.ask("NORTH", "find", StudyInstanceUID=site.south.study_uid, **series)
    assert (status, found) == (SUCCESS, [])
    assert len(site.ask("NORTH", "find", StudyInstanceUID=site.north.study_uid, **series)[1]) == 1
    assert site.ask("NORTH", "find", StudyInstanceUID="", **series)[:2] == (REFUSED, [])


@pytest.mark.parametrize("service", ["get", "move"])
def test_what_is_retrieved(site: Site, service: str) -> None:
    """A study of another patient is not there, whoever it would be sent to."""
    site.receiver.files.clear()
    level = {"QueryRetrieveLevel": "STUDY"}
    status, _, came = site.ask("NORTH", service, StudyInstanceUID=site.south.study_uid, **level)
    assert (status, came, site.receiver.files) == (SUCCESS, [], {})
    below = {"QueryRetrieveLevel": "IMAGE", "SeriesInstanceUID": site.south.series_uids[0]}
    _, _, came = site.ask(
        "NORTH", service, StudyInstanceUID=site.north.study_uid, SOPInstanceUID=site.south.sop_uids[0], **below
    )
    assert (came, site.receiver.files) == ([], {})
    status, _, came = site.ask("NORTH", service, StudyInstanceUID=site.north.study_uid, **level)
    assert status == SUCCESS
    assert sorted([*came, *site.receiver.files]) == sorted(site.north.sop_uids)
    status, _, came = site.ask("FINDER", service, StudyInstanceUID=site.north.study_uid, **level)
    assert (status, came) == (REFUSED, [])


@pytest.mark.parametrize("aet", ["STRANGER", "ELSEWHERE", "north"])
def test_strangers(site: Site, aet: str) -> None:
    """An AE title that is not known, or comes from elsewhere, gets nothing, whatever it asks for."""
    assert site.ask(aet, "find", QueryRetrieveLevel="STUDY", StudyInstanceUID="")[:2] == (REFUSED, [])
    assert site.ask(aet, "get", QueryRetrieveLevel="STUDY", StudyInstanceUID=site.north.study_uid)[0] == REFUSED
    assert site.store(aet, site.north.files[0]) == REFUSED


def test_what_is_stored(site: Site, tmp_path: Path) -> None:
    """Objects of the own patients in their studies; none that joins a study of others, and none of others."""

    def made(name: str, patient: str, study: str) -> Path:
        path = tmp_path / f"{name}.dcm"
        uids = {"study_uid": study, "series_uid": uid_for(f"series {name}")}
        make_ct(path, instance_number=7, patient_id=patient, size=16, **uids)
        return path

    assert site.store("NORTH", made("own", "NORTH-1", site.north.study_uid)) == SUCCESS
    assert site.store("NORTH", made("new", "NORTH-2", uid_for("dicom new"))) == SUCCESS
    assert site.store("NORTH", made("foreign", "SOUTH-1", uid_for("dicom other"))) == REFUSED
    assert site.store("FINDER", made("finder", "NORTH-1", site.north.study_uid)) == REFUSED
    joins = made("joins", "NORTH-1", site.south.study_uid)
    assert site.store("NORTH", joins) == REFUSED
    there = {str(dcmread(path).SOPInstanceUID) for path in site.pacs.layout.area.glob("*.dcm")}
    assert str(dcmread(joins).SOPInstanceUID) not in there
