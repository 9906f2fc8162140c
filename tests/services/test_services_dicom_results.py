"""Results of an operation: names that are safe, and a summary that tells the truth however the stream ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from harmonyd.dimse.engine import Instance, Outcome
from harmonyd.errors import RemoteError
from harmonyd.services.dicom.results import DimseResults, InstanceRecord


class FakeStream:
    """An ``OperationStream`` of some items, which then fails if told so."""

    def __init__(self, items: list[Instance], error: Exception | None = None) -> None:
        self.outcome = Outcome(status=0)
        self.folder: Path | None = Path("/artifacts/dcmtk_get_0123")
        self.debug: dict[str, object] | None = None
        self.closed = 0
        self._items = self._produce(items, error)

    async def _produce(self, items: list[Instance], error: Exception | None) -> AsyncGenerator[Instance, None]:
        for item in items:
            yield item
        if error is not None:
            raise error

    def __aiter__(self) -> AsyncGenerator[Instance, None]:
        return self._items

    async def aclose(self) -> None:
        self.closed += 1
        await self._items.aclose()


async def _in_thread(function: Any, *args: Any) -> Any:
    return function(*args)


def _instance(uid: str = "1.2.3", path: str = "/artifacts/dcmtk_get_0123/CT.1.2.3") -> Instance:
    return Instance(Path(path), "1.2.840.10008.5.1.4.1.1.2", uid, "1.2.840.10008.1.2", 1000)


async def _results(stream: FakeStream, ends: list[Mapping[str, Any]]) -> DimseResults[Instance]:
    async def closed(summary: Mapping[str, Any]) -> None:
        ends.append(summary)

    first = await anext(aiter(stream), None)
    return DimseResults(
        "get", "application/json", "instances", stream, first, lambda item: InstanceRecord(item, _in_thread),
        with_debug=False, closed=closed,
    )  # fmt: skip


def test_name_is_the_uid() -> None:
    """An instance is called by its SOP Instance UID."""
    assert InstanceRecord(_instance("1.2.3"), _in_thread).name == "1.2.3"


@pytest.mark.parametrize("uid", ["../../etc/passwd", "/etc/passwd", "a\nb", "1.2.3\0", "", "..", "C:\\x", "1" * 65])
def test_name_is_never_a_path(uid: str) -> None:
    """What a sender put into the UID's place does not become the name of a zip's entry."""
    name = InstanceRecord(_instance(uid, "/artifacts/dcmtk_get_0123/CT.._.._x y"), _in_thread).name
    assert name == "CT.._.._x_y"


@pytest_twisted.ensureDeferred
async def test_whole() -> None:
    """A stream that was read to its end is complete, as its outcome says."""
    ends: list[Mapping[str, Any]] = []
    results = await _results(FakeStream([_instance("1.2"), _instance("1.3")]), ends)
    assert [record.name async for record in results] == ["1.2", "1.3"]
    await results.aclose()
    assert (ends[0]["complete"], ends[0]["file_count"], ends[0]["folder_id"]) == (True, 2, "0123")


@pytest_twisted.ensureDeferred
async def test_partial() -> None:
    """A partial retrieve is not complete, with the reason."""
    stream = FakeStream([_instance()])
    stream.outcome.incomplete("2 failed")
    results = await _results(stream, [])
    assert [record.name async for record in results] == ["1.2.3"]
    assert (results.summary()["complete"], results.summary()["incomplete_reason"]) == (False, "2 failed")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("error", "reason"), [(RemoteError("gone"), "gone"), (OSError(5, "broken disk"), "ended before it was done")]
)
async def test_failed_under_way(error: Exception, reason: str) -> None:
    """What fails after the first item is raised, and told in the summary."""
    results = await _results(FakeStream([_instance()], error), [])
    with pytest.raises(type(error)):
        assert [record.name async for record in results] == []
    summary = results.summary()
    assert (summary["success"], summary["complete"]) == (False, False)
    assert reason in summary["incomplete_reason"]


@pytest_twisted.ensureDeferred
async def test_left_alone() -> None:
    """When nobody reads on, the stream is closed, and the end is told once."""
    ends: list[Mapping[str, Any]] = []
    stream = FakeStream([_instance("1.2"), _instance("1.3")])
    results = await _results(stream, ends)
    await results.aclose()
    await results.aclose()
    assert stream.closed
    assert len(ends) == 1
    assert (ends[0]["complete"], ends[0]["incomplete_reason"]) == (False, "nobody took the rest of the answer")
