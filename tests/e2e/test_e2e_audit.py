"""The audit trail of a real daemon: who did what, at a collector over TLS and in a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

MARK = "ZZMARKED-1"
SCP = "RECEIVER"
QUERY, BEGIN, DONE = "Query", "Begin Transferring DICOM Instances", "DICOM Instances Transferred"
ALERT, ACTIVITY = "Security Alert", "Application Activity"
CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    return make_study(tmp_path / "made", 3, patient_id=MARK)


@pytest.fixture
def archive(tmp_path: Path, study: MadeStudy) -> Iterator[RunningPacs]:
    with RunningPacs(tmp_path / "pacs", files=study.files, destinations={"HARMONY_MOVE": free_port()}) as running:
        yield running
