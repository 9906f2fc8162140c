"""The backend half and one request: whatever ends it, the operation is over, recorded and no longer active."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from harmonyd.bodies import BytesBody
from harmonyd.config.model import DicomBackendOptions
from harmonyd.dimse.engine import Instance, OperationContext, Outcome
from harmonyd.dimse.errors import DimseError, RemoteUnreachable
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, NotFound
from harmonyd.services.dicom.backend import DicomBackend

QUERY = {"StudyInstanceUID": "1.2.3"}


class FakeStream:
    """Yields instances when ``go`` is called, or fails; knows whether it was closed."""

    def __init__(self, folder: Path, count: int = 1, error: Exception | None = None) -> None:
        self.outcome = Outcome(status=0)
        self.folder: Path | None = folder
        self.debug: dict[str, object] | None = None
        self.gate: Deferred[None] = Deferred()
        self.ended = False
        self._items = self._produce(count, error)

    async def _produce(self, count: int, error: Exception | None) -> AsyncGenerator[Instance, None]:
        try:
            await self.gate
            if error is not None:
                raise error
            for number in range(count):
                yield Instance(Path("/nowhere"), "1.2", f"1.2.{number}", "1.2.840.10008.1.2", 10)
        finally:
            self.ended = True

    def __aiter__(self) -> AsyncGenerator[Instance, None]:
        return self._items

    async def aclose(self) -> None:
        await self._items.aclose()


class FakeEngine:
    """Hands out one stream, or fails an echo."""

    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.contexts: list[OperationContext] = []

    def get(self, remote: Any, query: Any, op: OperationContext) -> FakeStream:
        self.contexts.append(op)
        return self.stream

    async def echo(self, remote: Any, op: OperationContext) -> Outcome:
        self.contexts.append(op)
        raise RemoteUnreachable("refused")


class Stage:
    """A backend on a fake engine."""

    def __init__(self, reactor: Any, tmp_path: Path, **options: Any) -> None:
        self.folder = tmp_path / "dcmtk_get_0"
        self.folder.mkdir()
        self.stream = FakeStream(self.folder, **options)
        self.engine: Any = FakeEngine(self.stream)
        given = DicomBackendOptions("PACS", "127.0.0.1", 104)
        self.backend = DicomBackend("pacs", given, self.engine, reactor, tmp_path, has_retrievers=True)

    def ask(self, operation: str = "get", body: Any = QUERY) -> Deferred[ResponseEnvelope]:
        data = BytesBody(json.dumps(body).encode())
        return Deferred.fromCoroutine(self.backend.send(RequestEnvelope("http", "POST", "/", f"/{operation}", data)))

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.folder.with_suffix(".json").read_text())
        return found

    def is_over(self) -> bool:
        return self.stream.ended and not self.backend.active


@pytest.fixture
def stage(started_reactor: Any, tmp_path: Path) -> Any:
    """Make the stage, with the arguments of ``FakeStream``."""
    return lambda **options: Stage(started_reactor, tmp_path, **options)


@pytest_twisted.ensureDeferred
async def test_active_until_the_answer_is_closed(stage: Any) -> None:
    """An operation is active, and its folder in use, until its answer was read or given up."""
    made = stage(count=2)
    asking = made.ask()
    made.stream.gate.callback(None)
    response = await asking
    assert made.backend.active == {made.engine.contexts[0].id}
    await response.close()
    await response.close()
    assert made.is_over()
    assert made.record()["incomplete_reason"] == "nobody took the rest of the answer"


@pytest_twisted.ensureDeferred
async def test_client_leaves_before_the_first_item(stage: Any) -> None:
    """A client that leaves while nothing has arrived ends the operation."""
    made = stage()
    asking = made.ask()
    asking.cancel()
    with pytest.raises(CancelledError):
        await asking
    assert made.is_over()
    assert made.record()["success"] is False


@pytest_twisted.ensureDeferred
async def test_fails_before_the_first_item(stage: Any) -> None:
    """An error before the first item is raised, with the backend's name."""
    made = stage(error=RemoteUnreachable("refused"))
    asking = made.ask()
    made.stream.gate.callback(None)
    with pytest.raises(RemoteUnreachable) as raised:
        await asking
    assert raised.value.extra["backend"] == "pacs"
    assert made.is_over()
    assert made.record()["error"] == "refused"


@pytest_twisted.ensureDeferred
async def test_nothing_matched(stage: Any) -> None:
    """A complete retrieve of nothing is not found; one that is not complete is the node's failure."""
    made = stage(count=0)
    asking = made.ask()
    made.stream.gate.callback(None)
    with pytest.raises(NotFound):
        await asking
    assert made.is_over()


@pytest_twisted.ensureDeferred
async def test_nothing_arrived(stage: Any) -> None:
    """A retrieve that brought nothing although it should have is the node's failure, with the warnings."""
    made = stage(count=0)
    made.stream.outcome.incomplete("3 failed")
    made.stream.outcome.warnings.append("2 put aside")
    asking = made.ask()
    made.stream.gate.callback(None)
    with pytest.raises(DimseError, match="3 failed") as raised:
        await asking
    assert raised.value.extra["warnings"] == ["2 put aside"]


@pytest_twisted.ensureDeferred
async def test_echo_that_fails(stage: Any) -> None:
    """An operation without a stream is over as well when it failed."""
    made = stage()
    with pytest.raises(RemoteUnreachable):
        await made.ask("echo", {})
    assert not made.backend.active


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("body", [{}, {"StudyInstanceUID": "*"}, {"Nonsense": "1"}, [1], "get"])
async def test_refused_before_it_began(stage: Any, body: Any) -> None:
    """What is refused for its identifier never reaches the engine."""
    made = stage()
    with pytest.raises(BadRequest):
        await made.ask(body=body)
    assert made.engine.contexts == []
    assert not made.backend.active
