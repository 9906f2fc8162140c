"""DICOM data for tests and the demo: what pydicom ships, what a developer adds, and made CT studies.

Nothing here reaches for the network: pydicom's own helpers download what is not installed, so files are found by path.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
MAX_SAMPLES = 50
_LONG_LENGTH_VRS = frozenset({"OB", "OW", "SQ", "UN", "UT"})
_IMPLEMENTATION_UID = "2.25.275230906417863462863498722838472948213"


@dataclass(frozen=True, slots=True)
class Charset:
    """A Specific Character Set (0008,0005) and text that needs it (PS3.3 section C.12.1.1.2)."""

    name: str
    defined_terms: str
    codec: str
    person_name: str
    description: str


CHARSETS: Mapping[str, Charset] = MappingProxyType(
    {
        charset.name: charset
        for charset in (
            Charset("ascii", "", "ascii", "Doe^Jane", "Head"),
            Charset("latin1", "ISO_IR 100", "latin-1", "Müller^Jörg", "Schädel nativ"),
            Charset(
                "japanese", "\\ISO 2022 IR 87", "iso2022_jp", "Yamada^Tarou=山田^太郎=やまだ^たろう", "頭部"
            ),
            Charset("chinese", "GB18030", "gb18030", "Wang^XiaoDong=王^小东", "头部平扫"),
            Charset("utf8", "ISO_IR 192", "utf-8", "Διονυσιος=小泉^純一郎", "Łeb – κεφάλι"),
        )
    }
)


@dataclass(frozen=True, slots=True)
class MadeStudy:
    """What ``make_study`` wrote; ``sop_uids`` in the order of ``files``."""

    study_uid: str
    series_uids: tuple[str, ...]
    sop_uids: tuple[str, ...]
    patient_id: str
    files: tuple[Path, ...]


def shipped_folder() -> Path:
    """The folder of test files inside the installed pydicom."""
    import pydicom.data

    return Path(pydicom.data.__file__).parent / "test_files"


def demo_files() -> list[Path]:
    """pydicom's ``dicomdirtests``: 81 instances (CR, CT, MR) of 7 studies and 3 patients, all explicit little endian.

    README and DICOMDIR files are left out: they are not instances, and a README makes storescu give up.
    """
    folder = shipped_folder() / "dicomdirtests"
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if not path.name.startswith(("README", "DICOMDIR"))]


def report_files() -> list[Path]:
    """The structured reports that pydicom ships, to stand beside the images of ``demo_files``."""
    return [path for path in (shipped_folder() / "reportsi.dcm", shipped_folder() / "test-SR.dcm") if path.is_file()]


def sample_files(root: Path, limit: int = MAX_SAMPLES) -> list[Path]:
    """Up to ``limit`` ``.dcm`` files below ``root/dev/samples``; none when that folder does not exist."""
    return sorted(path for path in (root / "dev" / "samples").rglob("*.dcm") if path.is_file())[:limit]


def uid_for(name: str) -> str:
    """A valid UID that is the same for the same ``name`` (PS3.5 section B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


def make_ct(
    path: Path,
    *,
    study_uid: str,
    series_uid: str,
    instance_number: int,
    patient_id: str,
    sop_uid: str | None = None,
    size: int = 64,
    charset: str = "ascii",
) -> str:
    """Write a CT instance of ``size`` × ``size`` pixels to ``path`` and return its SOP Instance UID.

    Encoded directly, without pydicom, so that a thousand take a fraction of a second. ``charset`` is a key of
    ``CHARSETS`` and chooses the patient's name.
    """
    sop_uid = sop_uid or uid_for(f"{series_uid}/{instance_number}")
    pixels = struct.pack("<H", 1000 + instance_number % 1000) * (size * size)
    body = _identity(CHARSETS[charset], study_uid, series_uid, sop_uid, instance_number, patient_id)
    path.write_bytes(_preamble(sop_uid) + body + _image(size) + _element(0x7FE0, 0x0010, "OW", pixels))
    return sop_uid


def make_study(
    folder: Path,
    count: int,
    *,
    study_uid: str | None = None,
    patient_id: str = "MADE-1",
    series: int = 1,
    size: int = 64,
    charset: str = "ascii",
) -> MadeStudy:
    """Write a study of ``count`` CT instances, spread over ``series`` series, into ``folder`` (made when missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    study_uid = study_uid or uid_for(f"{patient_id}/{charset}/{count}")
    series_uids = tuple(uid_for(f"{study_uid}/{number}") for number in range(1, series + 1))
    files = tuple(folder / f"{patient_id}_{number:06d}.dcm" for number in range(1, count + 1))
    sop_uids = tuple(
        make_ct(
            path,
            study_uid=study_uid,
            series_uid=series_uids[number % series],
            instance_number=number + 1,
            patient_id=patient_id,
            size=size,
            charset=charset,
        )
        for number, path in enumerate(files)
    )
    return MadeStudy(study_uid, series_uids, sop_uids, patient_id, files)


def make_charset_studies(folder: Path, charsets: Sequence[str] = tuple(CHARSETS)) -> list[MadeStudy]:
    """One study of one instance for each character set; the patient's ID is ``CS-`` and the set's name."""
    return [make_study(folder, 1, patient_id=f"CS-{name}", charset=name, size=16) for name in charsets]


def _element(group: int, element: int, vr: str, value: bytes) -> bytes:
    """One data element in Explicit VR Little Endian (PS3.5 section 7.1.2)."""
    if len(value) % 2:
        value += b"\0" if vr in ("UI", "OB") else b" "
    layout = "<HH2sxxI" if vr in _LONG_LENGTH_VRS else "<HH2sH"
    return struct.pack(layout, group, element, vr.encode(), len(value)) + value


def _text(group: int, element: int, vr: str, value: str, codec: str = "ascii") -> bytes:
    return _element(group, element, vr, value.encode(codec))


def _number(group: int, element: int, value: int) -> bytes:
    return _element(group, element, "US", struct.pack("<H", value))


def _preamble(sop_uid: str) -> bytes:
    """Preamble and file meta information (PS3.10 section 7.1)."""
    meta = b"".join(
        (
            _element(0x0002, 0x0001, "OB", b"\0\1"),
            _text(0x0002, 0x0002, "UI", CT_IMAGE_STORAGE),
            _text(0x0002, 0x0003, "UI", sop_uid),
            _text(0x0002, 0x0010, "UI", EXPLICIT_LITTLE_ENDIAN),
            _text(0x0002, 0x0012, "UI", _IMPLEMENTATION_UID),
        )
    )
    return bytes(128) + b"DICM" + _element(0x0002, 0x0000, "UL", struct.pack("<I", len(meta))) + meta


def _identity(
    charset: Charset, study_uid: str, series_uid: str, sop_uid: str, instance_number: int, patient_id: str
) -> bytes:
    """Groups 0008 to 0020, in order of their tags."""
    return b"".join(
        (
            _text(0x0008, 0x0005, "CS", charset.defined_terms) if charset.defined_terms else b"",
            _text(0x0008, 0x0008, "CS", "ORIGINAL\\PRIMARY\\AXIAL"),
            _text(0x0008, 0x0016, "UI", CT_IMAGE_STORAGE),
            _text(0x0008, 0x0018, "UI", sop_uid),
            _text(0x0008, 0x0020, "DA", "20240229"),
            _text(0x0008, 0x0030, "TM", "101500"),
            _text(0x0008, 0x0050, "SH", f"A{patient_id}"[:16]),
            _text(0x0008, 0x0060, "CS", "CT"),
            _text(0x0008, 0x0070, "LO", "harmonyd"),
            _text(0x0008, 0x1030, "LO", charset.description, charset.codec),
            _text(0x0010, 0x0010, "PN", charset.person_name, charset.codec),
            _text(0x0010, 0x0020, "LO", patient_id),
            _text(0x0010, 0x0030, "DA", "19700101"),
            _text(0x0010, 0x0040, "CS", "O"),
            _text(0x0020, 0x000D, "UI", study_uid),
            _text(0x0020, 0x000E, "UI", series_uid),
            _text(0x0020, 0x0010, "SH", "1"),
            _text(0x0020, 0x0011, "IS", "1"),
            _text(0x0020, 0x0013, "IS", str(instance_number)),
            _text(0x0020, 0x0032, "DS", f"0\\0\\{instance_number}"),
            _text(0x0020, 0x0037, "DS", "1\\0\\0\\0\\1\\0"),
        )
    )


def _image(size: int) -> bytes:
    """Group 0028: 16-bit monochrome (PS3.3 section C.7.6.3)."""
    return b"".join(
        (
            _number(0x0028, 0x0002, 1),
            _text(0x0028, 0x0004, "CS", "MONOCHROME2"),
            _number(0x0028, 0x0010, size),
            _number(0x0028, 0x0011, size),
            _text(0x0028, 0x0030, "DS", "0.5\\0.5"),
            _number(0x0028, 0x0100, 16),
            _number(0x0028, 0x0101, 12),
            _number(0x0028, 0x0102, 11),
            _number(0x0028, 0x0103, 0),
            _text(0x0028, 0x1052, "DS", "-1024"),
            _text(0x0028, 0x1053, "DS", "1"),
        )
    )
