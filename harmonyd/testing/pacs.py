"""A real PACS for tests and the demo: DCMTK's ``dcmqrscp``, configured and loaded without the network.

``PacsLayout`` writes what ``dcmqrscp`` needs and tells how to start it; ``RunningPacs`` runs one for tests. The demo
gives ``PacsLayout.argv()`` to its supervisor instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from harmonyd.testing.data import demo_files, report_files
from harmonyd.testing.processes import dcmtk, end_group, free_port, log_tail, port_is_free, wait_until

VERBOSE_VARIABLE = "HARMONY_TEST_VERBOSE_DCMTK"
MAX_STUDIES = 500
"""dcmqrscp's own limit; it deletes the oldest study to make room for one more."""
_FILES_PER_CALL = 500

_CONFIGURATION = """\
NetworkTCPPort  = {port}
MaxPDUSize      = {max_pdu}
MaxAssociations = 64
HostTable BEGIN
{hosts}
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
{aet} {area} RW ({max_studies}, {max_megabytes}mb) ANY
AETable END
"""


@dataclass(frozen=True, slots=True)
class PacsLayout:
    """The files of one ``dcmqrscp`` below ``folder``.

    ``destinations`` maps the AE titles that C-MOVE may name to ports on 127.0.0.1.
    """

    folder: Path
    port: int
    aet: str = "QRSCP"
    destinations: Mapping[str, int] = field(default_factory=dict)
    max_pdu: int = 16384
    max_megabytes: int = 1024
    """Per study, for stores over the network only; dcmqrscp takes no more."""
    options: tuple[str, ...] = ()
    """More of dcmqrscp's own."""

    @property
    def config_file(self) -> Path:
        return self.folder / "dcmqrscp.cfg"

    @property
    def area(self) -> Path:
        """The storage area: files and dcmqrscp's index."""
        return self.folder / "area"

    def clear(self) -> None:
        """Remove what an earlier run left. Not while dcmqrscp runs."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self) -> None:
        """Write the configuration and make the storage area, whose absence dcmqrscp would not notice at start."""
        self.area.mkdir(parents=True, exist_ok=True)
        known = enumerate(self.destinations.items())
        hosts = "\n".join(f"host_{number} = ({aet}, 127.0.0.1, {port})" for number, (aet, port) in known)
        text = _CONFIGURATION.format(
            port=self.port,
            max_pdu=self.max_pdu,
            hosts=hosts,
            aet=self.aet,
            area=self.area.absolute(),
            max_studies=MAX_STUDIES,
            max_megabytes=self.max_megabytes,
        )
        self.config_file.write_text(text)

    def load(self, files: Iterable[Path]) -> int:
        """Copy Part 10 files into the area and index them with ``dcmqridx``; how many. Not while dcmqrscp runs."""
        start = len(list(self.area.iterdir()))
        copies = [self._copy(path, number) for path, number in zip(files, count(start), strict=False)]
        for first in range(0, len(copies), _FILES_PER_CALL):
            self._index(copies[first : first + _FILES_PER_CALL])
        return len(copies)

    def argv(self) -> tuple[str, ...]:
        """How to start it; with ``-d`` when HARMONY_TEST_VERBOSE_DCMTK=1. Its environment needs TCP_NODELAY=1."""
        level = "-d" if os.environ.get(VERBOSE_VARIABLE) == "1" else "-v"
        return (dcmtk("dcmqrscp"), level, *self.options, "-c", str(self.config_file.absolute()))

    def _copy(self, path: Path, number: int) -> Path:
        copy = self.area.absolute() / f"i{number:07d}.dcm"
        shutil.copyfile(path, copy)
        return copy

    def _index(self, copies: Sequence[Path]) -> None:
        argv = [dcmtk("dcmqridx"), str(self.area.absolute()), *map(str, copies)]
        subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL)


class RunningPacs:
    """A ``dcmqrscp`` for tests, as a context manager: ready when entered, gone (and its port free) when left."""

    def __init__(
        self,
        folder: Path,
        *,
        files: Iterable[Path] | None = None,
        aet: str = "QRSCP",
        port: int | None = None,
        destinations: Mapping[str, int] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """``files``: what to load; None: the images and reports that pydicom ships. ``options``: of dcmqrscp."""
        self.layout = PacsLayout(folder, port or free_port(), aet, dict(destinations or {}), options=tuple(options))
        self.files = tuple([*demo_files(), *report_files()] if files is None else files)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def aet(self) -> str:
        return self.layout.aet

    @property
    def port(self) -> int:
        return self.layout.port

    @property
    def destinations(self) -> Mapping[str, int]:
        """AE titles that it can move to, and their ports on 127.0.0.1."""
        return self.layout.destinations

    @property
    def pid(self) -> int:
        """Of the listening dcmqrscp, which leads its process group."""
        if self._process is None:
            raise RuntimeError("the PACS is not running")
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log_file.read_text("utf-8", "replace")

    def start(self) -> Self:
        """Write, load, start, and wait for an answer to C-ECHO. Raises ``RuntimeError`` with its log without one."""
        if not port_is_free(self.port):
            raise RuntimeError(f"port {self.port} is taken")
        self.layout.write()
        self.layout.load(self.files)
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self.layout.argv(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TCP_NODELAY": "1"},
                start_new_session=True,
            )
        try:
            wait_until(self._ready, f"dcmqrscp answers C-ECHO on port {self.port}", 20.0)
        except TimeoutError as error:
            end_group(self._process)
            raise RuntimeError(f"{error}\n{log_tail(self._log_file)}") from error
        return self

    def stop(self) -> None:
        """End the whole process group. Raises ``RuntimeError`` when the port stays taken."""
        if self._process is None:
            return
        end_group(self._process)
        self._process = None
        wait_until(lambda: port_is_free(self.port), f"port {self.port} is free again")

    def echo(self) -> bool:
        """Whether it answers C-ECHO within a second."""
        argv = [dcmtk("echoscu"), "-to", "1", "-ta", "1", "-aec", self.aet, "127.0.0.1", str(self.port)]
        return subprocess.run(argv, check=False, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0

    def _ready(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"dcmqrscp ended with {self._process.returncode}:\n{log_tail(self._log_file)}")
        return self.echo()

    @property
    def _log_file(self) -> Path:
        return self.layout.folder / "dcmqrscp.log"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
