"""One DICOMweb request's way to the pipeline: each question is an envelope of its own, with the client's headers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harmonyd.bodies import BytesBody
from harmonyd.envelope import Body, RequestEnvelope, ResponseEnvelope, Results
from harmonyd.services.base import Ask, HttpRequest
from harmonyd.services.dicom.fan_out import LEFT_OUT
from harmonyd.services.dicom.keeping import AHEAD
from harmonyd.services.dicom.locating import FAILED
from harmonyd.services.dicom.request import RETRIEVE

BACKEND = "backend"
"""Key of a match that says where it comes from, when several backends were asked; no element has such a name."""
_ABOUT_THE_BODY = ("content-", "accept", "transfer-encoding", "expect", "if-", "range")


class AnsweredElsewhere(Exception):
    """Middleware answered instead of a dicom backend; its answer goes to the client."""

    def __init__(self, response: ResponseEnvelope) -> None:
        super().__init__("answered by middleware")
        self.response = response


@dataclass(slots=True)
class Found:
    """What one C-FIND found. ``cut``: why there is more than that, empty where there is not."""

    cut: str = ""


class Asker:
    """Asks on behalf of ``request``. ``deadline``, in seconds on the reactor's clock, is for searches only."""

    def __init__(
        self, request: HttpRequest, ask: Ask, seconds: Callable[[], float], search_timeout_secs: float
    ) -> None:
        self.request = request
        self.deadline = seconds() + search_timeout_secs
        self.failed: dict[str, str] = {}
        """Of several backends, those that failed a question of this request, and why. They are not asked again."""
        self._ask = ask

    async def find(self, level: str, keys: Mapping[str, Any], found: Found) -> AsyncGenerator[dict[str, Any], None]:
        """C-FIND: yield the matches in the DICOM JSON Model. Raises what the operation raises."""
        response = await self._asked("find", {**keys, "level": level, "query_model": "study"}, self.deadline)
        results = results_of(response)
        try:
            async for record in results:
                match = json.loads(await record.json())
                if backend := getattr(record, "backend", None):
                    match[BACKEND] = backend
                yield match
            found.cut = _cut(results.summary())
        finally:
            # What is known to have failed, also where the rest of the answer is not wanted.
            for each in results.summary().get("backends", ()):
                if "error" in each:
                    self.failed.setdefault(each["name"], each["error"])
            await results.aclose()
            response.results = None

    async def retrieve(self, level: str, uids: Mapping[str, str], *, ahead: bool = True) -> Results:
        """C-GET or C-MOVE, as the backend is configured, unless it is in the cache.

        ``ahead``: the rest of the series may be asked for next. Raises ``NotFound`` when nothing matches.
        """
        document = {**uids, "level": level, "query_model": "study"}
        metadata = {} if ahead else {AHEAD: "false"}
        response = await self._asked(RETRIEVE, document, None, metadata)
        for name in filter(None, response.metadata.get(FAILED, "").split(",")):
            self.failed.setdefault(name, "it could not be asked")
        return results_of(response)

    async def store(self, body: Body, metadata: Mapping[str, str]) -> Results:
        """C-STORE of what a body holds."""
        headers = {"content-type": self.request.headers.get("content-type", "")}
        return results_of(await self._ask(self._envelope("store", body, headers, metadata)))

    async def _asked(
        self,
        operation: str,
        document: Mapping[str, Any],
        deadline: float | None,
        metadata: Mapping[str, str] | None = None,
    ) -> ResponseEnvelope:
        body = BytesBody(json.dumps(document).encode())
        envelope = self._envelope(operation, body, {"content-type": "application/json"}, metadata or {})
        envelope.deadline = deadline
        return await self._ask(envelope)

    def _envelope(
        self, operation: str, body: Body, headers: Mapping[str, str], metadata: Mapping[str, str]
    ) -> RequestEnvelope:
        request = self.request
        left_out = {LEFT_OUT: ",".join(self.failed)} if self.failed else {}
        passed = {name: value for name, value in request.headers.items() if not name.startswith(_ABOUT_THE_BODY)}
        return RequestEnvelope(
            protocol="http",
            method=request.method,
            uri=request.uri,
            path=request.path,
            body=body,
            headers={**passed, **headers, "accept": "application/json"},
            query={name: values for name, values in request.query.items() if name == "backend"},
            metadata={"path": request.path, "dimse_op": operation, **left_out, **metadata},
            id=request.id,
        )


def _cut(summary: Mapping[str, Any]) -> str:
    """Why there is more than what was found; empty where there is not. A backend that failed is another matter."""
    answered = [each for each in summary.get("backends", [summary]) if "error" not in each]
    reasons = [each.get("incomplete_reason") or "the PACS has more" for each in answered if not each["complete"]]
    return reasons[0] if reasons else ""


def results_of(response: ResponseEnvelope) -> Results:
    """Return the results of an operation. Raises ``AnsweredElsewhere`` for an answer that has none."""
    if response.results is None:
        raise AnsweredElsewhere(response)
    return response.results
