"""Whatever is in the files, the answer is a configuration or the list of its mistakes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from harmonyd.config import ConfigError, load
from harmonyd.config.daemon import SupervisionConfig
from harmonyd.config.model import DicomBackendOptions, DicomEndpointOptions
from harmonyd.testing.config_files import to_toml

KEYS = sorted(
    {field.name for kind in (DicomBackendOptions, DicomEndpointOptions, SupervisionConfig) for field in fields(kind)}
    | {"service", "options", "type", "set", "identifier", "rules", "backend", "dimse_op", "path_prefix", "methods"}
    | {"base_url", "networks", "endpoints", "backends", "middleware", "http", "dicom", "bind_address", "bind_port"}
    | {"module", "network", "enabled", "base_path", "id", "pipelines_path", "path", "tls", "targets", "use_tls"}
    | {"PatientID", "00100020", "a", "", "when", "otherwise", "calling_aet"}
)
TEXTS = ["http", "dicom", "echo", "passthru", "metadata", "path_filter", "a", "b", "/a", "127.0.0.1", "find", "\n", "ä"]
TEXTS += ["route", "storage"]
TABLES = ["proxy", "network", "storage", "limits", "logging", "management", "telemetry", "control", "supervision"]
TABLES += ["spool", "operations"]
DEFINITIONS = ["pipelines", "endpoints", "backends", "middleware", "services", "middleware_types", "cloud", "x"]

plain = st.one_of(st.sampled_from(TEXTS), st.integers(-1, 70000), st.booleans(), st.floats(), st.sampled_from([[]]))
values = st.recursive(
    plain | st.lists(st.sampled_from(TEXTS), max_size=3),
    lambda below: (tables := st.dictionaries(st.sampled_from(KEYS), below, max_size=5)) | st.lists(tables, max_size=2),
    max_leaves=12,
)
named = st.dictionaries(st.sampled_from(["a", "b", "..", "http"]), values, max_size=3)
files = st.dictionaries(st.sampled_from(TABLES + DEFINITIONS), named | values, max_size=8)


@settings(max_examples=150, deadline=None)
@given(main=files, one=files)
def test_any_tables_give_a_configuration_or_problems(main, one):
    """Nothing but ConfigError is raised, and each of its problems is one line."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "config.toml")
        path.write_text(to_toml(main), "utf-8")
        Path(folder, "pipelines").mkdir()
        Path(folder, "pipelines", "one.toml").write_text(to_toml(one), "utf-8")
        try:
            load(path)
        except ConfigError as error:
            assert len(str(error).splitlines()) == len(error.problems) > 0
