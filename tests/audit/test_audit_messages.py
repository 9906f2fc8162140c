"""Messages: by the standard's schema, with its codes, and whole whatever the values are."""

from __future__ import annotations

import base64
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

import pytest
from audit_kit import counts, details, event_type, kind, objects, outcome, participants, text
from audit_schema import check
from hypothesis import given
from hypothesis import strategies as st

from harmonyd.audit.api import AuditEvent, AuditKind, Node, Outcome, Queried, Transferred
from harmonyd.audit.messages import ALERTS, MOST_BYTES, Reporter, clean, message, serialized
from harmonyd.subject import OURSELVES, Caller, PeerCertificate, Subject

AT = 1_800_000_000.25
REPORTER = Reporter("gateway-1", "Mercy", "gw.example", 77, patient_identifiers=True)
PACS = Node("archive", "PACS", "10.0.0.9")
OURS = Node(aet="HARMONY")
CALLER = Caller("10.1.1.7")
DOCTOR = Subject("dr.who", frozenset({"reader"}), "jwt_auth")
STUDY, CT = "1.2.3", "1.2.840.10008.5.1.4.1.1.2"


def made(event: AuditEvent, reporter: Reporter = REPORTER) -> Element:
    """The message, read again and held against the schema."""
    line = message(event, AT, reporter)
    assert line.isascii()
    assert b"\n" not in line
    assert len(line) <= MOST_BYTES
    root = fromstring(line)
    check(root)
    return root


def transfer(event_kind: AuditKind = AuditKind.INSTANCES_TRANSFERRED, **changes: object) -> AuditEvent:
    about = Transferred(PACS, OURS, STUDY, "PAT-1", {CT: 3}, **changes)  # type: ignore[arg-type]
    return AuditEvent(event_kind, Outcome.SUCCESS, "", "req-1", CALLER, DOCTOR, about=about)


def test_a_transfer_names_both_ends_who_asked_the_study_and_the_patient() -> None:
    """DICOM Instances Transferred, PS3.15 section A.5.3.7 (110104)."""
    found = made(transfer())
    event = found.find("EventIdentification")
    assert event is not None
    assert event.attrib == {
        "EventActionCode": "R", "EventDateTime": "2027-01-15T08:00:00.250Z", "EventOutcomeIndicator": "0"
    }  # fmt: skip
    assert event[0].attrib == {
        "csd-code": "110104", "codeSystemName": "DCM", "originalText": "DICOM Instances Transferred"
    }  # fmt: skip
    ends = participants(found)
    assert ends["Source Role ID"].attrib == {
        "UserID": "archive", "AlternativeUserID": "AETITLES=PACS", "UserIsRequestor": "false",
        "NetworkAccessPointID": "10.0.0.9", "NetworkAccessPointTypeCode": "2",
    }  # fmt: skip
    assert ends["Destination Role ID"].attrib == {
        "UserID": "77@gw.example", "AlternativeUserID": "AETITLES=HARMONY", "UserName": "harmonyd",
        "UserIsRequestor": "false", "NetworkAccessPointID": "gw.example", "NetworkAccessPointTypeCode": "1",
    }  # fmt: skip
    assert ends[""].attrib == {
        "UserID": "dr.who", "UserName": "by jwt_auth", "UserIsRequestor": "true",
        "NetworkAccessPointID": "10.1.1.7", "NetworkAccessPointTypeCode": "2",
    }  # fmt: skip
    assert objects(found) == {"Study Instance UID": STUDY, "Patient Number": "PAT-1"}
    assert counts(found) == {CT: 3}
    assert details(found) == {"RequestID": "req-1"}
    source = found.find("AuditSourceIdentification")
    assert source is not None
    assert source.attrib == {"AuditEnterpriseSiteID": "Mercy", "AuditSourceID": "gateway-1"}


def test_who_receives_for_the_first_time_creates() -> None:
    """EventActionCode C; the beginning of a transfer is executed."""
    for event, code, name in (
        (transfer(is_new=True), "C", "DICOM Instances Transferred"),
        (transfer(AuditKind.BEGIN_TRANSFERRING), "E", "Begin Transferring DICOM Instances"),
    ):
        found = made(event)
        assert found[0].get("EventActionCode") == code
        assert kind(found) == name


def test_without_patient_identifiers_there_is_no_patient() -> None:
    """Neither in a transfer nor in a query."""
    discreet = Reporter("g", "", "h", 1, patient_identifiers=False)
    assert objects(made(transfer(), discreet)) == {"Study Instance UID": STUDY}
    asked: list[bool] = []

    def keys(with_patient: bool) -> bytes:
        asked.append(with_patient)
        return b"keys"

    query = Queried(OURS, PACS, "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.1.2.1", keys)
    event = AuditEvent(AuditKind.QUERY, Outcome.SUCCESS, "", about=query)
    found = made(event, discreet)
    assert asked == [False]
    assert objects(found) == {"SOP Class UID": "1.2.840.10008.5.1.4.1.2.2.1"}
    assert base64.b64decode(found.findtext(".//ParticipantObjectQuery", "")) == b"keys"
    assert details(found) == {"TransferSyntax": "1.2.840.10008.1.2.1"}
    assert participants(found)["Source Role ID"].get("UserIsRequestor") == "true", "nobody else asked"


def test_a_query_that_is_too_big_is_left_out_and_said_to_be() -> None:
    """A data set cannot be cut."""
    query = Queried(OURS, PACS, "1.2", "1.2.840.10008.1.2.1", lambda _: bytes(1_000_000))
    found = made(AuditEvent(AuditKind.QUERY, Outcome.SERIOUS_FAILURE, "no answer", about=query))
    assert not found.findtext(".//ParticipantObjectQuery")
    assert details(found)["Omitted"] == "the query, of 1000000 bytes"
    assert outcome(found) == "8"


def test_application_activity() -> None:
    """Start and stop, with our AE titles (PS3.15 section A.5.3.1)."""
    for event, name in (("start", "Application Start"), ("stop", "Application Stop")):
        told = {"event": event, "aets": "HARMONY;SCP"}
        found = made(AuditEvent(AuditKind.APPLICATION_ACTIVITY, Outcome.SUCCESS, "up", details=told))
        assert event_type(found) == name
        assert participants(found)["Application"].get("AlternativeUserID") == "AETITLES=HARMONY;SCP"
        assert objects(found) == {}


@pytest.mark.parametrize("alert", [*ALERTS, ""])
def test_security_alerts(alert: str) -> None:
    """Who reports is its requestor, who is meant is not (PS3.15 section A.5.3.11); what else is told stands there."""
    certificate = PeerCertificate("CN=mallory", (), "aa")
    event = AuditEvent(
        AuditKind.SECURITY_ALERT, Outcome.MINOR_FAILURE, "wrong password", "r", Caller("10.6.6.6", certificate),
        details={"alert": alert, "uri": "/dicom/find", "attempts": "3"},
    )  # fmt: skip
    found = made(event)
    assert event_type(found) == (ALERTS[alert][1] if alert else "Use of Restricted Function")
    ours, theirs = found.findall("ActiveParticipant")
    assert ours.get("UserIsRequestor") == "true"
    assert (theirs.get("UserID"), theirs.get("UserIsRequestor")) == ("CN=mallory", "false")
    assert objects(found) == {"URI": "/dicom/find"}
    assert details(found) == {"Alert Description": "wrong password", "RequestID": "r", "attempts": "3"}


def test_control_characters_become_visible_and_long_values_short() -> None:
    """No line break, no terminal command, no XML that ends early."""
    evil = "a\r\n<b>&\"'\x00\x1b[2J\u2028\ud800\uffff" + "x" * 1_000_000
    found = made(AuditEvent(AuditKind.SECURITY_ALERT, Outcome.SUCCESS, evil, evil, Caller(evil), details={evil: evil}))
    assert text(found).startswith("a\\r\\n<b>&\"'\\x00\\x1b[2J\\u2028\\ud800\\uffff")
    assert text(found).endswith("x…")


@given(st.text(), st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=20))
def test_any_value_makes_a_message(a: str, b: str, c: str, many: dict[str, str]) -> None:
    """Of every kind, whatever a stranger sends."""
    caller, subject = Caller(a, aet=b), Subject(c)
    node = Node(a, b, c)
    counted = {name: len(value) for name, value in many.items()}
    for event in (
        AuditEvent(AuditKind.SECURITY_ALERT, Outcome.SUCCESS, a, b, caller, subject, many),
        AuditEvent(AuditKind.QUERY, Outcome.SUCCESS, a, b, caller, None, {},
                   Queried(node, OURS, b, c, lambda _: a.encode("utf-8", "replace"))),
        AuditEvent(AuditKind.INSTANCES_TRANSFERRED, Outcome.SUCCESS, c, "", OURSELVES, subject, {},
                   Transferred(OURS, node, a, b, counted)),
    ):  # fmt: skip
        made(event)


def test_the_largest_message_is_within_the_bound() -> None:
    """Each value as long as it may be, with characters that take the most room."""
    long = "\U0001f600" * 5000
    node = Node(long, long, long)
    counted = {f"{number}.{'1' * 70}": 10**9 for number in range(1000)}
    subject = Subject(long, scheme=long)
    certificate = PeerCertificate(long, (), "")
    caller = Caller(long, certificate, long)
    reporter = Reporter(long, long, long, 1, patient_identifiers=True)
    about = Transferred(node, node, long, long, counted)
    made(AuditEvent(AuditKind.INSTANCES_TRANSFERRED, Outcome.SUCCESS, long, long, caller, subject, {}, about), reporter)
    query = Queried(node, node, long, long, lambda _: bytes(12_000))
    made(AuditEvent(AuditKind.QUERY, Outcome.SUCCESS, long, long, caller, subject, {}, query), reporter)
    told = {f"{number}{long}": long for number in range(100)}
    made(AuditEvent(AuditKind.SECURITY_ALERT, Outcome.SUCCESS, long, long, caller, subject, told), reporter)


@given(st.text(), st.text(), st.text())
def test_messages_are_serialized_as_elementtree_does(attribute: str, inner: str, outer: str) -> None:
    """Whatever is in attributes and text, markup and other scripts among it."""
    root = Element("A", {"a": clean(attribute), "b": ""})
    SubElement(root, "B").text = clean(inner)
    SubElement(root, "C", {"c": clean(outer)}).text = ""
    assert serialized(root).encode("ascii", "xmlcharrefreplace") == tostring(root, encoding="us-ascii")
