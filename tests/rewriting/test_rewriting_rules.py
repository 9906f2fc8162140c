"""Rules on data sets of pydicom and on DICOM JSON: what they do, that it can be undone, and what queries become."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from rewriting_kit import PATIENT_ID, PATIENT_NAME, STATION, fixed, pseudonyms, rule, rules

from harmonyd.rewriting.changes import Affix, Hashed, Table, matches
from harmonyd.rewriting.editor import Check, Done
from harmonyd.rewriting.errors import CannotRewrite, NotAskable
from harmonyd.rewriting.identifiers import change_document
from harmonyd.rewriting.rules import Rules
from harmonyd.rewriting.tree import DatasetTree, JsonTree

REQUEST_ATTRIBUTES = 0x00400275
TEXT = st.text("ABCxyz019 ._", min_size=1, max_size=20).map(str.strip).filter(bool)
UIDS = st.lists(st.integers(0, 10**9).map(str), min_size=2, max_size=5).map(lambda parts: "1.2." + ".".join(parts))


def data_set(**elements: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def both(ds: Dataset, editor: Rules, *, forward: bool = True) -> Dataset:
    """The data set after it was changed; as JSON it becomes the same."""
    members = ds.to_json_dict()
    done = Done()
    (editor.forward if forward else editor.backward)(JsonTree(members), done)
    changed = copy.deepcopy(ds)
    same = Done()
    (editor.forward if forward else editor.backward)(DatasetTree(changed), same)
    assert changed.to_json_dict() == members
    assert same.told() == done.told()
    return changed


def ask(editor: Rules, document: dict[str, Any], *, forward: bool = True) -> tuple[Any, list[Check]]:
    return change_document(document, editor, forward=forward)


# --- data sets


def test_set_and_remove() -> None:
    """An element gets a fixed value, also where it was missing, or goes."""
    ds = data_set(PatientID="7", PatientComments="x", Rows=3)
    changed = both(ds, rules(fixed(("A", "B"), 0x00081080), fixed((), 0x00104000), fixed(("9",), 0x00280010),
                             fixed(None, PATIENT_ID), fixed(None, PATIENT_NAME)))  # fmt: skip
    assert list(changed.AdmittingDiagnosesDescription) == ["A", "B"]
    assert (changed["PatientComments"].VM, changed.Rows, "PatientID" in changed) == (0, 9, False)


def test_nested_places() -> None:
    """A path leads into each item of a sequence; a star means everywhere, and adds nothing where nothing is."""
    items = [data_set(AccessionNumber="1"), data_set(AccessionNumber="2", RequestAttributesSequence=[data_set()])]
    ds = data_set(AccessionNumber="0", RequestAttributesSequence=items)
    affix = Affix("A-")
    below = both(ds, rules(rule(affix, REQUEST_ATTRIBUTES, 0x00080050)))
    assert [item.AccessionNumber for item in below.RequestAttributesSequence] == ["A-1", "A-2"]
    assert below.AccessionNumber == "0"
    everywhere = both(ds, rules(fixed(("X",), 0x00080050, anywhere=True)))
    assert everywhere.AccessionNumber == "X"
    assert "AccessionNumber" not in everywhere.RequestAttributesSequence[1].RequestAttributesSequence[0]


def test_person_names_keep_their_groups() -> None:
    """Component groups stay apart."""
    ds = data_set(PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう", SpecificCharacterSet="ISO_IR 192")
    assert str(both(ds, rules(rule(Affix("A-"), PATIENT_NAME))).PatientName) == "A-Yamada^Tarou=山田^太郎=やまだ^たろう"


def test_a_value_that_becomes_too_long() -> None:
    """It is not cut: the object is not passed on."""
    with pytest.raises(CannotRewrite, match=r"\(0008,0050\)"):
        both(data_set(AccessionNumber="1234567890123456"), rules(rule(Affix("A-"), 0x00080050)))


def test_uids(tmp_path: Path) -> None:
    """All that name instances change, wherever they are; classes, codes and what the standard defines stay."""
    uids = Hashed(pseudonyms(tmp_path))
    item = data_set(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID="1.2.3.9")
    ds = data_set(
        SOPClassUID="1.2.3.4.99", SOPInstanceUID="1.2.3.1", FrameOfReferenceUID="1.2.840.10008.1.4.1.1",
        StudyInstanceUID="1.2.3.9", ReferencedImageSequence=[item], CodingSchemeUID="1.5",
        IrradiationEventUID=["1.7", "1.8"],
    )  # fmt: skip
    changed = both(ds, rules(uids=uids))
    assert (changed.SOPClassUID, changed.CodingSchemeUID) == ("1.2.3.4.99", "1.5")
    assert changed.FrameOfReferenceUID == "1.2.840.10008.1.4.1.1"
    assert (
        changed.ReferencedImageSequence[0].ReferencedSOPInstanceUID
        == changed.StudyInstanceUID
        == uids.forward("1.2.3.9")
    )
    assert changed.SOPInstanceUID.startswith("2.25.") and changed.SOPInstanceUID.is_valid
    assert both(changed, rules(uids=uids), forward=False) == ds


@given(st.lists(TEXT, min_size=1, max_size=3), TEXT, UIDS, st.sampled_from(["CT1", "CT2", "MR", "x"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_done_can_be_undone(tmp_path: Path, names: list[str], patient: str, uid: str, station: str) -> None:
    """Prefix, suffix, map and hash, on whatever values."""
    editor = rules(
        rule(Affix("A-", ".z"), PATIENT_ID),
        rule(Affix("N^"), PATIENT_NAME, anywhere=True),
        rule(Table({"CT1": "CT-1", "MR": "MR-9"}), STATION),
        uids=Hashed(pseudonyms(tmp_path)),
    )
    inner = data_set(PatientName=names[0], ReferencedSOPInstanceUID=uid)
    ds = data_set(PatientID=patient, PatientName=names[-1], StationName=station, StudyInstanceUID=uid,
                  ReferencedStudySequence=[inner], OtherPatientNames=names)  # fmt: skip
    there = both(ds, editor)
    assert there.PatientID == f"A-{patient}.z"
    assert both(there, editor, forward=False) == ds


# --- queries


@given(TEXT)
@settings(max_examples=40)
def test_a_query_finds_what_it_would_have_found(value: str) -> None:
    """Asked for in its own view, an object is found by what the query becomes in the other one."""
    affix = Affix("A-", "-B")
    for pattern in (value, f"{value[:1]}*", "*", f"*{value[-1:]}", "?" * len(value)):
        there = affix.ask_forward(pattern)
        assert matches(there.value, affix.forward(value), "LO")
        here = affix.ask_backward(f"A-{pattern}-B")
        assert matches(here.value, value, "LO")


@pytest.mark.parametrize(
    ("key", "value", "forward", "expected"),
    [
        ("PatientID", "7", True, "A-7"),
        ("patient_id", "7*", True, "A-7*"),
        ("(0010,0020)", "", True, ""),
        ("00100020", "*", True, "*"),
        ("PatientID", ["7", "8"], True, ["A-7", "A-8"]),
        ("PatientID", "A-7", False, "7"),
        ("PatientID", "A-*", False, "*"),
        ("PatientID", "A*", False, ""),
        ("StationName", "CT1", True, "CT-1"),
        ("StationName", "CT-1", False, "CT1"),
        ("StationName", "C*", True, ""),
        ("StationName", "XA", True, "XA"),
    ],
)  # fmt: skip
def test_keys_of_a_query(key: str, value: Any, forward: bool, expected: Any) -> None:
    """In whatever spelling; what cannot be asked for like that is asked for without a value, and looked at later."""
    editor = rules(rule(Affix("A-"), PATIENT_ID), rule(Table({"CT1": "CT-1"}), STATION))
    document, checks = ask(editor, {"level": "STUDY", key: value, "no_such_key": 1}, forward=forward)
    assert document == {"level": "STUDY", key: expected, "no_such_key": 1}
    assert [check.values for check in checks] == ([(value,)] if expected == "" and value else [])


def test_the_dicom_json_model_and_wrappers() -> None:
    """Values in ``Value``, sequences, and identifiers within an object."""
    item = {"00080050": {"vr": "SH", "Value": ["1"]}}
    document = {"identifier": {"00400275": {"vr": "SQ", "Value": [item]}, "PatientID": {"vr": "LO", "Value": ["7"]}}}
    editor = rules(rule(Affix("A-"), PATIENT_ID), rule(Affix("B"), REQUEST_ATTRIBUTES, 0x00080050))
    before = json.dumps(document)
    changed, _ = ask(editor, document)
    assert changed["identifier"]["PatientID"] == {"vr": "LO", "Value": ["A-7"]}
    assert changed["identifier"]["00400275"]["Value"] == [{"00080050": {"vr": "SH", "Value": ["B1"]}}]
    assert json.dumps(document) == before


def test_a_check_of_matches() -> None:
    """What comes back has to be what was asked for: names without regard to capitals."""
    check = Check(PATIENT_NAME, ("do?^*",))
    assert check.holds(DatasetTree(data_set(PatientName="DOE^JANE")))
    assert not check.holds(DatasetTree(data_set(PatientName="ROE^JANE")))
    assert not check.holds(DatasetTree(data_set(PatientID="7")))


def test_what_is_set_or_removed_cannot_be_asked_for() -> None:
    """But it may be named, or asked for with a value that matches anything."""
    editor = rules(fixed(None, PATIENT_NAME), fixed(("X",), STATION))
    for key in ("PatientName", "StationName"):
        with pytest.raises(NotAskable, match=key):
            ask(editor, {key: "Doe"})
        assert ask(editor, {key: "*"})[0] == {key: "*"}


def test_values_that_the_other_view_does_not_have(tmp_path: Path) -> None:
    """They become one that nobody has: of a list the others are left."""
    uids = Hashed(pseudonyms(tmp_path))
    editor = rules(rule(Affix("A-"), PATIENT_ID), uids=uids)
    made = uids.forward("1.2.3")
    unknown, _ = ask(editor, {"PatientID": "B-1", "StudyInstanceUID": "1.2.9"}, forward=False)
    assert unknown["PatientID"] != "B-1" and unknown["StudyInstanceUID"].startswith("2.25.")
    missing = uids.ask_forward("1.2.77").value
    assert uids.pseudonyms.original("uid", missing) is None, "to ask for something gives nothing out"
    some, _ = ask(editor, {"StudyInstanceUID": ["1.2.9", made]}, forward=False)
    assert some == {"StudyInstanceUID": "1.2.3"}
