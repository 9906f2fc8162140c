"""QIDO-RS over a real PACS that knows little: what dcmqrscp leaves out or refuses is asked level by level."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import requests
from dicomweb_kit import ENGINES, Gateway, dicomweb_over, originals, pacs_options
from pydicom import Dataset
from retrieve_kit import peer_backend

from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer

XML = 'multipart/related; type="application/dicom+xml"'
NATIVE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    with RunningPacs(tmp_path_factory.mktemp("pacs")) as running:
        yield running


@pytest.fixture(scope="module", params=ENGINES)
def web(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pacs: RunningPacs
) -> Iterator[Gateway]:
    with dicomweb_over(tmp_path_factory.mktemp("web"), pacs_options(pacs, request.param)) as running:
        yield running


@pytest.fixture(scope="module")
def archive(pacs: RunningPacs) -> dict[str, Dataset]:
    return originals(list(pacs.files))


def value(record: dict, tag: str) -> object:
    return record[tag]["Value"][0]


def test_studies(web: Gateway, archive: dict[str, Dataset]) -> None:
    """Every study is found, with the counts and modalities that dcmqrscp does not tell, and a RetrieveURL."""
    found = {value(each, "0020000D"): each for each in web.client.search_for_studies()}
    assert found.keys() == {ds.StudyInstanceUID for ds in archive.values()}
    for uid, record in found.items():
        mine = [ds for ds in archive.values() if ds.StudyInstanceUID == uid]
        assert value(record, "00201208") == len(mine)
        assert value(record, "00201206") == len({ds.SeriesInstanceUID for ds in mine})
        assert record["00080061"]["Value"] == sorted({ds.Modality for ds in mine})
        assert value(record, "00081190") == f"{web.url}/studies/{uid}"
        assert {"00100010", "00100020", "00100030", "00100040", "00200010", "00080090"} <= record.keys()


def test_series_and_instances_of_a_study(web: Gateway, archive: dict[str, Dataset]) -> None:
    """Series have their own number of instances; instances of a study are found through its series."""
    study = Counter(str(ds.StudyInstanceUID) for ds in archive.values()).most_common(1)[0][0]
    mine = [ds for ds in archive.values() if ds.StudyInstanceUID == study]
    series = web.client.search_for_series(study)
    assert {value(each, "0020000E"): value(each, "00201209") for each in series} == Counter(
        str(ds.SeriesInstanceUID) for ds in mine
    )
    instances = web.client.search_for_instances(study)
    assert {value(each, "00080018") for each in instances} == {ds.SOPInstanceUID for ds in mine}
    below = web.client.search_for_instances(study, str(mine[0].SeriesInstanceUID))
    assert {value(each, "0020000E") for each in below} == {mine[0].SeriesInstanceUID}


def test_searches_that_name_no_study(web: Gateway, archive: dict[str, Dataset]) -> None:
    """What a PACS refuses to be asked directly goes study by study, and has the attributes of the study."""
    found = web.client.search_for_instances(search_filters={"PatientID": "77654033"})
    assert {value(each, "00080018") for each in found} == {
        uid for uid, ds in archive.items() if ds.PatientID == "77654033"
    }
    assert {value(each, "00100020") for each in found} == {"77654033"}
    series = web.client.search_for_series(search_filters={"Modality": "MR"})
    assert {value(each, "0020000E") for each in series} == {
        ds.SeriesInstanceUID for ds in archive.values() if ds.Modality == "MR"
    }


def test_matching(web: Gateway, archive: dict[str, Dataset]) -> None:
    """Keywords, tags, wildcards percent-encoded or not, UID lists and date ranges."""
    some = sorted({str(ds.StudyInstanceUID) for ds in archive.values()})[:2]
    does = {ds.StudyInstanceUID for ds in archive.values() if str(ds.PatientName).startswith("Doe")}
    early = {ds.StudyInstanceUID for ds in archive.values() if "19900101" <= ds.get("StudyDate", "") <= "20011231"}
    for query, expected in (
        ("PatientName=Doe*", does),
        ("00100010=Doe%2A", does),
        (f"StudyInstanceUID={some[0]},{some[1]}", set(some)),
        (f"0020000D={some[0]}%5C{some[1]}", set(some)),
        ("StudyDate=19900101-20011231", early),
    ):
        records = json.loads(web.ask(f"/studies?{query}").body)
        assert {value(each, "0020000D") for each in records} == expected, query


def test_pages(web: Gateway) -> None:
    """Limit and offset page through the results; there is a warning while there are more."""
    everything = [value(each, "0020000D") for each in web.client.search_for_studies()]
    paged = []
    for offset in range(0, len(everything), 4):
        answer = web.ask(f"/studies?limit=4&offset={offset}")
        more = offset + 4 < len(everything)
        assert ("299" in answer.headers.get("Warning", "")) is more
        paged += [value(each, "0020000D") for each in json.loads(answer.body)]
    assert paged == everything


def test_nothing_found_is_204(web: Gateway) -> None:
    """No result is no content."""
    answer = web.ask("/studies?PatientID=nobody")
    assert (answer.status, answer.body) == (204, b"")
    assert web.client.search_for_studies(search_filters={"PatientID": "nobody"}) == []


def test_xml(web: Gateway) -> None:
    """Each result is an XML document of its own."""
    parts = web.ask("/studies?PatientID=77654033", XML).parts()
    assert {fields["content-type"] for fields, _ in parts} == {"application/dicom+xml"}
    names = {ElementTree.fromstring(content).findtext(f"*[@keyword='PatientID']/{NATIVE}Value") for _, content in parts}
    assert names == {"77654033"}


def test_parameters_without_effect_warn(web: Gateway) -> None:
    """Fuzzy matching is told to be ignored; includefield gives what was asked for."""
    answer = web.ask("/studies?PatientID=77654033&fuzzymatching=true&includefield=StudyDescription,00081048")
    assert "only literal matching" in answer.headers["Warning"].lower()
    assert all("00081030" in each for each in json.loads(answer.body))
    assert web.ask("/studies?PatientID=77654033&includefield=all").status == 200


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("PatientIDD=1", "PatientIDD"),
        ("limit=x", "limit"),
        ("StudyDate=199", "00080020"),
        ("Modality.PatientID=1", None),
    ],
)
def test_wrong_parameters_are_400(web: Gateway, query: str, key: str | None) -> None:
    """The problem detail names the parameter, and dicomweb-client raises with the status."""
    answer = web.ask(f"/studies?{query}")
    assert answer.status == 400
    assert key is None or json.loads(answer.body)["key"] == key
    with pytest.raises(requests.HTTPError, match="400"):
        web.client.search_for_studies(search_filters={"PatientIDD": "1"})


def test_what_is_not_there(web: Gateway) -> None:
    """Paths that are no resource, forms that cannot be had, and methods that have no place."""
    assert web.ask("/nothing").status == 404
    assert web.ask("/studies", "text/html").status == 406
    assert web.ask("/studies/1.2.x/series").status == 400
    assert web.ask("/studies", method="DELETE").status == 405


def test_as_ohif_asks(web: Gateway, archive: dict[str, Dataset]) -> None:
    """The requests of the OHIF viewer: its list of studies, the study, its series."""
    listed = web.ask(
        "/studies?limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060",
        "application/dicom+json",
        Accept_Encoding="identity",
    )
    assert len(json.loads(listed.body)) == len({ds.StudyInstanceUID for ds in archive.values()})
    assert "Warning" not in listed.headers
    study = value(json.loads(listed.body)[0], "0020000D")
    one = json.loads(web.ask(f"/studies?limit=101&offset=0&fuzzymatching=false&StudyInstanceUID={study}").body)
    assert [value(each, "0020000D") for each in one] == [study]
    fields = "00080021%2C00080031%2C0008103E%2C00200011"
    assert json.loads(web.ask(f"/studies/{study}/series?includefield={fields}").body)


def test_a_cap_is_told(tmp_path_factory: pytest.TempPathFactory, pacs: RunningPacs) -> None:
    """A search that reaches max_results of backend or endpoint says so."""
    folder = tmp_path_factory.mktemp("capped")
    with dicomweb_over(folder, pacs_options(pacs, "native", max_results=3), max_results=5) as web:
        studies = web.ask("/studies")
        assert len(json.loads(studies.body)) == 3
        assert "299" in studies.headers["Warning"]
        instances = web.ask("/instances")
        assert len(json.loads(instances.body)) == 5
        assert "299" in instances.headers["Warning"]


def test_pages_of_other_sites_read_what_is_configured(
    tmp_path_factory: pytest.TempPathFactory, pacs: RunningPacs
) -> None:
    """CORS: the configured origin gets its fields with answers, errors and preflights; no other does."""
    viewer = "https://viewer.example.org"
    folder = tmp_path_factory.mktemp("cors")
    with dicomweb_over(folder, pacs_options(pacs, "native"), cors_origins=[viewer]) as web:
        for path in ("/studies", "/nothing"):
            assert web.ask(path, Origin=viewer).headers["Access-Control-Allow-Origin"] == viewer
            assert web.ask(path, Origin="https://other.org").headers["Access-Control-Allow-Origin"] is None
        asked = web.ask("/studies", method="OPTIONS", Origin=viewer, Access_Control_Request_Method="GET")
        assert asked.status == 204
        assert "GET" in asked.headers["Access-Control-Allow-Methods"]


def test_a_client_that_leaves_ends_the_search(tmp_path: Path) -> None:
    """The PACS is told to stop, also in the middle of a search of several questions."""
    with (
        ScriptedPeer(count=1000, interval_secs=0.05) as peer,
        dicomweb_over(tmp_path, peer_backend(peer, engine="native")) as web,
    ):
        with pytest.raises(requests.Timeout):
            requests.get(f"{web.url}/instances", timeout=1)
        peer.wait_for("cancel")


def test_a_search_that_takes_too_long(tmp_path: Path) -> None:
    """What was found until then is answered, with a warning."""
    with (
        ScriptedPeer(count=3, interval_secs=0.2) as peer,
        dicomweb_over(tmp_path, peer_backend(peer, engine="native"), search_timeout_ms=3000) as web,
    ):
        answer = web.ask("/instances")
        assert "too long" in answer.headers["Warning"]
        assert 0 < len(json.loads(answer.body)) < 27
