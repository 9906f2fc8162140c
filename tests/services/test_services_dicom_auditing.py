"""What the audit trail is told of operations at a node."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom import Dataset
from pydicom.filereader import read_dataset

from harmonyd.audit.api import AuditEvent, AuditKind, Queried
from harmonyd.bodies import BytesBody
from harmonyd.dimse.engine import Query, QueryLevel, QueryModel, Received, RemoteNode
from harmonyd.dimse.wire import IMPLICIT_VR_LE, written
from harmonyd.envelope import RequestEnvelope
from harmonyd.services.dicom.auditing import Witness

NODE = RemoteNode("pacs", "PACS", "pacs.example", 104, "US")


def asked() -> RequestEnvelope:
    return RequestEnvelope(protocol="dicom", method="C-FIND", uri="dicom://US/find", path="/", body=BytesBody(b""))


@pytest.mark.parametrize(("model", "uid"), [
    (QueryModel.PATIENT_ROOT, "1.2.840.10008.5.1.4.1.2.1.1"),
    (QueryModel.STUDY_ROOT, "1.2.840.10008.5.1.4.1.2.2.1"),
    (QueryModel.WORKLIST, "1.2.840.10008.5.1.4.31"),
])  # fmt: skip
def test_a_query_of_any_model(model: QueryModel, uid: str) -> None:
    """Is told with its SOP class; what a caller sent over DIMSE has all its keys, with values or without."""
    step = Dataset()
    step.Modality, step.ScheduledPerformingPhysicianName = "CT", "ZQ^Doctor"
    keys = Dataset()
    keys.PatientName, keys.StudyInstanceUID, keys.ScheduledProcedureStepSequence = "ZQ^Patient", "1.2.3", [step]
    events: list[AuditEvent] = []
    received = Received(written(keys, IMPLICIT_VR_LE), IMPLICIT_VR_LE)
    audited = Witness(events.append).query(NODE, asked(), Query(QueryLevel.PATIENT, model, Dataset(), received))
    audited.ended({"complete": True, "count": 1})
    (event,) = events
    assert event.kind is AuditKind.QUERY
    assert isinstance(event.about, Queried)
    assert event.about.sop_class_uid == uid
    whole, bare = (
        read_dataset(BytesIO(event.about.identifier(with_patient)), is_implicit_VR=False, is_little_endian=True)
        for with_patient in (True, False)
    )
    assert whole == keys
    assert b"ZQ" not in event.about.identifier(False)
    assert (list(bare), bare.StudyInstanceUID) == (
        [bare["PatientName"], bare["StudyInstanceUID"], bare["ScheduledProcedureStepSequence"]],
        "1.2.3",
    )
    assert [each.keyword for each in bare.ScheduledProcedureStepSequence[0]] == [
        "Modality", "ScheduledPerformingPhysicianName"
    ]  # fmt: skip
