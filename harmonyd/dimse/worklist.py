"""From a client's JSON to the identifier of a Modality Worklist query (PS3.4 section K.6.1).

The spellings are those of ``identifier``; there are no levels, and the keys of a scheduled procedure step stand in
ScheduledProcedureStepSequence, or beside it where the name says that they are the step's.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_dict

from harmonyd.dimse.document import CONTROLS, take_apart
from harmonyd.dimse.engine import Query, QueryLevel, QueryModel
from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.keys import CHARACTER_SET_TAG, LEVEL_TAG
from harmonyd.dimse.keyset import KeyReader, Scope, build, check_private_creators, element
from harmonyd.dimse.query_file import declare_character_set

_STEP = keyword_dict["ScheduledProcedureStepSequence"]
_KEYS = (
    *("AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("PatientWeight", "MedicalAlerts", "Allergies", "PregnancyStatus", "StudyInstanceUID", "RequestingPhysician"),
    *("RequestedProcedureDescription", "AdmissionID", "SpecialNeeds", "CurrentPatientLocation", "PatientState"),
    *("RequestedProcedureID", "RequestedProcedurePriority", "PatientTransportArrangements"),
    *("ConfidentialityConstraintOnPatientDataDescription", "ReferencedStudySequence", "ReferencedPatientSequence"),
    "RequestedProcedureCodeSequence",
)
_STEP_KEYS = (
    *("Modality", "ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime"),
    *("ScheduledPerformingPhysicianName", "ScheduledProcedureStepDescription", "ScheduledProtocolCodeSequence"),
    *("ScheduledProcedureStepID", "ScheduledStationName", "ScheduledProcedureStepLocation", "PreMedication"),
    *("ScheduledProcedureStepStatus", "RequestedContrastAgent"),
)
"""What modalities look at (PS3.4 table K.6-1, return keys of type 1 to 2)."""
_NONE: Mapping[str, str] = MappingProxyType({})
_OF_THE_STEP = frozenset(keyword_dict[keyword] for keyword in _STEP_KEYS)


def parse_worklist(document: Any, forced: Mapping[str, str] = _NONE) -> Query:
    """The query that ``document`` (decoded JSON, None for an empty body) asks for. Raises ``IdentifierError``."""
    parts = take_apart(document, "worklist", None)
    reader, scope = KeyReader(), Scope()
    for section in parts.sections:
        reader.read(section, scope, CONTROLS)
    if forced:
        replacing: Scope = {}
        reader.read(forced, replacing)
        scope.update(replacing)
    check_private_creators(scope)
    if LEVEL_TAG in scope or parts.model is not None:
        raise IdentifierError("A worklist has neither levels nor query models", key="level", hint="leave it out")
    scope.pop(CHARACTER_SET_TAG, None)
    loose = {tag: scope.pop(tag) for tag in _OF_THE_STEP & scope.keys()}
    ds = build(scope)
    step = _step(ds, build(loose))
    if parts.adds_return_keys:
        _add(ds, _KEYS)
        _add(step, _STEP_KEYS)
    declare_character_set(ds)
    return Query(QueryLevel.PATIENT, QueryModel.WORKLIST, ds)


def _step(ds: Dataset, loose: Dataset) -> Dataset:
    """The one item of the sequence (PS3.4 section K.2.2.1.2: exactly one)."""
    items = list(ds[_STEP].value or []) if _STEP in ds else []
    if len(items) > 1:
        what = "ScheduledProcedureStepSequence: a query has one item"
        raise IdentifierError(what, key="ScheduledProcedureStepSequence")
    step = items[0] if items else Dataset()
    step.update(loose)
    ds.add(element(_STEP, "SQ", [step]))
    return step


def _add(ds: Dataset, keywords: tuple[str, ...]) -> None:
    for keyword in keywords:
        tag = keyword_dict[keyword]
        if tag not in ds:
            vr = dictionary_VR(tag)
            ds.add(element(tag, vr, [] if vr == "SQ" else None))
