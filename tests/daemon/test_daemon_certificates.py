"""What a daemon that runs says of its certificates: before they expire, once a day, and until they are renewed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from harmonyd import config
from harmonyd.daemon.certificates import DAY_SECS, SAY_AGAIN_SECS, CertificateWatch, problem_of
from harmonyd.metrics.certificates import Known
from harmonyd.testing.certificates import Authority
from harmonyd.testing.config_files import write_config
from harmonyd.testing.processes import free_port


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged."""
    found: list[str] = []

    def note(event: LogEvent) -> None:
        found.append(f"{event['log_level'].name}: {formatEvent(event)}")

    globalLogPublisher.addObserver(note)
    yield found
    globalLogPublisher.removeObserver(note)


@pytest.mark.parametrize(
    ("days", "said"),
    [((40, 31), ""), ((40, 29), "B expires on"), ((-1, 40), "A expired on"), ((), "no certificate can be read")],
)
def test_problems(days: tuple[float, ...], said: str) -> None:
    """The first to expire counts, thirty days ahead."""
    found = [Known(name, 1e9 + each * DAY_SECS) for name, each in zip("AB", days, strict=False)]
    assert problem_of(found, 1e9).startswith(said)
    assert bool(problem_of(found, 1e9)) is bool(said)


@pytest.mark.parametrize("engine", ["dcmtk", "native"])
@pytest_twisted.ensureDeferred
async def test_the_life_of_a_certificate(started_reactor: Any, tmp_path: Path, engine: str, lines: list[str]) -> None:
    """It is told for whom it is, again after a day, and when the file has been renewed; one file is told once."""
    ca = Authority(tmp_path)
    own, renewed = ca.issue("own", days=20), ca.issue("renewed")
    files = {"cert_file": str(own.cert), "key_file": str(own.key)}
    pacs = {"aet": "PACS", "host": "pacs", "port": 104, "engine": engine, "use_tls": True, "tls": files}
    pacs |= {"incoming_store_tls": files, "incoming_store_port": free_port()}
    given = config.load(write_config(tmp_path, http_port=free_port(), backends={"pacs": pacs}))
    now = [time.time()]
    watch = CertificateWatch(started_reactor, lambda: given, lambda: now[0])

    async def looked() -> list[str]:
        lines.clear()
        await watch.look()
        return [line for line in lines if "own.crt" in line]

    (line,) = await looked()
    assert line.startswith("warn: backend pacs: cert_file, receiver pacs: cert_file ")
    assert "expires on" in line
    assert not await looked()
    now[0] += SAY_AGAIN_SECS
    assert await looked() == [line]
    now[0] += 25 * DAY_SECS
    (line,) = await looked()
    assert "expired on" in line
    own.cert.write_text("")
    (line,) = await looked()
    assert "no certificate can be read" in line
    shutil.copy(renewed.cert, own.cert)
    (line,) = await looked()
    assert line.startswith("info:") and line.endswith("has been renewed")
    assert not await looked()
