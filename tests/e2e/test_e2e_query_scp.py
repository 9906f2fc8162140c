"""C-FIND as an SCP: workstations ask a PACS through the daemon, and get what they would get without it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from query_kit import (
    Node,
    as_set,
    findscu,
    proxy,
)

from harmonyd.testing.data import CHARSETS, demo_files, make_charset_studies, report_files
from harmonyd.testing.pacs import RunningPacs

ENGINES = ("native", "dcmtk")
_FOLDERS = count()
STUDY_KEYS = (
    *("QueryRetrieveLevel=STUDY", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"),
    *("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "StudyDescription", "ReferringPhysicianName"),
    *("ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    """One with every test data set, those of each character set among them."""
    folder = tmp_path_factory.mktemp("pacs")
    studies = make_charset_studies(folder / "charsets")
    files = [*demo_files(), *report_files(), *(file for study in studies for file in study.files)]
    with RunningPacs(folder / "qrscp", files=files) as running:
        yield running


@pytest.fixture(scope="module")
def direct(pacs: RunningPacs) -> Node:
    """The PACS itself."""
    return Node(pacs.aet, pacs.port)


@pytest.fixture(scope="module", params=ENGINES)
def through(request: pytest.FixtureRequest, pacs: RunningPacs, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A daemon in front of it, whose backend has one of the engines."""
    backend = {"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port, "engine": request.param}
    daemon, node = proxy(tmp_path_factory.mktemp("daemon"), {"pacs": backend})
    with daemon:
        yield node


def both(direct: Node, through: Node, folder: Path, *keys: str, model: str = "-S") -> tuple[list[Any], list[Any]]:
    """What findscu gets from the PACS, and through the daemon."""
    straight = findscu(direct, folder / f"direct{next(_FOLDERS)}", *keys, model=model)
    return straight, findscu(through, folder / f"through{next(_FOLDERS)}", *keys, model=model)


def test_all_studies_are_the_same_tag_by_tag(direct: Node, through: Node, tmp_path: Path) -> None:
    """Every study, in every character set, as it comes from the PACS itself, byte for byte."""
    straight, proxied = both(direct, through, tmp_path, *STUDY_KEYS)
    assert len(straight) > 7 + len(CHARSETS)
    assert as_set(proxied) == as_set(straight)
