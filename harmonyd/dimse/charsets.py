"""Specific Character Set (0008,0005): bytes to ``str``, never failing (PS3.3 C.12.1.1.2, PS3.5 section 6.1).

The tables are pydicom's. The decoding follows pydicom's too, but says nothing through ``warnings``: a PACS with a wrong
character set would otherwise warn once a record.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pydicom.charset import CODES_TO_ENCODINGS, STAND_ALONE_ENCODINGS, default_encoding, python_encoding
from pydicom.valuerep import TEXT_VR_DELIMS

ESC = b"\x1b"
_FRAGMENTS = re.compile(rb"^[^\x1b]+|\x1b[^\x1b]*")
_RESET = re.compile(b"[" + bytes(sorted(TEXT_VR_DELIMS)) + b"]")
_STRIPS_ESCAPES = frozenset({"iso2022_jp", "iso2022_jp_2"})
"""Python codecs that want to see the escape sequence."""
_MAX_TERM_BYTES = 512


def _squeeze(term: str) -> str:
    return re.sub("[^A-Z0-9]", "", term.upper())


_CODECS = {_squeeze(term): codec for term, codec in python_encoding.items()} | {
    # What is not a defined term, but is met
    "UTF8": "utf-8",
    "LATIN1": "latin-1",
    "ISO88591": "latin-1",
    "GB2312": "gb2312",
    "EUCKR": "euc_kr",
    "SHIFTJIS": "shift_jis",
}
_STAND_ALONE = frozenset(map(_squeeze, STAND_ALONE_ENCODINGS))


class Charset:
    """How the text of one data set is encoded: a first codec, and those that escape sequences may switch to."""

    __slots__ = ("codec", "extensions")

    def __init__(self, codec: str, extensions: frozenset[str]) -> None:
        self.codec = codec
        self.extensions = extensions

    def decode(self, raw: bytes) -> str:
        """The text; bytes that are no text in this character set become U+FFFD."""
        if ESC in raw:
            return "".join(map(self._fragment, _FRAGMENTS.findall(raw)))
        return raw.decode(self.codec, "replace")

    def _fragment(self, raw: bytes) -> str:
        """Decode one run of bytes that starts with an escape sequence, or the run before the first one."""
        if not raw.startswith(ESC):
            return raw.decode(self.codec, "replace")
        size = 4 if raw.startswith((b"\x1b$(", b"\x1b$)")) else 3
        codec = CODES_TO_ENCODINGS.get(raw[:size], "")
        if codec not in self.extensions:
            return raw.decode(self.codec, "replace")
        if codec in _STRIPS_ESCAPES:
            return raw.decode(codec, "replace")
        raw = raw[size:]
        reset = _RESET.search(raw)  # PS3.5 section 6.1.2.5.3: the first character set is active again
        split = reset.start() if reset else len(raw)
        return raw[:split].decode(codec, "replace") + raw[split:].decode(self.codec, "replace")


@lru_cache(maxsize=256)
def charset_of(value: bytes) -> Charset:
    """The character set that a value of (0008,0005) names.

    Misspelt terms are understood where only case or punctuation is wrong; unknown ones mean the default repertoire,
    read as Latin-1.
    """
    terms = [_squeeze(term) for term in value[:_MAX_TERM_BYTES].decode("latin-1").split("\\")]
    if terms[0] in _STAND_ALONE:
        del terms[1:]
    codecs = [_CODECS.get(term, default_encoding) for term in terms if term == terms[0] or term not in _STAND_ALONE]
    return Charset(codecs[0], frozenset(codecs) | {default_encoding})


DEFAULT = charset_of(b"")
