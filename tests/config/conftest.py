"""A configuration on disk, written from text."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_kit import MAIN, Loaded, Problems, Write

from harmonyd.config import ConfigError, Problem, load
from harmonyd.config.model import Config


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(main, **pipelines)`` writes config.toml and pipelines/NAME.toml, and returns the path of the former."""

    def write(main: str = MAIN, **pipelines: str) -> Path:
        (tmp_path / "pipelines").mkdir(exist_ok=True)
        for name, text in pipelines.items():
            (tmp_path / "pipelines" / f"{name}.toml").write_text(text, encoding="utf-8")
        path = tmp_path / "config.toml"
        path.write_text(main, encoding="utf-8")
        return path

    return write


@pytest.fixture
def loaded(write: Write) -> Loaded:
    """``loaded(one_pipeline_file, main=…)`` is the validated configuration."""

    def loaded(text: str = "", main: str = MAIN, **pipelines: str) -> Config:
        return load(write(main, one=text, **pipelines))

    return loaded


@pytest.fixture
def problems(write: Write) -> Problems:
    """As ``loaded``, for a configuration that must be refused: the problems."""

    def problems(text: str = "", main: str = MAIN, **pipelines: str) -> list[Problem]:
        with pytest.raises(ConfigError) as caught:
            load(write(main, one=text, **pipelines))
        return caught.value.problems

    return problems
