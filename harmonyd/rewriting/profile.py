"""De-identification by the Basic Application Level Confidentiality Profile of PS3.15 Annex E, and its options.

Whatever the table does not know and might name somebody goes, too: private attributes, public ones that are in no data
dictionary, all overlays and curves, and person names that are not in the table.
"""

from __future__ import annotations

import datetime
import fnmatch
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pydicom.datadict import dictionary_has_tag

from harmonyd.rewriting import table
from harmonyd.rewriting.changes import ID, Change, Hashed
from harmonyd.rewriting.editor import Check, Done
from harmonyd.rewriting.errors import CannotRewrite
from harmonyd.rewriting.pseudonyms import Pseudonyms
from harmonyd.rewriting.rules import ask_element, change_element, forbid
from harmonyd.rewriting.tree import BINARY, Tree, everywhere

PATIENT_ID, PATIENT_NAME = 0x00100020, 0x00100010
_DEEPEST = 64
_MORE = {0x0040A160: "D"}
"""Text Value: the table has only sequences of it that are known today."""
_DUMMIES = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), "ANONYMIZED"),
    **dict.fromkeys(("DS", "IS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT"), "0"),
    "AS": "000Y", "DA": "19000101", "DT": "19000101000000", "TM": "000000", "UR": "http://anonymized.invalid",
}  # fmt: skip
_DATE = re.compile(r"[0-9]{8}")


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """``options``: names of ``table.OPTIONS``."""

    options: frozenset[str] = frozenset()
    descriptors: tuple[str, ...] = ()
    """With clean_descriptors: patterns (``*``, ``?``), one of which a description that stays has to match."""
    pseudonyms: bool = True
    """Patient's Name and ID become a pseudonym, instead of nothing."""


class Profile:
    """Implements ``Editor``. Backward only UIDs and Patient ID come back: what is gone has no way back."""

    def __init__(self, options: ProfileOptions, names: Pseudonyms) -> None:
        self._options = options
        self._uids, self._ids = Hashed(names), Hashed(names, ID)
        self._names = names
        self._actions = {tag: self._action(tag, action) for tag, action in {**_MORE, **table.basic()}.items()}
        self._descriptors = [re.compile(fnmatch.translate(each.replace("[", "[[]"))) for each in options.descriptors]

    def _action(self, tag: int, basic: str) -> str:
        """What the options leave of an action: K, C (descriptors), shift (dates), or itself."""
        for name in sorted(self._options.options):
            column = table.columns()[name].get(tag)
            if column == "K":
                return "K"
            if column == "C" and name == "clean_descriptors":
                return "C" + basic
            if column == "C" and name == "retain_modified_dates":
                return "S" + basic
        if tag in (PATIENT_ID, PATIENT_NAME) and self._options.pseudonyms:
            return "P"
        return basic

    # --- data sets

    def forward(self, tree: Tree, done: Done) -> None:
        """See ``Editor``."""
        patient = next(iter(tree.texts(PATIENT_ID)), "")
        self._dataset(tree, done, patient, 0)

    def _dataset(self, tree: Tree, done: Done, patient: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise CannotRewrite("Its sequences are nested too deep.")
        for tag in tree.tags():
            action = self.action_of(tree, tag)
            if action not in ("K", ""):
                done.note({"S": "shift", "C": "clean", "P": "pseudonym"}.get(action[0], action), tag)
            self._element(tree, tag, action, done, patient, depth)

    def action_of(self, tree: Tree, tag: int) -> str:
        """Return what is done to an element that is there; "" for one that stays and may have items."""
        group = tag >> 16
        if group & 1 or group & 0xFF00 == 0x5000 or group & 0xFF00 == 0x6000 or not dictionary_has_tag(tag):
            return "X"
        found = self._actions.get(tag)
        if found is None:
            return "Z" if tree.vr(tag) == "PN" else ""
        return found

    def _element(self, tree: Tree, tag: int, action: str, done: Done, patient: str, depth: int) -> None:
        vr = tree.vr(tag)
        kind = action.lstrip("SC") if len(action) > 1 else action
        if action.startswith("S") and vr in ("DA", "DT", "TM"):
            if vr != "TM":
                tree.put(tag, vr, [self._shifted(text, patient) for text in tree.texts(tag)])
        elif action.startswith("C") and vr != "SQ" and self._may_stay(tree, tag):
            return
        elif kind in ("K", "", "X/Z/U*"):
            if vr == "UN":
                tree.remove(tag)  # a sequence, perhaps, that nobody can look into
            for item in tree.items(tag):
                self._dataset(item, done, patient, depth + 1)
        elif kind == "X":
            tree.remove(tag)
        elif kind == "U" and vr == "UI":
            self._change(tree, tag, self._uids)
        elif kind == "P":
            self._pseudonym(tree, tag, vr, patient)
        elif kind in ("Z", "X/Z"):
            tree.put(tag, vr if vr != "UN" else "LO", [])
        else:
            self._dummy(tree, tag, vr, depth)

    def _change(self, tree: Tree, tag: int, change: Change) -> None:
        change_element(tree, tag, change, Done(), "", forward=True)

    def _pseudonym(self, tree: Tree, tag: int, vr: str, patient: str) -> None:
        tree.put(tag, vr, [self._ids.forward(patient)] if patient else [])

    def _may_stay(self, tree: Tree, tag: int) -> bool:
        texts = tree.texts(tag)
        return all(any(pattern.match(text) for pattern in self._descriptors) for text in texts) and bool(texts)

    def _shifted(self, text: str, patient: str) -> str:
        """A date or date and time, some days earlier; empty where there is no date in it."""
        found = _DATE.match(text)
        with suppress(ValueError, OverflowError):
            if found:
                date = datetime.datetime.strptime(found[0], "%Y%m%d").date()
                earlier = date - datetime.timedelta(days=self._names.days(patient))
                return f"{earlier:%Y%m%d}{text[8:]}"
        return ""

    def _dummy(self, tree: Tree, tag: int, vr: str, depth: int) -> None:
        if vr == "SQ":
            self._dummy_sequence(tree, tag, depth)
        elif vr == "UI":
            self._change(tree, tag, self._uids)
        elif vr in BINARY:
            tree.put(tag, vr, ["\0\0\0\0\0\0\0\0"])
        else:
            tree.put(tag, vr, [_DUMMIES.get(vr, "")])

    def _dummy_sequence(self, tree: Tree, tag: int, depth: int) -> None:
        """One item with dummies for what the first one had; sequences in it are left out."""
        items = tree.items(tag)
        if not items:
            tree.put(tag, "SQ", [])
            return
        had = {each: items[0].vr(each) for each in items[0].tags() if not each >> 16 & 1}
        item = tree.make_item(tag)
        for each, vr in had.items():
            if vr == "UI":
                continue
            if vr != "SQ" and dictionary_has_tag(each):
                item.put(each, vr, [_DUMMIES.get(vr, "\0\0\0\0\0\0\0\0")])

    def backward(self, tree: Tree, done: Done) -> None:
        """See ``Editor``."""
        for place in everywhere(tree):
            for tag in place.tags():
                if (change := self._way_back(tag)) is not None:
                    change_element(place, tag, change, done, "undo", forward=False)

    def _way_back(self, tag: int) -> Change | None:
        action = self._actions.get(tag)
        if action == "U":
            return self._uids
        return self._ids if action == "P" and tag == PATIENT_ID else None

    # --- queries

    def ask(self, tree: Tree, *, forward: bool) -> list[Check]:
        """See ``Editor``."""
        checks: list[Check] = []
        for place in everywhere(tree):
            for tag in place.tags():
                if (change := self._way_back(tag)) is not None:
                    checks += ask_element(place, tag, change, forward=forward, top=place is tree)
                elif self.action_of(place, tag) not in ("", "K", "X/Z/U*"):
                    forbid(place, tag)
        return checks

    def uid(self, uid: str, *, forward: bool) -> str:
        """See ``Editor``."""
        if "retain_uids" in self._options.options or not uid:
            return uid
        return self._uids.forward(uid) if forward else self._uids.backward(uid)

    def keep(self) -> None:
        """See ``Editor``."""
        self._names.keep()

    def codes(self, *, blanked: bool) -> Sequence[tuple[str, str]]:
        """What was applied, for De-identification Method Code Sequence (PS3.16 CID 7050)."""
        found = [("113100", "Basic Application Confidentiality Profile")]
        found += [("113101", "Clean Pixel Data Option")] if blanked else []
        return [*found, *(table.OPTIONS[name] for name in sorted(self._options.options))]

    @property
    def times(self) -> str:
        """Longitudinal Temporal Information Modified (0028,0303)."""
        if "retain_full_dates" in self._options.options:
            return "UNMODIFIED"
        return "MODIFIED" if "retain_modified_dates" in self._options.options else "REMOVED"
