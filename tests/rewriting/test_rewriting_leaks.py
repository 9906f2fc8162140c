"""What the table of Annex E does not name, what stands in unexpected places, and questions in the wrong VR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from rewriting_kit import image, pseudonyms, read, rules, written

from harmonyd.rewriting.blanking import BlankRule, Region
from harmonyd.rewriting.changes import Hashed
from harmonyd.rewriting.editor import Done, Editor
from harmonyd.rewriting.errors import NotAskable
from harmonyd.rewriting.identifiers import change_document
from harmonyd.rewriting.objects import Objects
from harmonyd.rewriting.profile import Profile, ProfileOptions
from harmonyd.rewriting.tree import DatasetTree, JsonTree


def profile(folder: Path, *options: str) -> Profile:
    return Profile(ProfileOptions(frozenset(options)), pseudonyms(folder))


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (0x00081190, "http://pacs/studies/1.2.3"),
        (0x0040E010, "http://pacs/studies/1.2.3"),
        (0x00100033, "S.77.7.7"),
        (0x00420010, "Letter about Jane Doe"),
        (0x00400400, "Jane Doe is late"),
        (0x00402007, "A-4711"),
    ],
)
def test_what_is_not_in_the_table_and_leads_to_somebody_goes(tag: int, value: str, tmp_path: Path) -> None:
    """Addresses with UIDs in them, dates of birth in other calendars, free text, retired order numbers."""
    ds = image()
    setattr(ds, keyword_for_tag(tag), value)
    profile(tmp_path).forward(DatasetTree(ds), Done())
    assert tag not in ds or not ds[tag].value


def test_uids_that_the_table_does_not_have_are_hashed_as_the_others(tmp_path: Path) -> None:
    """So that references within a study stay true; and back."""
    editor, ds = profile(tmp_path), image(SOPInstanceUIDOfConcatenationSource="1.2.3.1")
    editor.forward(DatasetTree(ds), Done())
    assert ds.SOPInstanceUIDOfConcatenationSource == ds.SOPInstanceUID != "1.2.3.1"
    editor.backward(DatasetTree(ds), Done())
    assert ds.SOPInstanceUIDOfConcatenationSource == "1.2.3.1"
    kept = image(SOPInstanceUIDOfConcatenationSource="1.2.3.1")
    profile(tmp_path / "kept", "retain_uids").forward(DatasetTree(kept), Done())
    assert kept.SOPInstanceUIDOfConcatenationSource == "1.2.3.1"


@pytest.mark.parametrize(
    "asked",
    [
        {"00100010": {"vr": "OB", "InlineBinary": "RE9FKg=="}},
        {"00100020": {"vr": "OB", "InlineBinary": "MTIzIA=="}},
        {"00091001": {"vr": "UN", "InlineBinary": "MTIzIA=="}},
        {"00081111": {"vr": "SQ", "Value": [{"00100010": {"vr": "OB", "InlineBinary": "RE9FKg=="}}]}},
    ],
)
def test_a_question_in_bytes_does_not_pass_untranslated(asked: dict[str, Any], tmp_path: Path) -> None:
    """A caller that encodes a name as OB: a PACS would read a name again."""
    with pytest.raises(NotAskable):
        change_document(asked, profile(tmp_path), forward=False)


def test_a_uid_is_translated_whatever_vr_it_is_asked_in(tmp_path: Path) -> None:
    """As LO; bytes are refused."""
    editor: Editor = rules(uids=Hashed(pseudonyms(tmp_path)))
    asked, _ = change_document({"0020000D": {"vr": "LO", "Value": ["1.2.3"]}}, editor, forward=True)
    assert asked["0020000D"]["Value"] == [editor.uid("1.2.3", forward=True)]
    with pytest.raises(NotAskable):
        change_document({"0020000D": {"vr": "OB", "InlineBinary": "MS4yLjM="}}, editor, forward=True)


def test_tags_of_json_in_small_letters_are_tags(tmp_path: Path) -> None:
    """PS3.18 section F.2.2 wants capitals; not every archive writes them."""
    members: dict[str, Any] = {
        "0008114a": {"vr": "SQ", "Value": [{"0010001a": {"vr": "LO", "Value": ["x"]}}]},
        "0040a160": {"vr": "UT", "Value": ["Jane Doe"]},
    }
    profile(tmp_path).forward(JsonTree(members), Done())
    assert "Jane Doe" not in str(members)
    assert list(members) == [key.upper() for key in members]


def test_a_sequence_is_one_whatever_it_is_called(tmp_path: Path) -> None:
    """By an archive that gives its items another VR."""
    members: dict[str, Any] = {"00081140": {"vr": "LO", "Value": [{"00100010": {"Value": ["Jane Doe"]}}]}}
    profile(tmp_path).forward(JsonTree(members), Done())
    assert "Jane Doe" not in str(members)


def test_the_file_meta_information_is_the_only_one_with_the_uid(tmp_path: Path) -> None:
    """Of an object without SOP Instance UID."""
    ds, editor = image(), profile(tmp_path)
    source = written(tmp_path / "a.dcm", ds)
    ds = read(source)
    del ds.SOPInstanceUID
    ds.save_as(source)
    done = Objects(editor).rewrite(source, tmp_path / "b.dcm", forward=True)
    assert read(done.path).file_meta.MediaStorageSOPInstanceUID == editor.uid("1.2.3.1", forward=True)


def test_frames_that_nobody_counts_are_blanked(tmp_path: Path) -> None:
    """Number of Frames says one, and there are two."""
    source = written(tmp_path / "a.dcm", image(PixelData=bytes(range(100, 148))))
    objects = Objects(rules(), [BlankRule({}, (Region(0, 0, 6, 4),))])
    assert read(objects.rewrite(source, tmp_path / "b.dcm", forward=True).path).PixelData == bytes(48)


def test_an_object_without_pixels_keeps_what_stands_where_they_would(tmp_path: Path) -> None:
    """Siemens has its spectra in (7FE1,xx10)."""
    ds: Dataset = image()
    del ds.PixelData
    ds.private_block(0x7FE1, "SIEMENS CSA NON-IMAGE", create=True).add_new(0x10, "OB", b"spectrum")
    objects = Objects(rules(uids=Hashed(pseudonyms(tmp_path))))
    done = objects.rewrite(written(tmp_path / "a.dcm", ds), tmp_path / "b.dcm", forward=True)
    assert read(done.path)[0x7FE11010].value == b"spectrum"


def test_dates_are_not_moved_by_the_same_for_everybody(tmp_path: Path) -> None:
    """A question that leaves out Patient ID would tell dates of all patients to whoever knows one."""
    editor = profile(tmp_path, "retain_modified_dates")
    members = {"00080020": {"vr": "DA", "Value": ["20240102"]}, "00100020": {"vr": "LO", "Value": ["7"]}}
    nobodys = {"00080020": {"vr": "DA", "Value": ["20240102"]}}
    for each in (members, nobodys):
        editor.forward(JsonTree(each, takes_new=False), Done())
    assert members["00080020"]["Value"] != ["20240102"]
    assert nobodys == {"00080020": {"vr": "DA"}}
