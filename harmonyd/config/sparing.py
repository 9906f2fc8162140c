"""What a PACS is spared: a part of the model (``harmonyd.config.model``)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BreakerOptions:
    """When a node is left alone that makes no association."""

    failures: int = 5
    """In a row; 0: never."""
    open_secs: float = 10.0
    """Until it is tried again, with a C-ECHO; twice as long after each that fails."""
    max_open_secs: float = 60.0


@dataclass(frozen=True, slots=True)
class SelectivityOptions:
    """What a C-FIND has to have."""

    keys: tuple[str, ...] = (
        *("PatientID", "PatientName", "AccessionNumber", "StudyDate"),
        *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
    )
    """Keywords, one of which has to narrow it."""
    min_letters: int = 3
    """Letters and digits beside wildcards."""
    max_days: int = 31
    """Of a range of dates."""
