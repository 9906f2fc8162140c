"""Query files."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from harmonyd.dimse.engine import Query, QueryLevel, QueryModel
from harmonyd.dimse.identifier import parse_query
from harmonyd.dimse.query_file import query_bytes


def read_back(document: dict[str, Any]) -> Dataset:
    return pydicom.dcmread(BytesIO(query_bytes(parse_query(document | {"return": "requested"}, operation="find"))))


def test_ascii_queries_declare_no_character_set() -> None:
    """Nothing but the keys and the level is in the file when ASCII is enough."""
    ds = read_back({"PatientID": "12345", "StudyDate": ""})
    assert sorted(ds.dir()) == ["PatientID", "QueryRetrieveLevel", "StudyDate"]
    assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_text_beyond_ascii_is_utf_8_and_declared() -> None:
    """Names in any script come back as they were."""
    ds = read_back({"patient_name": {"Alphabetic": "Müller^J*", "Ideographic": "山田^太郎"}, "StudyDescription": "🫀"})
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert str(ds.PatientName) == "Müller^J*=山田^太郎"
    assert ds.StudyDescription == "🫀"


def test_text_inside_sequences_counts_for_the_character_set() -> None:
    """A character set is declared for text at any depth."""
    ds = read_back({"RequestAttributesSequence": [{"ScheduledProcedureStepDescription": "Schädel"}]})
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert ds.RequestAttributesSequence[0].ScheduledProcedureStepDescription == "Schädel"


def test_a_data_set_made_by_hand_is_written_whole() -> None:
    """A query that did not come from the parser gets its character set too, and stays as it was."""
    ds = Dataset()
    ds.QueryRetrieveLevel = "PATIENT"
    ds.OtherPatientNames = ["Ä^B", "C"]
    data = query_bytes(Query(QueryLevel.PATIENT, QueryModel.PATIENT_ROOT, ds))
    written = pydicom.dcmread(BytesIO(data))
    assert written.SpecificCharacterSet == "ISO_IR 192"
    assert [str(name) for name in written.OtherPatientNames] == ["Ä^B", "C"]
    assert "SpecificCharacterSet" not in ds


def test_dcmtk_reads_the_same_values(tmp_path: Path) -> None:
    """dcmdump shows the keys, private ones and items as they were asked for."""
    query = parse_query(
        {
            "level": "IMAGE",
            "StudyInstanceUID": ["1.2", "1.3"],
            "00090010": "ACME",
            "00091001": {"vr": "DS", "Value": [1.5]},
            "RequestAttributesSequence": {"Modality": "CT"},
            "Rows": 512,
            "PatientName": "= -k @x",
        },
        operation="find",
    )
    file = tmp_path / "query.dcm"
    file.write_bytes(query_bytes(query))
    dump = subprocess.run(["/usr/bin/dcmdump", str(file)], capture_output=True, text=True, check=True).stdout
    for line in (
        "(0008,0052) CS [IMAGE]",
        r"(0020,000d) UI [1.2\1.3]",
        "(0009,0010) LO [ACME]",
        "(0009,1001) DS [1.5]",
        "    (0008,0060) CS [CT]",
        "(0028,0010) US 512",
        "(0010,0010) PN [= -k @x]",
        "(0020,0013) IS (no value available)",
    ):
        assert line in dump
