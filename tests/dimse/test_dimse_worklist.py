"""Identifiers of worklist queries from JSON."""

from __future__ import annotations

import pytest

from harmonyd.dimse.engine import QueryModel
from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.worklist import parse_worklist


def test_keys_of_the_step_stand_in_its_sequence() -> None:
    """Wherever the client wrote them; return keys are added on both levels, and no level."""
    query = parse_worklist(
        {"PatientID": "P1", "Modality": "CT", "ScheduledProcedureStepSequence": [{"ScheduledStationAETitle": "CT1"}]}
    )
    assert query.model is QueryModel.WORKLIST
    ds = query.dataset
    (step,) = ds.ScheduledProcedureStepSequence
    assert (ds.PatientID, step.Modality, step.ScheduledStationAETitle) == ("P1", "CT", "CT1")
    assert "QueryRetrieveLevel" not in ds
    assert "Modality" not in ds
    assert not ds.PatientName
    assert not step.ScheduledProcedureStepStartDate
    assert list(ds.RequestedProcedureCodeSequence) == []


def test_only_what_was_asked_for() -> None:
    """With "return": "requested"; the sequence has its item all the same."""
    ds = parse_worklist({"patient_name": "Müller*", "return": "requested"}).dataset
    assert set(ds.dir()) == {"PatientName", "ScheduledProcedureStepSequence", "SpecificCharacterSet"}
    assert len(ds.ScheduledProcedureStepSequence) == 1


def test_nothing_asks_for_all() -> None:
    """As a modality does; and keys can be forced."""
    ds = parse_worklist(None, {"PatientID": "P9"}).dataset
    assert ds.PatientID == "P9"


@pytest.mark.parametrize(
    "document",
    [
        {"QueryRetrieveLevel": "STUDY"},
        {"level": "STUDY"},
        {"query_model": "study"},
        {"ScheduledProcedureStepSequence": [{"Modality": "CT"}, {"Modality": "MR"}]},
        {"Modalities": "CT"},
        ["CT"],
    ],
)
def test_what_is_no_worklist_query(document: object) -> None:
    """It is named."""
    with pytest.raises(IdentifierError):
        parse_worklist(document)
