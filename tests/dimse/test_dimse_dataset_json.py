"""The lean decoder against pydicom, and against hostile bytes."""

from __future__ import annotations

import io
import json
import math
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dataset_kit import (
    CHARSETS,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    SYNTAXES,
    datasets,
    element,
    model,
    padded,
    part10,
    sequence,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmonyd.dimse import elements
from harmonyd.dimse.charsets import charset_of
from harmonyd.dimse.dataset_json import (
    MalformedDataset,
    dataset_to_json,
    file_to_json,
    part10_to_json,
)
from harmonyd.errors import Fault

pytestmark = pytest.mark.usefixtures("quiet_pydicom")

PYDICOM_DATA = Path(pydicom.__file__).parent / "data"

# Files pydicom ships and reads, which we refuse, and why that is right
REFUSED = {
    "DICOMDIR-nooffset": "its record sequence is shorter than the items in it",
    "meta_missing_tsyntax.dcm": "no Transfer Syntax UID: pydicom guesses",
    "rtplan_truncated.dcm": "ends inside of a sequence: pydicom drops the rest",
}
# Files pydicom reads, but raises for when asked for JSON
PYDICOM_CANNOT = {"badVR.dcm": "'1A' as IS; we give the string"}


def decoded(dataset: bytes, syntax: str = EXPLICIT) -> Any:
    return json.loads(dataset_to_json(dataset, syntax))


def value_of(vr: str, raw: bytes, tag: int = 0x00111010, charset: bytes = b"") -> Any:
    """The attribute object of one explicit element."""
    ds = element(0x00080005, "CS", charset, EXPLICIT) + element(tag, vr, raw, EXPLICIT)
    return decoded(ds)[f"{tag:08X}"]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_generated_datasets_equal_pydicom(data: st.DataObject) -> None:
    """Any data set of any VRs, character sets, nesting and private tags decodes to what pydicom makes of it."""
    syntax = data.draw(st.sampled_from(SYNTAXES))
    file = part10(data.draw(datasets(syntax)), syntax)
    assert json.loads(part10_to_json(file)) == model(pydicom.dcmread(io.BytesIO(file)))


@pytest.mark.parametrize("path", sorted(p for p in PYDICOM_DATA.rglob("*") if p.is_file()), ids=lambda p: p.name)
def test_shipped_files_equal_pydicom(path: Path) -> None:
    """Every DICOM file that pydicom ships decodes to what pydicom makes of it; what pydicom refuses, we refuse."""
    try:
        ds = pydicom.dcmread(path)
    except (pydicom.errors.InvalidDicomError, UnicodeDecodeError):
        with pytest.raises(MalformedDataset):
            file_to_json(path)
        return
    if path.name in REFUSED:
        with pytest.raises(MalformedDataset):
            file_to_json(path)
        return
    ours = file_to_json(path)
    assert part10_to_json(path.read_bytes()) == ours
    if path.name not in PYDICOM_CANNOT:
        assert json.loads(ours) == model(ds)


# Single rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vr", "raw", "expected"),
    [
        ("IS", b"1.5", ["1.5"]),
        ("IS", b"12.0", [12]),
        ("IS", b"1A\\7 ", ["1A", 7]),
        ("IS", b"9" * 5000, ["9" * 5000]),
        ("IS", b"1_000 ", ["1_000"]),
        ("DS", b"1,5 ", ["1,5"]),
        ("DS", b"nan\\inf ", ["nan", "inf"]),
        ("DS", b"1e999 ", ["1e999"]),
        ("DS", b"\\1 ", [None, 1]),
        ("FD", struct.pack("<3d", math.nan, math.inf, -math.inf), ["NaN", "Infinity", "-Infinity"]),
        ("AT", bytes.fromhex("1000 2000 0800 5200"), ["00100020", "00080052"]),
        ("LO", b"a\\\\b ", ["a", None, "b"]),
        ("LT", b"a\\b\r\n\"\x01", ['a\\b\r\n"\x01']),
        ("AE", b" PACS ", ["PACS"]),
        ("PN", b"=Y^T", [{"Ideographic": "Y^T"}]),
        ("PN", b"A^B\\\\C ", [{"Alphabetic": "A^B"}, None, {"Alphabetic": "C"}]),
    ],
)
def test_values(vr: str, raw: bytes, expected: list[Any]) -> None:
    """Values become what PS3.18 section F.2 says, also where pydicom fails or loses something."""
    assert value_of(vr, raw) == {"vr": vr, "Value": expected}


@pytest.mark.parametrize("vr", ["LO", "PN", "IS", "DS", "CS", "AE", "US", "FD", "AT", "OB", "SQ", "UR", "UT", "UN"])
def test_empty_values_have_no_member(vr: str) -> None:
    """An empty attribute is there with its VR alone (PS3.18 section F.2.5)."""
    assert value_of(vr, b"") == {"vr": vr}


def test_decimal_strings_keep_their_digits() -> None:
    """A DS that is a JSON number is passed on digit for digit."""
    assert b"[1.50]" in dataset_to_json(element(0x00101030, "DS", b"1.50", EXPLICIT), EXPLICIT)


@pytest.mark.parametrize(("vr", "raw"), [("US", b"abc"), ("AT", b"ab"), ("FD", b"1234")])
def test_wrong_length_is_given_as_unknown(vr: str, raw: bytes) -> None:
    """A value that is not a whole number of its VR's units keeps its bytes, as UN."""
    assert set(value_of(vr, raw)) == {"vr", "InlineBinary"}
    assert value_of(vr, raw)["vr"] == "UN"


@pytest.mark.parametrize(
    ("charset", "raw", "expected"),
    [
        (b"ISO_IR 192", b"a\xff\xc3\xa4", "a\ufffdä"),
        (b"ISO-IR 100", b"\xe4", "ä"),
        (b"UTF-8 ", "ä".encode(), "ä"),
        (b"unicode_escape", b"\\ud800", None),
        (b"ISO_IR 192\\ISO 2022 IR 87", "ä".encode(), "ä"),
        (b"\\ISO 2022 IR 87", b"\x1b$B;3", "山"),
        (b"\\ISO 2022 IR 58", b"\x1b$)A\xd6\xd0\r\nx", "中\r\nx"),  # pydicom leaves the escape sequence in
        (b"ISO_IR 100", b"\x1b$)Zx", "\x1b$)Zx"),
    ],
)
def test_character_sets(charset: bytes, raw: bytes, expected: str | None) -> None:
    """Text is decoded as its character set says; wrong bytes and wrong terms never raise."""
    assert value_of("UT", raw, charset=charset)["Value"] == [expected or raw.decode()]


def test_character_set_is_of_one_dataset_only() -> None:
    """An item with its own Specific Character Set does not change that of the data set around it (PS3.5 7.5.3)."""
    own = element(0x00080005, "CS", b"ISO_IR 192", EXPLICIT) + element(0x00081030, "LO", "ä".encode(), EXPLICIT)
    inherited = element(0x00081030, "LO", b"\xe4", EXPLICIT)
    ds = element(0x00080005, "CS", b"ISO_IR 100", EXPLICIT)
    ds += sequence(0x00081110, [own, inherited], EXPLICIT, open_sequence=False, open_items=False)
    ds += element(0x00104000, "LT", b"\xe4", EXPLICIT)
    got = decoded(ds)
    assert [item["00081030"]["Value"] for item in got["00081110"]["Value"]] == [["ä"], ["ä"]]
    assert got["00104000"]["Value"] == ["ä"]


@given(st.binary(max_size=40), st.sampled_from(sorted(CHARSETS)) | st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_bytes_in_any_character_set_decode(raw: bytes, charset: str) -> None:
    """Decoding text never raises and gives valid JSON, whatever the bytes and the character set."""
    charset_of(charset.encode("utf-8", "replace")).decode(raw)
    assert value_of("LT", padded(raw, b" "), charset=padded(charset.encode("utf-8", "replace"), b" "))["vr"] == "LT"


def test_pixel_representation_may_come_later() -> None:
    """US or SS before (0028,0103) waits for it; without one it is US; items take it from the data set around them."""
    early = element(0x00189810, "", b"\xff\xff", IMPLICIT)
    signed = element(0x00280103, "", b"\1\0", IMPLICIT)
    item = sequence(0x00283000, [element(0x00283002, "", b"\1\0\xff\xff\x10\0", IMPLICIT)], IMPLICIT,
                    open_sequence=True, open_items=True)
    assert decoded(early, IMPLICIT)["00189810"] == {"vr": "US", "Value": [65535]}
    got = decoded(early + signed + item, IMPLICIT)
    assert got["00189810"] == {"vr": "SS", "Value": [-1]}
    assert got["00283000"]["Value"][0]["00283002"] == {"vr": "SS", "Value": [1, -1, 16]}


def test_attributes_are_in_order_and_once() -> None:
    """Attributes are sorted (PS3.18 section F.2.2); of one that is there twice the last counts."""
    ds = b"".join(element(tag, "LO", raw, EXPLICIT) for tag, raw in
                  [(0x00100020, b"2 "), (0x00080070, b"1 "), (0x00100020, b"3 ")])
    assert list(decoded(ds).items()) == [
        ("00080070", {"vr": "LO", "Value": ["1"]}),
        ("00100020", {"vr": "LO", "Value": ["3"]}),
    ]


def test_bulk_data_are_left_out() -> None:
    """Long values, encapsulated values, and Pixel Data with what follows are not in the JSON."""
    fragments = element(0xFFFEE000, "", b"", EXPLICIT) + element(0xFFFEE000, "", bytes(10), EXPLICIT)
    fragments += element(0xFFFEE0DD, "", b"", EXPLICIT)
    ds = element(0x00080070, "LO", b"x " * 40000, EXPLICIT, 40000)[: 8 + 40000]
    ds += element(0x00111011, "OB", bytes(1024), EXPLICIT) + element(0x00111012, "OB", bytes(1026), EXPLICIT)
    ds += element(0x00111013, "OB", fragments, EXPLICIT, 0xFFFFFFFF)
    ds += element(0x00111014, "UT", bytes(65538), EXPLICIT)
    icon = element(0x7FE00010, "OB", b"1234", EXPLICIT)
    ds += sequence(0x00880200, [icon], EXPLICIT, open_sequence=False, open_items=False)
    ds += element(0x7FE00010, "OB", fragments, EXPLICIT, 0xFFFFFFFF)
    ds += element(0xFFFCFFFC, "OB", b"12", EXPLICIT)
    assert set(decoded(ds)) == {"00080070", "00111011", "00880200"}
    assert decoded(ds)["00880200"] == {"vr": "SQ", "Value": [{}]}


def test_unknown_vr_of_undefined_length_is_a_sequence() -> None:
    """UN of undefined length holds items in Implicit VR (PS3.5 section 6.2.2)."""
    item = element(0x00100020, "", b"42", IMPLICIT)
    ds = sequence(0x00111011, [item], IMPLICIT, open_sequence=True, open_items=True)[8:]
    got = decoded(element(0x00111011, "UN", ds, EXPLICIT, 0xFFFFFFFF))
    assert got["00111011"] == {"vr": "SQ", "Value": [{"00100020": {"vr": "LO", "Value": ["42"]}}]}


def test_wrong_transfer_syntax_is_noticed() -> None:
    """A data set that has VRs where it should have none, or the other way round, is read as what it is."""
    explicit, implicit = (element(0x00100020, "LO", b"42", syntax) for syntax in (EXPLICIT, IMPLICIT))
    assert decoded(explicit, IMPLICIT) == decoded(implicit, EXPLICIT) == {"00100020": {"vr": "LO", "Value": ["42"]}}


# Hostile input ------------------------------------------------------------------------------------------------------


def nested(levels: int, syntax: str = EXPLICIT) -> bytes:
    opening = element(0x00081140, "SQ", element(0xFFFEE000, "", b"", syntax, 0xFFFFFFFF), syntax, 0xFFFFFFFF)
    closing = element(0xFFFEE00D, "", b"", syntax) + element(0xFFFEE0DD, "", b"", syntax)
    return opening * levels + closing * levels


def straddling(missing: int) -> bytes:
    """A sequence that is shorter than its only item, which has a delimiter."""
    item = element(0x00100020, "LO", b"42", EXPLICIT) + element(0xFFFEE00D, "", b"", EXPLICIT)
    body = element(0xFFFEE000, "", item, EXPLICIT, 0xFFFFFFFF)
    behind = element(0x00100030, "DA", b"20240101", EXPLICIT)
    return element(0x00081140, "SQ", body, EXPLICIT, len(body) - missing) + behind


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (element(0x00100020, "LO", b"12", EXPLICIT, 4), "(0010,0020), 4 bytes, goes beyond the end"),
        (element(0x00100020, "UT", b"12", EXPLICIT, 0xFFFFFFFE), "goes beyond the end"),
        (element(0x00100020, "UT", b"12", EXPLICIT, 0xFFFFFFFF), "undefined length"),
        (element(0x00100020, "LO", b"12", EXPLICIT) + b"\0\0\0", "3 bytes where an element"),
        (element(0x00100020, "LO", b"12", EXPLICIT) + b"\x10\0\x30\0UT\0\0", "ends in the length"),
        (element(0xFFFEE00D, "", b"", EXPLICIT), "(FFFE,E00D) where an element"),
        (element(0xFFFEE000, "", b"", EXPLICIT), "(FFFE,E000) where an element"),
        (element(0x00081140, "SQ", element(0x00100020, "LO", b"12", EXPLICIT), EXPLICIT), "where an item"),
        (element(0x00081140, "SQ", b"", EXPLICIT, 0xFFFFFFFF), "the end where an item"),
        (nested(1)[:-16], "without its delimiter"),
        (nested(10000), "nested deeper"),
        (straddling(4), "(FFFE,E00D) where an element"),
        (straddling(8), "without its delimiter"),
        (straddling(9), "goes beyond the end"),
    ],
)
def test_malformed_datasets_are_refused(raw: bytes, says: str) -> None:
    """What is no data set raises MalformedDataset, the remote node's fault, and says what is wrong where."""
    with pytest.raises(MalformedDataset) as caught:
        dataset_to_json(raw, EXPLICIT)
    assert says in caught.value.detail
    assert "at byte" in caught.value.detail
    assert caught.value.fault is Fault.REMOTE


def test_deepest_nesting_is_decoded() -> None:
    """Sequences are followed to the limit."""
    assert decoded(nested(elements.MAX_DEPTH))


def seeds() -> list[bytes]:
    names = ["rtplan.dcm", "test-SR.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "nested_priv_SQ.dcm",
             "UN_sequence.dcm", "JPEG2000-embedded-sequence-delimiter.dcm", "image_dfl.dcm", "CT_small.dcm"]
    return [(PYDICOM_DATA / "test_files" / name).read_bytes()[:12000] for name in names]


SEEDS = seeds()


def outcome(function: Any, argument: Any) -> Any:
    try:
        text = function(argument)
    except MalformedDataset:
        return MalformedDataset
    json.loads(text)
    return text


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_files_give_json_or_malformed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Damaged files give JSON or MalformedDataset, and the same whether read from memory or through small windows."""
    raw = bytearray(data.draw(st.sampled_from(SEEDS)))
    for at, new in data.draw(st.lists(st.tuples(st.integers(132, len(raw) - 1), st.binary(max_size=6)), max_size=6)):
        raw[at : at + len(new)] = new
    del raw[data.draw(st.integers(132, len(raw)) | st.just(len(raw))) :]
    path = tmp_path_factory.getbasetemp() / "mutated.dcm"
    path.write_bytes(raw)
    assert outcome(part10_to_json, bytes(raw)) == outcome(file_to_json, path)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([*SYNTAXES, "", "nonsense"]))
def test_random_bytes_give_json_or_malformed(raw: bytes, syntax: str) -> None:
    """Random bytes as a data set give JSON or MalformedDataset."""
    outcome(lambda data: dataset_to_json(data, syntax), raw)
    outcome(part10_to_json, raw)


@pytest.mark.parametrize("sizes", [(16, 16), (40, 24), (1000, 12)])
def test_window_size_does_not_matter(monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int]) -> None:
    """Reading a file through tiny windows gives the same JSON as reading it at once."""
    paths = [p for p in (PYDICOM_DATA / "test_files").glob("*.dcm") if outcome(file_to_json, p) is not MalformedDataset]
    expected = {path: file_to_json(path) for path in paths if path.stat().st_size < 100_000}
    monkeypatch.setattr(elements, "WINDOW_BYTES", sizes[0])
    monkeypatch.setattr(elements, "JUMP_BYTES", sizes[1])
    for path, text in expected.items():
        assert file_to_json(path) == text


def peak_of(function: Any, argument: Any) -> int:
    tracemalloc.start()
    try:
        outcome(function, argument)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A multi-frame object of 3 GB with big values before its Pixel Data is decoded in little memory."""
    path = tmp_path / "huge.dcm"
    big = element(0x00111011, "OB", b"", EXPLICIT, 1 << 30)
    with path.open("wb") as file:
        file.write(part10(element(0x00100020, "LO", b"42", EXPLICIT) + big, EXPLICIT))
        file.seek(1 << 30, io.SEEK_CUR)
        file.write(element(0x00200013, "IS", b"1 ", EXPLICIT) + element(0x7FE00010, "OW", b"", EXPLICIT, 2 << 30))
        file.truncate(file.tell() + (2 << 30))
    assert set(json.loads(file_to_json(path))) == {"00100020", "00200013"}
    assert peak_of(file_to_json, path) < 1 << 20


def test_deflate_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that inflates without end is refused in little memory."""
    monkeypatch.setattr(elements, "MAX_INFLATED_BYTES", 8 << 20)
    bomb = part10(element(0x00111011, "OB", bytes(64 << 20), EXPLICIT), DEFLATED)
    with pytest.raises(MalformedDataset, match="inflates to more"):
        part10_to_json(bomb)
    assert peak_of(part10_to_json, bomb) < 1 << 20


def test_header_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is nothing but small elements is refused when they exceed a limit."""
    path = tmp_path / "header.dcm"
    path.write_bytes(part10(element(0x00111011, "LO", b"42", EXPLICIT) * 300_000, EXPLICIT))
    monkeypatch.setattr("harmonyd.dimse.dataset_json.MAX_HEADER_BYTES", 1 << 20)
    with pytest.raises(MalformedDataset, match="larger than the limit"):
        file_to_json(path)


def test_elements_without_end_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of more elements than the limit is refused, also where they are empty items."""
    monkeypatch.setattr("harmonyd.dimse.dataset_json.MAX_ELEMENTS", 1000)
    items = [element(0x00100020, "LO", b"", EXPLICIT)] * 600
    ds = sequence(0x00081140, items, EXPLICIT, open_sequence=True, open_items=True)
    with pytest.raises(MalformedDataset, match="more than 1000 elements"):
        dataset_to_json(ds, EXPLICIT)
