"""TLS from the configuration to the wire: the daemon over HTTP, and ``harmonyd check --probe``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_kit import ENGINES
from tls_kit import tls_storescp

from harmonyd.testing.certificates import Authority
from harmonyd.testing.config_files import write_config
from harmonyd.testing.processes import free_port


def options(port: int, engine: str, **tls: str) -> dict[str, Any]:
    return {"aet": "STORESCP", "host": "localhost", "port": port, "engine": engine, "use_tls": True, "tls": tls}


def probed(config: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "harmonyd", "check", "--probe", "--config", str(config)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_daemon(daemon: Any, tmp_path: Path, ca: Authority, engine: str) -> None:
    """An echo over HTTP goes to DCMTK over TLS with our certificate; without it, the answer says what to set."""
    own = ca.issue("own")
    files = {"cert_file": str(own.cert), "key_file": str(own.key)}
    with tls_storescp(tmp_path / "received", ca.issue("server"), "+cf", str(ca.cert), "-rc") as scp:
        running = daemon(backends={"pacs": options(scp.port, engine, ca_file=str(ca.cert), **files)})
        assert running.http("POST", "/dicom/echo").status == 200
        nameless = daemon(backends={"pacs": options(scp.port, engine, ca_file=str(ca.cert))})
        answer = nameless.http("POST", "/dicom/echo")
        assert answer.status == 502
        assert answer.json()["tls"] == "client_certificate_required"
        assert "tls.cert_file" in answer.json()["hint"]


@pytest.mark.parametrize("engine", ENGINES)
def test_check(tmp_path: Path, ca: Authority, engine: str) -> None:
    """``check --probe`` shakes hands as the daemon does; a certificate that we do not trust is a finding."""
    with tls_storescp(tmp_path / "received", ca.issue("server"), "-ic") as scp:
        found = []
        for name, tls in (("right", {"ca_file": str(ca.cert)}), ("wrong", {})):
            backends = {"pacs": options(scp.port, engine, **tls)}
            found.append(probed(write_config(tmp_path / name, http_port=free_port(), backends=backends)))
    assert "answered a C-ECHO" in found[0].stdout + found[0].stderr
    assert "is from no authority among those that this system trusts" in found[1].stdout + found[1].stderr
    assert (found[0].returncode, found[1].returncode) == (0, 1)
