"""What is kept for DICOMweb clients while the configuration changes: middleware refuses and reshapes, backends move."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_kit import CountingArchive, path_to, series_of
from dicomweb_kit import PREFIX, Gateway
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from reload_kit import Host

JSON = "application/dicom+json"
FILES = 'multipart/related; type="application/dicom"'
NAME = "00100010"
ENDPOINTS = {"web": {"service": "dicomweb", "path_prefix": PREFIX}}
NO_NAMES = [{"operation": "remove", "spec": {NAME: ""}}]


@pytest.fixture
def peer() -> Iterator[CountingArchive]:
    with CountingArchive(series_of(3)) as running:
        yield running


@pytest.fixture
def host(tmp_path: Path, peer: CountingArchive) -> Iterator[Host]:
    with Host(tmp_path, backends={"pacs": peer.backend}, endpoints=ENDPOINTS) as running:
        yield running
        assert "Traceback" not in running.daemon.log


def reload(host: Host, backend: dict[str, Any], middleware: dict[str, Any] | None = None) -> None:
    host.reload(backends={"pacs": backend}, endpoints=ENDPOINTS, middleware=middleware or {})


def per_record(specification: list[Any]) -> dict[str, Any]:
    options = {"apply": "right", "per_record": True, "spec": json.dumps(specification)}
    return {"nameless": {"type": "transform", "options": options}}


def resources(ds: Dataset) -> list[tuple[str, str | None]]:
    """Path and type of what can be answered from what is kept."""
    one = path_to(ds, below="instance")
    return [
        (path_to(ds), FILES),
        (f"{path_to(ds)}/metadata", JSON),
        (one, "application/dicom"),
        (f"{one}/metadata", JSON),
        (f"{one}/frames/1", None),
        (f"{one}/rendered", "image/png"),
    ]


def test_what_middleware_refuses_is_not_answered(host: Host, peer: CountingArchive) -> None:
    """Whatever is kept, and whatever tag the client has: each request passes the middleware first."""
    web = Gateway(host.daemon, host.http_port)
    asked = resources(peer.datasets[0])
    tags = {path: web.ask(path, accept).headers["ETag"] or "*" for path, accept in asked}
    assert peer.gets == ["SERIES"]
    reload(host, peer.backend, {"few": {"type": "path_filter", "options": {"rules": ["/studies"]}}})
    for path, accept in asked:
        for fields in ({}, {"If_None_Match": tags[path]}, {"Range": "bytes=0-1"}, {"Prefer": "respond-async"}):
            assert web.ask(path, accept, **fields).status == 404, (path, fields)
    reload(host, peer.backend)
    for path, accept in asked:
        assert web.ask(path, accept, If_None_Match=tags[path]).status == (304 if path != asked[0][0] else 200)
    assert peer.gets == ["SERIES"]


def test_what_middleware_reshapes_is_not_what_is_kept(host: Host, peer: CountingArchive) -> None:
    """Metadata comes from what is kept, reshaped, and has no tag; what is kept stays as it was."""
    web = Gateway(host.daemon, host.http_port)
    series, one = (f"{path_to(peer.datasets[0], below=below)}/metadata" for below in ("series", "instance"))
    web.ask(path_to(peer.datasets[0]), FILES)
    before = {path: web.ask(path, JSON) for path in (series, one)}
    reload(host, peer.backend, per_record(NO_NAMES))
    for path, whole in before.items():
        answer = web.ask(path, JSON, If_None_Match=whole.headers["ETag"])
        assert (answer.status, answer.headers["ETag"], answer.headers["Cache-Control"]) == (200, None, "no-store")
        expected = [{tag: value for tag, value in each.items() if tag != NAME} for each in json.loads(whole.body)]
        assert json.loads(answer.body) == expected != json.loads(whole.body)
        xml = web.ask(path, 'multipart/related; type="application/dicom+xml"').parts()
        assert (len(xml), b"PatientName" in xml[0][1]) == (len(expected), False)
    reload(host, peer.backend)
    for path, whole in before.items():
        assert web.ask(path, JSON).body == whole.body
        assert web.ask(path, JSON, If_None_Match=whole.headers["ETag"]).status == 304
    assert peer.gets == ["SERIES"]


def test_another_pacs_under_the_same_name(host: Host, peer: CountingArchive) -> None:
    """After a reload a backend's name leads elsewhere: what the old one sent is not given out; back again, it is."""
    web = Gateway(host.daemon, host.http_port)
    path = path_to(peer.datasets[0])
    assert len(web.ask(path, FILES).parts()) == 3
    other = [Dataset(ds) for ds in peer.datasets[:2]]
    for ds, original in zip(other, peer.datasets, strict=False):
        ds.file_meta = original.file_meta
        ds.PatientName = "Somebody^Else"
    with CountingArchive(other) as second:
        reload(host, second.backend)
        parts = [dcmread(DicomBytesIO(content)) for _, content in web.ask(path, FILES).parts()]
        assert [str(ds.PatientName) for ds in parts] == ["Somebody^Else"] * 2
        reload(host, {**second.backend, "aet": "OTHER"})
        assert len(web.ask(path, FILES).parts()) == 2
        assert second.gets == ["SERIES", "SERIES"]
    reload(host, peer.backend)
    assert len(web.ask(path, FILES).parts()) == 3
    assert peer.gets == ["SERIES"]
