"""A DICOMweb archive under examination: one search, with the client that the daemon has, on a reactor of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor
from twisted.python.failure import Failure

from harmonyd.config.archive_model import DicomwebBackendOptions
from harmonyd.dimse.engine import OperationContext
from harmonyd.doctor.case import Case
from harmonyd.doctor.report import Result, Step, failed
from harmonyd.errors import HarmonydError
from harmonyd.services.archive.engine import ArchiveEngine
from harmonyd.services.dicom.node import remote_node


def search(case: Case) -> Step:
    """``GET /studies?limit=1``, with our credentials."""
    assert case.archive is not None
    began_at = time.monotonic()
    try:
        echo(case.name, case.archive, case.remote.association_timeout_secs)
    except HarmonydError as error:
        return failed("search", error)
    ms = round((time.monotonic() - began_at) * 1000, 1)
    return Step("search", Result.OK, f"answered a search (QIDO-RS) in {ms:g} ms", details={"ms": ms})


def echo(name: str, options: DicomwebBackendOptions, limit_secs: float) -> None:
    """Blocks, for so long at most. Raises ``HarmonydError``."""
    reactor: Any = EPollReactor()  # type: ignore[no-untyped-call]
    remote = remote_node(name, replace(options.node, connect_timeout_secs=limit_secs))
    engine = ArchiveEngine(reactor, remote, options, Path(), _at_once)
    failures: list[BaseException] = []

    async def ask() -> None:
        try:
            await engine.echo(remote, OperationContext("", "", reactor.seconds() + limit_secs))
        finally:
            await engine.close()

    def ended(result: Any) -> None:
        if isinstance(result, Failure) and result.value is not None:
            failures.append(result.value)
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(ask()).addBoth(ended))
    reactor.run(installSignalHandlers=False)
    for failure in failures:
        raise failure


async def _at_once(function: Callable[..., Any], *args: Any) -> Any:
    """There is nothing else to do meanwhile."""
    return function(*args)
