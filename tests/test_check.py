"""``harmonyd check``: what it finds wrong before anything is started, and what it says is well."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harmonyd.check import check
from harmonyd.services.dicomweb import codecs
from harmonyd.supervision.ports import command_line
from harmonyd.testing.certificates import Authority
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port

Report = tuple[int, list[str]]


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str]) -> Callable[..., Report]:
    """Check a configuration; the exit status and the printed lines."""

    def run(config: Path, *, probe: bool = False) -> Report:
        status = check(config, probe=probe)
        return status, capsys.readouterr().out.splitlines()

    return run


def backend(**options: Any) -> dict[str, Any]:
    return {"aet": "PACS", "host": "127.0.0.1", "port": 104, "incoming_store_port": free_port(), **options}


def configured(folder: Path, **arguments: Any) -> Path:
    arguments.setdefault("http_port", free_port())
    arguments.setdefault("backends", {"pacs": backend()})
    return write_config(folder / "conf", **arguments)


def errors(lines: list[str]) -> list[str]:
    return [line.removeprefix("error    ") for line in lines if line.startswith("error ")]


def test_all_is_well(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """The configuration, DCMTK's programs with versions and paths, folders and ports are named; status 0."""
    http_port, receiver = free_port(), free_port()
    scp_port = free_port()
    endpoints = {"http": {"service": "http", "path_prefix": "/d"}, "scp": {"service": "dicom", "port": scp_port}}
    given = {"pacs": backend(incoming_store_port=receiver)}
    status, lines = checked(configured(tmp_path, http_port=http_port, backends=given, endpoints=endpoints))
    assert (status, lines[-1]) == (0, "all is well")
    text = "\n".join(lines)
    for tool in ("echoscu", "findscu", "getscu", "movescu", "storescu", "storescp"):
        assert f"{tool} 3." in text
    assert f"network default, HTTP: 127.0.0.1 port {http_port} is free" in text
    assert f"backend pacs, incoming C-STORE: 0.0.0.0 port {receiver} is free" in text
    assert f"endpoint scp, DICOM: 0.0.0.0 port {scp_port} is free" in text
    assert f"storage path {tmp_path}/conf/tmp is writable (will be made)" in text
    assert not (tmp_path / "conf" / "tmp").exists(), "check makes nothing"


def test_all_errors_of_the_configuration_at_once(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """Each with file, table and key, in both layers; nothing else is checked then; status 2."""
    config = configured(
        tmp_path,
        backends={"pacs": backend(port=70000, aet="seventeen letters")},
        middleware={"odd": {"type": "passthrough"}},
        sections={"limits": {"max_jsonbytes": 5}, "logging": {"format": "xml"}},
    )
    status, lines = checked(config)
    assert status == 2
    assert lines[-1] == "5 errors in the configuration"
    found = errors(lines)
    assert len(found) == 5
    pipelines = config.parent / "pipelines" / "test.toml"
    assert sum(line.startswith(f"{config}: ") for line in found) == 2
    assert sum(line.startswith(f"{pipelines}: ") for line in found) == 3
    for text in ("[limits] max_jsonbytes", '"max_json_bytes"', "[backends.pacs.options] port = 70000", '"passthru"'):
        assert any(text in line for line in found), text


def test_one_error_is_counted_as_one(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """A configuration that is not there is one error that says what to do."""
    status, lines = checked(tmp_path / "config.toml")
    assert status == 2
    assert errors(lines) == [f"{tmp_path}/config.toml: no such file; create it, or name another with --config"]
    assert lines[-1] == "1 error in the configuration"


def test_warnings_do_not_fail(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """What is accepted without effect is told, and the status is 0."""
    config = configured(tmp_path, sections={"network": {"default": {"enable_wireguard": True}}})
    status, lines = checked(config)
    assert status == 0
    assert any(line.startswith("warning  ") and "WireGuard" in line for line in lines)


def test_codecs_that_are_not_installed(
    tmp_path: Path, checked: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DICOMweb endpoint works without them; what does not is told, with the command that installs them."""
    endpoints = {"web": {"service": "dicomweb", "path_prefix": "/dicomweb"}}
    config = configured(tmp_path, endpoints=endpoints, backends={"pacs": backend(engine="native")})
    monkeypatch.setattr(codecs, "find_spec", lambda module: None if module in ("numpy", "gdcm") else object())
    status, lines = checked(config)
    assert (status, lines[-1]) == (0, "all is well")
    [warning] = [line for line in lines if line.startswith("warning ")]
    assert "endpoint web: not installed: numpy, python-gdcm; " in warning
    assert warning.endswith("pip install 'harmonyd[dicomweb]'")
    monkeypatch.undo()
    assert not any(line.startswith("warning ") for line in checked(config)[1])


def test_ports_that_are_taken_name_their_holder(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """Pid and command line of whoever listens, for every kind of port; status 1."""
    ports = {"http": free_port(), "scp": free_port(), "receiver": free_port()}
    endpoints = {
        "http": {"service": "http", "path_prefix": "/d"},
        "scp": {"service": "dicom", "port": ports["scp"]},
    }
    given = {"pacs": backend(incoming_store_port=ports["receiver"])}
    config = configured(tmp_path, http_port=ports["http"], backends=given, endpoints=endpoints)
    held = [socket.create_server(("", port)) for port in ports.values()]
    try:
        status, lines = checked(config)
    finally:
        for listener in held:
            listener.close()
    assert status == 1
    found = errors(lines)
    assert len(found) == 3
    for port, line in zip(ports.values(), found, strict=True):
        assert f"port {port} is held by pid {os.getpid()} ({command_line(os.getpid())})" in line
    assert lines[-1].startswith("3 of ")


def test_ports_of_the_daemon_that_runs_are_no_errors(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """A changed configuration can be checked beside it: what it and its storescp listen on is its own."""
    endpoints = {
        "http": {"service": "http", "path_prefix": "/d"},
        "scp": {"service": "dicom", "port": free_port()},
    }
    config = configured(tmp_path, endpoints=endpoints)
    with RunningDaemon(config) as daemon:
        status, lines = checked(config)
        pid = daemon.pid
    assert (status, lines[-1]) == (0, "all is well")
    assert sum(f"is that of the harmonyd that runs (pid {pid})" in line for line in lines) == 3


def test_a_port_that_nobody_will_listen_on_is_not_checked(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """The receiver of a backend that no HTTP client reaches is never started."""
    endpoints = {"scp": {"service": "dicom", "port": free_port()}}
    status, lines = checked(configured(tmp_path, endpoints=endpoints))
    assert status == 0
    assert not any("incoming C-STORE" in line for line in lines)


def test_an_address_that_is_not_ours(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """It is told as what it is, not as a taken port."""
    config = configured(tmp_path, sections={"network": {"default": {"http": {"bind_address": "192.0.2.1"}}}})
    status, lines = checked(config)
    assert status == 1
    [line] = errors(lines)
    assert "cannot listen on 192.0.2.1" in line
    assert "Cannot assign requested address" in line


def test_folders_that_are_files(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """Storage path, log folder, and the folders of backends and endpoint: each is named."""
    (tmp_path / "file").touch()
    endpoints = {
        "http": {"service": "http", "path_prefix": "/d"},
        "scp": {"service": "dicom", "port": free_port(), "storage_dir": "../file/c"},
    }
    config = configured(
        tmp_path,
        backends={
            "pacs": backend(storage_dir="../file/b"),
            "archive": {"service": "storage", "path": "../file/archive"},
        },
        endpoints=endpoints,
        sections={"storage": {"options": {"path": "../file"}}, "logging": {"log_file_path": "../file/log/x.log"}},
    )
    status, lines = checked(config)
    assert status == 1
    assert [line.partition(" /")[0] for line in errors(lines)] == [
        "storage path",
        "log folder",
        "storage_dir of backend pacs",
        "path of backend archive",
        "storage_dir of endpoint scp",
    ]
    assert all(f"{tmp_path}/file is no folder" in line for line in errors(lines))


def test_the_audit_file(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """Its folder has to be there: a start would fail without it."""
    file = tmp_path / "trail" / "audit.xml"
    config = configured(tmp_path, sections={"audit": {"file": str(file)}})
    wrong = f"[audit] file {file}: "
    status, lines = checked(config)
    assert (status, errors(lines)) == (1, [f"{wrong}there is no folder {file.parent}; make it, writable for this user"])
    file.mkdir(parents=True)
    status, lines = checked(config)
    assert (status, errors(lines)) == (1, [f"{wrong}it cannot be appended to by this user"])
    file.rmdir()
    status, lines = checked(config)
    assert (status, f"ok       {wrong}can be written to".replace(": can", " can") in lines) == (0, True)


def test_folders_that_are_not_writable(tmp_path: Path) -> None:
    """A folder that this user may not write to, and one that lies in a folder that may not be entered."""
    (tmp_path / "readonly").mkdir(mode=0o555)
    (tmp_path / "closed").mkdir(mode=0o000)
    sections = {"storage": {"options": {"path": "../readonly"}}, "logging": {"log_file_path": "../closed/log/x.log"}}
    config = configured(tmp_path, sections=sections)
    ran = subprocess.run(
        [*without_override(), sys.executable, "-m", "harmonyd", "check", "--config", str(config)],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    (tmp_path / "closed").chmod(0o700)
    assert ran.returncode == 1
    assert errors(ran.stdout.splitlines()) == [
        f"storage path {tmp_path}/readonly: this user may not write to {tmp_path}/readonly",
        f"log folder {tmp_path}/closed/log: this user may not write to {tmp_path}/closed",
    ]
    assert ran.stderr == ""


def without_override() -> list[str]:
    """Root may write anywhere; give that up for a command (capabilities(7))."""
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.mark.parametrize("engine", ["dcmtk", "native"])
def test_probe_asks_every_backend(
    tmp_path: Path, checked: Callable[..., Report], pacs: RunningPacs, peer: Callable[..., ScriptedPeer], engine: str
) -> None:
    """A C-ECHO each: one answers, one is down, one knows itself by another AE title, one is silent; status 1."""
    silent = peer("silent")
    nobody = free_port()
    given = {
        "well": backend(aet=pacs.aet, port=pacs.port),
        "down": backend(port=nobody),
        "wrong": backend(aet="NOT_ME", port=pacs.port),
        "silent": backend(port=silent.port, connect_timeout_ms=1000, association_timeout_ms=1000),
    }
    given = {name: {**table, "engine": engine} for name, table in given.items()} | {"other": {"service": "echo"}}
    status, lines = checked(configured(tmp_path, backends=given), probe=True)
    assert status == 1
    assert f"ok       backend well: {pacs.aet} at 127.0.0.1:{pacs.port} answered a C-ECHO" in lines
    down, wrong, silence = errors(lines)
    assert down.startswith(f"backend down: PACS at 127.0.0.1:{nobody} did not answer a C-ECHO")
    assert "Connection refused" in down
    assert wrong.startswith(f"backend wrong: NOT_ME at 127.0.0.1:{pacs.port} did not answer")
    assert "Called AE Title Not Recognized" in wrong
    assert silence.startswith(f"backend silent: PACS at 127.0.0.1:{silent.port} did not answer")
    assert not any("backend other" in line for line in lines)


def test_native_alone_needs_no_dcmtk(
    tmp_path: Path, checked: Callable[..., Report], pacs: RunningPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DCMTK's programs are not looked for, and a node is asked without them."""
    given = {"pacs": {**backend(aet=pacs.aet, port=pacs.port), "engine": "native"}}
    config = configured(tmp_path, backends=given)
    monkeypatch.setenv("PATH", str(tmp_path))
    status, lines = checked(config, probe=True)
    assert (status, errors(lines)) == (0, [])
    assert not any("echoscu" in line for line in lines)
    assert any("backend pacs" in line and "answered a C-ECHO" in line for line in lines)


def test_without_probe_no_node_is_asked(
    tmp_path: Path, checked: Callable[..., Report], peer: Callable[..., ScriptedPeer]
) -> None:
    """check alone opens no connection."""
    node = peer("silent")
    assert checked(configured(tmp_path, backends={"pacs": backend(port=node.port)}))[0] == 0
    assert node.events("association") == []


@pytest.mark.parametrize("engine", ["dcmtk", "native"])
def test_certificates(tmp_path: Path, checked: Callable[..., Report], engine: str) -> None:
    """Each that is configured has a line with its end; one that ends soon is in a warning, too."""
    ca = Authority(tmp_path)
    own, soon = ca.issue("own", days=100.5), ca.issue("soon", days=20)
    client = {"ca_file": str(ca.cert), "cert_file": str(own.cert), "key_file": str(own.key)}
    receiving = {"cert_file": str(soon.cert), "key_file": str(soon.key)}
    given = {"pacs": backend(engine=engine, use_tls=True, tls=client, incoming_store_tls=receiving)}
    status, lines = checked(configured(tmp_path, backends=given))
    text = "\n".join(lines)
    assert status == 0
    assert f"ok       backend pacs, cert_file {own.cert}: CN=127.0.0.1 expires on " in text
    assert ", in 100 days" in text
    assert f"ok       backend pacs, ca_file {ca.cert}: CN=ca expires on " in text
    assert f"ok       receiver pacs, cert_file {soon.cert}: " in text
    assert any(line.startswith("warning") and "expires on" in line for line in lines)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(ca.cert.read_bytes() * 6)
    given["pacs"]["tls"]["ca_file"] = str(bundle)
    _, lines = checked(configured(tmp_path, backends=given))
    assert sum(str(bundle) in line for line in lines) == 1
    assert "(the first of 6)" in "\n".join(lines)
