"""Several PACS behind one endpoint, over the cache, and for operations that outlive their requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cache_kit import CountingArchive, path_to, series_of
from dicomweb_kit import PREFIX, Gateway
from later_kit import ASYNC, Later, assert_no_fault
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import generate_uid

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import free_port, wait_until

FILES = 'multipart/related; type="application/dicom"'
JSON = "application/dicom+json"
CHOICE = {"backend_in_path": True, "backend_header": "X-PACS"}


@dataclass
class Site:
    """One study in two series of three, one at each PACS; a third PACS can be switched off."""

    web: Gateway
    lund: CountingArchive
    malmo: CountingArchive

    def begin(self) -> None:
        """A study that was not asked for yet; the counters begin anew."""
        study = generate_uid()
        self.lund.datasets, self.malmo.datasets = series_of(3, study), series_of(3, study)
        for peer in (self.lund, self.malmo):
            peer.gets.clear()

    @property
    def gets(self) -> list[list[str]]:
        return [self.lund.gets, self.malmo.gets]

    @property
    def study(self) -> str:
        return path_to(self.lund.datasets[0], below="study")

    def later(self, path: str, accept: str = FILES, **headers: str) -> Later:
        given = {**ASYNC, "Accept": accept, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return Later(self.web.daemon, self.web.daemon.http("GET", PREFIX + path, headers=given))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with CountingArchive([]) as lund, CountingArchive([]) as malmo:
        port = free_port()
        config = _config(tmp_path_factory.mktemp("several"), port, {"lund": lund.backend, "malmo": malmo.backend})
        with RunningDaemon(config) as daemon:
            yield Site(Gateway(daemon, port), lund, malmo)
            assert_no_fault(daemon)


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    running.begin()
    yield running
    running.lund.release()
    running.malmo.release()


def _config(folder: Path, port: int, backends: dict[str, Any]) -> Path:
    pipeline = {"networks": ["default"], "endpoints": ["web"], "backends": list(backends), "fan_out": True}
    return write_config(
        folder,
        http_port=port,
        backends=backends,
        endpoints={"web": {"service": "dicomweb", "path_prefix": PREFIX, **CHOICE}},
        pipelines={"all": pipeline},
        sections={"cache": {"max_prefetches": 0}},
    )


def stored(ds: Dataset) -> bytes:
    file = DicomBytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_a_study_of_two_is_kept(site: Site) -> None:
    """Each part is retrieved once from where it is; a store to one PACS makes the whole study be asked for anew."""
    for _ in range(2):
        assert len(site.web.ask(site.study, FILES).parts()) == 6
    assert site.gets == [["STUDY"], ["STUDY"]]
    new = series_of(1, site.lund.datasets[0].StudyInstanceUID)[0]
    accepted = site.web.ask("/studies", method="POST", body=stored(new), Content_Type="application/dicom")
    assert accepted.status == 200, accepted.body
    assert len(site.web.ask(site.study, FILES).parts()) == 7
    assert site.gets == [["STUDY"] * 2, ["STUDY"] * 2]


def test_what_one_pacs_has_keeps_its_tag(site: Site) -> None:
    """Through several PACS a client learns as well that it has something already, and may ask for a part."""
    path = path_to(site.malmo.datasets[0], below="instance")
    for what, accept in ((f"{path}/metadata", JSON), (path, "application/dicom"), (f"{path}/frames/1", None)):
        first = site.web.ask(what, accept)
        assert (first.status, first.headers["Cache-Control"]) == (200, "private, no-cache"), what
        assert site.web.ask(what, accept, If_None_Match=first.headers["ETag"]).status == 304
    part = site.web.ask(path, "application/dicom", Range="bytes=0-131")
    assert (part.status, part.body[128:]) == (206, b"DICM")
    assert site.gets == [[], ["IMAGE"]]


def test_what_may_lack_something_has_no_tag(tmp_path: Path, site: Site) -> None:
    """One PACS is away, and may have more of it: nobody keeps that, and the warning says so."""
    away = {"engine": "native", "aet": "AWAY", "host": "127.0.0.1", "port": free_port()}
    port = free_port()
    with RunningDaemon(_config(tmp_path, port, {"away": away, "malmo": site.malmo.backend})) as daemon:
        web = Gateway(daemon, port)
        path = f"{path_to(site.malmo.datasets[0])}/metadata"
        for _ in range(2):
            answer = web.ask(path, JSON)
            assert (answer.status, answer.headers["Cache-Control"], answer.headers["ETag"]) == (200, "no-store", None)
            assert "The PACS away did not answer" in answer.headers["Warning"]
        assert site.malmo.gets == ["SERIES"]


def test_a_pacs_that_goes_away(tmp_path: Path, site: Site) -> None:
    """A series was at one PACS a moment ago: when it is gone, the other one that has it too is found."""
    site.malmo.datasets = site.lund.datasets
    first, second, _ = (path_to(ds, below="instance") for ds in site.lund.datasets)
    port = free_port()
    with ExitStack() as until_it_leaves:
        leaving = until_it_leaves.enter_context(CountingArchive(site.lund.datasets))
        backends = {"leaving": leaving.backend, "malmo": site.malmo.backend}
        with RunningDaemon(_config(tmp_path, port, backends)) as daemon:
            web = Gateway(daemon, port)
            assert web.ask(f"{first}/frames/1").status == 200
            leaving.abort()
            until_it_leaves.close()
            answer = web.ask(f"{second}/frames/1")
            assert (answer.status, "The PACS leaving did not answer" in answer.headers["Warning"]) == (200, True)
            assert (leaving.gets, site.malmo.gets) == (["IMAGE"], ["IMAGE"])
            assert_no_fault(daemon)


def test_instances_of_two_are_counted_once(site: Site) -> None:
    """Cold and kept; what it takes to find out where they are is not counted."""
    kept_size = _sizes(site)
    kept = site.later(site.study).end()
    site.begin()
    cold = site.later(site.study).end()
    cold_size = _sizes(site)  # what both have is a few bytes longer from one of them, which has the longer AE title
    assert cold["suboperations"] == {"completed": 6, "failed": 0, "warning": 0, "remaining": 0}
    assert kept["suboperations"] is None
    for state, size in ((kept, kept_size), (cold, cold_size)):
        assert (state["state"], state["complete"], state["operation"]) == ("complete", True, "get")
        assert (state["instances"], state["bytes"]) == (6, size)


def _sizes(site: Site) -> int:
    """Of the parts of the study."""
    return sum(len(content) for _, content in site.web.ask(site.study, FILES).parts())


@pytest.mark.parametrize("way", ["path", "header", "query"])
def test_an_operation_at_one(site: Site, way: str) -> None:
    """The client chooses the PACS; the operation is below the prefix in any case."""
    path = f"/malmo{site.study}" if way == "path" else site.study + "?backend=malmo" * (way == "query")
    operation = site.later(path, **({"X_PACS": "malmo"} if way == "header" else {}))
    assert operation.path == f"{PREFIX}/operations/{operation.id}"
    state = operation.end()
    assert (state["state"], state["instances"], site.gets) == ("complete", 3, [[], ["STUDY"]])
    assert site.web.daemon.http("GET", f"{PREFIX}/malmo/operations/{operation.id}").status == 404
    assert operation.delete().status == 204


def test_a_cancel_between_two(site: Site) -> None:
    """The first PACS has sent all, the second hangs: the cancel ends that, and nothing else is begun."""
    site.malmo.hold()
    operation = site.later(site.study)
    wait_until(lambda: operation.state["instances"] == 4, "the second has begun", 30)
    assert operation.delete().json()["state"] == "cancelled"
    site.malmo.release()
    assert len(site.web.ask(site.study, FILES).parts()) == 6
    assert site.gets == [["STUDY"], ["STUDY"] * 2]
