"""The table of PS3.15 Annex E: what the Basic Profile does with each attribute, and what its options keep.

The Basic Profile is the table of dicom-anonymizer (edition 2026c). The columns of the options are in
``annex_e_options.txt``: attributes that are newer than those have no option, and so are treated by the Basic Profile.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

EDITION = "2026c"
_LISTS = {
    "D_TAGS": "D",
    "Z_TAGS": "Z",
    "X_TAGS": "X",
    "U_TAGS": "U",
    "Z_D_TAGS": "Z/D",
    "X_Z_TAGS": "X/Z",
    "X_D_TAGS": "X/D",
    "X_Z_D_TAGS": "X/Z/D",
    "X_Z_U_STAR_TAGS": "X/Z/U*",
}
OPTIONS = {
    "clean_descriptors": ("113105", "Clean Descriptors Option"),
    "retain_full_dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "retain_modified_dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "retain_patient_characteristics": ("113108", "Retain Patient Characteristics Option"),
    "retain_device": ("113109", "Retain Device Identity Option"),
    "retain_uids": ("113110", "Retain UIDs Option"),
    "retain_institution": ("113112", "Retain Institution Identity Option"),
}
"""Code value and meaning (PS3.16 CID 7050), by the name that configurations have."""


@cache
def basic() -> Mapping[int, str]:
    """The Basic Profile: by tag the action, in the words of table E.1-1."""
    # The package imports what it needs to run as a program, too; only its table is used.
    module = importlib.import_module(f"dicomanonymizer.dicom_anonymization_databases.dicomfields_{EDITION}")
    return {
        tag[0] << 16 | tag[1]: action
        for name, action in _LISTS.items()
        for tag in getattr(module, name)
        if len(tag) == 2  # curves and overlays are ranges, and handled by their groups
    }


@cache
def columns() -> Mapping[str, Mapping[int, str]]:
    """The options: by name and tag ``K`` (kept) or ``C`` (cleaned)."""
    found: dict[str, dict[int, str]] = {name: {} for name in OPTIONS}
    for line in (Path(__file__).parent / "annex_e_options.txt").read_text("ascii").splitlines():
        if not line.startswith("#"):
            name, action, *tags = line.split()
            found[name].update(dict.fromkeys((int(tag, 16) for tag in tags), action))
    return found
