"""Many AE titles on one port, each with its own way; and several PACS that are one to a workstation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from endpoint_kit import Receiver
from pydicom import Dataset, dcmread
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from query_kit import STUDY_ROOT_FIND, dataset, find, raw_elements
from reload_kit import Host

from harmonyd.testing.data import MadeStudy, make_charset_studies, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port, wait_until

CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
STUDY_ROOT_MOVE, STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
PATIENT_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.1.2"
UNKNOWN_CALLED, UNKNOWN_CALLING, LOCAL_LIMIT = (1, 1, 7), (1, 1, 3), (2, 3, 2)
"""Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 section 9.3.4)."""
QUESTIONS = ["find", "get", "move"]


@dataclass(frozen=True)
class Site:
    """PACS with a part of a study each, and what they hold together."""

    lund: RunningPacs
    malmo: RunningPacs
    shared: MadeStudy
    port: int
    """Of all AE titles."""

    @property
    def originals(self) -> dict[str, Path]:
        return dict(zip(self.shared.sop_uids, self.shared.files, strict=True))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("several")
    shared = make_study(folder / "shared", 12, patient_id="SPLIT", series=3, size=16)
    series = {uid: shared.files[number::3] for number, uid in enumerate(shared.series_uids)}
    one, two, three = series.values()
    charsets = [file for study in make_charset_studies(folder / "charsets") for file in study.files]
    own = make_study(folder / "own", 1, patient_id="MALMO-1", size=16)
    with (
        # Of the second series each has something; malmo has all of it.
        RunningPacs(folder / "lund", files=[*one, *two[:1], *charsets], aet="LUND") as lund,
        RunningPacs(folder / "malmo", files=[*two, *three, *own.files], aet="MALMO") as malmo,
    ):
        yield Site(lund, malmo, shared, free_port())


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def virtual(site: Site, receiver: Receiver, **ways: Any) -> dict[str, Any]:
    """Arguments of ``write_config``. ``ways``: AE title → backends, more of the endpoint, more of the pipeline."""
    backends: dict[str, Any] = {}
    endpoints, pipelines = {}, {}
    for aet, (nodes, options, more) in ways.items():
        named = {f"{aet.lower()}-{name}": port for name, port in nodes.items()}
        backends |= {
            name: {"engine": "native", "aet": name.partition("-")[2].upper(), "host": "127.0.0.1", "port": port}
            for name, port in named.items()
        }
        endpoints[f"as-{aet.lower()}"] = {
            "service": "dicom", "engine": "native", "local_aet": aet, "bind_addr": "127.0.0.1", "port": site.port,
            "services": QUESTIONS, "move_destinations": {"RECEIVER": {"host": "127.0.0.1", "port": receiver.port}},
            **options,
        }  # fmt: skip
        pipelines[aet.lower()] = {
            "description": "for a test", "networks": ["default"], "endpoints": [f"as-{aet.lower()}"],
            "middleware": [], "backends": list(named), **more,
        }  # fmt: skip
    return {"backends": backends, "endpoints": endpoints, "pipelines": pipelines}


def both(site: Site) -> dict[str, int]:
    return {"lund": site.lund.port, "malmo": site.malmo.port}


@pytest.fixture(scope="module")
def host(site: Site, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A daemon with all of them."""
    rules = [
        {"when": {"calling_aet": "MALMO_*"}, "backends": ["routed-malmo"]},
        {"when": {"method": "C-FIND", "PatientID": "MALMO-*"}, "backends": ["routed-malmo"]},
        {"when": {"peer_address": ["10.0.0.0/8", "2001:db8::/32"]}, "backends": ["routed-malmo"]},
        {"when": {"called_aet": "ROUTED", "peer_address": "127.0.0.0/8"}, "backends": ["routed-lund"]},
    ]
    ways = {
        "LUND": ({"lund": site.lund.port}, {"services": ["find"]}, {}),
        "BOTH": (both(site), {}, {"fan_out": True}),
        "HALF": ({"lund": site.lund.port, "away": free_port()}, {}, {"fan_out": True}),
        "ROUTED": (both(site), {}, {"middleware": ["choose"]}),
        "ONE": (both(site), {"max_associations": 1, "allowed_calling_aets": ["WS"]}, {}),
    }
    arguments = virtual(site, receiver, **ways)
    middleware = {"choose": {"type": "route", "rules": rules, "otherwise": []}}
    with Host(tmp_path_factory.mktemp("daemon") / "host", middleware=middleware, **arguments) as running:
        yield running


def call(site: Site, aet: str, *sop_classes: str, calling: str = "WS", **options: Any) -> Association:
    """An association, accepted or not."""
    node = AE(ae_title=calling)
    node.connection_timeout = node.acse_timeout = node.dimse_timeout = node.network_timeout = 20
    for uid in sop_classes or (STUDY_ROOT_FIND,):
        node.add_requested_context(uid)
    return node.associate("127.0.0.1", site.port, ae_title=aet, **options)


def refusal(assoc: Association) -> tuple[int, int, int]:
    """Result, source, reason."""
    wait_until(lambda: assoc.is_rejected, "it is rejected")
    primitive = assoc.acceptor.primitive
    assert primitive is not None
    return primitive.result, primitive.result_source, primitive.diagnostic


def studies(site: Site, aet: str, calling: str = "WS", patient_id: str = "") -> list[Dataset]:
    """All studies that one finds there."""
    assoc = call(site, aet, calling=calling)
    keys = dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID="", PatientID=patient_id, PatientName="")
    found = find(assoc, keys)
    assoc.release()
    assert found[-1][0].Status == 0, found[-1][0]
    return [ds for _, ds in found if ds is not None]


def moved(site: Site, aet: str, model: str = STUDY_ROOT_MOVE, **keys: str) -> list[Dataset]:
    """The responses to a C-MOVE to the receiver."""
    assoc = call(site, aet, model)
    responses = [status for status, _ in assoc.send_c_move(dataset(**keys), "RECEIVER", model)]
    assoc.release()
    return responses


def assert_all_of(site: Site, files: dict[str, bytes]) -> None:
    """Each object of the study that is spread, as it is."""
    assert files.keys() == site.originals.keys()
    for uid, content in files.items():
        assert raw_elements(dcmread(BytesIO(content), force=True)) == raw_elements(dcmread(site.originals[uid]))


def test_each_title_has_its_own_pacs_and_services(host: Host, site: Site) -> None:
    """On the same port: who is called decides what is asked, and what may be asked for."""
    assert {"SPLIT", "MALMO-1"} <= {ds.PatientID for ds in studies(site, "BOTH")}
    assert "MALMO-1" not in {ds.PatientID for ds in studies(site, "LUND")}
    assoc = call(site, "LUND", STUDY_ROOT_FIND, STUDY_ROOT_MOVE)
    assert [context.abstract_syntax for context in assoc.accepted_contexts] == [STUDY_ROOT_FIND]
    assoc.release()


def test_titles_that_nobody_has(host: Host, site: Site) -> None:
    """Are rejected as not recognized."""
    assert refusal(call(site, "NOBODY")) == UNKNOWN_CALLED


def test_each_title_has_its_own_limits(host: Host, site: Site) -> None:
    """Who may call, and how many at once, is of one title only."""
    assert refusal(call(site, "ONE", calling="STRANGER")) == UNKNOWN_CALLING
    first = call(site, "ONE")
    assert first.is_established
    assert refusal(call(site, "ONE")) == LOCAL_LIMIT
    assert studies(site, "LUND", calling="STRANGER")
    first.release()


@pytest.mark.parametrize(
    ("calling", "patient_id", "expected"),
    [("WS", "SPLIT", {"SPLIT"}), ("WS", "MALMO-1", {"MALMO-1"}), ("WS", "CS-latin1", {"CS-latin1"}),
     ("MALMO_WS", "CS-latin1", set()), ("MALMO_WS", "", {"SPLIT", "MALMO-1"})],
)  # fmt: skip
def test_rules_choose_the_pacs(host: Host, site: Site, calling: str, patient_id: str, expected: set[str]) -> None:
    """By who calls, from where, and by what the identifier says."""
    assert {ds.PatientID for ds in studies(site, "ROUTED", calling, patient_id)} == expected


def decoded(ds: Dataset) -> dict[str, Any]:
    """Its elements as text, whatever character set they came in; without where it is."""
    return {tag: element for tag, element in ds.to_json_dict().items() if tag not in ("00080005", "00080054")}


def test_what_several_pacs_have_is_the_same_tag_by_tag(host: Host, site: Site) -> None:
    """In every character set, but for where it is to be retrieved."""
    straight = studies(site, "LUND")
    through = {ds.StudyInstanceUID: ds for ds in studies(site, "BOTH")}
    assert len(through) == len(straight) + 1
    assert {ds.RetrieveAETitle for ds in through.values()} == {"LUND", "MALMO"}
    for ds in straight:
        assert decoded(through[ds.StudyInstanceUID]) == decoded(ds)


def test_a_move_of_a_study_that_is_spread(host: Host, site: Site, receiver: Receiver) -> None:
    """Each series comes from who has most of it; the counters are true all the time, and nothing comes twice."""
    receiver.files.clear()
    *pending, last = moved(site, "BOTH", QueryRetrieveLevel="STUDY", StudyInstanceUID=site.shared.study_uid)
    assert_all_of(site, receiver.files)
    assert (last.Status, last.NumberOfCompletedSuboperations, last.NumberOfFailedSuboperations) == (0, 12, 0)
    for number, each in enumerate(pending, 1):
        assert each.NumberOfCompletedSuboperations == number
        assert each.get("NumberOfRemainingSuboperations", 12 - number) == 12 - number
    assert "NumberOfRemainingSuboperations" in pending[-1]


def test_a_get_of_a_study_that_is_spread(host: Host, site: Site) -> None:
    """The same, over the workstation's own association."""
    files: dict[str, bytes] = {}

    def stored(event: Any) -> int:
        files[event.request.AffectedSOPInstanceUID] = event.encoded_dataset()
        return 0

    assoc = call(
        site, "BOTH", STUDY_ROOT_GET, CT_STORAGE,
        ext_neg=[build_role(CT_STORAGE, scp_role=True)], evt_handlers=[(evt.EVT_C_STORE, stored)],
    )  # fmt: skip
    identifier = dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID=site.shared.study_uid)
    last, _ = list(assoc.send_c_get(identifier, STUDY_ROOT_GET))[-1]
    assoc.release()
    assert (last.Status, last.NumberOfCompletedSuboperations) == (0, 12)
    assert_all_of(site, files)


def test_a_patient_whose_objects_several_have(host: Host, site: Site, receiver: Receiver) -> None:
    """What both have is sent once, and not counted as missing."""
    receiver.files.clear()
    *_, last = moved(site, "BOTH", PATIENT_ROOT_MOVE, QueryRetrieveLevel="PATIENT", PatientID="SPLIT")
    assert_all_of(site, receiver.files)
    assert (last.Status, last.NumberOfCompletedSuboperations, last.NumberOfFailedSuboperations) == (0, 12, 0)


def test_a_pacs_that_cannot_be_asked_leaves_a_doubt(host: Host, site: Site, receiver: Receiver) -> None:
    """What was found is sent, and it is no Success: there may be more."""
    receiver.files.clear()
    *_, last = moved(site, "HALF", QueryRetrieveLevel="STUDY", StudyInstanceUID=site.shared.study_uid)
    assert (last.Status, last.NumberOfCompletedSuboperations, last.NumberOfFailedSuboperations) == (0xB000, 5, 0)
    assert last.ErrorComment == "there may be more: half-away could not be asked"
    assert len(receiver.files) == 5


def test_a_reload_changes_one_title_and_leaves_the_others(site: Site, receiver: Receiver, tmp_path: Path) -> None:
    """Titles come, change and go while an association with another one runs on; nobody waits for that to end."""
    site = Site(site.lund, site.malmo, site.shared, free_port())
    lund, malmo = ({"lund": site.lund.port}, {}, {}), ({"malmo": site.malmo.port}, {}, {})
    few = ({"malmo": site.malmo.port}, {"max_associations": 1}, {})
    slow = {"supervision": {"stop_grace_secs": 60}}
    before = virtual(site, receiver, STAYS=lund, GOES=malmo, CHANGES=malmo)
    with Host(tmp_path / "host", sections=slow, **before) as host:
        stays, goes = call(site, "STAYS"), call(site, "GOES")
        goes.release()
        host.reload(sections=slow, **virtual(site, receiver, STAYS=lund, COMES=malmo, CHANGES=few))
        assert find(stays, dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID=""))[-1][0].Status == 0
        assert refusal(call(site, "GOES")) == UNKNOWN_CALLED
        assert studies(site, "COMES")
        one = call(site, "CHANGES")
        assert refusal(call(site, "CHANGES")) == LOCAL_LIMIT
        one.release()
        stays.release()
