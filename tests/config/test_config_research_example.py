"""``examples/research-deidentified``: it wants its key first, and then loads without a mistake or a warning."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harmonyd.config import ConfigError, load

ROOT = Path(__file__).parents[2]


def test_the_example(tmp_path: Path) -> None:
    """As its comments say."""
    folder = tmp_path / "a" / "example"
    shutil.copytree(ROOT / "examples" / "research-deidentified", folder)
    (folder / "research.key").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="key cannot be read"):
        load(folder / "config.toml")
    (folder / "research.key").write_bytes(b"k" * 44 + b"\n")
    (folder / "research.key").chmod(0o600)
    config = load(folder / "config.toml")
    assert config.warnings == ()
    hide = config.middleware["hide"].options
    assert hide["towards"] == "client"
    assert [when for when, _, _ in hide["regions"]] == [{0x00080060: ("US",)}]
    assert config.pipelines["research"].middleware == ("readers", "hide")
