"""Query/Retrieve levels and information models (PS3.4 section C.3), and what of them follows from the keys."""

from __future__ import annotations

from collections.abc import Container

from harmonyd.dimse.engine import QueryLevel, QueryModel

UNIQUE_KEYS: dict[QueryLevel, tuple[int, str]] = {
    QueryLevel.PATIENT: (0x00100020, "PatientID"),
    QueryLevel.STUDY: (0x0020000D, "StudyInstanceUID"),
    QueryLevel.SERIES: (0x0020000E, "SeriesInstanceUID"),
    QueryLevel.IMAGE: (0x00080018, "SOPInstanceUID"),
}
"""Tag and keyword of each level's unique key (PS3.4 section C.6), from the top level down."""

_LEVEL_WORDS = {level.value: level for level in QueryLevel} | {"INSTANCE": QueryLevel.IMAGE}
_MODEL_WORDS = {
    "study": QueryModel.STUDY_ROOT,
    "study_root": QueryModel.STUDY_ROOT,
    "patient": QueryModel.PATIENT_ROOT,
    "patient_root": QueryModel.PATIENT_ROOT,
}


def level_of(word: str) -> QueryLevel | None:
    """Return the level that ``word`` names in any case (INSTANCE is IMAGE), or None."""
    return _LEVEL_WORDS.get(word.upper())


def model_of(word: str) -> QueryModel | None:
    """Return the model that ``word`` names in any case ("study", "patient_root", "Study Root"), or None."""
    return _MODEL_WORDS.get(word.lower().replace(" ", "_").replace("-", "_"))


def level_from_keys(tags: Container[int], model: QueryModel | None) -> QueryLevel:
    """Return the lowest level whose unique key is among ``tags``, return keys included.

    Without any it is the top level: PATIENT, but STUDY when Study Root was asked for, which has no PATIENT level.
    """
    for level in (QueryLevel.IMAGE, QueryLevel.SERIES, QueryLevel.STUDY):
        if UNIQUE_KEYS[level][0] in tags:
            return level
    return QueryLevel.STUDY if model is QueryModel.STUDY_ROOT else QueryLevel.PATIENT


def levels_down_to(level: QueryLevel, model: QueryModel) -> list[QueryLevel]:
    """Return the levels of ``model`` from its top to ``level``."""
    levels = list(QueryLevel)
    top = 0 if model is QueryModel.PATIENT_ROOT else 1
    return levels[top : levels.index(level) + 1]
