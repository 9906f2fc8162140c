"""Middleware types and their keys."""

from __future__ import annotations

import pytest

BACKEND = "[backends.b]\nservice = 'echo'\n"


def options(loaded, text):
    return loaded(BACKEND + "[middleware.m]\n" + text).middleware["m"].options


@pytest.mark.parametrize(
    "text", ["rules = ['/a']", "options = { rules = ['/a'] }", "[middleware.m.options]\nrules = ['/a']"]
)
def test_keys_in_the_table_or_in_options(loaded, text):
    """A key may stand directly in the table or in options below it."""
    assert options(loaded, "type = 'path_filter'\n" + text) == {"rules": ("/a",)}


def test_a_key_in_both_places(problems):
    """The same key in both places is a mistake."""
    found = problems("[middleware.m]\ntype = 'path_filter'\nrules = ['/a']\noptions = { rules = ['/b'] }\n")
    assert "given here and in" in found[0].what


def test_passthru_has_no_keys(loaded, problems):
    """passthru needs nothing and takes nothing."""
    assert options(loaded, "type = 'passthru'") == {}
    assert problems("[middleware.m]\ntype = 'passthru'\nx = 1\n")[0].key == "x"


@pytest.mark.parametrize("text", ["", "rules = []", "rules = 'x'", "rules = ['x']", "rules = ['/{']", "rule = ['/a']"])
def test_path_filter_needs_rules(problems, text):
    """A filter without usable rules is refused."""
    assert problems(f"[middleware.m]\ntype = 'path_filter'\n{text}\n")


def test_metadata_values(loaded):
    """Entries, query keys and shortcuts reach the model; query keys under their keyword."""
    text = """type = "metadata"
dimse_op = "find"
backend = "b"
set = { my_key = "v" }
identifier = { PatientID = "1", "00080060" = "CT", "00091001" = "private" }
"""
    assert options(loaded, text) == {
        "dimse_op": "find",
        "backend": "b",
        "set": {"my_key": "v"},
        "identifier": {"PatientID": "1", "Modality": "CT", "00091001": "private"},
    }


def test_metadata_without_shortcuts(loaded):
    """Shortcuts that are not given are not there."""
    assert options(loaded, "type = 'metadata'\nset = { a = 'b' }") == {"set": {"a": "b"}, "identifier": {}}


@pytest.mark.parametrize(
    ("text", "table", "key"),
    [
        ("", "middleware.m", None),
        ("dimse_op = 'fnd'", "middleware.m", "dimse_op"),
        ("dimse_op = 3", "middleware.m", "dimse_op"),
        ("set = { dimse_op = 'x' }", "middleware.m.set", "dimse_op"),
        ("set = { a = 1 }", "middleware.m.set", "a"),
        ("dimse_op = 'find'\nset = { dimse_op = 'get' }", "middleware.m", "dimse_op"),
        ("backend = 'c'", "middleware.m", "backend"),
        ("set = { backend = 'c' }", "middleware.m", "backend"),
        ("identifier = { patient_id = '1' }", "middleware.m.identifier", "patient_id"),
        ("identifier = { PatientID = 1 }", "middleware.m.identifier", "PatientID"),
        ('identifier = { PatientID = "a\\nb" }', "middleware.m.identifier", "PatientID"),
        ("identifier = { CommandField = '1' }", "middleware.m.identifier", "CommandField"),
        ("identifier = { ReferencedStudySequence = '1' }", "middleware.m.identifier", "ReferencedStudySequence"),
        ("identifier = { PatientID = '1', 00100020 = '2' }", "middleware.m.identifier", "00100020"),
        ("options = 3\ndimse_op = 'find'", "middleware.m", "options"),
    ],
)
def test_one_mistake_in_metadata(problems, text, table, key):
    """Each of these has exactly one mistake, told at its table and key."""
    found = problems(BACKEND + f"[middleware.m]\ntype = 'metadata'\n{text}\n")
    assert [(problem.table, problem.key) for problem in found] == [(table, key)]


@pytest.mark.parametrize(("written", "expected"), [("PatientId", "PatientID"), ("patient_id", "PatientID")])
def test_a_mistyped_keyword_gets_the_nearest(problems, written, expected):
    """An unknown DICOM keyword is answered with the nearest."""
    found = problems(f"[middleware.m]\ntype = 'metadata'\nidentifier = {{ {written} = '1' }}\n")
    assert found[0].nearest == expected


def test_types_out_of_scope(problems):
    """JMIX middleware is out of scope."""
    assert problems("[middleware.m]\ntype = 'jmix_builder'\n")[0].what == "out of scope"


def test_an_unknown_type_gets_the_nearest(problems):
    """A mistyped type is answered with the nearest."""
    problem = problems("[middleware.m]\ntype = 'passthrough'\n")[0]
    assert (problem.key, problem.nearest) == ("type", "passthru")


def test_a_type_is_required(problems):
    """A middleware says which type it is."""
    assert [(problem.key, problem.what) for problem in problems("[middleware.m]\n")] == [("type", "missing")]
