"""Return keys of a C-FIND."""

from __future__ import annotations

import pytest
from pydicom.datadict import keyword_for_tag

from harmonyd.dimse.engine import QueryLevel, QueryModel
from harmonyd.dimse.levels import UNIQUE_KEYS, levels_down_to
from harmonyd.dimse.return_keys import return_keys

VALID = [
    (level, model)
    for level in QueryLevel
    for model in QueryModel
    if model is not QueryModel.WORKLIST and (level, model) != (QueryLevel.PATIENT, QueryModel.STUDY_ROOT)
]


def keywords(level: QueryLevel, model: QueryModel) -> set[str]:
    return {keyword_for_tag(tag) for tag, _ in return_keys(level, model)}


@pytest.mark.parametrize(("level", "model"), VALID)
def test_unique_keys_of_the_level_and_above_are_asked_for(level: QueryLevel, model: QueryModel) -> None:
    """Every match can be found again: it says where it belongs."""
    tags = {tag for tag, _ in return_keys(level, model)}
    assert {UNIQUE_KEYS[above][0] for above in levels_down_to(level, model)} <= tags


def test_study_root_has_the_patient_at_study_level() -> None:
    """In Study Root the patient's attributes belong to the study (PS3.4 section C.6.2.1.2)."""
    assert {"PatientName", "PatientID", "StudyDate"} <= keywords(QueryLevel.STUDY, QueryModel.STUDY_ROOT)


def test_patient_root_names_the_patient_by_id_only_below_patient_level() -> None:
    """A hierarchical node refuses other keys of a higher level (PS3.4 section C.4.1.2.1)."""
    found = keywords(QueryLevel.STUDY, QueryModel.PATIENT_ROOT)
    assert "PatientID" in found
    assert "PatientName" not in found


@pytest.mark.parametrize(
    ("level", "keyword"),
    [
        (QueryLevel.PATIENT, "NumberOfPatientRelatedStudies"),
        (QueryLevel.STUDY, "ModalitiesInStudy"),
        (QueryLevel.SERIES, "Modality"),
        (QueryLevel.IMAGE, "SOPClassUID"),
    ],
)
def test_each_level_has_its_own_keys(level: QueryLevel, keyword: str) -> None:
    """A level's keys are asked for at that level and no other."""
    holders = [other for other in QueryLevel if keyword in keywords(other, QueryModel.PATIENT_ROOT)]
    assert holders == [level]
