"""``type = "route"``: rules, and the backends that they name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harmonyd.config.model import RouteRule

BACKENDS = "[backends.a]\nservice = 'echo'\n[backends.b]\nservice = 'echo'\n"
ROUTE = "[middleware.m]\ntype = 'route'\n"
PIPELINE = "[endpoints.e]\nservice = 'dicom'\n[pipelines.p]\nendpoints = ['e']\nmiddleware = ['m']\n"


def rule(when, backends="['a']"):
    return f"{ROUTE}rules = [ {{ when = {when}, backends = {backends} }} ]\n"


def test_rules_reach_the_model(loaded):
    """Keywords become tags, a text becomes a list of one, and the order stays."""
    text = """rules = [
    { when = { calling_aet = "CT*", Modality = ["CT", "MR"] }, backends = ["a", "b"] },
    { when = { "0008103e" = "" }, backends = [] },
]
otherwise = ["b"]
"""
    options = loaded(BACKENDS + ROUTE + text).middleware["m"].options
    assert options["rules"] == (
        RouteRule({"calling_aet": ("CT*",), "00080060": ("CT", "MR")}, ("a", "b")),
        RouteRule({"0008103E": ("",)}, ()),
    )
    assert options["otherwise"] == ("b",)


@pytest.mark.parametrize(("text", "expected"), [("", None), ("otherwise = []\n", ())])
def test_no_otherwise_is_not_an_empty_one(loaded, text, expected):
    """Left out it stands for all backends, empty for none."""
    assert loaded(BACKENDS + rule("{ path = '/x' }") + text).middleware["m"].options["otherwise"] == expected


def test_rules_as_tables_of_their_own(loaded):
    """TOML's other spelling of a list of tables is the same."""
    text = "[[middleware.m.rules]]\nwhen = { path = '/x' }\nbackends = ['a']\n"
    assert loaded(BACKENDS + ROUTE + text).middleware["m"].options["rules"] == (RouteRule({"path": ("/x",)}, ("a",)),)


@pytest.mark.parametrize(
    ("text", "table", "key"),
    [
        (ROUTE, "middleware.m", "rules"),
        (ROUTE + "rules = []", "middleware.m", "rules"),
        (ROUTE + "rules = ['a']", "middleware.m", "rules"),
        (ROUTE + "rules = { when = 'a' }", "middleware.m", "rules"),
        (ROUTE + "rules = [{ when = { path = 'x' } }]", "middleware.m.rules[0]", "backends"),
        (ROUTE + "rules = [{ backends = [] }]", "middleware.m.rules[0]", "when"),
        (rule("{}"), "middleware.m.rules[0]", "when"),
        (rule("3"), "middleware.m.rules[0]", "when"),
        (rule("{ path = '/x' }, to = 'a'"), "middleware.m.rules[0]", "to"),
        (rule("{ path = '/x' }", "'a'"), "middleware.m.rules[0]", "backends"),
        (rule("{ peer_address = '10.0.0.1/8' }"), "middleware.m.rules[0].when", "peer_address"),
        (rule("{ peer_address = ['10.*', 'here/8'] }"), "middleware.m.rules[0].when", "peer_address"),
        (rule("{ path = 3 }"), "middleware.m.rules[0].when", "path"),
        (rule("{ Modality = [] }"), "middleware.m.rules[0].when", "Modality"),
        (rule("{ Modality = ['CT', 3] }"), "middleware.m.rules[0].when", "Modality"),
        (rule("{ Modality = 'CT', 00080060 = 'MR' }"), "middleware.m.rules[0].when", "00080060"),
        (rule("{ ReferencedStudySequence = 'x' }"), "middleware.m.rules[0].when", "ReferencedStudySequence"),
        (rule("{ TransferSyntaxUID = 'x' }"), "middleware.m.rules[0].when", "TransferSyntaxUID"),
        (rule("{ 00020010 = 'x' }"), "middleware.m.rules[0].when", "00020010"),
        (rule('{ path = "a\\nb" }'), "middleware.m.rules[0].when", "path"),
        (rule("{ path = '/x' }", "['c']"), "middleware.m", "rules"),
        (rule("{ path = '/x' }") + "otherwise = ['c']", "middleware.m", "otherwise"),
        (rule("{ path = '/x' }") + "otherwise = 'a'", "middleware.m", "otherwise"),
        (rule("{ path = '/x' }") + "default = ['a']", "middleware.m", "default"),
    ],
)
def test_one_mistake(problems, text, table, key):
    """Each of these has exactly one mistake, told at its table and key."""
    assert [(problem.table, problem.key) for problem in problems(BACKENDS + text + "\n")] == [(table, key)]


@pytest.mark.parametrize(
    ("written", "expected"),
    [("caling_aet", "calling_aet"), ("study_uid", "study_instance_uid"), ("Modalty", "Modality"),
     ("patient_id", "PatientID"), ("StudyInstanceUid", "StudyInstanceUID"), ("0008006", None)],
)  # fmt: skip
def test_an_unknown_key_gets_the_nearest(problems, written, expected):
    """A mistyped key is answered with the metadata key or keyword that it resembles."""
    assert problems(BACKENDS + rule(f"{{ {written} = 'x' }}"))[0].nearest == expected


@pytest.mark.parametrize(
    "middleware",
    [
        rule("{ path = '/x' }", "['a', 'b']"),
        rule("{ path = '/x' }") + "otherwise = ['b']\n",
        "[middleware.m]\ntype = 'metadata'\nbackend = 'a, b'\n",
    ],
)
def test_only_backends_of_the_pipeline(loaded, problems, middleware):
    """Whatever middleware chooses must be a backend of each pipeline that uses it."""
    found = problems(BACKENDS + middleware + PIPELINE + "backends = ['a']\n")
    assert [(problem.table, problem.key) for problem in found] == [("pipelines.p", "middleware")]
    assert '"b"' in found[0].what
    assert loaded(BACKENDS + middleware + PIPELINE + "backends = ['a', 'b']\n")


def test_the_dictionary_is_loaded_for_keywords_only(write):
    """Rules on metadata and tags do not slow down a start."""
    text = BACKENDS + rule("{ calling_aet = 'CT1', 00080060 = 'CT' }")
    code = "import sys; from pathlib import Path; from harmonyd.config import load; load(Path(sys.argv[1])); "
    code += "sys.exit('pydicom.datadict' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(write(one=text))], check=False).returncode == 0
