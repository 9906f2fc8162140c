"""A scripted archive, and an engine over one of its behaviours."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from harmonyd.config.archive_model import DicomwebBackendOptions
from harmonyd.config.model import DicomBackendOptions
from harmonyd.dimse.engine import OperationContext, Query
from harmonyd.dimse.identifier import parse_query
from harmonyd.services.archive.engine import ArchiveEngine
from harmonyd.services.dicom.node import remote_node
from harmonyd.testing.data import MadeStudy, make_study

PROGRAM = Path(__file__).with_name("scripted_archive.py")


class ScriptedArchive:
    """Its port, and the three files that it has."""

    def __init__(self, port: int, study: MadeStudy, scheme: str = "http") -> None:
        self.port = port
        self._scheme = scheme
        self.study = study

    def url(self, behaviour: str) -> str:
        """Where it behaves like that."""
        return f"{self._scheme}://127.0.0.1:{self.port}/{behaviour}"

    def seen(self, behaviour: str) -> list[dict[str, Any]]:
        """What it was asked there. Blocks for a moment: the server is a process of its own."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/seen", timeout=10) as answer:
            return [each for each in json.load(answer) if each["as"] == behaviour]


@contextmanager
def scripted_archive(folder: Path, tls: tuple[Path, Path, Path] | None = None) -> Iterator[ScriptedArchive]:
    """A running one. ``tls``: its certificate, key, and the authority of callers who have one."""
    study = make_study(folder / "study", 3)
    options = [] if tls is None else ["--tls", *map(str, tls)]
    argv = [sys.executable, str(PROGRAM), *options, *map(str, study.files)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield ScriptedArchive(int(process.stdout.readline()), study, "http" if tls is None else "https")
        finally:
            process.kill()


async def in_thread(function: Any, *args: Any) -> Any:
    return await deferToThread(function, *args)


def engine_for(url: str, storage: Path, idle_secs: float = 5.0, **options: Any) -> ArchiveEngine:
    """An engine over the archive at ``url``; ``close`` it."""
    parts = url.split("/")[2].split(":")
    node = DicomBackendOptions("DICOMWEB", parts[0], int(parts[1]), association_timeout_secs=idle_secs)
    settings = DicomwebBackendOptions(url, node, **options)
    return ArchiveEngine(reactor, remote_node("archive", node), settings, storage, in_thread)


def operation(max_results: int = 100, secs: float = 20.0) -> OperationContext:
    """One that may take so long."""
    return OperationContext("0" * 32, "r", reactor.seconds() + secs, max_results)  # type: ignore[attr-defined]


def question(operation: str = "find", **keys: Any) -> Query:
    """An identifier as a client writes it; a search asks for nothing by default."""
    asked = {"return": "requested", **keys} if operation == "find" else keys
    return parse_query(asked, operation=operation)
