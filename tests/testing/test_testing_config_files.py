"""The configuration that tests write."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from harmonyd.config.load import load
from harmonyd.testing.config_files import http_address, listening_ports, to_toml, write_config

PACS = {"aet": "QRSCP", "host": "127.0.0.1", "port": 11112, "incoming_store_port": 11123}

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_scalars = _text | st.booleans() | st.integers(-(2**63), 2**63 - 1)
_values = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
_tables = st.recursive(
    st.dictionaries(_text, _values, max_size=3),
    lambda inner: st.dictionaries(_text, inner | _values, max_size=3),
    max_leaves=5,
)


@given(_tables)
def test_toml_text_reads_back(tables: dict[str, Any]) -> None:
    """What ``to_toml`` writes is what tomllib reads."""
    assert tomllib.loads(to_toml(tables)) == tables


def test_written_configuration_is_valid(tmp_path: Path) -> None:
    """The files are a configuration that harmonyd accepts, with what was asked for in it."""
    path = write_config(
        tmp_path,
        http_port=8099,
        backends={"pacs": PACS, "echo": {"service": "echo"}},
        middleware={"pass": {"type": "passthru"}},
        sections={"limits": {"max_json_bytes": 4000}},
    )
    config = load(path)
    assert set(config.backends) == {"pacs", "echo"}
    assert config.pipelines["test"].middleware == ("pass",)
    assert config.limits.max_json_bytes == 4000


def test_address_and_ports_are_read_back(tmp_path: Path) -> None:
    """The HTTP address, and every port a daemon may listen on, but not the remote node's."""
    endpoints = {"scp": {"service": "dicom", "port": 11190}, "http": {"service": "http", "path_prefix": "/d"}}
    path = write_config(tmp_path, http_port=8099, backends={"pacs": PACS}, endpoints=endpoints)
    assert http_address(path) == ("127.0.0.1", 8099)
    assert listening_ports(path) == {8099, 11190, 11123}
