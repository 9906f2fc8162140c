"""The audit trail of a real daemon: who did what, at a collector over TLS and in a file."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest
from audit_kit import Collector, counts, details, event_type, kind, objects, outcome, participants, text
from audit_schema import check
from endpoint_kit import Receiver, wait_delivered
from metrics_kit import scrape
from pydicom import Dataset, dcmread
from pydicom.filereader import read_dataset
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage
from query_kit import AET as QR_AET
from query_kit import Node
from query_kit import associate as query_associate
from query_kit import dataset as query
from query_kit import endpoint as query_endpoint
from retrieve_kit import DICOM, MULTIPART, ct_bytes, pacs_backend

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port, wait_until

MARK = "ZZMARKED-1"
RECEIVER = "RECEIVER"
QUERY, BEGIN, DONE = "Query", "Begin Transferring DICOM Instances", "DICOM Instances Transferred"
ALERT, ACTIVITY = "Security Alert", "Application Activity"
PATIENT, STUDY = "Patient Number", "Study Instance UID"
CT = str(CTImageStorage)
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    return make_study(tmp_path / "made", 3, patient_id=MARK)


@pytest.fixture
def archive(tmp_path: Path, study: MadeStudy) -> Iterator[RunningPacs]:
    with RunningPacs(tmp_path / "pacs", files=study.files, destinations={"HARMONY_MOVE": free_port()}) as running:
        yield running


def configured(folder: Path, archive: RunningPacs, audit: dict[str, Any], dicom_port: int) -> Path:
    """HTTP, DICOMweb and DICOM in front of one archive."""
    http_port = free_port()
    receiving = {"port": dicom_port, "local_aet": RECEIVER, "allowed_calling_aets": ["MODALITY"], "engine": "native"}
    endpoints = {
        "http": {"service": "http", "path_prefix": "/dicom"},
        "web": {"service": "dicomweb", "path_prefix": "/dicomweb", "public_url": f"http://127.0.0.1:{http_port}"},
        "inbound": {"service": "dicom", **receiving},
    }
    backends = {"pacs": pacs_backend(archive)}
    return write_config(folder, http_port=http_port, backends=backends, endpoints=endpoints, sections={"audit": audit})


def send(port: int, calling: str, files: list[Path]) -> list[int] | None:
    """Statuses of C-STORE; None where the association was refused."""
    entity = AE(calling)
    entity.add_requested_context(CTImageStorage)
    association = entity.associate("127.0.0.1", port, ae_title=RECEIVER)
    if not association.is_established:
        return None
    statuses = [association.send_c_store(dcmread(file)).Status for file in files]
    association.release()
    return statuses


def keys_of(message: Element) -> Dataset:
    """The query in a message."""
    encoded = base64.b64decode(message.findtext(".//ParticipantObjectQuery", ""))
    return read_dataset(BytesIO(encoded), is_implicit_VR=False, is_little_endian=True)


def ends(message: Element) -> tuple[str, str]:
    """User ids of source and destination; "harmonyd" for ourselves."""
    found = participants(message)
    source, destination = (found[f"{role} Role ID"] for role in ("Source", "Destination"))
    return source.get("UserName") or source.get("UserID", ""), destination.get("UserName") or destination.get(
        "UserID", ""
    )


def test_what_is_done_is_audited(tmp_path: Path, archive: RunningPacs, study: MadeStudy) -> None:
    """Start, queries, transfers to us, from us and through us, what failed, who was refused, stop: at both places."""
    port, whole = free_port(), {"StudyInstanceUID": study.study_uid}
    series = dcmread(study.files[0]).SeriesInstanceUID
    with Collector(tmp_path / "collector") as collector:
        audit = {"file": "audit.log", "syslog": collector.toml(), "source_id": "gw"}
        config = configured(tmp_path, archive, audit, port)
        with RunningDaemon(config) as daemon:
            told: dict[str, int] = {}

            def ask(id_: str, path: str, body: Any = None, **given: Any) -> None:
                headers = {"X-Request-ID": id_, **given.pop("headers", {})}
                told[id_] = daemon.http("POST", path, json=body, headers=headers, **given).status

            ask("echo", "/dicom/echo")
            ask("find", "/dicom/find", {"PatientID": MARK, "level": "STUDY"})
            ask("get", "/dicom/get", whole)
            ask("move", "/dicom/move", whole)
            ask("nothing", "/dicom/get", {"StudyInstanceUID": "1.2.3.4.5"})
            for id_ in ("web-1", "web-2"):
                accept = {"Accept": f"{MULTIPART}; transfer-syntax=*", "X-Request-ID": id_}
                path = f"/dicomweb/studies/{study.study_uid}/series/{series}"
                assert daemon.http("GET", path, headers=accept).status == 200
            stored = {"Content-Type": DICOM, "X-Request-ID": "stored"}
            assert daemon.http("POST", "/dicom/store", body=ct_bytes(tmp_path), headers=stored).status == 200
            assert send(port, "MODALITY", list(study.files)) == [0, 0, 0]
            assert send(port, "STRANGER", []) is None
            assert (told["find"], told["get"], told["move"], told["nothing"]) == (200, 200, 200, 404)
            wait_delivered(daemon)
            wait_until(lambda: scrape(daemon).sum("harmonyd_audit_delivered_total") > 10, "the collector has them")
            assert scrape(daemon).sum("harmonyd_audit_connected") == 1
        messages = collector.messages
        for message in messages:
            check(message)
        address = {"UserID": "127.0.0.1", "UserIsRequestor": "true"}

        def about(id_: str) -> list[tuple[str, str]]:
            found = [each for each in messages if details(each).get("RequestID") == id_]
            for each in found:
                requestor = participants(each).get("", participants(each).get("Destination Role ID"))
                assert requestor is not None
                assert address.items() <= requestor.attrib.items()
            return [(kind(each), outcome(each)) for each in found]

        assert about("echo") == []
        assert about("find") == [(QUERY, "0")]
        assert about("get") == about("move") == [(BEGIN, "0"), (DONE, "0")]
        assert about("nothing") == [(BEGIN, "0"), (DONE, "8")]
        assert about("stored") == [(BEGIN, "0"), (DONE, "0")]
        assert about("web-1")[:2] == [(BEGIN, "0"), (DONE, "0")]
        # What the cache gave to this client, both times: told together.
        assert about("web-1")[2:] + about("web-2") == [(DONE, "0")]
        (query,) = (each for each in messages if kind(each) == QUERY)
        assert keys_of(query).PatientID == MARK
        (got,) = (each for each in messages if details(each).get("RequestID") == "get" and kind(each) == DONE)
        assert ends(got) == ("pacs", "harmonyd")
        assert objects(got) == {STUDY: study.study_uid, PATIENT: MARK}
        assert counts(got) == {CT: 3}
        (cached,) = (each for each in messages if ends_in(each, "127.0.0.1"))
        assert (ends(cached)[0], counts(cached)) == ("harmonyd", {CT: 6})
        from_modality = [each for each in messages if sent_by(each, "AETITLES=MODALITY")]
        assert [(ends(each), counts(each)) for each in from_modality] == [(("MODALITY", "harmonyd"), {CT: 3})]
        assert from_modality[0][0].get("EventActionCode") == "C"
        on_behalf = [each for each in messages if asked_by(each, "AETITLES=MODALITY")]
        assert {ends(each) for each in on_behalf} == {("harmonyd", "pacs")}
        assert sum(counts(each)[CT] for each in on_behalf if kind(each) == DONE) == 3
        (refused,) = (each for each in messages if kind(each) == ALERT)
        assert event_type(refused) == "Node Authentication"
        assert "calling AE title not recognized" in text(refused)
        assert details(refused)["Called AE Title"] == RECEIVER
        assert [event_type(each) for each in messages if kind(each) == ACTIVITY] == [
            "Application Start", "Application Stop"
        ]  # fmt: skip
        assert kind(messages[0]) == kind(messages[-1]) == ACTIVITY
    lines = (tmp_path / "audit.log").read_text().splitlines()
    assert [kind(fromstring(line)) for line in lines] == [kind(each) for each in messages]
    assert MARK not in daemon.log, "patients are in the audit trail alone"


def ends_in(message: Element, user: str) -> bool:
    found = participants(message).get("Destination Role ID")
    return found is not None and found.get("UserID") == user


def sent_by(message: Element, aets: str) -> bool:
    found = participants(message).get("Source Role ID")
    return found is not None and found.get("AlternativeUserID") == aets


def asked_by(message: Element, aets: str) -> bool:
    found = participants(message).get("")
    return kind(message) != ALERT and found is not None and found.get("AlternativeUserID") == aets


def test_a_collector_that_hangs_or_is_away_keeps_nobody(tmp_path: Path, archive: RunningPacs, study: MadeStudy) -> None:
    """Requests are answered while it does; what waited on disk through kill -9 arrives, in order, twice at most."""
    collector = Collector(tmp_path / "collector")
    audit = {"syslog": collector.toml(), "patient_identifiers": False}
    daemon = RunningDaemon(configured(tmp_path, archive, audit, free_port()))
    body = {"PatientID": MARK, "PatientName": MARK, "level": "STUDY", "StudyInstanceUID": study.study_uid}

    def find(ids: list[str]) -> None:
        for id_ in ids:
            assert daemon.http("POST", "/dicom/find", json=body, headers={"X-Request-ID": id_}).status == 200

    def queried() -> list[str]:
        return [details(each)["RequestID"] for each in collector.messages if kind(each) == QUERY]

    hanging, away = ["hang-1", "hang-2"], [f"away-{number}" for number in range(6)]
    try:
        with collector:
            daemon.start()
            collector.wait(1)
            collector.reads.clear()
            find(hanging)
            assert daemon.http("GET", "/readyz").status == 200
            collector.reads.set()
            wait_until(lambda: queried() == hanging, "what it did not read at first is there")
        find(away)
        wait_until(lambda: scrape(daemon).sum("harmonyd_audit_backlog_messages") >= 6, "they are on disk")
        daemon.kill9()
        daemon.assert_nothing_left()
        daemon.start()
        wait_until(lambda: scrape(daemon).sum("harmonyd_audit_messages_total") == 1, "the start is on disk")
        assert scrape(daemon).sum("harmonyd_audit_backlog_messages") >= 7
        assert scrape(daemon).sum("harmonyd_audit_connected") == 0
        with collector:
            starts = wait_until(lambda: activities(collector) if len(activities(collector)) == 2 else None, "all")
            assert starts == ["Application Start"] * 2
            found = queried()
            assert list(dict.fromkeys(found)) == hanging + away
            assert len(found) <= 2 * len(hanging + away)
            query = next(each for each in collector.messages if kind(each) == QUERY)
            wait_until(lambda: scrape(daemon).sum("harmonyd_audit_backlog_messages") == 0, "nothing waits")
            daemon.stop()
        assert MARK.encode() not in bytes(collector.received)
        keys = keys_of(query)
        assert keys.StudyInstanceUID == study.study_uid
        assert "PatientID" in keys
        assert not keys.PatientID
        assert not keys.PatientName
    finally:
        daemon.kill9()


def test_what_is_refused_kept_and_moved_on(tmp_path: Path, archive: RunningPacs, study: MadeStudy) -> None:
    """Hours, breaker, selectivity and limits of a role; uploads; and where a workstation's C-MOVE sends to."""
    now = datetime.now(UTC) + timedelta(hours=12)
    pacs = {**pacs_backend(archive), "engine": "native"}
    away = {"engine": "native", "aet": "AWAY", "host": "127.0.0.1", "port": free_port()}
    backends: dict[str, dict[str, Any]] = {
        "pacs": {**pacs, "selectivity": {}},
        "night": {**pacs, "permitted_hours": [f"{now:%H:%M}-{now + timedelta(minutes=1):%H:%M}"],
                  "permitted_hours_zone": "UTC"},
        "gone": {**away, "breaker": {"failures": 1, "open_secs": 3600, "max_open_secs": 3600}},
        "keep": {"service": "storage", "path": str(tmp_path / "kept")},
        "plain": pacs,
    }  # fmt: skip
    key = {"X-API-Key": "the-key-of-a-few-patients-" + "x" * 20}
    roles = {"few": {"sha256": hashlib.sha256(key["X-API-Key"].encode()).hexdigest(), "roles": ["few"]}}
    rules = [{"roles": ["few"], "allow": ["find", "retrieve"], "only": {"PatientID": "OTHER*"}}]
    port = free_port()
    common = {"networks": ["default"]}
    with Receiver() as receiver, Collector(tmp_path / "collector") as collector:
        there = {"THERE": {"host": "127.0.0.1", "port": receiver.port}}
        config = write_config(
            tmp_path,
            http_port=free_port(),
            backends=backends,
            endpoints={
                "http": {"service": "http", "path_prefix": "/dicom"},
                "few": {"service": "http", "path_prefix": "/few"},
                "keep": {"service": "http", "path_prefix": "/keep"},
                "qr": query_endpoint(port, move_destinations=there),
            },
            middleware={
                "keys": {"type": "api_key", "keys": roles},
                "rules": {"type": "authorize", "rules": rules},
            },
            pipelines={
                "main": {**common, "endpoints": ["http"], "backends": ["pacs", "night", "gone"]},
                "few": {**common, "endpoints": ["few"], "middleware": ["keys", "rules"], "backends": ["plain"]},
                "keep": {**common, "endpoints": ["keep"], "backends": ["keep"]},
                "qr": {**common, "endpoints": ["qr"], "backends": ["plain"]},
            },
            sections={"audit": {"syslog": collector.toml()}},
        )
        with RunningDaemon(config) as daemon:

            def ask(id_: str, path: str, **given: Any) -> int:
                headers = {"X-Request-ID": id_, **given.pop("headers", {})}
                return daemon.http("POST", path, headers=headers, **given).status

            whole = {"StudyInstanceUID": study.study_uid}
            assert ask("broad", "/dicom/find", json={"PatientName": "*", "level": "STUDY"}) == 400
            assert ask("hours", "/dicom/get?backend=night", json=whole) == 503
            assert ask("fails", "/dicom/find?backend=gone", json={"PatientID": MARK}) == 502
            assert ask("open", "/dicom/find?backend=gone", json={"PatientID": MARK}) == 503
            assert ask("theirs", "/few/get", json=whole, headers=key) == 404
            body = study.files[0].read_bytes()
            assert ask("kept", "/keep/x", body=body, headers={"Content-Type": DICOM}) == 200
            for destination, status in (("THERE", 0), ("ELSEWHERE", 0xA801)):
                assert move(Node(QR_AET, port), study.study_uid, destination) == status
        messages = collector.messages
    for message in messages:
        check(message)
    assert MARK not in daemon.log

    def about(id_: str) -> list[tuple[str, str, str]]:
        found = [each for each in messages if details(each).get("RequestID") == id_]
        return [(kind(each), outcome(each), text(each)) for each in found]

    ((broad_kind, broad_outcome, broad_text),) = about("broad")
    assert (broad_kind, broad_outcome) == (QUERY, "8") and "too much of its archive" in broad_text
    ((hours_kind, hours_outcome, hours_text),) = about("hours")
    assert (hours_kind, hours_outcome) == (DONE, "8") and "at this time of the day" in hours_text
    assert [each[:2] for each in about("fails") + about("open")] == [(QUERY, "8")] * 2
    assert "is not asked now" in about("open")[0][2]
    assert (ALERT, "4") in [each[:2] for each in about("theirs")]
    (kept,) = (each for each in messages if details(each).get("RequestID") == "kept")
    assert (kind(kept), outcome(kept), ends(kept)) == (DONE, "0", ("127.0.0.1", "harmonyd"))
    assert (objects(kept), counts(kept)) == ({STUDY: study.study_uid, PATIENT: MARK}, {CT: 1})
    assert kept[0].get("EventActionCode") == "C"
    moved = [each for each in messages if kind(each) in (BEGIN, DONE) and ends(each)[1] == "THERE"]
    assert [(kind(each), outcome(each), ends(each)[0]) for each in moved] == [
        (BEGIN, "0", "harmonyd"), (DONE, "0", "harmonyd")
    ]  # fmt: skip
    assert all(asked_by(each, "AETITLES=WORKSTATION") for each in moved)
    assert (objects(moved[1]), counts(moved[1])) == ({STUDY: study.study_uid, PATIENT: MARK}, {CT: 3})
    (unknown,) = (each for each in messages if kind(each) == ALERT and "ELSEWHERE" in text(each))
    assert event_type(unknown) == "Use of Restricted Function"


def move(node: Node, study_uid: str, destination: str) -> int:
    """The final status of a C-MOVE."""
    assoc = query_associate(node, STUDY_ROOT_MOVE)
    question = query(QueryRetrieveLevel="STUDY", StudyInstanceUID=study_uid)
    status = [status.Status for status, _ in assoc.send_c_move(question, destination, STUDY_ROOT_MOVE)][-1]
    assoc.release()
    return int(status)


def activities(collector: Collector) -> list[str]:
    return [event_type(each) for each in collector.messages if kind(each) == ACTIVITY]


def test_a_reload_begins_changes_and_ends_it(tmp_path: Path) -> None:
    """Without a restart; a trail that leads nowhere does not come into force."""
    answer = {"answer": {"service": "echo"}}
    port = free_port()

    def configure(audit: dict[str, Any]) -> Path:
        return write_config(tmp_path, http_port=port, backends=answer, sections={"audit": audit})

    def reload(audit: dict[str, Any], said: str) -> None:
        configure(audit)
        before = daemon.log.count(said)
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: daemon.log.count(said) > before, said)

    with Collector(tmp_path / "collector") as collector, RunningDaemon(configure({})) as daemon:
        again = "the configuration was read again: changed settings:audit"
        assert scrape(daemon).sum("harmonyd_audit_messages_total") == 0
        reload({"enabled": True}, "the configuration stays as it was")
        reload({"file": "first.xml"}, again)
        reload({"file": "second.xml", "syslog": collector.toml()}, again)
        reload({"enabled": False}, again)
        reload({"syslog": collector.toml()}, again)
        daemon.stop()
        started, stopped = "Audit Recording Started", "Audit Recording Stopped"
        said = [event_type(each) for each in collector.messages]
        assert said == ["Security Configuration", stopped, started, "Application Stop"]
        assert {outcome(each) for each in collector.messages} == {"0"}
    for name, wanted in (("first.xml", [started]), ("second.xml", ["Security Configuration", stopped])):
        assert [event_type(fromstring(line)) for line in (tmp_path / name).read_text().splitlines()] == wanted
