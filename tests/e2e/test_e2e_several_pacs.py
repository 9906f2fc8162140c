"""Several PACS behind one endpoint: two dcmqrscp that share a study, one that refuses, and one that hangs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from dicomweb_client import DICOMwebClient
from dicomweb_kit import pacs_options
from pydicom import dcmread

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study, uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port

PATIENCE_MS = 6000
UID, SERIES_UID, STUDY_UID, URL, AET = "00080018", "0020000E", "0020000D", "00081190", "00080054"


@dataclass
class Site:
    """A daemon over the PACS ``lund`` and ``malmo``, and what both hold."""

    url: str
    shared: MadeStudy
    """Three series of two: lund has the first two, malmo the last two but one instance of the second."""
    own: dict[str, MadeStudy] = field(default_factory=dict)
    """A study that only one has."""

    def get(self, path: str, **headers: str) -> requests.Response:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.get(self.url + path, headers=fields, timeout=60)

    def find(self, path: str, accept: str = "application/json", **document: Any) -> requests.Response:
        return requests.post(f"{self.url}{path}/find", json=document, headers={"Accept": accept}, timeout=60)

    def client(self, prefix: str) -> DICOMwebClient:
        return DICOMwebClient(self.url + prefix)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("several")
    shared = make_study(folder / "shared", 6, study_uid=uid_for("shared"), series=3, size=16)
    own = {name: make_study(folder / name, 2, study_uid=uid_for(name), size=16) for name in ("lund", "malmo")}
    parts: dict[str, list[Path]] = {uid: [] for uid in shared.series_uids}
    for path in shared.files:
        parts[str(dcmread(path, stop_before_pixels=True).SeriesInstanceUID)].append(path)
    one, two, three = (parts[uid] for uid in shared.series_uids)
    moves = {"HARMONY_SCU": free_port()}
    files = {"lund": [*one, *two, *own["lund"].files], "malmo": [*two[:1], *three, *own["malmo"].files]}
    with (
        RunningPacs(folder / "pacs1", files=files["lund"], aet="LUND", destinations=moves) as lund,
        RunningPacs(folder / "pacs2", files=files["malmo"], aet="MALMO", destinations=moves) as malmo,
        ScriptedPeer("silent") as hung,
        RunningDaemon(_config(folder / "config", lund, malmo, hung)) as daemon,
    ):
        yield Site(f"http://{daemon.host}:{daemon.port}", shared, own)


def _config(folder: Path, lund: RunningPacs, malmo: RunningPacs, hung: ScriptedPeer) -> Path:
    folder.mkdir()
    away = {"engine": "native", "host": "127.0.0.1"}
    backends = {
        name: pacs_options(pacs, "native", incoming_store_port=pacs.destinations["HARMONY_SCU"])
        for name, pacs in (("lund", lund), ("malmo", malmo))
    } | {
        "refusing": {**away, "aet": "AWAY", "port": free_port()},
        "hung": {**away, "aet": "HUNG", "port": hung.port},
    }
    endpoints, pipelines = {}, {}
    for name, members in {
        "both": ["lund", "malmo"],
        "three": ["refusing", "lund", "malmo"],
        "late": ["lund", "hung"],
        "none": ["refusing", "hung"],
    }.items():
        common = {"backend_in_path": name != "three", "backend_header": "X-PACS"}
        endpoints[f"{name}-web"] = {"service": "dicomweb", "path_prefix": f"/{name}/web", **common}
        endpoints[f"{name}-http"] = {"service": "http", "path_prefix": f"/{name}", **common}
        pipelines[name] = {
            "networks": ["default"],
            "endpoints": [f"{name}-web", f"{name}-http"],
            "backends": members,
            "fan_out": True,
            "fan_out_timeout_ms": PATIENCE_MS,
        }
    return write_config(folder, http_port=free_port(), backends=backends, endpoints=endpoints, pipelines=pipelines)


def values(records: list[dict[str, Any]], tag: str) -> list[Any]:
    return [record[tag]["Value"][0] for record in records]


# --- queries


def test_studies_of_both(site: Site) -> None:
    """Each study is found once, in the order of the configuration, and leads to a PACS that has it."""
    answer = site.get("/both/web/studies")
    assert answer.status_code == 200 and "Warning" not in answer.headers
    studies = {record[STUDY_UID]["Value"][0]: record for record in answer.json()}
    assert len(studies) == len(answer.json()) == 3
    shared, lund, malmo = (studies[each.study_uid] for each in (site.shared, site.own["lund"], site.own["malmo"]))
    assert values([shared, lund, malmo], AET) == ["LUND", "LUND", "MALMO"]
    assert values([lund, malmo], URL) == [
        f"{site.url}/both/web/{name}/studies/{site.own[name].study_uid}" for name in ("lund", "malmo")
    ]
    assert list(studies)[-1] == site.own["malmo"].study_uid
    for record in (lund, malmo):
        assert requests.get(record[URL]["Value"][0] + "/metadata", timeout=60).status_code == 200


def test_counts_are_those_of_both(site: Site) -> None:
    """What the PACS leave out is counted over both of them."""
    (study,) = site.get(f"/both/web/studies?StudyInstanceUID={site.shared.study_uid}").json()
    assert study["00201206"]["Value"] == [3]


def test_series_and_instances_of_a_shared_study(site: Site) -> None:
    """Below a study both are asked; what both have comes once."""
    series = site.get(f"/both/web/studies/{site.shared.study_uid}/series").json()
    assert sorted(values(series, SERIES_UID)) == sorted(site.shared.series_uids)
    instances = site.get(f"/both/web/studies/{site.shared.study_uid}/instances").json()
    assert sorted(values(instances, UID)) == sorted(site.shared.sop_uids)


def test_pages_fit_together(site: Site) -> None:
    """limit and offset count what is left after merging, in an order that stays."""
    whole = values(site.get("/both/web/studies").json(), STUDY_UID)
    pages = [site.get(f"/both/web/studies?limit=1&offset={number}") for number in range(4)]
    assert [page.status_code for page in pages] == [200, 200, 200, 204]
    assert [values(page.json(), STUDY_UID)[0] for page in pages[:3]] == whole
    assert "exceeded" in pages[0].headers["Warning"] and "Warning" not in pages[2].headers


def test_one_that_refuses_is_named(site: Site) -> None:
    """The others answer, and the Warning says who did not; RetrieveURL leads through the endpoint itself."""
    answer = site.get("/three/web/studies")
    assert answer.status_code == 200 and len(answer.json()) == 3
    assert "The PACS refusing did not answer: " in answer.headers["Warning"]
    assert answer.headers["Warning"].startswith("299 ")
    assert f"{site.url}/three/web/studies/{site.shared.study_uid}" in values(answer.json(), URL)
    nothing = site.get("/three/web/studies?PatientID=NOBODY")
    assert nothing.status_code == 204 and "refusing" in nothing.headers["Warning"]


def test_one_that_hangs_is_waited_for_once(site: Site) -> None:
    """It has its deadline, however many questions the search takes."""
    answer = site.get(f"/late/web/studies/{site.shared.study_uid}/instances")
    assert answer.status_code == 200 and len(answer.json()) == 4
    assert "The PACS hung did not answer: " in answer.headers["Warning"]


def test_find_tells_of_each(site: Site) -> None:
    """The answer in JSON has matches of both, and what became of each backend."""
    answer = site.find("/three", query_level="STUDY", StudyInstanceUID=None).json()
    assert sorted(values(answer["matches"], STUDY_UID)) == sorted(
        each.study_uid for each in (site.shared, *site.own.values())
    )
    assert (answer["success"], answer["complete"], answer["count"]) == (True, False, 3)
    assert "refusing failed: " in answer["incomplete_reason"]
    told = {each["name"]: each for each in answer["backends"]}
    assert [(name, each["success"]) for name, each in told.items()] == [
        ("refusing", False),
        ("lund", True),
        ("malmo", True),
    ]
    assert (told["lund"]["count"], told["malmo"]["count"]) == (2, 2)
    assert told["refusing"]["error"]
    whole = site.find("/both", query_level="STUDY", StudyInstanceUID=None).json()
    assert whole["complete"] is True and "incomplete_reason" not in whole


def test_forms_that_cannot_tell_are_cut(site: Site) -> None:
    """A bare array is whole, or none."""
    asked = {"query_level": "STUDY", "StudyInstanceUID": None}
    assert len(site.find("/both", "application/dicom+json", **asked).json()) == 3
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)):
        site.find("/three", "application/dicom+json", **asked)


def test_all_that_fail_are_an_error(site: Site) -> None:
    """502, with the reason of each; what the client did wrong stays its fault."""
    answer = site.get("/none/web/studies")
    assert answer.status_code == 502
    problem = answer.json()
    assert problem["type"] == "urn:harmonyd:problem:no-backend-answered"
    assert {each["name"] for each in problem["backends"]} == {"refusing", "hung"}
    assert all(each["error"] for each in problem["backends"])
    assert site.find("/none", NoSuchKeyword="x").status_code == 400
    assert site.find("/none", "image/png", query_level="STUDY").status_code == 406


# --- the choice of one


@pytest.mark.parametrize("way", ["path", "header", "query"])
def test_a_client_may_choose(site: Site, way: str) -> None:
    """By segment, header or query, over DICOMweb and for an operation."""
    path, query, header = {"path": "/malmo", "query": "", "header": ""}[way], "?backend=malmo" * (way == "query"), {}
    if way == "header":
        header = {"X-PACS": "malmo"}
    answer = requests.get(f"{site.url}/both/web{path}/studies{query}", headers=header, timeout=60)
    assert sorted(values(answer.json(), STUDY_UID)) == sorted([site.shared.study_uid, site.own["malmo"].study_uid])
    prefix = f"{site.url}/both/web{path}"
    assert all(each.startswith(f"{prefix}/studies/") for each in values(answer.json(), URL))
    echo = requests.post(f"{site.url}/both{path}/echo{query}", headers=header, timeout=60)
    assert echo.json()["remote_aet"] == "MALMO"


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/both/web/gone/studies", "", 404),
        ("/both/gone/echo", "", 404),
        ("/three/gone/echo", "", 502),
        ("/both/web/studies", "gone", 403),
        ("/both/web/lund/studies", "malmo", 400),
        ("/both/web/lund/studies?backend=lund", "lund", 200),
        ("/three/web/lund/studies", "", 404),
    ],
)
def test_choices_that_are_none(site: Site, path: str, header: str, status: int) -> None:
    """A name that is unknown here, two that differ, and a segment where that is switched off."""
    send = requests.post if path.endswith("echo") else requests.get
    assert send(site.url + path, headers={"X-PACS": header} if header else {}, timeout=60).status_code == status


# --- retrieves


def test_a_study_of_one_is_found(site: Site) -> None:
    """Who has it is asked first; those that are away are named."""
    for name, study in site.own.items():
        found = site.client("/three/web").retrieve_study(study.study_uid)
        assert sorted(ds.SOPInstanceUID for ds in found) == sorted(study.sop_uids), name
    answer = site.get(f"/three/web/studies/{site.own['malmo'].study_uid}/metadata")
    assert len(answer.json()) == 2 and "The PACS refusing did not answer" in answer.headers["Warning"]


def test_a_shared_study_comes_whole(site: Site) -> None:
    """Each series from the PACS that has most of it, and no instance twice."""
    found = site.client("/both/web").retrieve_study(site.shared.study_uid)
    assert Counter(str(ds.SOPInstanceUID) for ds in found) == Counter(site.shared.sop_uids)
    for uid in site.shared.series_uids:
        assert len(site.client("/both/web").retrieve_series(site.shared.study_uid, uid)) == 2


def test_an_instance_of_the_second(site: Site) -> None:
    """Instances, their frames and their metadata come from where they are."""
    study = site.own["malmo"]
    path = f"/both/web/studies/{study.study_uid}/series/{study.series_uids[0]}/instances/{study.sop_uids[0]}"
    assert site.get(f"{path}/metadata").json()[0][UID]["Value"] == [study.sop_uids[0]]
    assert site.get(f"{path}/frames/1").status_code == 200


def test_instances_of_a_series_at_two(site: Site) -> None:
    """Where one instance was is where the next one is asked for first, and not where it has to be."""
    series = site.shared.series_uids[1]
    found = site.client("/both/web").search_for_instances(site.shared.study_uid, series)
    path = f"/both/web/studies/{site.shared.study_uid}/series/{series}/instances"
    for uid in [*values(found, UID), *values(found, UID)]:
        assert site.get(f"{path}/{uid}/metadata").json()[0][UID]["Value"] == [uid]


def test_pages_of_browsers_may_name_a_pacs(site: Site) -> None:
    """The header field is one that another origin's page may send."""
    asked = {"Origin": "http://viewer", "Access-Control-Request-Method": "GET"}
    answer = requests.options(f"{site.url}/both/web/studies", headers=asked, timeout=30)
    assert "X-PACS" in answer.headers["Access-Control-Allow-Headers"]


@pytest.mark.parametrize("operation", ["get", "move"])
def test_a_retrieve_by_operation(site: Site, operation: str) -> None:
    """The answer of get and move has the instances of both, and where they are from."""
    document = {"query_level": "STUDY", "StudyInstanceUID": site.shared.study_uid}
    answer = requests.post(f"{site.url}/both/{operation}", json=document, timeout=60).json()
    assert sorted(values(answer["instances"], UID)) == sorted(site.shared.sop_uids)
    assert (answer["success"], answer["complete"], answer["file_count"]) == (True, True, 6)
    assert [each["name"] for each in answer["backends"]] == ["lund", "malmo"]


def test_what_nobody_has(site: Site) -> None:
    """404 when all say so; 502 when one could not be asked."""
    missing = f"/studies/{uid_for('missing')}"
    assert site.get(f"/both/web{missing}").status_code == 404
    answer = site.get(f"/three/web{missing}")
    assert answer.status_code == 502 and json.loads(answer.text)["backends"][0]["name"] == "refusing"
