"""The daemon fixture's own behaviour, shown with small stand-ins for the daemon."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port, wait_until

STAND_IN = """
import http.server, json, signal, subprocess, sys, threading, tomllib
port = tomllib.loads(open(sys.argv[-1]).read())["network"]["default"]["http"]["bind_port"]
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.reply(200 if self.path == "/readyz" else 404, b"{}")
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.reply(200, json.dumps([self.headers["Content-Type"], body.decode()]).encode())
    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
def stop(*_):
    threading.Thread(target=server.shutdown).start()
signal.signal(signal.SIGTERM, stop)
"""


def _daemon(folder: Path, *, before: str = "", after: str = "", ready_secs: float = 20.0) -> RunningDaemon:
    """A stand-in that runs ``before`` when it starts and ``after`` when it was stopped."""
    config = write_config(folder, http_port=free_port(), backends={"echo": {"service": "echo"}})
    script = folder / "stand_in.py"
    script.write_text(f"{STAND_IN}\n{before}\nserver.serve_forever()\n{after}\n")
    return RunningDaemon(config, ready_secs=ready_secs, command=(sys.executable, str(script)))


def test_ready_then_stopped(tmp_path: Path) -> None:
    """When entered it answers; when left nothing is left."""
    with _daemon(tmp_path) as daemon:
        assert daemon.http("GET", "/nothing").status == 404
        answer = daemon.http("POST", "/x", json={"name": "Jörg"})
    assert answer.json() == ["application/json", '{"name": "Jörg"}']
    daemon.stop()


def test_a_daemon_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    """One that exits before it is ready raises, with the exit code and what it said."""
    daemon = _daemon(tmp_path, before="print('no such option', flush=True); sys.exit(3)")
    with pytest.raises(RuntimeError, match=r"(?s)ended with 3.*no such option"):
        daemon.start()
    assert daemon.wait_exit() == 3


def test_a_daemon_that_is_never_ready_is_ended(tmp_path: Path) -> None:
    """One that does not answer in time raises, and does not live on."""
    daemon = _daemon(tmp_path, before="server.server_close(); signal.pause()", ready_secs=0.3)
    with pytest.raises(RuntimeError, match="readyz answers 200"):
        daemon.start()


def test_a_wrong_exit_code_is_an_error(tmp_path: Path) -> None:
    """Exit code 1 after SIGTERM fails."""
    daemon = _daemon(tmp_path, after="sys.exit(1)").start()
    with pytest.raises(AssertionError, match="exit code 1"):
        daemon.stop()


def test_a_child_left_behind_is_an_error_and_ended(tmp_path: Path) -> None:
    """A child in a session of its own that outlives the daemon is named, and killed."""
    daemon = _daemon(tmp_path, before="subprocess.Popen(['sleep', '97'], start_new_session=True)").start()
    (child,) = daemon.children()
    with pytest.raises(AssertionError, match="sleep 97"):
        daemon.stop()
    wait_until(lambda: not child.is_running() or child.status() == "zombie", "the child is gone")


def test_kill9_leaves_the_children_to_be_checked(tmp_path: Path) -> None:
    """After kill9 the children that are left are found."""
    daemon = _daemon(tmp_path, before="subprocess.Popen(['sleep', '97'], start_new_session=True)").start()
    daemon.kill9()
    with pytest.raises(AssertionError, match="left behind: process"):
        daemon.assert_nothing_left(0.2)


def test_the_real_daemon_asks_the_real_pacs(
    daemon: Callable[..., RunningDaemon], pacs: RunningPacs, tmp_path: Path
) -> None:
    """harmonyd itself, with the configuration that ``write_config`` makes, finds a study in the session's PACS."""
    running = daemon(backends={"pacs": {"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port}})
    assert running.http("POST", "/dicom/echo").json()["success"] is True
    found = running.http("POST", "/dicom/find", json={"patient_id": "12345678", "query_level": "STUDY"}).json()
    assert found["count"] == 1
