"""Data sets from one of the little endian transfer syntaxes to the other, values as they are."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from harmonyd.dimse.recode import EXPLICIT_VR_LE, IMPLICIT_VR_LE, MalformedDataset, recoded
from harmonyd.testing.data import CHARSETS


def encoded(ds: Dataset, *, implicit: bool) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, implicit
    write_dataset(buffer, ds)
    return buffer.getvalue()


def values(data: bytes, *, implicit: bool) -> Any:
    """Tags and undecoded values, items as such."""

    def of(ds: Dataset) -> dict[int, Any]:
        return {int(tag): inside(ds, tag) for tag in ds.keys()}  # noqa: SIM118 - they are not its elements

    def inside(ds: Dataset, tag: Any) -> Any:
        element = ds.get_item(tag)
        return [of(item) for item in ds[tag].value] if ds[tag].VR == "SQ" else bytes(element.value or b"")

    found = read_dataset(BytesIO(data), implicit, True)
    return of(found)


def record(charset: str = "ascii") -> Dataset:
    """One with what an identifier may have: text, numbers, nested items, empty values, private elements."""
    ds = Dataset()
    if CHARSETS[charset].defined_terms:
        ds.SpecificCharacterSet = CHARSETS[charset].defined_terms.split("\\")
    ds.QueryRetrieveLevel = "STUDY"
    ds.PatientName = CHARSETS[charset].person_name
    ds.StudyDescription = CHARSETS[charset].description
    ds.PatientID = ""
    ds.Rows = 512
    item, inner = Dataset(), Dataset()
    inner.CodeValue = "1"
    item.ScheduledStationAETitle = "CT1"
    item.ScheduledProtocolCodeSequence = [inner, Dataset()]
    ds.ScheduledProcedureStepSequence = [item]
    ds.ReferencedStudySequence = []
    ds.add_new(0x00091010, "LO", "ACME")
    ds.add_new(0x0009100A, "UN", b"\x01\x02")
    return ds


@pytest.mark.parametrize("charset", CHARSETS)
def test_values_stay_as_they_are(charset: str) -> None:
    """In either direction, and there and back; text in whatever character set."""
    ds = record(charset)
    explicit, implicit = encoded(ds, implicit=False), encoded(ds, implicit=True)
    to_implicit = recoded(explicit, EXPLICIT_VR_LE, IMPLICIT_VR_LE)
    to_explicit = recoded(implicit, IMPLICIT_VR_LE, EXPLICIT_VR_LE)
    assert values(to_implicit, implicit=True) == values(implicit, implicit=True)
    assert values(to_explicit, implicit=False).keys() == values(explicit, implicit=False).keys()
    back = recoded(to_implicit, IMPLICIT_VR_LE, EXPLICIT_VR_LE)
    assert values(back, implicit=False)[0x00100010] == values(explicit, implicit=False)[0x00100010]
    assert recoded(explicit, EXPLICIT_VR_LE, EXPLICIT_VR_LE) is explicit


def test_elements_nobody_knows_become_unknown() -> None:
    """A private element, and one that is not in the dictionary, has VR UN; group lengths are left out."""
    data = b"\x08\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00" + b"\x09\x00\x0a\x10\x02\x00\x00\x00ab"
    assert recoded(data, IMPLICIT_VR_LE, EXPLICIT_VR_LE) == b"\x09\x00\x0a\x10UN\0\0\x02\0\0\0ab"


def test_a_value_that_is_too_long_for_its_vr() -> None:
    """Becomes one of VR UN, whose length has 32 bit."""
    data = b"\x10\x00\x20\x00\x00\x00\x01\x00" + bytes(0x10000)
    assert recoded(data, IMPLICIT_VR_LE, EXPLICIT_VR_LE)[4:12] == b"UN\0\0\0\0\x01\0"


def test_unknown_sequences_are_read_as_implicit() -> None:
    """UN of undefined length holds items in Implicit VR (PS3.5 section 6.2.2)."""
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x00\x01\x02\x00\x00\x00ab\xfe\xff\x0d\xe0\0\0\0\0"
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    unknown = b"\x09\x00\x0a\x10UN\0\0\xff\xff\xff\xff" + item + end
    assert recoded(unknown, EXPLICIT_VR_LE, IMPLICIT_VR_LE) == b"\x09\x00\x0a\x10\xff\xff\xff\xff" + item + end


@pytest.mark.parametrize(
    ("data", "from_uid"),
    [
        (b"\x10\x00\x10\x00PN\x08\x00abc", EXPLICIT_VR_LE),
        (b"\x10\x00\x10", EXPLICIT_VR_LE),
        (b"\x10\x00\x10\x00\x08\x00\x00\x00abc", IMPLICIT_VR_LE),
        (b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff", EXPLICIT_VR_LE),
        (b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\x10\x00\x10\x00PN\0\0", EXPLICIT_VR_LE),
        (b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 100, EXPLICIT_VR_LE),
    ],
)
def test_what_is_no_data_set_is_refused(data: bytes, from_uid: str) -> None:
    """Cut off, encapsulated, something else in a sequence, nested without end."""
    to_uid = IMPLICIT_VR_LE if from_uid == EXPLICIT_VR_LE else EXPLICIT_VR_LE
    with pytest.raises(MalformedDataset):
        recoded(data, from_uid, to_uid)


def test_other_transfer_syntaxes_are_refused() -> None:
    """Nobody accepts one for an identifier."""
    with pytest.raises(MalformedDataset):
        recoded(b"", "1.2.840.10008.1.2.2", IMPLICIT_VR_LE)
