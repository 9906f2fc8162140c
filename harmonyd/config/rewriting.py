"""``type = "rewrite"`` and ``"deidentify"``: rules for elements, UIDs, AE titles and regions of pixels."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harmonyd.config import checks, keywords
from harmonyd.config.errors import listing
from harmonyd.config.fields import Section

TYPES = ("rewrite", "deidentify")
TOWARDS = ("backend", "client")
PROFILE_OPTIONS = (
    *("clean_descriptors", "retain_device", "retain_full_dates", "retain_institution", "retain_modified_dates"),
    *("retain_patient_characteristics", "retain_uids"),
)
LEAST_KEY_BYTES = 32
_MOST_KEY_BYTES = 4096
_AFFIX_VRS = ("AE", "CS", "LO", "PN", "SH", "UC")
_FIXED = (0x00080005, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00080052)
"""Character set, UIDs and level: other data sets refer to these, or they say how to read this one."""
_PIXELS = 0x7FE0
_TAG = re.compile(r"\(?([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})\)?\Z")
_BLANK_KEYS = {
    "Modality": 0x00080060, "Manufacturer": 0x00080070, "ManufacturerModelName": 0x00081090,
    "SOPClassUID": 0x00080016, "Rows": 0x00280010, "Columns": 0x00280011, "BurnedInAnnotation": 0x00280301,
    "PhotometricInterpretation": 0x00280004,
}  # fmt: skip
_MOST_REGIONS = 100


class Key(NamedTuple):
    """A key, and how many pseudonyms that were made with it are known."""

    key: bytes
    max_known: int

    def __repr__(self) -> str:
        return f"Key(…, {self.max_known})"


def rewrite(folders: Sequence[Path], section: Section) -> Mapping[str, Any]:
    """The keys of ``rewrite``. ``rules``: (path, anywhere, VR, kind, what) each, in the order in which they apply."""
    rules = _Rules(section)
    rules.read()
    uids = section.table("uids")
    found = {
        **_common(folders[-1], section),
        "rules": tuple(rules.found),
        "uids": _key(folders[-1], uids) if "uids" in section else None,
        "aets": {key: _aets(section.table(key)) for key in ("calling_aet", "called_aet")},
    }
    uids.finish()
    if section.sound and not (rules.found or found["uids"] or found["regions"] or any(found["aets"].values())):
        section.problem(None, "changes nothing", "give set, remove, map, prefix, suffix, uids, an AE title, or blank")
    section.finish()
    return found


def deidentify(folders: Sequence[Path], section: Section) -> Mapping[str, Any]:
    """The keys of ``deidentify``."""
    options = section.strings("profile_options", _option)
    found = {
        **_common(folders[-1], section),
        "uids": _key(folders[-1], section),
        "options": frozenset(options),
        "descriptors": section.strings("descriptors", _ascii),
        "pseudonyms": section.flag("pseudonyms", True),
    }
    if {"retain_full_dates", "retain_modified_dates"} <= set(options):
        section.problem("profile_options", "dates are kept, or modified, but not both", "remove one")
    if ("clean_descriptors" in options) != bool(found["descriptors"]) and section.sound:
        what = "patterns for descriptions that may stay" if found["descriptors"] else "missing"
        section.problem(
            "descriptors", what, 'belongs with profile_options = ["clean_descriptors"], and the other way round'
        )
    section.finish()
    return found


def _common(base: Path, section: Section) -> dict[str, Any]:
    section.require("towards")
    report = section.text("report_path", "", checks.path)
    return {
        "towards": section.choice("towards", "backend", TOWARDS),
        "report_path": (base / report).resolve() if report else None,
        "regions": tuple(_regions(each) for each in section.list_of_tables("blank")),
    }


def _option(value: str) -> str | None:
    return None if value in PROFILE_OPTIONS else f"allowed: {listing(PROFILE_OPTIONS)}"


def _ascii(value: str) -> str | None:
    return None if value.isascii() and value.isprintable() else "only printable characters of ASCII"


def _value(value: str) -> str | None:
    complaint = _ascii(value)
    return complaint or ("no backslash, * or ?" if re.search(r"[\\*?]", value) else None)


def _key(base: Path, section: Section) -> Key | None:
    """None when a mistake was noted."""
    most = section.integer("max_known", 5_000_000, 1000, 1_000_000_000)
    section.require("key_file")
    name = section.text("key_file", "", checks.path)
    if not name:
        return None
    path = (base / name).resolve()
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            key = file.read(_MOST_KEY_BYTES + 1).removesuffix(b"\n")
    except OSError as error:
        remedy = f"(umask 077; head -c 32 /dev/urandom | base64 > {path})"
        section.problem("key_file", f"{path} cannot be read: {error.strerror}", remedy)
        return None
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        section.problem("key_file", f"others may read or write {path}", f"chmod 600 {path}")
    if not LEAST_KEY_BYTES <= len(key) <= _MOST_KEY_BYTES:
        section.problem("key_file", f"{path} has {len(key)} bytes", f"a key has {LEAST_KEY_BYTES} at least")
    return Key(key, most)


def _aets(section: Section) -> dict[str, str]:
    for name in section:
        if (complaint := checks.ae_title(name)) is not None:
            section.problem(name, complaint)
    return {name: section.text(name, "", checks.ae_title) for name in section}


def _regions(section: Section) -> tuple[dict[int, tuple[str, ...]], tuple[tuple[int, ...], ...], str]:
    when = section.table("when")
    conditions = {}
    for key in when:
        if key not in _BLANK_KEYS:
            when.problem(key, "not an attribute that decides here", f"allowed: {listing(_BLANK_KEYS)}")
            continue
        given = when.raw(key)
        patterns = [str(each) for each in (given if isinstance(given, list) else [given])]
        conditions[_BLANK_KEYS[key]] = tuple(patterns)
    raw = section.raw("regions")
    section.require("regions")
    is_list = isinstance(raw, list) and len(raw) <= _MOST_REGIONS
    if raw is not None and not (is_list and all(map(_is_region, raw))):
        section.problem("regions", "not a list of [x, y, width, height]", "write [[0, 0, 640, 40]], in pixels")
        raw = []
    compressed = section.choice("compressed", "decode", ("decode", "refuse", "pass"))
    section.finish()
    return conditions, tuple(tuple(each) for each in raw or ()), compressed


def _is_region(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    if not all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 1 << 16 for each in value):
        return False
    return bool(value[2] > 0 and value[3] > 0)


Rule = tuple[tuple[int, ...], bool, str, str, Any]


class _Rules:
    """Reads ``set``, ``remove``, ``map``, ``prefix`` and ``suffix``."""

    def __init__(self, section: Section) -> None:
        self.found: list[Rule] = []
        self._section = section
        self._seen: dict[tuple[tuple[int, ...], bool], str] = {}

    def read(self) -> None:
        section = self._section
        affixes: dict[tuple[tuple[int, ...], bool, str], dict[str, str]] = {}
        for kind in ("prefix", "suffix"):
            table = section.table(kind)
            for name in table:
                text = table.text(name, "", _value)
                place = self._place(table, name, "affix")
                if place is not None and place[2] not in _AFFIX_VRS:
                    table.problem(name, f"its VR is {place[2]}", f"allowed: {listing(_AFFIX_VRS)}")
                elif place is not None:
                    affixes.setdefault(place, {})[kind] = text
        for place, texts in affixes.items():
            self.found.append((*place, "affix", (texts.get("prefix", ""), texts.get("suffix", ""))))
        self._maps(section.table("map"))
        self._sets(section.table("set"))
        for name in section.strings("remove"):
            place = self._place(section, name, "remove", key="remove")
            if place is not None:
                self.found.append((*place, "remove", None))

    def _maps(self, maps: Section) -> None:
        for name, table in maps.tables().items():
            values = {old: table.text(old, "", _value) for old in table}
            place = self._place(maps, name, "map")
            for old in [old for old in values if _value(old) or not old]:
                table.problem(old, _value(old) or "empty", "write the value as it is in data sets")
            for new in {new for new in values.values() if list(values.values()).count(new) > 1}:
                what = f"several values become {new!r}, so there is no way back"
                table.problem(next(old for old in values if values[old] == new), what, "let each become another one")
            if place is not None:
                self.found.append((*place, "map", values))

    def _sets(self, table: Section) -> None:
        for name in table:
            given = table.raw(name)
            values = given if isinstance(given, list) else [given]
            texts = [str(each) for each in values if each != ""]
            if any(isinstance(each, bool | dict) or not _is_value(str(each)) for each in values):
                table.problem(name, "not text in ASCII or a number, nor a list of these", 'write "x" or ["x", "y"]')
            place = self._place(table, name, "set")
            if place is not None and (complaint := keywords.textless(place[0][-1])) is not None:
                table.problem(name, complaint, "remove it")
            elif place is not None and not _fits(place[2], texts):
                table.problem(name, f"its VR is {place[2]}, which wants numbers", "write a number")
            elif place is not None:
                self.found.append((*place, "set", tuple(texts)))

    def _place(
        self, section: Section, name: str, kind: str, key: str | None = None
    ) -> tuple[tuple[int, ...], bool, str] | None:
        """Path, anywhere and VR; None when a mistake was noted."""
        parts = name.split(".")
        anywhere = parts[0] == "*"
        parts = parts[1:] if anywhere else parts
        where = key or name
        tags = [_tag_of(part) for part in parts]
        wrong = next((part for part, tag in zip(parts, tags, strict=True) if tag is None), None)
        if wrong is not None or not tags or (anywhere and len(tags) > 1):
            remedy = "write PatientID, 00100020, SequenceKeyword.Keyword, or *.PatientID for all items"
            near = keywords.nearest_keyword(wrong) if wrong else None
            section.problem(where, f"{name}: no DICOM keyword, tag, or path of these", remedy, near)
            return None
        path = tuple(tag for tag in tags if tag is not None)
        vr = keywords.vr_of(path[-1])
        if path[-1] in _FIXED or path[-1] >> 16 in (0, 2, _PIXELS) or (vr is None and kind != "remove"):
            section.problem(where, f"{name} cannot be changed like this", "uids is for UIDs; private elements can go")
            return None
        before = self._seen.setdefault((path, anywhere), kind)
        if before != kind:
            section.problem(where, f"{name} has another rule, in {before}", "one rule for each element")
        return path, anywhere, vr or "UN"


def _tag_of(name: str) -> int | None:
    match = _TAG.match(name)
    return keywords.tag_of(match[1] + match[2] if match else name)


def _is_value(text: str) -> bool:
    return _ascii(text) is None and "\\" not in text


def _fits(vr: str, texts: Sequence[str]) -> bool:
    if vr not in ("US", "SS", "UL", "SL", "UV", "SV", "IS", "DS", "FL", "FD"):
        return True
    try:
        for text in texts:
            float(text) if vr in ("DS", "FL", "FD") else int(text)
    except ValueError:
        return False
    return True
