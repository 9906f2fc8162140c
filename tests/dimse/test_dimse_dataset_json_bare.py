"""The lean decoder on bare data sets, as they are in C-FIND responses: against pydicom, cut and damaged."""

from __future__ import annotations

import io
import itertools
import json
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dataset_kit import CHARSETS, EXPLICIT, IMPLICIT, PUBLIC, datasets, element, model, padded, sequence, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from harmonyd.dimse.dataset_json import MalformedDataset, dataset_to_json
from harmonyd.dimse.elements import LONG_VRS, SHORT_VRS

pytestmark = pytest.mark.usefixtures("quiet_pydicom")
many = settings(deadline=None, suppress_health_check=list(HealthCheck))

PAIR = pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT], ids=["implicit", "explicit"])
SYNTAX = st.sampled_from([IMPLICIT, EXPLICIT])
SHIPPED = [path for path in Path(pydicom.__file__).parent.joinpath("data").rglob("*") if path.suffix in ("", ".dcm")]
VRS = sorted(vr.decode() for vr in LONG_VRS | SHORT_VRS if vr != b"SQ")


def read(data: bytes, syntax: str) -> pydicom.Dataset:
    """What pydicom makes of a bare data set."""
    return read_dataset(io.BytesIO(data), syntax == IMPLICIT, True)


def written(ds: pydicom.Dataset, syntax: str) -> bytes:
    """A data set in one of the two encodings, as pydicom writes it."""
    for _ in ds.iterall():  # all values are converted, so that none is copied as the bytes of the file
        pass
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = syntax == IMPLICIT
    write_dataset(buffer, ds)
    return buffer.getvalue()


def decoded(data: bytes, syntax: str) -> Any:
    return json.loads(dataset_to_json(data, syntax))


def outcome(data: bytes, syntax: str) -> Any:
    """The JSON, or the error's class. Any other exception is a failure."""
    try:
        return decoded(data, syntax)
    except MalformedDataset as error:
        assert "at byte" in error.detail
        return MalformedDataset


# Against pydicom ----------------------------------------------------------------------------------------------------


def shipped() -> Iterator[tuple[str, pydicom.Dataset]]:
    """What pydicom reads of what it ships, also without file meta information."""
    for path in sorted(path for path in SHIPPED if path.is_file() and not path.name.startswith("README")):
        try:
            yield path.name, pydicom.dcmread(path, force=True)
        except UnicodeDecodeError:
            continue


with warnings.catch_warnings(action="ignore"):
    DATASETS = list(shipped())
    SMALL = [(name, data) for name, ds in DATASETS if 400 < len(data := written(ds, EXPLICIT)) < 1500]


@PAIR
@pytest.mark.parametrize(("name", "ds"), DATASETS, ids=[name for name, _ in DATASETS])
def test_shipped_files_in_both_encodings(name: str, ds: pydicom.Dataset, syntax: str) -> None:
    """Every data set that pydicom ships, written in either encoding, decodes to what pydicom reads in it."""
    data = written(ds, syntax)
    ours, theirs = decoded(data, syntax), read(data, syntax)
    if name == "badVR.dcm":
        assert ours.pop("00280008") == {"vr": "IS", "Value": ["1A"]}  # pydicom raises
        del theirs[0x00280008]
    assert ours == model(theirs)


@settings(many, max_examples=400)
@given(st.data(), SYNTAX)
def test_generated_datasets(data: st.DataObject, syntax: str) -> None:
    """Any data set of any VRs, character sets, nesting and private tags decodes to what pydicom makes of it."""
    dataset = data.draw(datasets(syntax))
    assert decoded(dataset, syntax) == model(read(dataset, syntax))


@st.composite
def of_one_vr(draw: st.DrawFn, vr: str, syntax: str) -> bytes:
    charset = draw(st.sampled_from(sorted(CHARSETS)))
    tags = [*PUBLIC.get(vr, [])[:2], 0x00111010]
    chosen = sorted(draw(st.sets(st.sampled_from(tags), min_size=1)))
    parts = [element(tag, vr, draw(values(vr, charset, "<")), syntax) for tag in chosen]
    return element(0x00080005, "CS", padded(charset.encode(), b" "), syntax) + b"".join(parts)


@PAIR
@pytest.mark.parametrize("vr", VRS)
def test_every_vr(vr: str, syntax: str) -> None:
    """Values of each VR, none, one or several, in any character set, decode to what pydicom makes of them."""

    @settings(many, max_examples=30)
    @given(of_one_vr(vr, syntax))
    def property_holds(dataset: bytes) -> None:
        assert decoded(dataset, syntax) == model(read(dataset, syntax))

    property_holds()


# Against what was put in --------------------------------------------------------------------------------------------

CODECS = {
    "ISO_IR 100": "latin-1",
    "ISO_IR 144": "iso8859_5",
    "ISO_IR 192": "utf-8",
    "GB18030": "gb18030",
    "GBK": "gbk",
    "ISO_IR 13": "shift_jis",
    "\\ISO 2022 IR 87": "iso2022_jp",
}
GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


@settings(many, max_examples=400)
@given(st.data(), SYNTAX, st.sampled_from(sorted(CODECS)))
def test_names_come_back(data: st.DataObject, syntax: str, charset: str) -> None:
    """The component groups of names, in any character set, come back as they were; empty ones are left out."""
    one = st.text(CHARSETS.get(charset, "王小东"), min_size=1, max_size=6).map(str.strip)
    group = st.lists(one, max_size=3).map("^".join)
    names = data.draw(st.lists(st.lists(group, max_size=3), min_size=1, max_size=3))
    raw = "\\".join(map("=".join, names)).encode(CODECS[charset])
    dataset = element(0x00080005, "CS", padded(charset.encode(), b" "), syntax)
    dataset += element(0x00100010, "PN", padded(raw, b" "), syntax)
    expected = [{label: text for label, text in zip(GROUPS, name, strict=False) if text} or None for name in names]
    attribute = {"vr": "PN"} if expected == [None] else {"vr": "PN", "Value": expected}
    assert decoded(dataset, syntax)["00100010"] == attribute


ODD_NUMBERS = st.text("0123456789+-.eE _,\0xnaif²", max_size=9) | st.integers().map(str) | st.floats().map(str)


def number_model(vr: str, text: str) -> Any:
    """A component of an IS or DS, read with Python's own functions."""
    text = text.strip(" \0")
    try:
        number = float(text) if set(text) <= set("+-.eE0123456789") else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or len(text) > 64:
        return text or None
    if vr == "DS":
        return number
    digits = text.lstrip("+-").isdigit()
    return int(text) if digits else int(number) if number.is_integer() and abs(number) < 2**53 else text


@settings(many, max_examples=1000)
@given(SYNTAX, st.sampled_from([("IS", 0x00201208), ("DS", 0x00101030)]), st.lists(ODD_NUMBERS, max_size=4))
def test_numbers_in_odd_forms(syntax: str, kind: tuple[str, int], several: list[str]) -> None:
    """IS and DS are numbers where they are finite ones, however they are written, and otherwise the text itself."""
    vr, tag = kind
    raw = padded("\\".join(several).encode("latin-1"), b" ")
    expected = [number_model(vr, text) for text in several] if raw.strip(b" \0") else []
    got = decoded(element(tag, vr, raw, syntax), syntax)[f"{tag:08X}"].get("Value", [])
    assert [float(it) if vr == "DS" and type(it) is int else it for it in got] == expected
    assert list(map(type, got)) == list(map(type, expected)) or vr == "DS"


# Cut and damaged ----------------------------------------------------------------------------------------------------


def record(syntax: str, charset: str, name: bytes) -> list[bytes]:
    """The elements of a study as a PACS answers it; with sequences, which some do."""
    inner = element(0x00080100, "SH", b"CTABD ", syntax) + element(0x00080102, "SH", b"L ", syntax)
    ways = itertools.product((False, True), repeat=2)
    return [
        element(0x00080005, "CS", padded(charset.encode(), b" "), syntax),
        element(0x00080020, "DA", b"20240131", syntax),
        element(0x00080030, "TM", b"101530", syntax),
        element(0x00080050, "SH", b"A20240131007", syntax),
        element(0x00080052, "CS", b"STUDY ", syntax),
        element(0x00080061, "CS", b"CT\\SR ", syntax),
        *(sequence(tag, [inner, inner], syntax, open_sequence=one, open_items=other)
          for tag, (one, other) in zip((0x00081032, 0x00081048, 0x00081111, 0x00081120), ways, strict=True)),
        element(0x00100010, "PN", padded(name, b" "), syntax),
        element(0x00100020, "LO", b"PAT0012345", syntax),
        element(0x00100040, "CS", b"", syntax),
        element(0x00104000, "LT", b"", syntax),
        element(0x0020000D, "UI", b"1.2.826.0.1.3680043.8.498.1\0", syntax),
        element(0x00201208, "IS", b"412 ", syntax),
        element(0x0040A027, "LO", b"", syntax),
        element(0x00420010, "ST", b"x ", syntax),
        element(0x00420011, "OB", b"1234", syntax),
    ]


RECORDS = [("ISO_IR 192", "Müller^Jürgen=山田^太郎".encode()), ("\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B")]


@PAIR
@pytest.mark.parametrize(("charset", "name"), RECORDS, ids=["UTF-8", "ISO 2022"])
def test_cut_records(syntax: str, charset: str, name: bytes) -> None:
    """A record cut at any byte is malformed, unless what is left is whole elements: those are decoded."""
    parts = record(syntax, charset, name)
    whole = b"".join(parts)
    ends = set(itertools.accumulate(map(len, parts), initial=0))
    for end in range(len(whole) + 1):
        got = outcome(whole[:end], syntax)
        assert got == (model(read(whole[:end], syntax)) if end in ends else MalformedDataset), end


@pytest.mark.parametrize(("name", "data"), SMALL, ids=[name for name, _ in SMALL])
def test_cut_files(name: str, data: bytes) -> None:
    """Shipped data sets cut at any byte are malformed or decoded, and nothing else."""
    kept = 0
    for end in range(len(data)):
        got = outcome(data[:end], EXPLICIT)
        if got is not MalformedDataset:
            assert len(got) >= kept
            kept = len(got)


@PAIR
@pytest.mark.parametrize(("charset", "name"), RECORDS, ids=["UTF-8", "ISO 2022"])
def test_every_byte_damaged(syntax: str, charset: str, name: bytes) -> None:
    """Whatever one byte of a record becomes, there is JSON or the one error."""
    whole = b"".join(record(syntax, charset, name))
    for at, new in itertools.product(range(len(whole)), (0, 1, 0x1B, 0x41, 0x5C, 0x80, 0xFE, 0xFF)):
        outcome(whole[:at] + bytes([new]) + whole[at + 1 :], syntax)


@settings(many, max_examples=500)
@given(st.data(), SYNTAX)
def test_damaged_datasets(data: st.DataObject, syntax: str) -> None:
    """Generated data sets with bytes replaced, put in or taken out give JSON or the one error, in any syntax."""
    dataset = bytearray(data.draw(datasets(syntax)) + data.draw(datasets(syntax)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(dataset)))
        dataset[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    outcome(bytes(dataset), data.draw(st.sampled_from([syntax, syntax, IMPLICIT, EXPLICIT, "1.2.840.10008.1.2.2"])))


COSTLY = {
    "escape sequences": (0x00111010, "LO", b"\x1b"),
    "values": (0x00111010, "PN", b"=\\"),
    "numbers": (0x00111010, "DS", b"1e5\\"),
    "long numbers": (0x00111010, "IS", b"9" * 60 + b".\\"),
    "tags": (0x00111010, "AT", b"1234"),
    "control characters": (0x00111010, "LT", b"\x01"),
}


@pytest.mark.parametrize("unit", [
    element(0x00100020, "LO", b"", EXPLICIT),
    element(0x00081140, "SQ", b"", EXPLICIT),
    element(0x00081140, "SQ", element(0xFFFEE000, "", b"", EXPLICIT) * 1000, EXPLICIT),
    *(element(tag, vr, unit * (60000 // len(unit)), EXPLICIT) for tag, vr, unit in COSTLY.values()),
], ids=["elements", "sequences", "items", *COSTLY])  # fmt: skip
def test_cost_is_bounded_by_the_size(unit: bytes) -> None:
    """However a megabyte is filled, it takes about a microsecond a byte at most; ten times that is allowed here."""
    charset = element(0x00080005, "CS", b"ISO 2022 IR 6\\ISO 2022 IR 87 ", EXPLICIT)
    data = charset + unit * ((1 << 20) // len(unit))
    began = time.process_time()
    outcome(data, EXPLICIT)
    assert time.process_time() - began < 10
