"""A whole harmonyd in a process of its own, for end-to-end tests."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage, HTTPResponse, HTTPSConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from harmonyd.testing.config_files import http_address, listening_ports
from harmonyd.testing.log_lines import as_text, wrong_lines
from harmonyd.testing.processes import end_group, log_tail, port_is_free, signal_group, wait_until

COMMAND = (sys.executable, "-m", "harmonyd", "run")


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response, read to its end."""

    status: int
    headers: HTTPMessage
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class RunningDaemon:
    """A daemon as a context manager: ready when entered; when left, stopped with SIGTERM and checked.

    The checks of ``stop``: exit code 0, no process that it started is left, all its ports are free, and each JSON line
    of its log is what the schema says.
    """

    def __init__(
        self,
        config: Path,
        *,
        env: Mapping[str, str] | None = None,
        ready_secs: float = 30.0,
        command: Sequence[str] = COMMAND,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``config``: a config.toml, or the folder that holds one. ``env`` is added to our own environment.

        ``tls``: how to talk to its first HTTP network when that is one of HTTPS. It may be changed later.
        """
        self.config = (config / "config.toml" if config.is_dir() else config).absolute()
        self.host, self.port = http_address(self.config)
        self.tls = tls
        self._argv = [*command, "--config", str(self.config)]
        self._env = {**os.environ, **(env or {})}
        self._ready_secs = ready_secs
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: dict[int, psutil.Process] = {}

    # --- its life ---

    def start(self) -> Self:
        """Start it and wait until ``GET /readyz`` answers 200; ``RuntimeError`` with its log when it does not."""
        self.launch()
        try:
            wait_until(self._is_ready, f"{self.base_url}/readyz answers 200", self._ready_secs)
        except TimeoutError as error:
            self.kill9()
            raise RuntimeError(f"{error}\n{log_tail(self.log_file)}") from error
        return self

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )

    def stop(self, timeout_secs: float = 30.0) -> None:
        """SIGTERM, and the checks. Raises ``AssertionError`` that says what is wrong, with the daemon's log."""
        if self._process is None:
            return
        self.children()
        process, self._process = self._process, None
        process.terminate()
        try:
            code = process.wait(timeout_secs)
        except subprocess.TimeoutExpired:
            end_group(process)
            raise AssertionError(f"no exit within {timeout_secs:g} s of SIGTERM\n{log_tail(self.log_file)}") from None
        if code != 0:
            raise AssertionError(f"exit code {code} after SIGTERM\n{log_tail(self.log_file)}")
        with self.log_file.open(encoding="utf-8", errors="replace") as lines:
            if wrong := next(wrong_lines(lines), ""):
                raise AssertionError(f"a line of the log is not what log.schema.json says: {wrong}")
        self.assert_nothing_left(5.0)

    def kill9(self) -> None:
        """SIGKILL to the daemon alone, not to its children. What must be true after it: ``assert_nothing_left``."""
        if self._process is None:
            return
        self.children()
        process, self._process = self._process, None
        process.kill()
        process.wait()

    def wait_exit(self, timeout_secs: float = 30.0) -> int:
        """Wait until it ends by itself; its exit code."""
        if self._process is None:
            raise RuntimeError("the daemon is not running")
        code = self._process.wait(timeout_secs)
        self._process = None
        return code

    def assert_nothing_left(self, timeout_secs: float = 30.0) -> None:
        """None of the processes it was seen to have lives, and its ports are free, within the time given."""
        try:
            wait_until(lambda: not self._left(), "nothing is left of the daemon", timeout_secs)
        except TimeoutError:
            left = ", ".join(self._left())
            for process in self._living():
                signal_group(process.pid, signal.SIGKILL)
            raise AssertionError(f"left behind: {left}\n{log_tail(self.log_file)}") from None

    def _left(self) -> list[str]:
        processes = [f"process {_described(process)}" for process in self._living()]
        return processes + [f"listener on port {port}" for port in self._taken_ports()]

    def _living(self) -> list[psutil.Process]:
        return [process for process in self._seen.values() if _lives(process)]

    def _taken_ports(self) -> list[int]:
        return [port for port in sorted(listening_ports(self.config)) if not port_is_free(port)]

    def _is_ready(self) -> bool:
        if self._process is not None and (code := self._process.poll()) is not None:
            raise RuntimeError(f"harmonyd ended with {code} before it was ready:\n{log_tail(self.log_file)}")
        try:
            return self.http("GET", "/readyz", timeout_secs=5.0).status == 200
        except OSError:
            return False

    # --- what is known about it ---

    @property
    def base_url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the daemon is not running")
        return self._process.pid

    @property
    def log_file(self) -> Path:
        return self.config.parent / "daemon.log"

    @property
    def log(self) -> str:
        """Everything it wrote to standard output and error, over all starts; JSON lines as text ones."""
        return "".join(map(as_text, self.raw_log.splitlines(keepends=True)))

    @property
    def raw_log(self) -> str:
        """The same as it was written."""
        return self.log_file.read_text("utf-8", "replace")

    def children(self) -> list[psutil.Process]:
        """Its living descendants, none when it has ended. Each one seen here must be gone after ``stop``."""
        try:
            found = [child for child in psutil.Process(self.pid).children(recursive=True) if _lives(child)]
        except psutil.NoSuchProcess:
            return []
        self._seen.update({child.pid: child for child in found})
        return found

    # --- talking to it ---

    def http(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_secs: float = 30.0,
    ) -> Answer:
        """One request on a connection of its own. Raises ``http.client.IncompleteRead`` when the answer was cut."""
        connection = self.connect(timeout_secs)
        try:
            response = self.send(connection, method, path, json=json, body=body, headers=headers)
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def connect(self, timeout_secs: float = 30.0) -> HTTPConnection:
        """A connection, for tests that read slowly or leave early."""
        if self.tls is not None:
            return HTTPSConnection(self.host, self.port, timeout=timeout_secs, context=self.tls)
        return HTTPConnection(self.host, self.port, timeout=timeout_secs)

    def send(
        self,
        connection: HTTPConnection,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HTTPResponse:
        """Send a request and return the response with its body unread. ``json`` is encoded, and its type is set."""
        given = dict(headers or {})
        if json is not None:
            body = _encode(json)
            given.setdefault("Content-Type", "application/json")
        connection.request(method, path, body=body, headers=given)
        return connection.getresponse()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _described(process: psutil.Process) -> str:
    try:
        return f"{process.pid} ({' '.join(process.cmdline())})"
    except psutil.NoSuchProcess:
        return str(process.pid)
