"""DICOM elements as configurations name them: by keyword or by tag (PS3.6 section 6).

The dictionary takes a moment to load and few configurations need it, so each function imports it by itself.
"""

from __future__ import annotations

import re

from harmonyd.config.errors import nearest

_TAG = re.compile(r"[0-9A-Fa-f]{8}\Z")
_VRS_WITHOUT_TEXT = ("SQ", "OB", "OD", "OF", "OL", "OV", "OW", "UN")


def is_tag(key: str) -> bool:
    """True for eight hexadecimal digits."""
    return _TAG.match(key) is not None


def tag_of(key: str) -> int | None:
    """The tag of a keyword or of ``ggggeeee``; None for a keyword that is not known. Tags need no dictionary."""
    if is_tag(key):
        return int(key, 16)
    from pydicom.datadict import tag_for_keyword

    return tag_for_keyword(key)


def name_of(tag: int) -> str:
    """The keyword, or ``GGGGEEEE`` for those without."""
    from pydicom.datadict import dictionary_has_tag, dictionary_keyword

    return (dictionary_keyword(tag) if dictionary_has_tag(tag) else "") or f"{tag:08X}"


def textless(tag: int) -> str | None:
    """A complaint when no text can be a value of the element; None where that is possible, or not known."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    vr = dictionary_VR(tag) if dictionary_has_tag(tag) else ""
    return f"its VR is {vr}, which no text can be a value of" if vr[:2] in _VRS_WITHOUT_TEXT else None


def nearest_keyword(key: str) -> str | None:
    """The keyword that resembles ``key`` most, or None."""
    from pydicom.datadict import keyword_dict

    return nearest(key.replace("_", ""), (keyword for keyword in keyword_dict if keyword))


def vr_of(tag: int) -> str | None:
    """The VR of the data dictionary, the first where there are several; None for what is not in it."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    return dictionary_VR(tag)[:2] if dictionary_has_tag(tag) else None
