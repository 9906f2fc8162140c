"""Who gets in, and who may do what: over every path, with real clients, a real PACS and a real issuer of tokens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from identity_kit import PASSWORD, Site, basic, key_of, site_in
from retrieve_kit import multipart

from harmonyd.testing.data import make_ct, uid_for
from harmonyd.testing.processes import wait_until

FILES = 'multipart/related; type="application/dicom"'
OPERATIONS = ("echo", "find", "get", "move", "store")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("identity")) as running:
        yield running


def study(site: Site, name: str) -> dict[str, Any]:
    return {"StudyInstanceUID": getattr(site, name).study_uid, "level": "STUDY"}


def web(site: Site, name: str, below: str = "") -> str:
    return f"/web/studies/{getattr(site, name).study_uid}{below}"


def an_object(site: Site, patient_id: str, study_uid: str, number: int = 9) -> bytes:
    path = site.folder / "object.dcm"
    series = uid_for(f"{study_uid}/new")
    make_ct(path, study_uid=study_uid, series_uid=series, instance_number=number, patient_id=patient_id, size=16)
    return path.read_bytes()


# --- who asks


def test_credentials_of_each_kind(site: Site) -> None:
    """A key, a password with a colon and an umlaut, and a token do; each has the roles that belong to it."""
    for who in (key_of("admin"), key_of("finder"), basic("jürgen", PASSWORD), site.issuer.token(roles=["finder"])):
        assert len(site.find(who, level="STUDY")) == 2
    assert site.ask("POST", "/dicom/find", site.issuer.token(), document={"level": "STUDY"}).status == 403


@pytest.mark.parametrize("path", ["/dicom/find", "/web/studies", "/both/find", "/say/x", "/dicom/operations/x"])
def test_without_and_with_wrong_credentials(site: Site, path: str) -> None:
    """401 as problem details, with what would do; nothing of what was sent is in the answer or the log."""
    method = "GET" if "web" in path or "operations" in path else "POST"
    kinds: list[dict[str, str]] = [{}, {"X-Site-Key": "wrong-secret-1"}, basic("jürgen", "wrong-secret-2")]
    kinds += [{"Authorization": "Bearer wrong-secret-3"}]
    address = f"127.0.1.{10 + len(path)}"
    for who in kinds:
        answer = site.ask(method, path, who, address=address)
        expected = 404 if "operations" in path and not who else 401
        assert answer.status == expected, (who, answer.body)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert b"wrong-secret" not in answer.body
        if expected == 401:
            offered = answer.headers["WWW-Authenticate"]
            assert all(kind in offered for kind in ("ApiKey", "Basic", "Bearer")) or who
    assert "wrong-secret" not in site.daemon.log


def test_credentials_go_no_further(site: Site) -> None:
    """What was meant for us is not passed on, what was not is."""
    answer = site.ask("GET", "/say/x", {**key_of("nobody"), "X-Other": "1"})
    assert answer.status == 200
    headers = answer.json()["headers"]
    assert headers["x-other"] == "1"
    assert "x-site-key" not in headers


def test_a_key_that_was_changed(site: Site) -> None:
    """A token with a new key is taken as soon as its issuer publishes that one, and a made-up name costs one look."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    assert site.ask("POST", "/say/x", site.issuer.token()).status == 200
    before = site.issuer.asked
    site.issuer.keys["made-up"] = Ed25519PrivateKey.generate()
    forged = site.issuer.token("made-up")
    del site.issuer.keys["made-up"]
    for _ in range(10):
        assert site.ask("POST", "/say/x", forged, address="127.0.1.1").status == 401
    assert site.issuer.asked <= before + 1
    assert site.ask("POST", "/say/x", site.issuer.token()).status == 200


def test_many_wrong_passwords(site: Site) -> None:
    """Most get 429 without a look; meanwhile somebody at another address gets in, and the daemon answers."""
    statuses: list[int] = []

    def guess() -> None:
        connection = HTTPConnection("127.0.0.1", site.daemon.port, timeout=60, source_address=("127.0.0.3", 0))
        for number in range(350):
            connection.request("GET", "/say/x", headers=basic("jürgen", f"guess-{number}"))
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
            if response.status == 429:
                assert int(response.headers["Retry-After"]) >= 1
        connection.close()

    guessing = [threading.Thread(target=guess) for _ in range(3)]
    for thread in guessing:
        thread.start()
    while any(thread.is_alive() for thread in guessing):
        assert site.ask("GET", "/say/x", basic("ops", PASSWORD), address="127.0.0.2").status == 200
        assert site.ask("GET", "/say/x", basic("jürgen", PASSWORD), address="127.0.0.2").status == 200
    for thread in guessing:
        thread.join()
    assert len(statuses) == 1050
    assert set(statuses) == {401, 429}
    assert statuses.count(401) < 40
    assert site.daemon.log.count("guess-") == 0
    assert site.daemon.log.count("basic_auth") < 60


# --- what they may do


def test_actions(site: Site) -> None:
    """Each role may do what its rules say, by path and by body, and at each endpoint."""
    allowed = {
        "admin": {"echo", "find", "get", "move", "store"},
        "finder": {"echo", "find"},
        "retriever": {"echo", "get", "move"},
        "storer": {"echo", "store"},
        "nobody": {"echo"},
    }
    for prefix in ("/dicom", "/both"):
        for role, may in allowed.items():
            for operation in OPERATIONS:
                # What is allowed fails for what is wrong with it: nothing has to be done here.
                document = {"StudyInstanceUID": "1.2.3", "level": "STUDY", "nonsense": 1}
                answer = site.ask("POST", f"{prefix}/{operation}", role, document=document)
                assert (answer.status == 403) == (operation not in may), (prefix, role, operation, answer.body)
                in_body = {"operation": f"C-{operation.upper()}", **document}
                answer = site.ask("POST", prefix, role, document=in_body)
                assert (answer.status == 403) == (operation not in may), (prefix, role, operation, answer.body)


def test_resources(site: Site) -> None:
    """DICOMweb asks the same rules."""
    assert site.ask("GET", "/web/studies", "finder").status == 200
    assert site.ask("GET", "/web/studies", "retriever").status == 403
    assert site.ask("GET", web(site, "north"), "finder").status == 403
    assert site.ask("GET", web(site, "north", "/metadata"), "finder", Accept="application/dicom+json").status == 403
    assert site.ask("GET", web(site, "north"), "retriever", Accept=FILES).status == 200
    assert site.ask("GET", web(site, "north"), "retriever", Accept=FILES).status == 200
    assert site.ask("GET", web(site, "north"), "finder", Accept=FILES).status == 403
    both = web(site, "north").replace("/web/", "/both-web/")
    assert site.ask("GET", both, "retriever", Accept=FILES).status == 200
    parts = multipart([an_object(site, "NORTH-1", site.north.study_uid)])
    answer = site.ask("POST", "/web/studies", "retriever", body=parts["body"], **_fields(parts))
    assert answer.status == 403
    asked = {"Origin": "https://viewer.example", "Access-Control-Request-Method": "GET"}
    preflight = site.ask("OPTIONS", "/web/studies", asked)
    assert preflight.status == 204
    refused = site.ask("GET", "/web/studies", {"Origin": "https://viewer.example"})
    assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, "https://viewer.example")


def _fields(parts: dict[str, Any]) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in parts["headers"].items()}


def test_backends_and_other_services(site: Site) -> None:
    """A backend that the client names, and those that are no PACS, are held to the rules as well."""
    assert site.ask("POST", "/both/echo?backend=second", "nobody", document={}).status == 200
    document = {"level": "STUDY"}
    assert site.ask("POST", "/both/find?backend=second", "nobody", document=document).status == 403
    assert site.ask("GET", "/say/x", "north").status == 200
    kept = {"Content_Type": "application/dicom"}
    body = an_object(site, "SOUTH-1", site.south.study_uid)
    assert site.ask("POST", "/keep/x", "finder", body=body, **kept).status == 403
    assert site.ask("POST", "/keep/x", "north", body=body, **kept).status == 403
    assert site.ask("POST", "/keep/x", "storer", body=body, **kept).status == 200


def test_of_several_only_those_that_the_role_may_ask(site: Site) -> None:
    """Asked together, the others are left out of a query and of a retrieve; by name they are refused."""
    found = site.ask("POST", "/both/find", "lone", document={"level": "STUDY"}).json()
    assert [each["name"] for each in found.get("backends", [])] == ["second"]
    assert found["complete"]
    got = site.ask("POST", "/both/get", "lone", document=study(site, "north")).json()
    assert {each["name"] for each in got.get("backends", [])} <= {"second"}
    assert got["file_count"] == 2
    assert site.ask("POST", "/both/find?backend=second", "lone", document={"level": "STUDY"}).status == 200
    for path in ("/both/find?backend=pacs", "/dicom/find"):
        assert site.ask("POST", path, "lone", document={"level": "STUDY"}).status == 403
    assert site.ask("GET", "/both-web/studies", "lone").status == 200


# --- which patients


def test_what_is_found(site: Site) -> None:
    """Only studies within the limit are found, whatever is asked, at every level and endpoint."""
    north, south = site.north.study_uid, site.south.study_uid
    for prefix in ("/dicom", "/both"):
        assert set(site.find("admin", prefix, level="STUDY")) == {north, south}
        for name, own, other in (("north", north, south), ("south", south, north)):
            assert site.find(name, prefix, level="STUDY") == [own]
            assert site.find(name, prefix, level="STUDY", PatientID="*") == [own]
            assert site.find(name, prefix, level="STUDY", StudyInstanceUID=[north, south]) == [own]
            assert site.find(name, prefix, level="STUDY", StudyInstanceUID=other) == []
            assert site.find(name, prefix, level="STUDY", **{"return": "requested", "StudyInstanceUID": None}) == [own]
            assert site.find(name, prefix, level="SERIES", StudyInstanceUID=own) == [own]
            assert site.find(name, prefix, level="SERIES", StudyInstanceUID=other) == []
            assert site.find(name, prefix, level="SERIES", StudyInstanceUID=[own, other]) in ([own], [])
    for level in ("SERIES", "IMAGE"):
        answer = site.ask("POST", "/dicom/find", "north", document={"level": level, "query_model": "study"})
        assert answer.status in (400, 403), answer.body
    wild = {"level": "SERIES", "StudyInstanceUID": "2.25.*"}
    assert site.ask("POST", "/dicom/find", "north", document=wild).status in (400, 403)
    patients = {"level": "PATIENT", "query_model": "patient"}
    answer = site.ask("POST", "/dicom/find", "north", document=patients)
    assert [match["00100020"]["Value"] for match in answer.json()["matches"]] == [["NORTH-1"]]


def test_what_is_searched(site: Site) -> None:
    """QIDO-RS the same: studies, and all series and instances below them."""
    for kind in ("studies", "series", "instances"):
        for name in ("north", "south"):
            answer = site.ask("GET", f"/web/{kind}", name, Accept="application/dicom+json")
            own = getattr(site, name).study_uid
            assert {each["0020000D"]["Value"][0] for each in answer.json()} == {own}, kind
    assert site.ask("GET", web(site, "south", "/series"), "north").status == 204
    assert site.ask("GET", web(site, "south", "/instances"), "north").status == 204


def test_what_is_retrieved(site: Site) -> None:
    """What is not within the limit is not there, before and after somebody else has retrieved it into the cache."""
    other = f"/series/{site.south.series_uids[0]}/instances/{site.south.sop_uids[0]}"
    paths = [web(site, "south", below) for below in ("", "/metadata", other, other + "/metadata", other + "/frames/1")]
    for _ in range(2):
        for path in paths:
            kind = "application/dicom+json" if path.endswith("metadata") else "*/*"
            assert site.ask("GET", path, "north", Accept=kind).status == 404, path
            assert site.ask("GET", path, "south", Accept=kind).status == 200, path
            both = path.replace("/web/", "/both-web/")
            assert site.ask("GET", both, "north", Accept=kind).status in (404, 502), path
    assert site.ask("GET", web(site, "north"), "north", Accept=FILES).status == 200
    assert site.ask("GET", web(site, "north", "/rendered"), "south").status == 404


def test_operations_of_a_limited_role(site: Site) -> None:
    """C-GET is preceded by a look at the study; a series of another study below an allowed one is not given out."""
    assert site.ask("POST", "/dicom/get", "north", document=study(site, "north")).json()["file_count"] == 2
    assert site.ask("POST", "/dicom/get", "north", document=study(site, "south")).status == 404
    crossed = {
        "StudyInstanceUID": site.north.study_uid,
        "SeriesInstanceUID": site.south.series_uids[0],
        "level": "SERIES",
    }
    for _ in range(2):
        answer = site.ask("POST", "/dicom/get", "north", document=crossed)
        assert answer.status in (403, 404, 502), answer.body
        # Somebody who may see all brings whatever that is into the cache.
        path = web(site, "north", f"/series/{site.south.series_uids[0]}")
        site.ask("GET", path, "admin", Accept=FILES)
        assert site.ask("GET", path, "north", Accept=FILES).status in (403, 404, 502)
    whole_patient = {"PatientID": "NORTH-1", "level": "PATIENT", "query_model": "patient"}
    assert site.ask("POST", "/dicom/get", "north", document=whole_patient).status == 403


def test_what_is_stored(site: Site) -> None:
    """Only objects within the limit, and not into a study of others."""
    typed = {"Content_Type": "application/dicom"}
    own, other = uid_for("north/new"), site.south.study_uid
    for patient_id, study_uid, expected in (
        ("SOUTH-1", own, 403),
        ("NORTH-1", other, 403),
        ("", own, 403),
        ("NORTH-1", own, 200),
    ):
        body = an_object(site, patient_id, study_uid)
        answer = site.ask("POST", "/dicom/store", "north", body=body, **typed)
        assert answer.status == expected, (patient_id, answer.body)
    parts = multipart([an_object(site, "NORTH-1", own, 10), an_object(site, "SOUTH-1", own, 11)])
    answer = site.ask("POST", "/web/studies", "north", body=parts["body"], **_fields(parts))
    assert answer.status == 403
    assert set(site.find("admin", level="SERIES", StudyInstanceUID=own)) == {own}


# --- what is answered later, and what is about harmonyd


def test_operations_belong_to_who_asked(site: Site) -> None:
    """Nobody else sees, watches, fetches or cancels one, whatever their role; without credentials neither."""
    accepted = site.ask("POST", "/dicom/get", "south", document=study(site, "south"), Prefer="respond-async")
    assert accepted.status == 202, accepted.body
    path = accepted.headers["Location"]
    wait_until(lambda: site.ask("GET", path, "south").json()["state"] == "complete", "the operation ends")
    for who in ("north", "admin", None, "retriever"):
        for below in ("", "/events", "/result"):
            assert site.ask("GET", path + below, who).status == 404, (who, below)
        assert site.ask("DELETE", path, who).status == 404
    assert site.ask("GET", path, {"X-Site-Key": "wrong"}).status in (401, 429)
    assert site.ask("GET", path + "/result", "south").json()["file_count"] == 2
    refused = site.ask("POST", "/dicom/get", "north", document=study(site, "south"), Prefer="respond-async, wait=10")
    assert refused.status == 404
    assert site.ask("POST", "/dicom/get", None, document=study(site, "south"), Prefer="respond-async").status == 401


@pytest.mark.parametrize("path", ["/metrics", "/openapi.json", "/docs", "/admin/info", "/admin/operations"])
def test_paths_about_harmonyd(site: Site, path: str) -> None:
    """On a network with middleware they need a role that may manage; probes need nothing."""

    def status(who: Any) -> int:
        return site.ask("GET", path, who, port=site.guarded_port, address="127.0.0.4").status

    assert status(None) == 401
    assert status("finder") == 403
    assert status("admin") == 200
    assert status(basic("ops", PASSWORD)) == 200
    assert status({"X-Site-Key": "wrong"}) in (401, 429)


def test_what_is_said_of_credentials(site: Site) -> None:
    """The document has what a network and a pipeline want, and pages of others may send a field of our choice."""
    document = site.ask("GET", "/openapi.json", "admin", port=site.guarded_port).json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["keys"] == {"type": "apiKey", "in": "header", "name": "X-Site-Key"}
    assert schemes.keys() == {"keys", "users", "tokens"}
    security = {path: document["paths"][path]["get"]["security"] for path in ("/metrics", "/readyz", "/openapi.json")}
    one = [{"keys": []}, {"users": []}]
    assert security == {"/metrics": one, "/readyz": [*one, {}], "/openapi.json": one}
    assert {"keys": [], "tokens": []} in document["paths"]["/dicom/find"]["post"]["security"]
    assert {"401", "403", "429"} <= document["paths"]["/dicom/operations/{id}"]["get"]["responses"].keys()
    asked = {"Access-Control-Request-Method": "GET", "Origin": "https://viewer.example"}
    for port in (site.daemon.port, site.guarded_port):
        allowed = site.ask("OPTIONS", "/web/studies", asked, port=port).headers["Access-Control-Allow-Headers"]
        assert allowed.endswith(", X-Site-Key")


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes(site: Site, path: str) -> None:
    """On a network with middleware they need nothing and tell what is well; folders and children need a role."""

    def asked(query: str, who: Any, port: int) -> Any:
        answer = site.ask("GET", path + query, who, port=port, address="127.0.0.4")
        return answer.status if answer.status != 200 else answer.json()["checks"].get("storage", {}).keys()

    more = {"ok"} if path == "/readyz" else set()
    told = {"ok", "detail"} if path == "/readyz" else set()
    for query in ("", "?verbose=0", "?verbose&verbose=false", "/"):
        assert asked(query, None, site.guarded_port) == more
        assert asked(query, None, site.daemon.port) == told
    for query in ("?verbose", "?verbose=1", "/?verbose", "?%76erbose=yes", "?verbose=0&verbose"):
        assert asked(query, None, site.guarded_port) == 401
        assert asked(query, "finder", site.guarded_port) == 403
        assert asked(query, "admin", site.guarded_port) == (told and told | {"since"})


def test_a_network_limits_its_pipelines(site: Site) -> None:
    """Both have to allow it: the network's rules, and the pipeline's."""
    document = {"level": "STUDY"}
    assert site.ask("POST", "/dicom/find", "admin", document=document, port=site.guarded_port).status == 200
    assert site.ask("POST", "/dicom/find", "finder", document=document, port=site.guarded_port).status == 403
    assert site.ask("POST", "/dicom/find", None, document=document, port=site.guarded_port).status == 401
    asked = {"Access-Control-Request-Method": "POST", "Origin": "https://viewer.example"}
    assert site.ask("OPTIONS", "/dicom/find", asked, port=site.guarded_port).status in (401, 403, 405)
    assert site.ask("OPTIONS", "/web/studies", asked, port=site.guarded_port).status == 204


def test_refusals_are_logged_without_credentials(site: Site) -> None:
    """An operator can see who was refused, where and why."""
    site.ask("POST", "/dicom/find", "nobody", document={"level": "STUDY"}, address="127.0.0.9")
    lines = [line for line in site.daemon.log.splitlines() if "127.0.0.9" in line]
    assert any("find" in line and "nobody" in line for line in lines), lines
    assert json.dumps(key_of("nobody")["X-Site-Key"])[1:-1] not in site.daemon.log
