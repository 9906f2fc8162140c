"""The two layers together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harmonyd.config import ConfigError, load
from harmonyd.config.model import HttpListener

ROOT = Path(__file__).parents[2]


def test_the_example_shows_both_usage_patterns():
    """The shipped example loads without a warning and has an SCU backend and an SCP endpoint."""
    config = load(ROOT / "examples/default/config.toml")
    assert config.warnings == ()
    assert config.storage.path == ROOT / "tmp"
    assert config.networks["default"].http.bind_port == 8080
    pacs = config.backends["dicom_pacs"].options
    assert (pacs.aet, pacs.port, pacs.move_destination_aet) == ("DEMO_PACS", 4242, "HARMONY_MOVE")
    assert (pacs.incoming_store_port, pacs.incoming_store_port_set) == (11124, True)
    assert config.endpoints["dicom_scp"].options.port == 11112
    assert config.pipelines["dicom_scp_demo"].backends == ()


def test_the_installed_configuration_loads():
    """What is installed under /etc is valid: HTTP on the socket that systemd holds, and one store SCP."""
    config = load(ROOT / "etc/harmonyd/config.toml")
    assert config.warnings == ()
    assert config.networks["default"].http == HttpListener("systemd:http", 0)
    assert config.control.socket == Path("/run/harmonyd/control.sock")
    [endpoint] = config.endpoints.values()
    assert (endpoint.options.local_aet, endpoint.options.port) == ("HARMONY_SCP", 11112)


def test_the_pipeline_in_the_installed_readme_loads(tmp_path):
    """The example in etc/harmonyd/pipelines/README can be copied as it is."""
    shutil.copytree(ROOT / "etc/harmonyd", tmp_path / "etc")
    readme = (tmp_path / "etc/pipelines/README").read_text()
    lines = [line[4:] for line in readme.splitlines() if line.startswith("    ")]
    (tmp_path / "etc/pipelines/pacs.toml").write_text("\n".join(lines))
    assert "pacs" in load(tmp_path / "etc/config.toml").backends


def test_a_missing_main_file_is_one_problem(tmp_path):
    """A configuration that is not there is said in one line."""
    with pytest.raises(ConfigError, match="no such file") as caught:
        load(tmp_path / "none.toml")
    assert len(caught.value.problems) == 1


def test_every_mistake_of_every_file_is_told_at_once(problems):
    """Mistakes in both layers, and between them, come together, the main file's first."""
    found = problems(
        '[endpoints.e]\nservice = "http"\noptions = { path_prefix = "x" }\n[backends.b]\nservice = "dicmo"\n',
        main='[proxy]\nlog_level = "loud"\n[limits]\nmax_connections = true\n',
        two='[pipelines.p]\nendpoints = ["f"]\n',
        three="[pipelines.p\n",
    )
    assert [(problem.file.name, problem.table, problem.key) for problem in found] == [
        ("config.toml", "proxy", "id"),
        ("config.toml", "proxy", "log_level"),
        ("config.toml", "limits", "max_connections"),
        ("one.toml", "endpoints.e.options", "path_prefix"),
        ("one.toml", "backends.b", "service"),
        ("three.toml", "", None),
        ("two.toml", "pipelines.p", "endpoints"),
    ]


def test_the_error_shows_one_line_for_each_problem(write):
    """Text of the error: one line a problem, with file, table, key, value and the nearest name."""
    options = '[backends.pacs.options]\naet = "A"\nhots = "h"\nport = 70000\n'
    path = write(one='[backends.pacs]\nservice = "dicom"\n' + options)
    with pytest.raises(ConfigError) as caught:
        load(path)
    file = path.parent / "pipelines" / "one.toml"
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{file}: [backends.pacs.options] host: missing; this key is required"
    assert lines[1] == f"{file}: [backends.pacs.options] port = 70000: out of range; allowed: 1 to 65535"
    assert lines[2].startswith(f'{file}: [backends.pacs.options] hots = "h": unknown key; did you mean "host"?')
    assert len(lines) == 3


def test_a_mistake_in_a_definition_causes_no_second_one(problems):
    """A pipeline may name a backend that has a mistake: only the mistake is told."""
    found = problems(
        '[pipelines.p]\nnetworks = ["default"]\nendpoints = ["e"]\nbackends = ["b"]\n'
        '[endpoints.e]\nservice = "http"\noptions = { path_prefix = "/" }\n[backends.b]\nservice = 3\n'
    )
    assert [(problem.table, problem.key) for problem in found] == [("backends.b", "service")]


def test_paths_are_taken_from_the_folder_of_the_main_file(loaded, tmp_path, monkeypatch):
    """Relative paths do not depend on the working folder, and are absolute in the model."""
    monkeypatch.chdir("/")
    config = loaded(
        '[backends.b]\nservice = "dicom"\noptions = { aet = "A", host = "h", port = 1, storage_dir = "art" }\n',
        main='[proxy]\nid = "x"\n[logging]\nlog_file_path = "log/h.log"\n',
    )
    assert config.storage.path == tmp_path / "tmp"
    assert config.logging.file == tmp_path / "log/h.log"
    assert config.backends["b"].options.storage_dir == tmp_path / "art"
    assert config.path == tmp_path / "config.toml"


def test_a_relative_main_path_works(write, monkeypatch):
    """The main file may be named relative to the working folder."""
    path = write()
    monkeypatch.chdir(path.parent)
    assert load(Path("config.toml")).path == path


HARMONY_MAIN = """
[proxy]
id = "harmony-dicom-scp"
log_level = "warn"
pipelines_path = "pipelines"
transforms_path = "transforms"

[network.dicom_net]
enable_wireguard = false
interface = "wg0"

[network.dicom_net.dicom]
bind_address = "0.0.0.0"
bind_port = 11119
aet = "MY_SCP"

[network.http_net.http]
bind_address = "::1"
bind_port = 8080

[logging]
log_to_file = false
log_file_path = ""

[management]
enabled = false
base_path = "admin"
network = "http_net"

[services.http]
module = ""
[services.jmix]
module = ""
[middleware_types.jwtauth]
module = ""
[runbeam]
enabled = false
"""


def test_a_harmony_configuration_loads_with_warnings(loaded):
    """Harmony's own keys that mean nothing here are accepted, and each is named in a warning."""
    config = loaded(
        '[pipelines.scp]\nnetworks = ["dicom_net"]\nendpoints = ["scp"]\n[endpoints.scp]\nservice = "dicom"\n',
        main=HARMONY_MAIN,
    )
    assert config.endpoints["scp"].options.port == 11119
    assert config.logging.level == "warning"
    told = "\n".join(config.warnings)
    for word in ("enable_wireguard", "runbeam", "[services]", "[middleware_types]"):
        assert word in told
