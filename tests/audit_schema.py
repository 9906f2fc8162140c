"""The schema of PS3.15 section A.5.1, strictly: children and their order, attributes and what they may hold."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

_TOKEN = r"\S(?:.*\S)?"
_TEXT = r".*"
_BASE64 = r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
_CODED = {"csd-code": _TOKEN, "codeSystemName": _TOKEN, "displayName?": _TOKEN, "originalText": _TOKEN}
_ONE_TO = {most: "|".join(map(str, range(1, most + 1))) for most in (4, 5, 15, 26)}
_DATE_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)"

_GRAMMAR: dict[str, tuple[str, dict[str, str], str]] = {
    "AuditMessage": (
        "EventIdentification (ActiveParticipant )+AuditSourceIdentification (ParticipantObjectIdentification )*",
        {},
        "",
    ),
    "EventIdentification": (
        "EventID (EventTypeCode )*(EventOutcomeDescription )?",
        {"EventActionCode?": "[CRUDE]", "EventDateTime": _DATE_TIME, "EventOutcomeIndicator": "0|4|8|12"},
        "",
    ),
    **dict.fromkeys(("EventID", "EventTypeCode", "RoleIDCode", "ParticipantObjectIDTypeCode"), ("", _CODED, "")),
    "EventOutcomeDescription": ("", {}, _TEXT),
    "ActiveParticipant": (
        "(RoleIDCode )*(MediaIdentifier )?",
        {
            "UserID": _TEXT, "AlternativeUserID?": _TEXT, "UserName?": _TEXT, "UserIsRequestor": "true|false",
            "NetworkAccessPointID?": _TOKEN, "NetworkAccessPointTypeCode?": _ONE_TO[5],
        },
        "",
    ),
    "AuditSourceIdentification": (
        "(AuditSourceTypeCode )*",
        {"AuditEnterpriseSiteID?": _TOKEN, "AuditSourceID": _TOKEN},
        "",
    ),
    "AuditSourceTypeCode": ("", {"csd-code": "[1-9]"}, ""),
    "ParticipantObjectIdentification": (
        "ParticipantObjectIDTypeCode (?:ParticipantObjectName |ParticipantObjectQuery )"
        "(ParticipantObjectDetail )*(ParticipantObjectDescription )*",
        {
            "ParticipantObjectID": _TOKEN, "ParticipantObjectTypeCode?": _ONE_TO[4],
            "ParticipantObjectTypeCodeRole?": _ONE_TO[26], "ParticipantObjectDataLifeCycle?": _ONE_TO[15],
            "ParticipantObjectSensitivity?": _TOKEN,
        },
        "",
    ),
    "ParticipantObjectName": ("", {}, _TOKEN),
    "ParticipantObjectQuery": ("", {}, _BASE64),
    "ParticipantObjectDetail": ("", {"type": _TOKEN, "value": _BASE64}, ""),
    "ParticipantObjectDescription": (
        "(MPPS )*(Accession )*(SOPClass )*(ParticipantObjectContainsStudy )?(Encrypted )?(Anonymized )?",
        {},
        "",
    ),
    "SOPClass": ("(Instance )*", {"UID?": _TOKEN, "NumberOfInstances": r"\d+"}, ""),
}  # fmt: skip


def check(element: Element) -> None:
    """Raise AssertionError for what is not as the schema has it."""
    assert element.tag in _GRAMMAR, f"there is no element {element.tag}"
    children, attributes, text = _GRAMMAR[element.tag]
    found = "".join(f"{child.tag} " for child in element)
    assert re.fullmatch(children, found), f"{element.tag} has {found!r}"
    allowed = {name.rstrip("?"): pattern for name, pattern in attributes.items()}
    required = {name for name in attributes if not name.endswith("?")}
    assert required <= element.attrib.keys() <= allowed.keys(), f"{element.tag} has {element.attrib}"
    for name, value in element.attrib.items():
        assert re.fullmatch(allowed[name], value, re.DOTALL), f"{element.tag} {name}={value!r}"
    assert re.fullmatch(text, element.text or "", re.DOTALL), f"{element.tag}: {element.text!r}"
    for child in element:
        assert not child.tail
        check(child)
