"""De-identification: no marked value survives, whatever its VR and wherever it stands; what options keep stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import DataElement, Dataset
from pydicom.datadict import DicomDictionary, dictionary_has_tag, dictionary_VR
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from rewriting_kit import image, pseudonyms, read, written

from harmonyd.rewriting import table
from harmonyd.rewriting.editor import Done
from harmonyd.rewriting.errors import NotAskable
from harmonyd.rewriting.identifiers import change_document
from harmonyd.rewriting.objects import Objects
from harmonyd.rewriting.profile import Profile, ProfileOptions
from harmonyd.rewriting.tree import BINARY, DatasetTree, JsonTree

MARK = "MARKED"
UID_MARK, DATE_MARK, NUMBER_MARK = "1.2.777777", "19770707", 7777777
_TEXT = dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR"), MARK)
VALUES: dict[str, Any] = {
    **_TEXT, **dict.fromkeys(BINARY, MARK.encode() + b"\0\0"), "UI": UID_MARK,
    "DA": DATE_MARK, "DT": DATE_MARK + "070707",
    "TM": "070707.777777", "AS": "777D", "IS": str(NUMBER_MARK), "DS": str(NUMBER_MARK), "US": 7777, "SS": 7777,
    "UL": NUMBER_MARK, "SL": NUMBER_MARK, "UV": NUMBER_MARK, "SV": NUMBER_MARK, "FL": 77777.0, "FD": 7777777.125,
    "AT": 0x77777777,
}  # fmt: skip
FORBIDDEN = (MARK.encode(), UID_MARK.encode(), DATE_MARK.encode(), b"070707.777777", b"777D", str(NUMBER_MARK).encode())


def profile(folder: Path, *options: str, **more: Any) -> Profile:
    return Profile(ProfileOptions(frozenset(options), **more), pseudonyms(folder))


def marked(tag: int, depth: int = 1) -> DataElement:
    """An element with a value to look for; of a sequence, several of them in an item."""
    vr = dictionary_VR(tag)[:2] if dictionary_has_tag(tag) else "LO"
    if vr != "SQ":
        return DataElement(tag, vr, VALUES[vr])
    item = Dataset()
    for inner in (0x00100010, 0x00080018, 0x00080020, 0x0040A160, 0x00080090):
        item.add(marked(inner))
    item.PatientComments = MARK
    if depth:
        item.add(DataElement(0x00081140, "SQ", [marked_item()]))
    return DataElement(tag, "SQ", [item])


def marked_item() -> Dataset:
    item = Dataset()
    item.add(marked(0x00081155))
    item.PatientName = MARK
    item.add_new(0x00110010, "LO", MARK)
    item.add_new(0x00111001, "LO", MARK)
    return item


def all_marked() -> Dataset:
    """Every attribute of the table, private ones, curves, overlays, unknown ones; all once more in an item."""
    ds = image()
    inside = Dataset()
    for tag in table.basic():
        if tag >> 16 > 2 and tag < 0x7FE00010:
            ds.add(marked(tag))
            inside.add(marked(tag, 0))
    for each in (ds, inside):
        each.add_new(0x00090010, "LO", MARK)
        each.add_new(0x00091001, "UN", MARK.encode())
        each.add_new(0x00091002, "SQ", [marked_item()])
        each.add_new(0x50001001, "LO", MARK)
        each.add_new(0x60003000, "OW", MARK.encode())
        each.add_new(0x60004000, "LT", MARK)
        each.add_new(0x0010FFFE, "LO", MARK)
        each.add_new(0x0040A043, "SQ", [marked_item()])
    ds.add_new(0x00540016, "SQ", [inside])
    ds.add_new(0xFFFAFFFA, "SQ", [marked_item()])
    return ds


def meta_marked(ds: Dataset) -> Dataset:
    meta = ds.file_meta
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    for keyword in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ReceivingApplicationEntityTitle"):
        setattr(meta, keyword, MARK)
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = UID_MARK, MARK.encode()
    ds.preamble = MARK.encode().ljust(128, b"\0")
    return ds


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_no_marked_value_survives(tmp_path: Path, syntax: str) -> None:
    """In no attribute of the table, at no depth, in no private one, not in the file meta information, not in a UID."""
    ds = all_marked()
    ds.file_meta.TransferSyntaxUID = syntax
    source = written(tmp_path / "a", meta_marked(ds))
    for secret in FORBIDDEN:
        assert secret in source.read_bytes(), f"{secret!r} is not there before"
    rewritten = Objects(profile(tmp_path)).rewrite(source, tmp_path / "b", forward=True)
    data = (tmp_path / "b").read_bytes()
    assert [secret for secret in FORBIDDEN if secret in data] == []
    after = read(tmp_path / "b")
    assert numbers_of(after) == []
    assert after.PixelData == ds.PixelData
    assert MARK not in str(rewritten.done.told())
    assert rewritten.sop_instance_uid == after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID


def numbers_of(ds: Dataset) -> list[int]:
    """Tags of those of the table that still have a number that was marked."""
    wanted = {VALUES[vr] for vr in ("US", "UL", "FL", "FD", "AT")}
    return [int(each.tag) for each in ds.iterall() if each.VR != "SQ" and each.value in wanted]


def test_no_marked_value_survives_in_json(tmp_path: Path) -> None:
    """What a query finds is treated by the same rules."""
    members = all_marked().to_json_dict()
    Profile(ProfileOptions(), pseudonyms(tmp_path)).forward(JsonTree(members), Done())
    members.pop("7FE00010")
    assert [secret for secret in FORBIDDEN if secret.decode() in str(members)] == []


def test_the_table_is_whole() -> None:
    """As many attributes as table E.1-1 has in the edition; options speak of attributes of the table only."""
    assert len(table.basic()) > 640
    assert set(table.basic().values()) == {"D", "Z", "X", "U", "Z/D", "X/Z", "X/D", "X/Z/D", "X/Z/U*"}
    for name, column in table.columns().items():
        assert column.keys() <= table.basic().keys(), name
    assert {"K"} == set(table.columns()["retain_uids"].values())


def test_what_is_said_about_it(tmp_path: Path) -> None:
    """PS3.15 section E.1.1: that it was done, by what method, and what became of times."""
    source = written(tmp_path / "a", image(StudyDate="20200101"))
    Objects(profile(tmp_path, "retain_full_dates", "retain_device")).rewrite(source, tmp_path / "b", forward=True)
    after = read(tmp_path / "b")
    codes = [(item.CodeValue, item.CodingSchemeDesignator) for item in after.DeidentificationMethodCodeSequence]
    assert codes == [("113100", "DCM"), ("113109", "DCM"), ("113106", "DCM")]
    assert (after.PatientIdentityRemoved, after.LongitudinalTemporalInformationModified) == ("YES", "UNMODIFIED")


@pytest.mark.parametrize(
    ("options", "kept", "gone"),
    [
        ((), (), ("StudyDate", "InstitutionName", "StationName", "PatientSex", "StudyDescription", "PatientBirthDate")),
        (("retain_full_dates",), ("StudyDate", "AcquisitionDateTime"), ("PatientBirthDate", "StationName")),
        (("retain_institution",), ("InstitutionName",), ("StudyDate", "StationName")),
        (("retain_device",), ("StationName",), ("InstitutionName", "StudyDate")),
        (("retain_patient_characteristics",), ("PatientSex", "PatientAge"), ("PatientBirthDate", "StudyDate")),
        (("retain_uids",), ("StudyInstanceUID", "SOPInstanceUID"), ("StudyDate", "PatientName")),
    ],
)
def test_options(tmp_path: Path, options: tuple[str, ...], kept: tuple[str, ...], gone: tuple[str, ...]) -> None:
    """Each keeps what its column says, and nothing else."""
    ds = Dataset()
    for keyword in {
        "StudyInstanceUID",
        "SOPInstanceUID",
        "PatientAge",
        "AcquisitionDateTime",
        "PatientName",
        *kept,
        *gone,
    }:
        tag = next(tag for tag, entry in DicomDictionary.items() if entry[4] == keyword)
        ds.add(marked(tag))
    before = {keyword: ds.get(keyword) for keyword in kept + gone}
    profile(tmp_path, *options).forward(DatasetTree(ds), Done())
    assert {keyword: ds.get(keyword) for keyword in kept} == {keyword: before[keyword] for keyword in kept}
    assert [keyword for keyword in gone if ds.get(keyword) == before[keyword]] == []


def test_modified_dates(tmp_path: Path) -> None:
    """All of a patient's are earlier by the same number of days; times of the day stay. Of another's, by another."""

    def shifted(patient: str) -> Dataset:
        ds = Dataset()
        ds.PatientID, ds.StudyDate, ds.SeriesDate, ds.StudyTime = patient, "20200310", "20200301", "101500"
        ds.AcquisitionDateTime, ds.ContentDate, ds.PatientBirthDate = "20200310101500.5", "no date", "19700101"
        profile(tmp_path, "retain_modified_dates").forward(DatasetTree(ds), Done())
        return ds

    one, other = shifted("1"), shifted("2")
    assert one.StudyDate < "20200310" and one.AcquisitionDateTime == f"{one.StudyDate}101500.5"
    assert one.StudyTime == "101500"
    assert one.ContentDate in ("", None) and one.PatientBirthDate in ("", None)
    assert one.StudyDate != other.StudyDate
    assert one == shifted("1")


def test_descriptions(tmp_path: Path) -> None:
    """With clean_descriptors those stay that match a pattern as a whole."""
    ds = Dataset()
    ds.StudyDescription, ds.SeriesDescription, ds.ProtocolName = "CHEST PA", "Jane Doe CHEST", "CHEST"
    profile(tmp_path, "clean_descriptors", descriptors=("CHEST*",)).forward(DatasetTree(ds), Done())
    assert (ds.get("StudyDescription"), ds.get("SeriesDescription"), ds.get("ProtocolName")) == (
        "CHEST PA",
        None,
        "CHEST",
    )


def test_pseudonyms_or_nothing(tmp_path: Path) -> None:
    """Name and ID are the same pseudonym for the same patient, or empty."""
    ds, bare = Dataset(), Dataset()
    for each in (ds, bare):
        each.PatientID, each.PatientName = "7", "Doe^Jane"
    profile(tmp_path).forward(DatasetTree(ds), Done())
    profile(tmp_path, pseudonyms=False).forward(DatasetTree(bare), Done())
    assert ds.PatientID == ds.PatientName and ds.PatientID.startswith("P")
    assert (bare.PatientID, bare["PatientName"].VM) == ("ANONYMIZED", 0)


def test_the_way_back(tmp_path: Path) -> None:
    """UIDs and Patient ID, for whoever may see them; what is gone stays so."""
    editor = profile(tmp_path)
    ds = image()
    editor.forward(DatasetTree(ds), Done())
    made = (ds.PatientID, ds.StudyInstanceUID)
    editor.backward(DatasetTree(ds), Done())
    assert (ds.PatientID, ds.StudyInstanceUID) == ("7", "1.2.3") != made
    assert ds.PatientName == made[0]


def test_queries(tmp_path: Path) -> None:
    """By pseudonym and hashed UID, and by what stays; not by what is removed, at any depth."""
    editor = profile(tmp_path)
    name, uid = editor._ids.forward("7"), editor.uid("1.2.3", forward=True)
    asked = {"PatientID": name, "StudyInstanceUID": uid, "Modality": "CT", "PatientName": "", "StudyDate": "*"}
    document, _ = change_document(asked, editor, forward=False)
    assert document == {**asked, "PatientID": "7", "StudyInstanceUID": "1.2.3"}
    for key, value in (
        ("PatientName", "D*"),
        ("StudyDate", "20200101-"),
        ("00091001", "x"),
        ("ReferringPhysicianName", "x"),
    ):
        with pytest.raises(NotAskable):
            change_document({key: value}, editor, forward=False)
    for inner in ({"AccessionNumber": "1"}, {"ScheduledProtocolCodeSequence": [{"CodeValue": "1"}]}):
        with pytest.raises(NotAskable):
            change_document({"RequestAttributesSequence": [inner]}, editor, forward=False)
    named = {"RequestAttributesSequence": [{"AccessionNumber": ""}]}
    assert change_document(named, editor, forward=False)[0] == named
