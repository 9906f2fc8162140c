"""``type = "rewrite"`` and ``"deidentify"``: what is accepted, and each mistake told with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harmonyd.config import ConfigError, load

PATIENT_ID = 0x00100020
BASE = '[proxy]\nid = "x"\n[middleware.mine]\n'
REWRITE = BASE + 'type = "rewrite"\ntowards = "backend"\n'
HIDE = BASE + 'type = "deidentify"\ntowards = "client"\nkey_file = "key"\n'


@pytest.fixture
def options(tmp_path: Path) -> Callable[[str], Any]:
    """The options of ``mine``; ``key`` is a file for keys."""
    (tmp_path / "key").write_bytes(b"k" * 32 + b"\n")
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "pipelines").mkdir()

    def loaded(text: str) -> Any:
        (tmp_path / "config.toml").write_text(text, "utf-8")
        return load(tmp_path / "config.toml").middleware["mine"].options

    return loaded


def test_all_rules(options: Callable[[str], Any], tmp_path: Path) -> None:
    """Elements by keyword, tag, path, or anywhere."""
    found = options(
        REWRITE
        + """
        remove = ["PatientComments", "00091001", "*.ReferringPhysicianName"]
        set = { "(0010,0040)" = "O", Rows = 3, InstitutionName = "" }
        prefix = { PatientID = "A-", "RequestAttributesSequence.AccessionNumber" = "B" }
        suffix = { PatientID = "-Z" }
        map.StationName = { CT1 = "CT-1" }
        calling_aet = { OLD = "NEW" }
        uids = { key_file = "key", max_known = 1000 }
        report_path = "report.jsonl"
        [[middleware.mine.blank]]
        when = { Modality = ["US", "E*"], Rows = 480 }
        regions = [[0, 0, 640, 40]]
        """
    )
    kinds = sorted((rule[3], rule[0][-1], rule[1]) for rule in found["rules"])
    assert kinds == [
        ("affix", 0x00080050, False), ("affix", PATIENT_ID, False), ("map", 0x00081010, False),
        ("remove", 0x00080090, True), ("remove", 0x00091001, False), ("remove", 0x00104000, False),
        ("set", 0x00080080, False), ("set", 0x00100040, False), ("set", 0x00280010, False),
    ]  # fmt: skip
    assert ((PATIENT_ID,), False, "LO", "affix", ("A-", "-Z")) in found["rules"]
    assert ((0x00280010,), False, "US", "set", ("3",)) in found["rules"]
    assert found["uids"] == (b"k" * 32, 1000)
    assert found["aets"] == {"calling_aet": {"OLD": "NEW"}, "called_aet": {}}
    assert found["report_path"] == tmp_path / "report.jsonl"
    when = {0x00080060: ("US", "E*"), 0x00280010: ("480",)}
    assert found["regions"] == ((when, ((0, 0, 640, 40),), "decode"),)


def test_a_profile(options: Callable[[str], Any]) -> None:
    """Options by name; the key is never shown."""
    found = options(HIDE + 'profile_options = ["retain_device", "clean_descriptors"]\ndescriptors = ["CHEST*"]')
    assert found["options"] == {"retain_device", "clean_descriptors"}
    assert "kkk" not in repr(found)
    assert (found["descriptors"], found["pseudonyms"]) == (("CHEST*",), True)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (REWRITE, "changes nothing"),
        (BASE + 'type = "rewrite"\nremove = ["PatientID"]', "missing"),
        (REWRITE + 'remove = ["PatientIdd"]', "no DICOM keyword"),
        (REWRITE + 'remove = ["*.A.PatientID"]', "no DICOM keyword"),
        (REWRITE + 'remove = ["StudyInstanceUID"]', "cannot be changed"),
        (REWRITE + 'set = { "00091001" = "x" }', "cannot be changed"),
        (REWRITE + 'set = { PixelData = "x" }', "cannot be changed"),
        (REWRITE + 'set = { Rows = "x" }', "wants numbers"),
        (REWRITE + 'set = { OtherPatientIDsSequence = "x" }', "no text can be a value"),
        (REWRITE + 'set = { PatientID = "Ä" }', "not text in ASCII"),
        (REWRITE + 'prefix = { StudyDate = "1" }', "its VR is DA"),
        (REWRITE + 'prefix = { PatientID = "A*" }', "no backslash"),
        (REWRITE + 'map.StationName = { A = "X", B = "X" }', "no way back"),
        (REWRITE + 'remove = ["PatientID"]\nprefix = { PatientID = "A" }', "another rule"),
        (REWRITE + 'uids = { key_file = "nowhere" }', "cannot be read"),
        (REWRITE + 'calling_aet = { "A" = "THIS AE TITLE IS TOO LONG" }', "16"),
        (REWRITE + "[[middleware.mine.blank]]\nregions = [[0, 0, 0, 1]]", "not a list of"),
        (REWRITE + "[[middleware.mine.blank]]\nwhen = { PatientID = '1' }\nregions = [[0, 0, 1, 1]]", "decides here"),
        (HIDE + 'profile_options = ["retain_everything"]', "allowed"),
        (HIDE + 'profile_options = ["retain_full_dates", "retain_modified_dates"]', "not both"),
        (HIDE + 'descriptors = ["A"]', "may stay"),
        (HIDE.replace('key_file = "key"\n', ""), "missing"),
    ],
)
def test_mistakes(options: Callable[[str], Any], text: str, what: str) -> None:
    """Each is told."""
    with pytest.raises(ConfigError) as raised:
        options(text)
    told = [f"{problem.what} {problem.remedy}" for problem in raised.value.problems]
    assert any(what in each for each in told), told


def test_keys_that_are_none(options: Callable[[str], Any], tmp_path: Path) -> None:
    """One that others may read, or that is short."""
    key = tmp_path / "key"
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        options(HIDE)
    key.chmod(0o600)
    key.write_bytes(b"short")
    with pytest.raises(ConfigError, match="32 at least"):
        options(HIDE)
