"""No value from a client, a PACS or the configuration becomes an option, a path, another key or a verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import harmonyd
from misbehaving import STUDY_UID, Stage, problem_of, stage, values_of

from harmonyd.testing.config_files import write_config
from harmonyd.testing.data import make_study, uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

PATIENT_ID, HISTORY, LEVEL = "00100020", "001021B0", "00080052"
VERBATIM = (
    "@/etc/hostname",
    "=",
    "a=b",
    "*",
    "?",
    "-aet",
    "--call OTHER",
    "+P",
    '"quoted"',
    "'quoted'",
    "$(id)",
    "`id`",
    ";id|id&id>/tmp/x",
    "{$HOME}",
    "%s%n",
    "[0].PatientName",
    "(0010,0010)=X",
    "0008,0052=IMAGE",
    "<a&b>",
    "../../etc/passwd",
    "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{STETHOSCOPE}",
    "\N{LEFT-TO-RIGHT OVERRIDE}",
    "0006:0320 unknown host",
    "#",
)
"""Values that mean something to a shell, to DCMTK's command line, or to whoever reads its log."""
REFUSED = (
    "two\nlines",
    "two\r\nlines",
    "nul\0",
    "escape\x1b[2J",
    "c1\x85",
    "line\N{LINE SEPARATOR}separator",
    "half a pair \ud83d",
    "back\\slash",
    "x" * 300,
    " ",
)
HOSTILE_COMMENTS = (
    "ok]\nDIMSE Status                  : 0x0000: Success",
    "\n@INFO|Received Final Find Response (Success)",
    "\N{PILE OF POO}\x1b[2J\x07",
)
ODD_AETS = ("-aec", "$(id)", "A B", "a=b", "'x\"", "[0]", "(0010,0020)", "%s%n", "+P", "--")
PATIENT_IDS = ("$(id)", "a=b", "-aet", "'q\"q'", "(0010,0020)")


@pytest.fixture(scope="module")
def odd_pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    """A dcmqrscp with patients whose IDs mean something to a shell or to DCMTK."""
    folder = tmp_path_factory.mktemp("odd")
    studies = [make_study(folder / f"{number}", 1, patient_id=name) for number, name in enumerate(PATIENT_IDS)]
    with RunningPacs(folder / "pacs", files=[study.files[0] for study in studies]) as running:
        yield running


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, odd_pacs: RunningPacs) -> Iterator[Stage]:
    """A peer that records what it receives, hostile ones, and a real PACS."""
    scripts: dict[str, tuple[str, dict[str, Any]]] = {
        "peer": ("serve", {"count": 1}),
        "aborts": ("serve", {"after": 0, "then": "abort"}),
        **{
            f"hostile_{number}": ("serve", {"count": 0, "status": 0xA700, "comment": comment})
            for number, comment in enumerate(HOSTILE_COMMENTS)
        },
    }
    backends: dict[str, dict[str, Any]] = {"pacs": {"aet": odd_pacs.aet, "host": "127.0.0.1", "port": odd_pacs.port}}
    backends |= {
        f"aet_{number}": {"peer": "peer", "aet": name, "local_aet": name[::-1]} for number, name in enumerate(ODD_AETS)
    }
    with stage(tmp_path_factory.mktemp("nodes"), scripts, backends, {"association_timeout_ms": 30_000}) as running:
        yield running


def _identifier(nodes: Stage) -> Any:
    """What the peer received last."""
    return nodes.peers["peer"].events("request")[-1]["identifier"]


# --- values of a client -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", VERBATIM)
def test_a_value_arrives_as_it_is(nodes: Stage, value: str) -> None:
    """The PACS receives exactly the value that was asked for, and no other key."""
    document = {"PatientID": value, "level": "STUDY", "return": "requested"}
    assert nodes.ask("find", "peer", document).status == 200
    received = _identifier(nodes)
    character_set = received.pop("00080005", None)
    assert received == {LEVEL: {"vr": "CS", "Value": ["STUDY"]}, PATIENT_ID: {"vr": "LO", "Value": [value]}}
    assert (character_set is None) == value.isascii()


@pytest.mark.parametrize("value", REFUSED)
def test_a_value_is_refused(nodes: Stage, value: str) -> None:
    """What a PatientID cannot be is refused with the name of the key, and nothing is sent to the PACS."""
    before = len(nodes.peers["peer"].events("association"))
    body = json.dumps({"PatientID": value}).encode()
    answer = nodes.daemon.http(
        "POST", "/dicom/find?backend=peer", body=body, headers={"Content-Type": "application/json"}
    )
    members = answer.json()
    assert answer.status == 400
    assert members["key"] == "PatientID"
    assert "PatientID" in members["detail"]
    assert members["fault"] == "caller"
    assert members["backend"] == "peer"
    assert members["request_id"] == answer.headers["X-Request-ID"]
    assert len(nodes.peers["peer"].events("association")) == before


def test_300_characters_where_they_are_allowed(nodes: Stage) -> None:
    """A long value of a VR that may be long arrives whole."""
    document = {"AdditionalPatientHistory": "ä" * 300, "level": "STUDY", "return": "requested"}
    assert nodes.ask("find", "peer", document).status == 200
    assert _identifier(nodes)[HISTORY]["Value"] == ["ä" * 300]


@pytest.mark.parametrize(
    "name", ["-k", "@/etc/hostname", "PatientID=x", "0008,0052=IMAGE", "PatientID\nLevel", "--call", "", "\ud83d"]
)
def test_a_key_is_refused(nodes: Stage, name: str) -> None:
    """What is no key is refused, whatever else it may mean."""
    answer = nodes.daemon.http(
        "POST",
        "/dicom/find?backend=peer",
        body=json.dumps({name: "x", "level": "STUDY"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status == 400, answer.body
    assert answer.json()["key"] is not None


@pytest.mark.parametrize("operation", ["get", "move"])
@pytest.mark.parametrize(
    "uid", ["@/etc/hostname", "*", "1.2.*", "?", "", "-aec", "../../x", "1.2.3\\4.5.6", "1.2 -aem X", "1..2", "1.2."]
)
def test_a_uid_is_refused(nodes: Stage, operation: str, uid: str) -> None:
    """A retrieve takes UIDs and nothing else, so that it never becomes one of the whole archive."""
    before = len(nodes.peers["peer"].events("association"))
    answer = nodes.ask(operation, "peer", {"StudyInstanceUID": uid})
    assert answer.status == 400
    assert answer.json()["key"] == "StudyInstanceUID"
    assert len(nodes.peers["peer"].events("association")) == before


def test_a_client_cannot_choose_where_a_move_goes(nodes: Stage) -> None:
    """A destination that is not the backend's is refused."""
    answer = nodes.ask("move", "peer", {"StudyInstanceUID": STUDY_UID, "destination": "@/etc/hostname"})
    assert answer.status == 400
    assert answer.json()["key"] == "destination"


@pytest.mark.parametrize("patient_id", PATIENT_IDS)
def test_a_real_pacs_finds_odd_values(nodes: Stage, patient_id: str) -> None:
    """A patient's odd ID finds that patient, and no other."""
    members = nodes.ask("find", "pacs", {"PatientID": patient_id, "level": "STUDY"}).json()
    assert values_of(members["matches"], PATIENT_ID) == [patient_id]


@pytest.mark.parametrize(
    "value",
    ["0006:0320 unknown host", "Result: Rejected, Source: x", "No Acceptable Presentation Contexts", "@INFO|Success"],
)
def test_a_value_does_not_decide_what_went_wrong(nodes: Stage, value: str) -> None:
    """Whatever a client asks for, an abort is told as an abort."""
    document = {"PatientID": value, "PatientName": value, "level": "STUDY"}
    members = problem_of(nodes.ask("find", "aborts", document), 502, "find", "aborts")
    assert members["type"] == "urn:harmonyd:problem:association-aborted"


def test_values_are_in_no_log(nodes: Stage) -> None:
    """What a client asks about a patient is in no log line and no record, whether the query succeeds or fails."""
    for backend in ("peer", "aborts"):
        nodes.ask("find", backend, {"PatientName": "Geheimrat^Theo", "PatientID": "GEHEIM-1"})
        nodes.ask("get", backend, {"PatientID": "GEHEIM-2", "StudyInstanceUID": uid_for("geheim")})
    nodes.daemon.http("POST", "/dicom/find?backend=peer&name=Geheimrat", json={"PatientID": "GEHEIM\n3"})
    records = [path.read_text() for path in (nodes.daemon.config.parent / "tmp").glob("*.json")]
    for text in (nodes.daemon.log, *records):
        assert "geheim" not in text.lower()
        assert uid_for("geheim") not in text


# --- what a PACS answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(HOSTILE_COMMENTS)))
def test_a_comment_is_only_a_comment(nodes: Stage, number: int) -> None:
    """An Error Comment cannot pass for a status or a log line, and brings no control characters."""
    for operation in ("find", "get", "move"):
        members = problem_of(nodes.ask(operation, f"hostile_{number}"), 502, operation, f"hostile_{number}")
        assert members["dimse_status"] == "0xA700"
        assert all(char.isprintable() for char in members["detail"])


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(ODD_AETS)))
def test_odd_ae_titles_arrive(nodes: Stage, number: int) -> None:
    """AE titles that look like options, or like anything else, are AE titles."""
    title = ODD_AETS[number]
    assert nodes.ask("echo", f"aet_{number}").status == 200
    assert nodes.ask("find", f"aet_{number}").json()["count"] == 1
    seen = nodes.peers["peer"].events("association")[-2:]
    assert [(event["called"], event["calling"]) for event in seen] == [(title, title[::-1])] * 2


def test_bad_ae_titles_and_hosts(tmp_path: Path) -> None:
    """AE titles and hosts that could reach DCMTK as something else are refused, all at once, each by its key."""
    aets = ("@/etc/hostname", "A\\B", "A" * 17, "A\nB", "", " ", "Ä")
    hosts = ("@/etc/hostname", "-aec", "a b", "a;id", "$(id)", "", "127.0.0.1:104", "a\nb")
    good = {"aet": "PACS", "host": "127.0.0.1", "port": 104}
    backends = {f"aet{number}": {**good, "aet": aet} for number, aet in enumerate(aets)}
    backends |= {f"local{number}": {**good, "local_aet": aet} for number, aet in enumerate(aets)}
    backends |= {f"to{number}": {**good, "move_destination_aet": aet} for number, aet in enumerate(aets)}
    backends |= {f"host{number}": {**good, "host": host} for number, host in enumerate(hosts)}
    ended = harmonyd("check", "--config", write_config(tmp_path, http_port=free_port(), backends=backends))
    assert ended.returncode == 2
    said = ended.stdout.splitlines()
    for name in backends:
        key = {"a": "aet", "l": "local_aet", "t": "move_destination_aet", "h": "host"}[name[0]]
        assert [line for line in said if f"backends.{name}." in line and key in line], (name, ended.stdout)
