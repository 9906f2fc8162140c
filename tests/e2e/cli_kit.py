"""What the tests of the command line share: the example configuration on free ports, and running commands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from harmonyd.testing.processes import end_group, free_port, log_tail, port_is_free, wait_until

ROOT = Path(__file__).parent.parent.parent
COMMAND = (sys.executable, "-m", "harmonyd")


@dataclass(frozen=True, slots=True)
class Example:
    """A copy of ``examples/default`` that nothing else uses."""

    config: Path
    http_port: int
    pacs_port: int
    receiver_port: int
    endpoint_port: int

    @property
    def storage(self) -> Path:
        return self.config.parent / "tmp"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def ports(self) -> tuple[int, ...]:
        return (self.http_port, self.pacs_port, self.receiver_port, self.endpoint_port)

    def replace(self, old: str, new: str) -> None:
        """Change the pipelines file."""
        path = self.config.parent / "pipelines" / "dimse-integration.toml"
        path.write_text(replaced(path.read_text(), old, new))


def replaced(text: str, old: str, new: str) -> str:
    assert old in text, f"{old!r} is not there"
    return text.replace(old, new)


def example_in(folder: Path) -> Example:
    """Copy the example configuration into ``folder``, with free ports and a storage path beside it."""
    target = folder / "example"
    shutil.copytree(ROOT / "examples" / "default", target)
    example = Example(target / "config.toml", *(free_port() for _ in range(4)))
    text = replaced(example.config.read_text(), "bind_port = 8080", f"bind_port = {example.http_port}")
    example.config.write_text(replaced(text, '"../../tmp"', '"./tmp"'))
    example.replace("port = 4242", f"port = {example.pacs_port}")
    example.replace("incoming_store_port = 11124", f"incoming_store_port = {example.receiver_port}")
    example.replace("port = 11112", f"port = {example.endpoint_port}")
    return example


def harmonyd(
    *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end."""
    return subprocess.run(
        [*prefix, *COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        timeout=50,
    )


class RunningDemo:
    """``harmonyd demo`` without ``--once``, as a context manager: its four answers are there when entered."""

    def __init__(self, example: Example, cwd: Path) -> None:
        self.example = example
        self.cwd = cwd
        self._output = cwd / "demo.out"
        self._process: subprocess.Popen[bytes] | None = None
        self.children: list[psutil.Process] = []

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def output(self) -> str:
        return self._output.read_text("utf-8")

    def __enter__(self) -> Self:
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*COMMAND, "demo", "--config", str(self.example.config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.cwd,
                start_new_session=True,
            )
        try:
            wait_until(self._stays, "the demo has its four answers", 30.0)
        except BaseException:
            end_group(self.process)
            raise
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        return self

    def _stays(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the demo ended with {self.process.returncode}:\n{log_tail(self._output)}")
        return "/readyz" in self.output

    def signal(self, number: signal.Signals) -> int:
        """Send a signal to the demo alone, and wait for its end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(20)

    def assert_nothing_left(self) -> None:
        """No child lives, and no port is taken."""
        wait_until(lambda: not [child for child in self.children if child.is_running()], "no child is left")
        wait_until(lambda: all(map(port_is_free, self.example.ports())), "all ports are free")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            end_group(self.process, 20.0)
        self.assert_nothing_left()


def commands_in(output: str) -> list[str]:
    """The curl commands that the demo printed, as they would be pasted."""
    return re.findall(r"^curl (?:.*\\\n)*.*$", output, re.MULTILINE)
