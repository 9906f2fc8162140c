"""The doctor, as a fixture."""

from __future__ import annotations

from pathlib import Path

import pytest
from doctor_kit import Doctor


@pytest.fixture
def doctor_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(tmp_path, capsys)
