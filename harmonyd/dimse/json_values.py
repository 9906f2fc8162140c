"""Element values to the DICOM JSON Model (PS3.18 section F.2): one function a kind of VR.

Each converter takes the value's bytes and the data set's character set, and returns what follows ``"vr":"XX"`` in the
attribute object, up to and with its closing brace. Empty values have no member (F.2.5); an empty value among several is
null (F.2.5). Padding is removed as PS3.5 section 6.2 says it is not significant.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Callable
from json.encoder import encode_basestring as quote
from math import isfinite
from struct import Struct, unpack

from harmonyd.dimse.charsets import Charset

Converter = Callable[[bytes, Charset], str]
PADDING = " \0"
EMPTY = "}"

_JSON_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_JSON_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MAX_DIGITS = 64
"""A longer number (PS3.5: IS 12, DS 16) stays text: it is none, and reading it could take long."""
_PERSON_GROUPS = ('"Alphabetic":', '"Ideographic":', '"Phonetic":')


class WrongLength(Exception):
    """The value is not a whole number of its VR's units."""


def _several(values: list[str]) -> str:
    return f',"Value":[{",".join([quote(value) if value else "null" for value in values])}]}}'


def text(raw: bytes, charset: Charset) -> str:
    """LO, SH, UC: values in the specific character set."""
    value = charset.decode(raw)
    if "\\" in value:
        return _several([one.rstrip(PADDING) for one in value.split("\\")])
    value = value.rstrip(PADDING)
    return f',"Value":[{quote(value)}]}}' if value else EMPTY


def long_text(raw: bytes, charset: Charset) -> str:
    """LT, ST, UT: one value, in which a backslash is a character."""
    value = charset.decode(raw).rstrip(PADDING)
    return f',"Value":[{quote(value)}]}}' if value else EMPTY


def code(raw: bytes, charset: Charset) -> str:
    """AE, AS, CS, DA, DT, TM, UI: the default repertoire; read as Latin-1 so that nothing is lost."""
    value = raw.decode("latin-1").strip(PADDING)
    if "\\" in value:
        return _several([one.strip(PADDING) for one in value.split("\\")])
    return f',"Value":[{quote(value)}]}}' if value else EMPTY


def uri(raw: bytes, charset: Charset) -> str:
    """UR: one value."""
    value = raw.decode("latin-1").rstrip(PADDING)
    return f',"Value":[{quote(value)}]}}' if value else EMPTY


def person_name(raw: bytes, charset: Charset) -> str:
    """PN: an object of the non-empty component groups (PS3.18 section F.2.2)."""
    value = charset.decode(raw.rstrip(b" \0"))
    if "\\" in value:
        return f',"Value":[{",".join(map(_person, value.split(chr(92))))}]}}'
    if "=" not in value:
        return f',"Value":[{{"Alphabetic":{quote(value)}}}]}}' if value else EMPTY
    person = _person(value)
    return f',"Value":[{person}]}}' if person != "null" else EMPTY


def _person(name: str) -> str:
    groups = [label + quote(group) for label, group in zip(_PERSON_GROUPS, name.split("="), strict=False) if group]
    return f"{{{','.join(groups)}}}" if groups else "null"


def integer_string(raw: bytes, charset: Charset) -> str:
    """IS: numbers; text that is no integer stays a string (F.2.3 allows both)."""
    value = raw.decode("latin-1").strip(PADDING)
    if _JSON_INTEGER.fullmatch(value) and len(value) <= _MAX_DIGITS:
        return f',"Value":[{value}]}}'
    return f',"Value":[{",".join(map(_integer, value.split(chr(92))))}]}}' if value else EMPTY


def _integer(value: str) -> str:
    value = value.strip(PADDING)
    if not value:
        return "null"
    if len(value) <= _MAX_DIGITS and _NUMBER.fullmatch(value):
        if value.lstrip("+-").isdigit():
            return str(int(value))
        number = float(value)
        if number.is_integer() and abs(number) < 1 << 53:  # "12.0" from a sloppy writer is still an integer
            return str(int(number))
    return quote(value)


def decimal_string(raw: bytes, charset: Charset) -> str:
    """DS: numbers, with the digits that were sent where JSON allows; what is no finite number stays a string."""
    value = raw.decode("latin-1").strip(PADDING)
    if _JSON_DECIMAL.fullmatch(value) and len(value) <= _MAX_DIGITS:
        return f',"Value":[{value}]}}'
    return f',"Value":[{",".join(map(_decimal, value.split(chr(92))))}]}}' if value else EMPTY


def _decimal(value: str) -> str:
    value = value.strip(PADDING)
    if not value:
        return "null"
    if len(value) <= _MAX_DIGITS:
        if _JSON_DECIMAL.fullmatch(value):
            return value
        if _NUMBER.fullmatch(value) and isfinite(number := float(value)):
            return repr(number)
    return quote(value)


def binary(raw: bytes, charset: Charset) -> str:
    """OB, OD, OF, OL, OV, OW, UN: base64 of the bytes as they are (F.2.7)."""
    return f',"InlineBinary":"{b2a_base64(raw, newline=False).decode("ascii")}"}}' if raw else EMPTY


def unpack_all(form: str, raw: bytes) -> tuple[int | float, ...]:
    """All numbers of a value; ``form`` is byte order and unit, for example ``<H``. Raises ``WrongLength``."""
    count, rest = divmod(len(raw), Struct(form).size)
    if rest:
        raise WrongLength
    return unpack(f"{form[0]}{count}{form[1:]}", raw)


def integers(form: str) -> Converter:
    """Converter for SL, SS, SV, UL, US, UV in one byte order."""
    single = Struct(form)

    def convert(raw: bytes, charset: Charset) -> str:
        if len(raw) == single.size:
            return f',"Value":[{single.unpack(raw)[0]}]}}'
        return f',"Value":[{",".join(map(str, unpack_all(form, raw)))}]}}' if raw else EMPTY

    return convert


def floats(form: str) -> Converter:
    """Converter for FL, FD. JSON has no numbers for these, so strings: "NaN", "Infinity", "-Infinity"."""

    def convert(raw: bytes, charset: Charset) -> str:
        return f',"Value":[{",".join(map(_float, unpack_all(form, raw)))}]}}' if raw else EMPTY

    return convert


def _float(value: float) -> str:
    if isfinite(value):
        return repr(value)
    return '"NaN"' if value != value else '"Infinity"' if value > 0 else '"-Infinity"'


def lut_descriptor(form: str) -> Converter:
    """Converter for LUT descriptors: the first number is unsigned, whatever the VR says (PS3.3 section C.11.1.1.1)."""

    def convert(raw: bytes, charset: Charset) -> str:
        if not raw:
            return EMPTY
        first, *others = unpack_all(form, raw)
        return f',"Value":[{",".join(map(str, [first + 65536 if first < 0 else first, *others]))}]}}'

    return convert


def tags(form: str) -> Converter:
    """Converter for AT: ``GGGGEEEE``; ``form`` is the byte order with H."""

    def convert(raw: bytes, charset: Charset) -> str:
        if len(raw) % 4:
            raise WrongLength
        halves = [f"{half:04X}" for half in unpack_all(form, raw)]
        pairs = zip(halves[::2], halves[1::2], strict=True)
        return f',"Value":[{",".join([quote(group + element) for group, element in pairs])}]}}' if raw else EMPTY

    return convert
