"""A daemon that speaks HTTPS: curl and Python's client, certificates of clients, reloads, and a restart in place."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from reload_kit import Host
from supervisorctl_kit import Ctl

from harmonyd.testing.certificates import Authority, Issued
from harmonyd.testing.processes import free_port, wait_until

ECHO_HTTP = {"http": {"service": "http", "path_prefix": "/echo"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("https")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def own(ca: Authority, folder: Path) -> Issued:
    """The files that the daemon is told of; they are renewed."""
    first = ca.issue("first")
    made = Issued(folder / "own.crt", folder / "own.key")
    shutil.copy(first.key, made.key)
    shutil.copy(first.cert, made.cert)
    return made


@pytest.fixture(scope="module")
def inside() -> int:
    """The port of the network that wants certificates."""
    return free_port()


def networks(own: Issued, ca: Authority, inside: int, **default: Any) -> dict[str, Any]:
    """Two with HTTPS, the second with certificates of clients."""
    tls = {"cert_file": str(own.cert), "key_file": str(own.key)}
    mutual = {**tls, "ca_file": str(ca.cert)}
    return {
        "network": {
            "default": {"http": {"tls": tls, **default}},
            "inside": {"http": {"bind_address": "127.0.0.1", "bind_port": inside, "tls": mutual}},
        },
        "limits": {"head_timeout_secs": 1, "request_timeout_secs": 1},
    }


@pytest.fixture(scope="module")
def host(folder: Path, own: Issued, ca: Authority, inside: int) -> Iterator[Host]:
    context = ssl.create_default_context(cafile=str(ca.cert))
    made = Host(folder / "host", endpoints=ECHO_HTTP, sections=networks(own, ca, inside))
    made.daemon.tls = context
    with made:
        yield made


def curl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = ["curl", "--silent", "--show-error", "--include", "--max-time", "20", *map(str, arguments)]
    return subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def shown(host: Host) -> str:
    """The certificate that a new connection gets to see."""
    assert host.daemon.tls is not None
    with (
        socket.create_connection((host.daemon.host, host.daemon.port), 30) as raw,
        host.daemon.tls.wrap_socket(raw, server_hostname=host.daemon.host) as client,
    ):
        der = client.getpeercert(binary_form=True)
    assert der is not None
    return ssl.DER_cert_to_PEM_cert(der)


def test_curl_over_https(host: Host, ca: Authority) -> None:
    """Verified by its authority, with HSTS; curl's HTTP/2 is declined by ALPN."""
    url = f"{host.daemon.base_url}/livez"
    answer = curl("--cacert", ca.cert, "--http2", url)
    assert (answer.returncode, answer.stdout.splitlines()[0]) == (0, "HTTP/1.1 200 OK")
    assert "Strict-Transport-Security: max-age=31536000" in answer.stdout
    assert curl(url).returncode == 60, "nobody trusts it who does not know its authority"


def test_plain_http_on_the_same_port(host: Host) -> None:
    """A 400 that says what to do."""
    answer = curl(host.daemon.base_url.replace("https:", "http:") + "/livez")
    assert answer.stdout.startswith("HTTP/1.1 400 ")
    assert "Ask for https://." in answer.stdout


def test_certificates_of_clients(host: Host, ca: Authority, inside: int, tmp_path: Path) -> None:
    """The right one is let in; none, one of somebody else, and one of last year are not."""
    right, late = ca.issue("right"), ca.issue("late", days=-1)
    wrong = Authority(tmp_path, "others").issue("wrong")
    url = f"https://127.0.0.1:{inside}/livez"

    def status(given: Issued | None) -> tuple[int, str]:
        files = ("--cert", given.cert, "--key", given.key) if given else ()
        answer = curl("--cacert", ca.cert, *files, url)
        return answer.returncode, answer.stdout[:12]

    assert status(right) == (0, "HTTP/1.1 200")
    for each in (None, wrong, late):
        code, said = status(each)
        assert (code != 0, said) == (True, "")


def test_a_slow_head_and_a_handshake_that_does_not_end(host: Host) -> None:
    """Both are over after head_timeout_secs; the daemon answers others meanwhile."""
    assert host.daemon.tls is not None
    where = host.daemon.host, host.daemon.port
    with (
        socket.create_connection(where, 30) as silent,
        socket.create_connection(where, 30) as raw,
        host.daemon.tls.wrap_socket(raw, server_hostname=host.daemon.host) as slow,
    ):
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost:")
        assert host.status("/livez") == 200
        assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")
        with contextlib.suppress(ConnectionError):  # it may be reset
            assert silent.recv(10) == b""


def test_renewed_in_place(host: Host, own: Issued, ca: Authority) -> None:
    """New files are used without a reload; connections that stand go on."""
    connection = host.daemon.connect()
    assert host.daemon.send(connection, "GET", "/livez").read()
    second = ca.issue("second")
    for source, target in ((second.key, own.key), (second.cert, own.cert)):
        copy = target.with_suffix(".new")
        shutil.copy(source, copy)
        copy.rename(target)
    assert shown(host) == second.cert.read_text()
    assert host.daemon.send(connection, "GET", "/livez").status == 200
    connection.close()
    metrics = host.daemon.http("GET", "/metrics").body.decode()
    [expiry] = re.findall(r'certificate_expiry_timestamp_seconds\{.*name="default".*\} (\S+)', metrics)
    assert float(expiry) > 1.7e9


def test_reload(host: Host, own: Issued, ca: Authority, inside: int) -> None:
    """Another certificate, no HSTS, plain HTTP and back, all on one port; a key of another one changes nothing."""
    other = ca.issue("other")
    wrong = Issued(other.cert, own.key)
    assert "not the key of the certificate" in host.refuse(
        endpoints=ECHO_HTTP, sections=networks(wrong, ca, inside)
    )
    assert "network:default" in host.reload(
        endpoints=ECHO_HTTP, sections=networks(other, ca, inside, hsts_max_age_secs=0)
    )
    assert shown(host) == other.cert.read_text()
    assert host.daemon.http("GET", "/livez").headers["Strict-Transport-Security"] is None

    context, host.daemon.tls = host.daemon.tls, None
    sections = networks(other, ca, inside)
    without = {**sections, "network": {"inside": sections["network"]["inside"]}}
    assert "network:default" in host.reload(endpoints=ECHO_HTTP, sections=without)
    assert host.status("/livez") == 200
    host.daemon.tls = context
    with pytest.raises((OSError, HTTPException)):
        host.status("/livez")
    host.reload(endpoints=ECHO_HTTP, sections=networks(own, ca, inside))
    assert host.status("/livez") == 200


def test_restart_in_place(host: Host) -> None:
    """supervisorctl reload: the same process id, and TLS again."""
    pid = host.daemon.pid
    before = host.daemon.log.count("test is up")
    assert Ctl(f"unix://{host.socket}")("reload").code == 0
    wait_until(lambda: host.daemon.log.count("test is up") > before, "it is up again", 30)
    assert host.status("/livez") == 200
    assert host.daemon.pid == pid
