"""``authorize``: which role may do what, where, and with which patients' data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.middleware.auth.guard import Guard
from harmonyd.middleware.passthru import Passthru
from harmonyd.permit import Rule, Rules, both


class Authorize(Passthru):
    """Gives each request its permit; where the request is performed, that is held to."""

    type = "authorize"
    identifies = True

    def __init__(self, name: str, options: Mapping[str, Any], guard: Guard) -> None:
        super().__init__(name)
        self._rules: Sequence[Rule] = options["rules"]
        self._alarms = guard.alarms

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Issue it. What an earlier one did not allow stays forbidden."""

        def tell(action: str, backend: str) -> None:
            subject = request.subject
            where = f" at {backend}" if backend else ""
            name = subject.name if subject is not None else ""
            self._alarms.tell(request, self.type, "forbidden", name, f"{action}{where} is not allowed")

        def challenges() -> str:
            return ", ".join(request.challenges) or 'Bearer realm="harmonyd"'

        request.permit = both(request.permit, Rules(request.subject, self._rules, challenges, tell))
        return None
