"""Whole objects, rewritten: data set, file meta information and pixels, and what was done to them. Blocking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset

from harmonyd.rewriting.blanking import BlankRule, blank, rule_for
from harmonyd.rewriting.editor import Done, Editor
from harmonyd.rewriting.errors import BadObject, Compressed
from harmonyd.rewriting.files import PIXELS, Pixels, rewrite_file
from harmonyd.rewriting.profile import Profile
from harmonyd.rewriting.tree import DatasetTree

_OF_NETWORKS = (0x00020016, 0x00020017, 0x00020018, 0x00020026, 0x00020027, 0x00020028, 0x00020100, 0x00020102)
"""AE titles, addresses and private information in the file meta information (PS3.10 section 7.1)."""


@dataclass(slots=True)
class Rewritten:
    """An object that was rewritten."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    done: Done = field(default_factory=Done)

    @property
    def uids(self) -> dict[str, str]:
        """As metadata of requests has them."""
        return {
            "sop_class_uid": self.sop_class_uid,
            "sop_instance_uid": self.sop_instance_uid,
            "study_instance_uid": self.study_instance_uid,
            "series_instance_uid": self.series_instance_uid,
        }


class Objects:
    """Rewrites objects with one editor, and ``regions`` of pixels on their way forward."""

    def __init__(self, editor: Editor, regions: Sequence[BlankRule] = ()) -> None:
        self.editor = editor
        self._regions = tuple(regions)

    def rewrite(self, source: Path, target: Path, *, forward: bool) -> Rewritten:
        """Write the object to ``target``. Raises ``BadObject``, ``CannotRewrite`` and ``OSError``."""
        work = _Work(self.editor, self._regions if forward else (), forward=forward)
        ds = rewrite_file(source, target, work.edit, work.after if self._regions and forward else None)
        self.editor.keep()
        uids = (ds.get(key) or "" for key in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"))
        class_uid, instance, study, series = map(str, uids)
        return Rewritten(target, class_uid, instance, study, series, work.done)


class _Work:
    def __init__(self, editor: Editor, regions: Sequence[BlankRule], *, forward: bool) -> None:
        self.done = Done()
        self._editor = editor
        self._rules = regions
        self._forward = forward
        self._rule: BlankRule | None = None

    def edit(self, ds: Dataset) -> None:
        """Change the data set, and what the file meta information repeats of it."""
        self._rule = self._chosen(ds)
        tree = DatasetTree(ds)
        if self._forward:
            self._editor.forward(tree, self.done)
        else:
            self._editor.backward(tree, self.done)
        meta = ds.file_meta
        if isinstance(self._editor, Profile) and self._forward:
            for tag in _OF_NETWORKS:
                if tag in meta:
                    del meta[tag]
            ds.preamble = b"\0" * 128
            _say_what_was_done(ds, self._editor, blanked=self._rule is not None)
        if self._rule is not None:
            ds.BurnedInAnnotation = "NO"
        if ds.get("SOPInstanceUID"):
            meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID

    def _chosen(self, ds: Dataset) -> BlankRule | None:
        """The rule whose regions will be blanked. Raises ``BadObject`` where that is not possible."""
        rule = rule_for(self._rules, ds) if "Rows" in ds else None
        if rule is None or not rule.regions:
            return None
        if not ds.file_meta.TransferSyntaxUID.is_encapsulated:
            return rule
        if rule.compressed == "pass":
            return None
        if rule.compressed == "decode":
            raise Compressed("The object has regions of pixels to be blanked, and nothing here decodes its pixels.")
        raise BadObject(
            "The object has regions of pixels to be blanked, and its pixels are compressed.",
            hint='Have it sent uncompressed, or set compressed = "decode" in the rule.',
        )

    def after(self, ds: Dataset, out: BinaryIO, pixels: Pixels) -> None:
        """Blank the regions."""
        if self._rule is not None:
            blank(ds, out, pixels, self._rule.regions)
            self.done.note("blank", PIXELS[-1])


def _say_what_was_done(ds: Dataset, profile: Profile, *, blanked: bool) -> None:
    """PS3.15 section E.1.1, items 6 and 7."""
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = "PS3.15 Annex E, by harmonyd"
    items = []
    for value, meaning in profile.codes(blanked=blanked):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        items.append(item)
    ds.DeidentificationMethodCodeSequence = items
    ds.LongitudinalTemporalInformationModified = profile.times
