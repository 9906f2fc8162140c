"""The stock supervisorctl as a process, and a daemon for it to operate."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmonyd.testing.config_files import write_config
from harmonyd.testing.processes import free_port, wait_until

COMMAND = (sys.executable, "-m", "supervisor.supervisorctl")
FAST = {"probe_interval_secs": 0.5, "backoff_initial_secs": 0.2, "backoff_max_secs": 1, "stop_grace_secs": 3}


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    output: str
    errors: str

    @property
    def lines(self) -> list[str]:
        """Of its standard output."""
        return self.output.splitlines()


class Ctl:
    """``ctl("status", "all")`` runs one command."""

    def __init__(self, url: str | None, *, cwd: Path | None = None, options: Sequence[str] = ()) -> None:
        """Without a URL supervisorctl looks for its own configuration, from ``cwd`` on."""
        self._argv = [*COMMAND, *(("-s", url) if url else ()), *options]
        self._cwd = cwd
        self._env = {**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "200"}

    def __call__(self, *arguments: str) -> Result:
        ran = subprocess.run(
            [*self._argv, *arguments], cwd=self._cwd, env=self._env, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=50, check=False,
        )  # fmt: skip
        return Result(ran.returncode, ran.stdout.decode("utf-8"), ran.stderr.decode("utf-8"))

    def states(self) -> dict[str, str]:
        """Name to state."""
        return {line.split()[0]: line.split()[1] for line in self("status").lines}

    def follow(self, *arguments: str) -> Following:
        """A command that goes on until it is left."""
        return Following([*self._argv, *arguments], self._cwd, self._env)


class Following:
    """``tail -f``, with its output in a file."""

    def __init__(self, argv: Sequence[str], cwd: Path | None, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self.output = b""

    def until(self, text: bytes) -> None:
        """Wait until it has shown this."""
        wait_until(lambda: text in self._read(), f"it shows {text!r}, after {self.output[-300:]!r}")

    def _read(self) -> bytes:
        assert self._process.stdout is not None
        self.output += self._process.stdout.read() or b""
        return self.output

    def wait_exit(self) -> int:
        """Wait until it ends by itself."""
        code = self._process.wait(20)
        self._read()
        self.close()
        return code

    def close(self) -> None:
        """Ctrl-C."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()


def receiving_config(folder: Path, count: int, *, sections: dict[str, Any] | None = None, **more: Any) -> Path:
    """A configuration with ``count`` store SCPs, ``in0`` and so on, on free ports."""
    endpoints = {f"in{number}": {"service": "dicom", "port": free_port()} for number in range(count)}
    pipelines = {
        f"receive{number}": {"networks": [], "endpoints": [f"in{number}"], "backends": []} for number in range(count)
    }
    return write_config(
        folder,
        http_port=free_port(),
        backends=more.pop("backends", {}),
        endpoints={**endpoints, **more.pop("endpoints", {})},
        pipelines={**pipelines, **more.pop("pipelines", {})},
        sections={"supervision": FAST, **(sections or {})},
        **more,
    )
