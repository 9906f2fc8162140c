"""A pipeline for the tests of DICOMweb: it answers each question as the test says, and remembers it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pydicom.data
from service_fakes import FakeRecord, FakeResults
from twisted.internet.defer import Deferred

from harmonyd.bodies import EmptyBody
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.services.base import HttpRequest
from harmonyd.services.dicomweb.asking import Asker
from harmonyd.subject import Caller

Answer = Callable[[str, Mapping[str, Any]], Any]
SHIPPED = Path(pydicom.data.__file__).parent / "test_files"
"""Files of pydicom."""
INCOMPLETE = {"success": True, "complete": False, "incomplete_reason": "more than max_results"}


def request(path: str = "/studies", query: Mapping[str, list[str]] | None = None, **headers: str) -> HttpRequest:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest("id", "GET", path, path, "/dicomweb", fields, query or {}, EmptyBody(), Caller("127.0.0.1"))


class FakePipeline:
    """``answer(level, keys)`` returns records, or raises; with ``cut`` levels whose answers are not complete."""

    def __init__(self, answer: Answer, cut: tuple[str, ...] = ()) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.envelopes: list[RequestEnvelope] = []
        self.results: list[FakeResults] = []
        self.before_closing: dict[str, Deferred[None]] = {}
        """What closing the answers of a level waits for."""
        self._answer = answer
        self._cut = cut

    async def __call__(self, envelope: RequestEnvelope) -> ResponseEnvelope:
        document = json.loads(await envelope.body.read(1_000_000))
        level = document.pop("level")
        self.asked.append((level, document))
        self.envelopes.append(envelope)
        records = self._answer(level, document)
        items = [
            record if isinstance(record, Exception) else FakeRecord(json.dumps(record).encode()) for record in records
        ]
        results = FakeResults(items, summary=INCOMPLETE if level in self._cut else None)
        results.closing = self.before_closing.get(level)
        self.results.append(results)
        return ResponseEnvelope(results=results)

    def asker(self, **headers: str) -> Asker:
        return Asker(request(**headers), self, lambda: 100.0, 60.0)


def element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)}
