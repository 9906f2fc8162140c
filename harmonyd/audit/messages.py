"""Events as XML, by the schema of PS3.15 section A.5.1 with the codes of section A.5.3 (PS3.16 CIDs 400 to 405).

A message is one line of ASCII: what is beyond it becomes character references, control characters ``\\xHH``. Every
value has a bound, and so has a message: ``MOST_BYTES``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, SubElement

from harmonyd.audit.api import AuditEvent, AuditKind, Node, Outcome, Queried, Transferred, name_of
from harmonyd.subject import OURSELVES

MOST_BYTES = 32_768
"""What each receiver has to take at least (PS3.15 section A.6)."""
MOST_TEXT = 500
"""Bytes of one value, escaped."""
MOST_DETAILS = 8
MOST_CLASSES = 30
MOST_QUERY_BYTES = 12_000

_EVENTS = {
    AuditKind.APPLICATION_ACTIVITY: ("110100", "Application Activity"),
    AuditKind.BEGIN_TRANSFERRING: ("110102", "Begin Transferring DICOM Instances"),
    AuditKind.INSTANCES_TRANSFERRED: ("110104", "DICOM Instances Transferred"),
    AuditKind.QUERY: ("110112", "Query"),
    AuditKind.SECURITY_ALERT: ("110113", "Security Alert"),
}
_ACTIVITIES = {"start": ("110120", "Application Start"), "stop": ("110121", "Application Stop")}
ALERTS: Mapping[str, tuple[str, str]] = {
    "node-authentication": ("110126", "Node Authentication"),
    "network-configuration": ("110128", "Network Configuration"),
    "security-configuration": ("110129", "Security Configuration"),
    "restricted-function": ("110132", "Use of Restricted Function"),
    "audit-recording-stopped": ("110133", "Audit Recording Stopped"),
    "audit-recording-started": ("110134", "Audit Recording Started"),
}
"""Kinds of security alerts; without one it is the use of a restricted function."""
_APPLICATION = ("110150", "Application")
_SOURCE = ("110153", "Source Role ID")
_DESTINATION = ("110152", "Destination Role ID")
_STUDY, _SOP_CLASS, _NODE = ("110180", "Study Instance UID"), ("110181", "SOP Class UID"), ("110182", "Node ID")
_PATIENT, _URI = ("2", "Patient Number"), ("12", "URI")
_MACHINE, _ADDRESS = "1", "2"
_SERVER = "4"
"""AuditSourceTypeCode: application server process tier."""
# What XML 1.0 cannot have at all, and what would break a line or a viewer.
_BAD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")

_MARKUP = re.compile("[&<>\"']")


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who writes the messages."""

    source_id: str
    enterprise_site: str
    host: str
    pid: int
    patient_identifiers: bool


def message(event: AuditEvent, at: float, reporter: Reporter) -> bytes:
    """Return the event of that time (seconds since the epoch) as one line of XML, without its end."""
    root = Element("AuditMessage")
    _event(root, event, at)
    for participant in _participants(event, reporter):
        root.append(participant)
    source = SubElement(root, "AuditSourceIdentification")
    if reporter.enterprise_site:
        source.set("AuditEnterpriseSiteID", _token(reporter.enterprise_site))
    source.set("AuditSourceID", _token(reporter.source_id))
    SubElement(source, "AuditSourceTypeCode", {"csd-code": _SERVER})
    _objects(root, event, reporter)
    return serialized(root).encode("ascii", "xmlcharrefreplace")


def serialized(element: Element) -> str:
    """The same as ElementTree's own, which takes four times as long since it minds namespaces."""
    attributes = "".join(f' {name}="{_attribute(value)}"' for name, value in element.items())
    inside = _text(element.text or "") + "".join(map(serialized, element))
    return f"<{element.tag}{attributes}>{inside}</{element.tag}>" if inside else f"<{element.tag}{attributes} />"


def _text(value: str) -> str:
    if "&" not in value and "<" not in value and ">" not in value:
        return value
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _attribute(value: str) -> str:
    return _text(value).replace('"', "&quot;")


def clean(value: str, most: int = MOST_TEXT) -> str:
    """Return a value as XML may have it, in one line, and so short that its escaped form has ``most`` bytes."""
    if len(value) <= most and value.isascii() and value.isprintable() and not _MARKUP.search(value):
        return value
    escaped = _BAD.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), value[:most])
    if len(value) <= most and _cost(escaped) <= most:
        return escaped
    left, kept = most - _cost("…"), 0
    for character in escaped:
        left -= _cost(character)
        if left < 0:
            break
        kept += 1
    return f"{escaped[:kept]}…"


def _cost(text: str) -> int:
    return len(_MARKUP.sub("&quot;", text).encode("ascii", "xmlcharrefreplace"))


def _token(value: str, most: int = MOST_TEXT) -> str:
    """Where the schema wants a token: without space around it, and something in any case."""
    return clean(value, most).strip() or "unknown"


def _event(root: Element, event: AuditEvent, at: float) -> None:
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    element = SubElement(root, "EventIdentification")
    element.set("EventActionCode", _action(event))
    element.set("EventDateTime", when)
    element.set("EventOutcomeIndicator", str(event.outcome.value))
    _coded(element, "EventID", _EVENTS[event.kind])
    if event.kind is AuditKind.APPLICATION_ACTIVITY:
        _coded(element, "EventTypeCode", _ACTIVITIES[event.details.get("event", "start")])
    elif event.kind is AuditKind.SECURITY_ALERT:
        alert = event.details.get("alert", "")
        _coded(element, "EventTypeCode", ALERTS.get(alert, ALERTS["restricted-function"]))
    if event.text:
        SubElement(element, "EventOutcomeDescription").text = clean(event.text)


def _action(event: AuditEvent) -> str:
    """C, R or U for a transfer, as the receiver had them; E, execute, for all else."""
    if event.kind is not AuditKind.INSTANCES_TRANSFERRED:
        return "E"
    return "C" if isinstance(event.about, Transferred) and event.about.is_new else "R"


def _coded(parent: Element, name: str, code: tuple[str, str], system: str = "DCM") -> None:
    value, meaning = code
    SubElement(parent, name, {"csd-code": value, "codeSystemName": system, "originalText": meaning})


# --- participants


def _participants(event: AuditEvent, reporter: Reporter) -> Iterator[Element]:
    if event.about is not None:
        nodes = ((event.about.source, _SOURCE), (event.about.destination, _DESTINATION))
        asked_for = any(node.is_requestor for node, _ in nodes)
        alone = not asked_for and _is_ours(event)
        for node, role in nodes:
            yield _node(node, role, reporter, is_requestor=node.is_requestor or (alone and not node.name))
        if not asked_for and not _is_ours(event):
            yield _caller(event, is_requestor=True)
        return
    our_role = _APPLICATION if event.kind is AuditKind.APPLICATION_ACTIVITY else None
    ours = Node(aet=event.details.get("aets", ""))
    # The person or process that reports an alert is its requestor; who performed what it is about is not.
    yield _node(ours, our_role, reporter, is_requestor=event.kind is AuditKind.SECURITY_ALERT)
    if not _is_ours(event):
        yield _caller(event, is_requestor=False)


def _is_ours(event: AuditEvent) -> bool:
    return event.caller == OURSELVES and event.subject is None


def _node(node: Node, role: tuple[str, str] | None, reporter: Reporter, *, is_requestor: bool) -> Element:
    name = node.name or f"{reporter.pid}@{reporter.host}"
    alternative = f"AETITLES={node.aet}" if node.aet else ""
    address = node.address if node.name else reporter.host
    return _participant(name, alternative, "" if node.name else "harmonyd", address, role, is_requestor=is_requestor)


def _caller(event: AuditEvent, *, is_requestor: bool) -> Element:
    caller, subject = event.caller, event.subject
    aets = f"AETITLES={caller.aet}" if caller.aet else ""
    certificate = caller.certificate.subject if caller.certificate is not None else ""
    scheme = f"by {subject.scheme}" if subject is not None and subject.scheme else ""
    name = name_of(caller, subject)
    return _participant(name, aets or certificate, scheme, caller.address, None, is_requestor=is_requestor)


def _participant(
    user: str, alternative: str, name: str, address: str, role: tuple[str, str] | None, *, is_requestor: bool
) -> Element:
    element = Element("ActiveParticipant", {"UserID": clean(user)})
    if alternative:
        element.set("AlternativeUserID", clean(alternative))
    if name:
        element.set("UserName", clean(name))
    element.set("UserIsRequestor", "true" if is_requestor else "false")
    if address:
        element.set("NetworkAccessPointID", _token(address))
        is_ip = ":" in address or address.replace(".", "").isdigit()
        element.set("NetworkAccessPointTypeCode", _ADDRESS if is_ip else _MACHINE)
    if role is not None:
        _coded(element, "RoleIDCode", role)
    return element


# --- objects


def _objects(root: Element, event: AuditEvent, reporter: Reporter) -> None:
    details = {"RequestID": event.request_id} if event.request_id else {}
    if isinstance(event.about, Queried):
        _query(root, event.about, details, reporter)
    elif isinstance(event.about, Transferred):
        _study(root, event.about, details, reporter)
    elif event.kind is AuditKind.SECURITY_ALERT:
        _alert(root, event, details, reporter)


def _query(root: Element, query: Queried, details: dict[str, str], reporter: Reporter) -> None:
    keys = query.identifier(reporter.patient_identifiers)
    if len(keys) > MOST_QUERY_BYTES:
        details["Omitted"] = f"the query, of {len(keys)} bytes"
        keys = b""
    element = _object(root, query.sop_class_uid, _SOP_CLASS, "2", "3")
    SubElement(element, "ParticipantObjectQuery").text = base64.b64encode(keys).decode()
    _details(element, {"TransferSyntax": query.transfer_syntax_uid, **details})


def _study(root: Element, sent: Transferred, details: dict[str, str], reporter: Reporter) -> None:
    element = _object(root, sent.study_uid or "unknown", _STUDY, "2", "3")
    SubElement(element, "ParticipantObjectName").text = _token(sent.study_uid or "unknown")
    _details(element, details)
    if sent.instances:
        description = SubElement(element, "ParticipantObjectDescription")
        for uid, count in list(sent.instances.items())[:MOST_CLASSES]:
            SubElement(description, "SOPClass", {"UID": _token(uid, 64), "NumberOfInstances": str(count)})
    if sent.patient_id and reporter.patient_identifiers:
        patient = _object(root, sent.patient_id, _PATIENT, "1", "1", "RFC-3881")
        SubElement(patient, "ParticipantObjectName").text = _token(sent.patient_id)


def _alert(root: Element, event: AuditEvent, details: dict[str, str], reporter: Reporter) -> None:
    told = {key: value for key, value in event.details.items() if key not in ("alert", "node", "uri", "aets", "event")}
    uri = event.details.get("uri", "")
    node = event.details.get("node", "") or event.caller.address or reporter.host
    element = _object(root, uri or node, _URI if uri else _NODE, "2", "13", "RFC-3881" if uri else "DCM")
    SubElement(element, "ParticipantObjectName").text = _token(uri or node)
    _details(element, {"Alert Description": event.text, **details, **told})


def _object(root: Element, id_: str, code: tuple[str, str], kind: str, role: str, system: str = "DCM") -> Element:
    element = SubElement(root, "ParticipantObjectIdentification", {"ParticipantObjectID": _token(id_)})
    element.set("ParticipantObjectTypeCode", kind)
    element.set("ParticipantObjectTypeCodeRole", role)
    _coded(element, "ParticipantObjectIDTypeCode", code, system)
    return element


def _details(parent: Element, details: Mapping[str, str]) -> None:
    for name, value in list(details.items())[:MOST_DETAILS]:
        encoded = base64.b64encode(clean(value).encode("utf-8")).decode()
        SubElement(parent, "ParticipantObjectDetail", {"type": _token(name, 64), "value": encoded})


def severity(outcome: Outcome) -> int:
    """Of syslog: notice, or a warning (PS3.15 section A.6)."""
    return 5 if outcome is Outcome.SUCCESS else 4
