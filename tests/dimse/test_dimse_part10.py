"""Whole and damaged Part 10 files."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset

from harmonyd.dimse import elements
from harmonyd.dimse.part10 import DamagedFile, InstanceHeader, check_complete, read_header
from harmonyd.errors import Fault

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4.50"
CT = "1.2.840.10008.5.1.4.1.1.2"

NOT_WHOLE = {
    "ExplVR_BigEndNoMeta.dcm": "no file meta information",
    "ExplVR_LitEndNoMeta.dcm": "no file meta information",
    "no_meta.dcm": "no file meta information",
    "rtstruct.dcm": "no file meta information",
    "MR_truncated.dcm": "Pixel Data cut short",
    "rtplan_truncated.dcm": "cut inside of a sequence",
    "meta_missing_tsyntax.dcm": "no Transfer Syntax UID",
    "empty_charset_LEI.dcm": "no SOP Instance UID at all",
    "nested_priv_SQ.dcm": "no SOP Instance UID at all",
}


def file_of(dataset: bytes, syntax: str = EXPLICIT) -> bytes:
    """A Part 10 file around a data set that is already encoded."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CT
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    meta.SourceApplicationEntityTitle = "MODALITY"
    buffer = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(buffer, meta)
    return bytes(128) + b"DICM" + buffer.getvalue() + dataset


def short(tag: int, vr: str, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def wide(tag: int, vr: str, value: bytes, length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    return struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, vr.encode(), 0, size) + value


def bare(tag: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value) if length is None else length) + value


ITEM_END, SEQUENCE_END = bare(0xFFFEE00D, b""), bare(0xFFFEE0DD, b"")
OPEN_ITEM = bare(0xFFFEE000, short(0x00080050, "SH", b"A1") + ITEM_END, 0xFFFFFFFF)
CLOSED_ITEM = bare(0xFFFEE000, short(0x00080050, "SH", b"A1"))
PARTS = [
    short(0x00080005, "CS", b"ISO_IR 100"),
    short(0x00080016, "UI", CT.encode() + b"\0"),
    short(0x00080018, "UI", b"1.2.3.4\0"),
    wide(0x00081110, "SQ", OPEN_ITEM + CLOSED_ITEM + SEQUENCE_END, 0xFFFFFFFF),
    wide(0x00081140, "SQ", OPEN_ITEM + CLOSED_ITEM),
    short(0x00100020, "LO", b"\xe4 1 "),
    wide(0x00111011, "UN", bare(0xFFFEE000, bare(0x00100020, b"42")) + SEQUENCE_END, 0xFFFFFFFF),
    short(0x0020000D, "UI", b"1.2\0"),
    short(0x0020000E, "UI", b"1.2.3\0"),
    wide(0x00420011, "OB", bytes(100)),
    wide(0x7FE00010, "OB", bare(0xFFFEE000, b"") + bare(0xFFFEE000, bytes(20)) + SEQUENCE_END, 0xFFFFFFFF),
    wide(0xFFFCFFFC, "OB", bytes(6)),
]
WHOLE = file_of(b"".join(PARTS), JPEG)
START = len(WHOLE) - sum(map(len, PARTS))
"""Where its data set begins."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "instance.dcm"


def is_whole(path: Path) -> bool:
    try:
        check_complete(path)
    except DamagedFile:
        return False
    return True


@pytest.mark.parametrize("function", [read_header, check_complete])
def test_header_says_which_instance(path: Path, function: Callable[[Path], InstanceHeader]) -> None:
    """The header has the identifiers of the data set, text decoded, and the size of the file."""
    path.write_bytes(WHOLE)
    expected = InstanceHeader(CT, "1.2.3.4", JPEG, "1.2", "1.2.3", "ä 1", len(WHOLE), "MODALITY", START)
    assert function(path) == expected


def test_identifiers_fall_back_to_the_file_meta(path: Path) -> None:
    """A data set without SOP Common, like a DICOMDIR, is named by its file meta information; the rest is empty."""
    path.write_bytes(file_of(short(0x00080050, "SH", b"A1")))
    size = path.stat().st_size
    assert check_complete(path) == InstanceHeader(CT, "1.2.3.4", EXPLICIT, "", "", "", size, "MODALITY", size - 10)


def test_every_cut_is_seen_but_between_elements(path: Path) -> None:
    """A file cut anywhere is damaged, unless the cut is exactly between two elements of its data set."""
    start = START
    borders = {start + sum(map(len, PARTS[:count])) for count in range(1, len(PARTS) + 1)}
    for cut in range(len(WHOLE) + 1):
        path.write_bytes(WHOLE[:cut])
        assert is_whole(path) == (cut in borders), cut


def test_read_header_needs_no_more_than_the_header(path: Path) -> None:
    """A file cut behind group 0020 still says which instance it is; one cut before does not."""
    path.write_bytes(WHOLE[: WHOLE.index(PARTS[9]) + 20])
    assert read_header(path).series_instance_uid == "1.2.3"
    path.write_bytes(WHOLE[: WHOLE.index(PARTS[5]) + 9])
    with pytest.raises(DamagedFile, match=r"\(0010,0020\)"):
        read_header(path)


@pytest.mark.parametrize("file", sorted(p for p in TEST_FILES.rglob("*") if p.is_file()), ids=lambda p: p.name)
def test_shipped_files(file: Path) -> None:
    """The files pydicom ships are whole, but for those known not to be, and say what pydicom reads."""
    if file.name in NOT_WHOLE or file.read_bytes()[128:132] != b"DICM":
        with pytest.raises(DamagedFile):
            check_complete(file)
        return
    header = check_complete(file)
    assert header == read_header(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(file, stop_before_pixels=True)
    assert header.sop_instance_uid == ds.get("SOPInstanceUID", ds.file_meta.MediaStorageSOPInstanceUID)
    assert header.study_instance_uid == ds.get("StudyInstanceUID", "")
    assert header.patient_id == (ds.get("PatientID") or "").strip()


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm",
                                  "image_dfl.dcm", "test-SR.dcm"])
@pytest.mark.parametrize("missing", [1, 2, 50])
def test_cut_files_are_damaged(path: Path, name: str, missing: int) -> None:
    """Real files in every encoding that lack their last bytes are damaged."""
    raw = (TEST_FILES / name).read_bytes()
    path.write_bytes(raw[: -missing - (8 if name == "image_dfl.dcm" else 0)])  # 8: a gzip trailer, which is not DICOM's
    with pytest.raises(DamagedFile):
        check_complete(path)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "empty"),
        (bytes(1000), "DICM"),
        (b"DICM" * 10, "DICM"),
        (file_of(b""), "no data set"),
        (WHOLE + b"\0", "no element"),
        (WHOLE + bytes(8), "(0000,0000)"),
        (WHOLE + ITEM_END, "(FFFE,E00D)"),
        (file_of(wide(0x00100020, "UT", b"", 0xFFFFFFFF)), "undefined length"),
        (file_of(wide(0x00100020, "UT", b"", 0xFFFFFFF0)), "goes beyond the end"),
        (file_of(wide(0x7FE00010, "OB", bytes(16), 0xFFFFFFFF)), "where an item"),
        (file_of(wide(0x7FE00010, "OB", OPEN_ITEM + SEQUENCE_END, 0xFFFFFFFF)), "fragment of undefined length"),
        (file_of(wide(0x00081140, "SQ", OPEN_ITEM, 0xFFFFFFFF)), "the end where an item"),
        (file_of(wide(0x00081140, "SQ", OPEN_ITEM[:-8], 0xFFFFFFFF)), "no delimiter"),
        (file_of(wide(0x00081140, "SQ", bare(0xFFFEE000, b"", 0xFFFFFFFF), 0xFFFFFFFF) * 10000), "nested deeper"),
        (file_of(zlib.compress(b"".join(PARTS)), DEFLATED), "deflate stream"),
    ],
)
def test_damaged_files_say_what_is_wrong(path: Path, raw: bytes, says: str) -> None:
    """Damage raises DamagedFile, the remote node's fault, which names the file and what is wrong in it."""
    path.write_bytes(raw)
    with pytest.raises(DamagedFile) as caught:
        check_complete(path)
    assert says in caught.value.detail
    assert caught.value.detail.startswith("instance.dcm: ")
    assert caught.value.fault is Fault.REMOTE


def test_deflated_files_are_walked(path: Path) -> None:
    """A deflated data set is inflated while it is walked; a cut stream, or cut elements inside of it, are seen."""
    compressor = zlib.compressobj(wbits=-15)
    stream = compressor.compress(b"".join(PARTS)) + compressor.flush()
    path.write_bytes(file_of(stream, DEFLATED))
    assert check_complete(path).patient_id == "ä 1"
    for cut in range(1, len(stream)):
        path.write_bytes(file_of(stream[:-cut], DEFLATED))
        assert not is_whole(path)
    compressor = zlib.compressobj(wbits=-15)
    path.write_bytes(file_of(compressor.compress(b"".join(PARTS)[:-1]) + compressor.flush(), DEFLATED))
    assert not is_whole(path)


def test_vrs_of_later_editions_are_stepped_over(path: Path) -> None:
    """An element of a VR that is not known has a 32 bit length (PS3.5 section 6.2)."""
    path.write_bytes(file_of(wide(0x00111011, "ZZ", bytes(70000)) + short(0x0020000D, "UI", b"1.2\0")))
    assert check_complete(path).study_instance_uid == "1.2"


def test_explicit_items_without_vrs_are_walked(path: Path) -> None:
    """Items of undefined length in UN have no VRs (PS3.5 section 6.2.2)."""
    item = bare(0xFFFEE000, bare(0x00100020, b"42") + bare(0x00111011, bytes(300)) + ITEM_END, 0xFFFFFFFF)
    path.write_bytes(file_of(wide(0x00111012, "UN", item + SEQUENCE_END, 0xFFFFFFFF) + PARTS[7]))
    assert check_complete(path).study_instance_uid == "1.2"


@pytest.mark.parametrize("window", [12, 20, 1000])
def test_window_size_does_not_matter(path: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """Reading through tiny windows finds the same as reading at once."""
    path.write_bytes(WHOLE)
    expected = check_complete(path)
    monkeypatch.setattr(elements, "WINDOW_BYTES", window)
    monkeypatch.setattr(elements, "JUMP_BYTES", window)
    assert check_complete(path) == expected
    path.write_bytes(WHOLE[:-1])
    assert not is_whole(path)


@pytest.mark.parametrize("encapsulated", [False, True])
def test_huge_files_take_little_memory(path: Path, encapsulated: bool) -> None:
    """Pixel Data of 3 GB are stepped over, not read."""
    with path.open("wb") as file:
        file.write(file_of(b"".join(PARTS[:9])))
        size = 3 << 30
        file.write(wide(0x7FE00010, "OB", bare(0xFFFEE000, b"", size), 0xFFFFFFFF) if encapsulated
                   else wide(0x7FE00010, "OW", b"", size))
        file.seek(size, io.SEEK_CUR)
        file.write(SEQUENCE_END if encapsulated else b"")
        file.truncate()
    tracemalloc.start()
    try:
        header = check_complete(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
    finally:
        tracemalloc.stop()
    assert header.size_bytes > 3 << 30


def test_deflate_bomb_is_stopped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that inflates without end is damaged."""
    monkeypatch.setattr(elements, "MAX_INFLATED_BYTES", 4 << 20)
    compressor = zlib.compressobj(wbits=-15)
    bomb = compressor.compress(wide(0x00111011, "OB", bytes(32 << 20))) + compressor.flush()
    path.write_bytes(file_of(bomb, DEFLATED))
    with pytest.raises(DamagedFile, match="inflates to more"):
        check_complete(path)


def test_missing_file_is_an_os_error(path: Path) -> None:
    """A file that is not there says nothing about the remote node."""
    with pytest.raises(FileNotFoundError):
        check_complete(path)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_files_are_whole_or_damaged(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever the bytes of a file, the answer is a header or DamagedFile."""
    names = ["CT_small.dcm", "rtplan.dcm", "test-SR.dcm", "JPEG2000.dcm", "image_dfl.dcm", "MR_small_bigendian.dcm"]
    raw = bytearray(data.draw(st.sampled_from([(TEST_FILES / name).read_bytes() for name in names] + [WHOLE])))
    for at, new in data.draw(st.lists(st.tuples(st.integers(132, len(raw) - 1), st.binary(max_size=6)), max_size=6)):
        raw[at : at + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "mutated.dcm"
    path.write_bytes(raw)
    is_whole(path)
