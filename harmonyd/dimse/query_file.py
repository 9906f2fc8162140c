"""A query as bytes: a data set, and a Part 10 file of it.

The file is the one way its keys reach a DCMTK program: no value becomes an option or another key.
"""

from __future__ import annotations

import json
from collections.abc import MutableSequence
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian

from harmonyd.dimse.dataset_json import dataset_to_json
from harmonyd.dimse.engine import Query, Received
from harmonyd.dimse.plain_keys import plain_keys
from harmonyd.dimse.recode import EXPLICIT_VR_LE, IMPLICIT_VR_LE, recoded

UTF_8 = "ISO_IR 192"
"""Specific Character Set of text beyond ASCII (PS3.3 section C.12.1.1.2)."""

_STUDY_ROOT_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
_NAME_OF_ALL_QUERIES = UID("2.25.208137443254291832937408203771098712340")


def query_bytes(query: Query) -> bytes:
    """Return ``query`` as a file: preamble, file meta information, the keys in Explicit VR Little Endian."""
    return _HEADER + identifier(query)


def identifier(query: Query, *, implicit: bool = False) -> bytes:
    """Return the keys of ``query`` as a data set in Explicit, or Implicit, VR Little Endian (PS3.5 section 7.1).

    Text is in UTF-8, declared by Specific Character Set (0008,0005) when any of it is not ASCII; what was received goes
    on as it is. Raises ``MalformedDataset`` for that.
    """
    if query.received is not None:
        to_uid = IMPLICIT_VR_LE if implicit else EXPLICIT_VR_LE
        return recoded(query.received.data, query.received.transfer_syntax_uid, to_uid)
    plain = plain_keys(query.dataset, implicit=implicit)
    return plain if plain is not None else any_keys(query.dataset, implicit=implicit)


def any_keys(ds: Dataset, *, implicit: bool) -> bytes:
    """The same for whatever there is in a data set."""
    if "SpecificCharacterSet" not in ds and not _is_ascii(ds):
        ds = _copy(ds)
        declare_character_set(ds)
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = implicit
    write_dataset(buffer, ds)
    return buffer.getvalue()


def without_values(query: Query) -> Query:
    """Return ``query`` with its keys, those in sequences too, and of their values only UIDs and codes.

    Raises ``MalformedDataset`` for what was received.
    """
    keys = query.dataset if query.received is None else _all_keys(query.received)
    return Query(query.level, query.model, _bare(keys))


def _all_keys(received: Received) -> Dataset:
    return Dataset.from_json(json.loads(dataset_to_json(received.data, received.transfer_syntax_uid)))


def _bare(keys: Dataset) -> Dataset:
    bare = Dataset()
    for elem in keys:
        if elem.VR == "SQ":
            bare.add_new(elem.tag, "SQ", [_bare(item) for item in elem.value or ()])
        else:
            bare.add_new(elem.tag, elem.VR, elem.value if elem.VR in ("UI", "CS") else None)
    return bare


def declare_character_set(ds: Dataset) -> None:
    """Say in ``ds`` that its text is UTF-8, if any of it is not ASCII."""
    if not _is_ascii(ds):
        ds.SpecificCharacterSet = UTF_8


def _copy(ds: Dataset) -> Dataset:
    """A data set with the same elements; ``Dataset(ds)`` would share its dictionary."""
    copy = Dataset()
    copy.update(ds)
    return copy


def _is_ascii(ds: Dataset) -> bool:
    return all(_value_is_ascii(elem.value) for elem in ds.values())


def _value_is_ascii(value: Any) -> bool:
    if value is None or isinstance(value, int | float):
        return True
    if isinstance(value, str):
        return value.isascii()
    if isinstance(value, Dataset):
        return _is_ascii(value)
    if isinstance(value, MutableSequence):
        return all(_value_is_ascii(item) for item in value)
    return str(value).isascii()


def _header() -> bytes:
    """Preamble and file meta information: the same for all queries, since nobody reads more of it than the syntax."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = _STUDY_ROOT_FIND
    meta.MediaStorageSOPInstanceUID = _NAME_OF_ALL_QUERIES
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = DicomBytesIO()
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return buffer.getvalue()


_HEADER = _header()
