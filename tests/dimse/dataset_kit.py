"""Data sets for tests of the decoder: what pydicom makes of them, and writing and generating them."""

from __future__ import annotations

import json
import math
import struct
import zlib
from typing import Any

import pydicom
from hypothesis import strategies as st
from pydicom.charset import convert_encodings, encode_string
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import RawDataElement

from harmonyd.dimse.dataset_json import MAX_BINARY_BYTES, MAX_INLINE_BYTES
from harmonyd.dimse.elements import LONG_VRS, PIXEL_DATA

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
SYNTAXES = [IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED]
BINARY = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}


# What pydicom says, where it departs from PS3.18 Annex F put right -------------------------------------------------


def model(ds: pydicom.Dataset, *, top: bool = True) -> dict[str, Any]:
    """pydicom's JSON of a data set under our rules: no bulk data, no group lengths, nothing from Pixel Data on."""
    out = {}
    for tag in sorted(ds.keys()):
        if top and tag in PIXEL_DATA:
            break
        if tag in PIXEL_DATA or tag & 0xFFFF == 0 or tag >> 16 in (0, 2):
            continue
        raw = ds.get_item(tag)
        length = raw.length if isinstance(raw, RawDataElement) else 0
        attribute = attribute_model(ds[tag])
        if length <= (MAX_BINARY_BYTES if attribute["vr"] in BINARY else MAX_INLINE_BYTES):
            out[f"{tag:08X}"] = attribute
    return out


def attribute_model(element: pydicom.DataElement) -> dict[str, Any]:
    """One attribute. pydicom differs from the standard in what is put right here:

    * an empty sequence has no Value member (F.2.5), pydicom writes [];
    * an empty value among several is null (F.2.5), pydicom writes "";
    * only non-empty component groups of a name are members (F.2.2), pydicom writes "" or fails;
    * "OB or OW" is no VR; without a VR in the data set it is OW (PS3.5 section A.1);
    * spaces around a value of AE, AS, CS, DA, DT, TM or UI are not significant (PS3.5 section 6.2), pydicom keeps some;
    * NaN and Infinity are no JSON.
    """
    if element.VR == "SQ":
        items = [model(item, top=False) for item in element.value]
        return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
    if element.VR == "PN":
        names = [] if element.is_empty else [element.value] if element.VM == 1 else list(element.value)
        values = [person_model(name) for name in names]
        return {"vr": "PN", "Value": values} if values and values != [None] else {"vr": "PN"}
    attribute: dict[str, Any] = json.loads(json.dumps(element.to_json_dict(None, 0)))
    if " or " in attribute["vr"]:
        attribute["vr"] = "OW"
    if "Value" in attribute:
        strip = str.strip if element.VR in CODE_VRS and element.VR != "UR" else lambda value: value
        attribute["Value"] = [value_model(strip(value)) for value in attribute["Value"]]
        if attribute["Value"] == [None]:
            del attribute["Value"]
    return attribute


def person_model(name: Any) -> dict[str, str] | None:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), name.components, strict=False)
    return {label: group for label, group in groups if group} or None


def value_model(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return None if value == "" else value


# Writing data sets, with all the freedom pydicom would not give -----------------------------------------------------


def element(tag: int, vr: str, value: bytes, syntax: str, length: int | None = None) -> bytes:
    order = ">" if syntax == BIG_ENDIAN else "<"
    size = len(value) if length is None else length
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT or tag >> 16 == 0xFFFE:
        return head + struct.pack(order + "L", size) + value
    if vr.encode() in LONG_VRS:
        return head + vr.encode() + struct.pack(order + "HL", 0, size) + value
    return head + vr.encode() + struct.pack(order + "H", size) + value


def sequence(tag: int, items: list[bytes], syntax: str, *, open_sequence: bool, open_items: bool) -> bytes:
    if open_items:
        end = element(0xFFFEE00D, "", b"", syntax)
        body = b"".join(element(0xFFFEE000, "", item + end, syntax, 0xFFFFFFFF) for item in items)
    else:
        body = b"".join(element(0xFFFEE000, "", item, syntax) for item in items)
    if open_sequence:
        return element(tag, "SQ", body + element(0xFFFEE0DD, "", b"", syntax), syntax, 0xFFFFFFFF)
    return element(tag, "SQ", body, syntax)


def part10(dataset: bytes, syntax: str) -> bytes:
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = element(0x00020003, "UI", b"1.2.3\0", EXPLICIT) + element(0x00020010, "UI", uid, EXPLICIT)
    if syntax == DEFLATED:
        compressor = zlib.compressobj(wbits=-15)
        dataset = compressor.compress(dataset) + compressor.flush()
    group_length = element(0x00020000, "UL", struct.pack("<L", len(meta)), EXPLICIT)
    return bytes(128) + b"DICM" + group_length + meta + dataset


# Generated data sets ------------------------------------------------------------------------------------------------

CHARSETS = {
    "": "abcXYZ 019-",
    "ISO_IR 100": "abc ÄÖüßéç",
    "ISO_IR 144": "abc Диагноз",
    "ISO_IR 192": "abc äДиφ山田김😀\u2028\"\x7f",
    "GB18030": "abc 王小东誠許功蓋",
    "ISO_IR 13": "abc ﾔﾏﾀﾞﾀﾛｳ",
    "\\ISO 2022 IR 87": "abc 山田太郎やまだ",
    "ISO 2022 IR 13\\ISO 2022 IR 87": "abc ﾔﾏﾀﾞ山田太郎",
    "\\ISO 2022 IR 149": "abc 김희중洪吉洞",
    "ISO 2022 IR 6\\ISO 2022 IR 100\\ISO 2022 IR 144": "abc äé Диагноз",
    "nonsense": "abc é",
}
NUMBERS = {"SL": "l", "SS": "h", "SV": "q", "UL": "L", "US": "H", "UV": "Q", "FL": "f", "FD": "d"}
TEXT_VRS = ["LO", "SH", "UC", "LT", "ST", "UT", "PN"]
CODE_VRS = ["AE", "AS", "CS", "DA", "DT", "TM", "UI", "UR"]
SPECIAL = {0x00080005, 0x00280103, 0x00283002, 0x00281101, 0x00281102, 0x00281103}


def public_tags() -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for tag, (vr, *_) in DicomDictionary.items():
        if 0x0008 <= tag >> 16 < 0x7FE0 and tag not in SPECIAL and len(found.setdefault(vr, [])) < 6:
            found[vr].append(tag)
    return found


PUBLIC = public_tags()
PRIVATE = {"LO": [0x00091001, 0x00091002], "SL": [0x00091027], "UN": [0x001110AA], "SH": [0x00091004]}
"""Some of GEMS_IDEN_01, which pydicom's private dictionary has, and one that nobody has."""


def padded(raw: bytes, pad: bytes) -> bytes:
    return raw + pad if len(raw) % 2 else raw


@st.composite
def values(draw: st.DrawFn, vr: str, charset: str, order: str) -> bytes:
    if vr in NUMBERS:
        size = struct.calcsize("<" + NUMBERS[vr])
        count = draw(st.integers(0, 3))
        return draw(st.binary(min_size=count * size, max_size=count * size))
    if vr == "AT":
        return b"".join(draw(st.lists(st.binary(min_size=4, max_size=4), max_size=3)))
    if vr in BINARY:
        return padded(draw(st.binary(max_size=12) | st.just(bytes(1100))), b"\0")
    if vr == "IS":
        number = st.integers(-(2**31), 2**31 - 1).map(str) | st.sampled_from(["+7", "007", " 12", "-0"])
        return padded("\\".join(draw(st.lists(number, max_size=3))).encode(), b" ")
    if vr == "DS":
        number = st.floats(allow_nan=False, allow_infinity=False).map(lambda x: f"{x:.8g}") | st.sampled_from(
            ["+7", "007.50", " 12", "-.5", "5.", "1e5", "1E-7"]
        )
        return padded("\\".join(draw(st.lists(number, max_size=3))).encode(), b" ")
    if vr in CODE_VRS:
        code = st.text("ABC019. ", max_size=8)
        joined = draw(code) if vr == "UR" else "\\".join(draw(st.lists(code, max_size=3)))
        return padded(joined.encode(), b"\0" if vr == "UI" else b" ")
    return padded(draw(texts(vr, charset)), b" ")


@st.composite
def texts(draw: st.DrawFn, vr: str, charset: str) -> bytes:
    alphabet = CHARSETS[charset] + ("\r\n\t" if vr in ("LT", "ST", "UT") else "^" if vr == "PN" else "")
    one = st.text(alphabet, max_size=10)
    if vr == "PN":
        one = st.lists(one, min_size=1, max_size=3).map("=".join)
    codecs = convert_encodings(charset.split("\\"))
    several = draw(st.lists(one, max_size=1 if vr in ("LT", "ST", "UT") else 3))
    return b"\\".join(encode_string(text, codecs) for text in several if text or vr != "PN")


@st.composite
def datasets(draw: st.DrawFn, syntax: str, charset: str = "", depth: int = 0) -> bytes:
    order = ">" if syntax == BIG_ENDIAN else "<"
    parts: dict[int, bytes] = {}
    if depth == 0 or draw(st.booleans()):
        charset = draw(st.sampled_from(list(CHARSETS)))
        parts[0x00080005] = element(0x00080005, "CS", padded(charset.encode(), b" "), syntax)
    if draw(st.booleans()):
        parts[0x00280103] = element(0x00280103, "US", struct.pack(order + "H", draw(st.integers(0, 1))), syntax)
        pixel = draw(st.binary(min_size=2, max_size=2))
        parts[0x00280106] = element(0x00280106, draw(st.sampled_from(["US", "SS"])), pixel, syntax)
    if draw(st.booleans()):
        parts[0x00090010] = element(0x00090010, "LO", b"GEMS_IDEN_01", syntax)
    kinds = [(vr, tags) for table in (PUBLIC, PRIVATE) for vr, tags in table.items() if " or " not in vr]
    for vr, tags in draw(st.lists(st.sampled_from(kinds), max_size=8)):
        tag = draw(st.sampled_from(tags))
        if vr == "SQ":
            if depth < 3:
                items = draw(st.lists(datasets(syntax, charset, depth + 1), max_size=2))
                ways = {"open_sequence": draw(st.booleans()), "open_items": draw(st.booleans())}
                parts[tag] = sequence(tag, items, syntax, **ways)
        elif vr != "NONE":
            written = draw(st.sampled_from([vr, vr, vr, "UN"])) if syntax == EXPLICIT else vr
            parts[tag] = element(tag, written, draw(values(vr, charset, order)), syntax)
    return b"".join(parts[tag] for tag in sorted(parts))
