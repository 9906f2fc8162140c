"""A JOLT specification in a pipeline: on which side it is applied, and what it sees beside the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import HarmonydError
from harmonyd.jolt import Chain, TransformFailed

_SECRET = frozenset({"authorization", "cookie", "proxy-authorization", "set-cookie"})
"""Header fields that no specification sees."""


class Specification:
    """The compiled specification of the middleware ``name``, with the options that its types share."""

    _log = Logger()

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self.on_left = options["apply"] in ("left", "both")
        self.on_right = options["apply"] in ("right", "both")
        self._chain = Chain(options["specification"])
        self._fails = options["fail_on_error"]
        self._injects = options["inject_context"]

    async def apply(self, data: Any, request: RequestEnvelope, response: ResponseEnvelope | None = None) -> Any:
        """Return what becomes of ``data``, in a thread. Raises ``TransformFailed``."""
        context = context_of(request, response)
        return await deferToThread(self.apply_now, data, context)

    def apply_now(self, data: Any, context: Mapping[str, Any]) -> Any:
        """Return what becomes of ``data``. Blocking. Raises ``TransformFailed``.

        With ``inject_context`` the specification sees ``{"data": …, "context": …}`` and leaves its result in ``data``.
        Without it, too, modify operations find the context under ``^``.
        """
        if not self._injects:
            return self._chain.apply(data, context)
        result = self._chain.apply({"data": data, "context": context}, context)
        if not isinstance(result, dict) or "data" not in result:
            raise TransformFailed('The specification leaves no "data", which inject_context makes its result.')
        return result["data"]

    def failed(self, error: HarmonydError, request: RequestEnvelope) -> None:
        """Raise ``error``, unless ``fail_on_error`` is off; then everything stays as it was, and the log says why."""
        if self._fails:
            error.extra.setdefault("middleware", self.name)
            raise error
        said = "{name} was left out: {why}"
        self._log.warn(said, name=self.name, why=error.detail, request=request.id)


def details_of(request: RequestEnvelope) -> dict[str, Any]:
    """What a specification sees of a request, without credentials. ``path`` is what follows the endpoint's prefix."""
    return {
        "method": request.method,
        "uri": request.uri,
        "path": request.path,
        "headers": _shown(request.headers),
        "query_params": {name: list(values) for name, values in request.query.items()},
        "metadata": dict(request.metadata),
    }


def context_of(request: RequestEnvelope, response: ResponseEnvelope | None) -> dict[str, Any]:
    """``request_details``, and on the response side ``response_details``."""
    context = {"request_details": details_of(request)}
    if response is not None:
        shown = {"status": response.status, "headers": _shown(response.headers), "metadata": dict(response.metadata)}
        context["response_details"] = shown
    return context


def _shown(headers: Mapping[str, str]) -> dict[str, str]:
    lowered = {name.lower(): value for name, value in headers.items()}
    return {name: value for name, value in lowered.items() if name not in _SECRET}
