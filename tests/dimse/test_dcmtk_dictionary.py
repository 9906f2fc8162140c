"""The small data dictionary changes nothing in what getscu writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from harmonyd.dimse.dcmtk.log_config import small_dictionary
from harmonyd.testing.data import demo_files, report_files
from harmonyd.testing.pacs import PacsLayout, RunningPacs
from harmonyd.testing.processes import dcmtk, free_port


class OneSyntax(PacsLayout):
    """A dcmqrscp that accepts one transfer syntax only."""

    option = "+xi"

    def argv(self) -> tuple[str, ...]:
        return (*super().argv(), self.option)


class Explicit(OneSyntax):
    """Explicit VR Little Endian."""

    option = "+xe"


@pytest.mark.parametrize(("layout", "syntax"), [(OneSyntax, "1.2.840.10008.1.2"), (Explicit, "1.2.840.10008.1.2.1")])
def test_getscu_writes_the_same_data_sets(layout: type[OneSyntax], syntax: str, tmp_path: Path) -> None:
    """With the small dictionary each file equals, element for element, the one written with DCMTK's own."""
    files = [*demo_files()[::4], *report_files()]
    pacs = RunningPacs(tmp_path / "pacs", files=files)
    pacs.layout = layout(tmp_path / "pacs", free_port())
    small = tmp_path / "small.dic"
    small.write_text(small_dictionary(), "ascii")
    with pacs:
        for study in {str(dcmread(path, stop_before_pixels=True).StudyInstanceUID) for path in files}:
            query = query_file(tmp_path / "query.dcm", study)
            ours = received(pacs, query, tmp_path / f"small-{study}", {"DCMDICTPATH": str(small)})
            theirs = received(pacs, query, tmp_path / f"full-{study}", {})
            assert sorted(ours) == sorted(theirs) != []
            for name, path in ours.items():
                data_set = dcmread(path)
                assert data_set.file_meta.TransferSyntaxUID == syntax
                assert data_set == dcmread(theirs[name])


def query_file(path: Path, study: str) -> Path:
    ds = Dataset()
    ds.QueryRetrieveLevel, ds.StudyInstanceUID = "STUDY", study
    ds.save_as(path, implicit_vr=False, little_endian=True)
    return path


def received(pacs: RunningPacs, query: Path, folder: Path, env: dict[str, str]) -> dict[str, Path]:
    """What getscu writes for a query: file name → file."""
    folder.mkdir()
    argv = [dcmtk("getscu"), "-S", "-aec", pacs.aet, "-od", str(folder), "127.0.0.1", str(pacs.port), str(query)]
    subprocess.run(argv, check=True, env={**os.environ, "TCP_NODELAY": "1", **env}, capture_output=True, timeout=30)
    return {path.name: path for path in folder.iterdir()}
