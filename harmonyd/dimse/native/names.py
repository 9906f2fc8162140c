"""UIDs that the native engine names: what it is, services, query models, transfer syntaxes (PS3.6 table A-1)."""

from __future__ import annotations

# pydicom documents the table, and does not export it for type checkers.
from pydicom.uid import UID_dictionary  # type: ignore[attr-defined]

import harmonyd
from harmonyd.dimse.engine import QueryModel

IMPLEMENTATION_CLASS_UID = "2.25.160921341879523719286253183471289654001"
IMPLEMENTATION_VERSION_NAME = f"HARMONYD_{harmonyd.__version__}"[:16]
"""At most 16 characters (PS3.7 section D.3.3.2.3)."""

VERIFICATION = "1.2.840.10008.1.1"
FIND = {
    QueryModel.PATIENT_ROOT: "1.2.840.10008.5.1.4.1.2.1.1",
    QueryModel.STUDY_ROOT: "1.2.840.10008.5.1.4.1.2.2.1",
    QueryModel.WORKLIST: "1.2.840.10008.5.1.4.31",
}
MOVE = {QueryModel.PATIENT_ROOT: "1.2.840.10008.5.1.4.1.2.1.2", QueryModel.STUDY_ROOT: "1.2.840.10008.5.1.4.1.2.2.2"}
GET = {QueryModel.PATIENT_ROOT: "1.2.840.10008.5.1.4.1.2.1.3", QueryModel.STUDY_ROOT: "1.2.840.10008.5.1.4.1.2.2.3"}

IMPLICIT_VR_LE = "1.2.840.10008.1.2"
EXPLICIT_VR_LE = "1.2.840.10008.1.2.1"
UNCOMPRESSED = (EXPLICIT_VR_LE, IMPLICIT_VR_LE)
EXPLICIT_VR_BE = "1.2.840.10008.1.2.2"

NO_TRANSFER = frozenset({"1.2.840.10008.1.2.6.1", "1.2.840.10008.1.2.6.2"})
"""RFC 2557 MIME and XML encoding were never transfer syntaxes of an association."""
COMPRESSED = tuple(
    str(uid)
    for uid, (_, kind, *_) in UID_dictionary.items()
    if kind == "Transfer Syntax"
    and uid not in (*UNCOMPRESSED, EXPLICIT_VR_BE, *NO_TRANSFER)
    and not uid.startswith("1.2.840.10008.1.2.7.")  # SMPTE ST 2110: of real-time video
)
"""Every other transfer syntax of PS3.5 Annex A, retired ones included: archives hold them."""
TRANSFER_SYNTAXES = (*UNCOMPRESSED, EXPLICIT_VR_BE, *COMPRESSED)
_NOT_FOR_STORE = ("Storage Commitment", "Stored Print", "Hardcopy")
STORAGE_CLASSES = tuple(
    str(uid)
    for uid, (name, kind, *_) in UID_dictionary.items()
    if kind == "SOP Class" and "Storage" in name and not name.startswith(_NOT_FOR_STORE)
)
"""SOP classes of the Storage Service Class (PS3.4 table B.5-1), retired ones and DICOS and DICONDE included."""


COMMON_COMPRESSED = tuple(
    f"1.2.840.10008.1.2{end}"
    for end in (
        *(".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91", ".5", ".1.99"),
        *(".4.100", ".4.101", ".4.102", ".4.103", ".4.107", ".4.201", ".4.202", ".4.203"),
    )
)
"""Those that archives are full of: JPEG, JPEG-LS, JPEG 2000, RLE, Deflated, MPEG-2, H.264, HEVC, HTJ2K."""
COMMON_STORAGE = tuple(
    f"1.2.840.10008.5.1.4.1.1.{end}"
    for end in (
        *("2", "2.1", "4", "4.1", "1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "6.1", "6.2", "3.1", "7"),
        *("12.1", "12.1.1", "12.2", "20", "128", "130", "13.1.3", "13.1.1", "13.1.2", "14.1", "30", "66", "66.4"),
        *("77.1.1", "77.1.1.1", "77.1.2", "77.1.4", "77.1.4.1", "77.1.5.1", "77.1.5.4", "77.1.6"),
        *("88.11", "88.22", "88.33", "88.34", "88.40", "88.50", "88.59", "88.65", "88.67", "104.1", "104.2"),
        *("11.1", "11.2", "9.1.1", "9.1.2", "9.1.3", "9.2.1", "481.1", "481.2", "481.3", "481.4", "481.5"),
        *("7.1", "7.2", "7.3", "7.4", "3", "6", "5", "66.1", "66.2", "66.3", "66.5", "68.1"),
    )
)
"""The storage classes that hospitals are full of, the most frequent ones first."""


_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."
CLASSES_OF_MODALITY = {
    modality: tuple(_STORAGE_ROOT + end for end in ends.split())
    for modality, ends in {
        "CR": "1",
        "CT": "2 2.1 7",
        "DX": "1.1 1.1.1 1",
        "ES": "77.1.1 77.1.1.1 7.4",
        "IO": "1.3",
        "KO": "88.59",
        "MG": "1.2 13.1.3 1.2.1",
        "MR": "4 4.1 7",
        "NM": "20",
        "OP": "77.1.5.1 77.1.4",
        "OT": "7 7.4 7.2",
        "PR": "11.1 11.2",
        "PT": "128 130",
        "PX": "1.1 1.3",
        "RF": "12.2 12.2.1 12.1",
        "RTDOSE": "481.2",
        "RTIMAGE": "481.1",
        "RTPLAN": "481.5",
        "RTSTRUCT": "481.3",
        "SC": "7 7.4 7.2",
        "SEG": "66.4",
        "SM": "77.1.6",
        "SR": "88.11 88.22 88.33 88.34 88.67",
        "US": "6.1 3.1",
        "XA": "12.1 12.1.1",
        "XC": "77.1.4 77.1.4.1",
    }.items()
}
"""Usual SOP classes by Modality (0008,0060), PS3.3 section C.7.3.1.1.1; the most frequent one first."""


def is_storage(sop_class_uid: str) -> bool:
    """Whether objects of this class may be stored: one of the standard's, or one the standard does not know."""
    return sop_class_uid in _STORAGE or sop_class_uid not in UID_dictionary


_STORAGE = frozenset(STORAGE_CLASSES)
