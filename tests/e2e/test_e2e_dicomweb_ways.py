"""DICOMweb in other surroundings: Harmony's bridge, middleware, several backends, Orthanc, and curl as documented."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import requests
from dicomweb_client import DICOMwebClient
from dicomweb_kit import PREFIX, Gateway, dicomweb_over, pacs_options
from orthanc_kit import Orthanc
from pydicom import dcmread

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import demo_files
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

ROOT = Path(__file__).parents[2]
FILES = demo_files()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    with RunningPacs(tmp_path_factory.mktemp("pacs"), files=FILES) as running:
        yield running


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, pacs: RunningPacs) -> Iterator[Gateway]:
    """With the name and the ways to choose it that docs/dicomweb.md has."""
    folder, backend = tmp_path_factory.mktemp("web"), pacs_options(pacs, "native")
    with dicomweb_over(folder, backend, backend_name="malmo", backend_in_path=True, backend_header="X-PACS") as running:
        yield running


def test_harmonys_bridge_and_middleware(tmp_path: Path, pacs: RunningPacs) -> None:
    """An http endpoint beside the bridge is DICOMweb; a path filter lets through what it names, and no more."""
    port = free_port()
    config = write_config(
        tmp_path,
        http_port=port,
        backends={"pacs": pacs_options(pacs, "native")},
        endpoints={"http": {"service": "http", "path_prefix": PREFIX}},
        middleware={
            "bridge": {"type": "dicomweb_bridge"},
            "filter": {"type": "path_filter", "rules": ["/studies", "/studies/{study}/metadata"]},
        },
    )
    with RunningDaemon(config):
        client = DICOMwebClient(f"http://127.0.0.1:{port}{PREFIX}")
        studies = client.search_for_studies()
        assert len(studies) == 7
        assert client.retrieve_study_metadata(studies[0]["0020000D"]["Value"][0])
        with pytest.raises(requests.HTTPError, match="404"):
            client.search_for_series()


def test_a_backend_that_is_named(tmp_path: Path, pacs: RunningPacs) -> None:
    """``?backend=`` chooses among those of the pipeline, for all questions of a request; it is no key."""
    empty = {"engine": "native", "aet": "NOBODY", "host": "127.0.0.1", "port": free_port()}
    port = free_port()
    config = write_config(
        tmp_path,
        http_port=port,
        backends={"away": empty, "pacs": pacs_options(pacs, "native")},
        endpoints={"web": {"service": "dicomweb", "path_prefix": PREFIX}},
    )
    with RunningDaemon(config) as daemon:
        gateway = Gateway(daemon, port)
        assert gateway.ask("/studies").status == 502
        assert len(json.loads(gateway.ask("/series?backend=pacs").body)) == 14
        assert gateway.ask("/studies?backend=nothing").status == 403


def test_dicomweb_client_cannot_delete(web: Gateway) -> None:
    """There is no DELETE: each method of the client says so, and nothing is gone."""
    study = web.client.search_for_studies()[0]["0020000D"]["Value"][0]
    for delete, uids in (
        (web.client.delete_study, (study,)),
        (web.client.delete_series, (study, "1.2")),
        (web.client.delete_instance, (study, "1.2", "1.3")),
    ):
        with pytest.raises(requests.HTTPError, match="405"):
            delete(*uids)
    assert web.client.retrieve_study(study)


def test_orthanc(tmp_path: Path) -> None:
    """Store to Orthanc, search there, and retrieve by C-GET what was stored."""
    with Orthanc(tmp_path / "orthanc", {"HARMONY_SCU": free_port()}) as orthanc:
        backend = {"engine": "native", **orthanc.backend}
        with dicomweb_over(tmp_path / "web", backend) as web:
            originals = [dcmread(path) for path in FILES[:6]]
            assert len(web.client.store_instances(originals).ReferencedSOPSequence) == 6
            studies = {str(ds.StudyInstanceUID) for ds in originals}
            found = {each["0020000D"]["Value"][0]: each for each in web.client.search_for_studies()}
            assert found.keys() == studies
            for uid, record in found.items():
                mine = {ds.SOPInstanceUID for ds in originals if ds.StudyInstanceUID == uid}
                assert record["00201208"]["Value"] == [len(mine)]
                assert {ds.SOPInstanceUID for ds in web.client.iter_study(uid)} == mine
                assert len(web.client.search_for_instances(uid)) == len(mine)


def _documented() -> list[str]:
    page = (ROOT / "docs/dicomweb.md").read_text("utf-8")
    return [line.strip() for line in page.splitlines() if line.startswith("    curl ")]


@pytest.mark.parametrize("line", _documented())
def test_curl_as_documented(web: Gateway, tmp_path: Path, line: str) -> None:
    """Each command of the page works, with the UIDs of what is there."""
    one = next(ds for ds in map(dcmread, FILES) if ds.Modality == "CT")
    line = line.replace("http://127.0.0.1:8080/dicomweb", web.url).replace("1.2.3/", f"{one.StudyInstanceUID}/")
    line = re.sub(r"1\.2\.3(?=[ '])", one.StudyInstanceUID, line)
    line = re.sub(r"1\.2\.4(?=/)", one.SeriesInstanceUID, line)
    line = re.sub(r"1\.2\.5(?=[/ ])", one.SOPInstanceUID, line)
    (tmp_path / "image.dcm").write_bytes(Path(str(one.filename)).read_bytes())
    argv = [*shlex.split(line), "-sS", "-w", "\n%{http_code}"]
    done = subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True)
    body, _, status = done.stdout.rpartition(b"\n")
    assert status == (b"206" if "-r" in argv else b"200"), body
    for path in tmp_path.glob("*.jpg"):
        assert path.read_bytes().startswith(b"\xff\xd8")
    if "-o" not in argv:
        assert json.load(BytesIO(body))


def test_the_example(tmp_path: Path) -> None:
    """``examples/dicomweb`` is a configuration that loads."""
    from harmonyd.config import load

    config = load(ROOT / "examples/dicomweb/config.toml")
    assert config.endpoints["dicomweb"].service == "dicomweb"
    assert not config.warnings
