"""What the ways to show who one is have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import Unauthorized
from harmonyd.middleware.auth.guard import Guard
from harmonyd.middleware.passthru import Passthru
from harmonyd.subject import Subject

__all__ = ["Scheme"]


class Scheme(Passthru):
    """Sets ``request.subject``, or refuses. With ``optional``, a request without its credentials passes.

    Where one before it in the chain knows the subject already, an optional one does not look again.
    """

    type: ClassVar[str]
    identifies = True
    challenge = ""
    """A value for WWW-Authenticate (RFC 9110 section 11.6.1)."""
    field = ""
    """Name of the header field that holds the credentials, in lower case."""

    def __init__(self, name: str, options: Mapping[str, Any], guard: Guard) -> None:
        super().__init__(name)
        self.guard = guard
        self._is_optional: bool = options["optional"]
        self._forwards: bool = options.get("forward_credentials", False)

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Find out who asks. Raises ``Unauthorized`` and ``TooManyRequests``."""
        shown = self.shown(request)
        is_known = self._is_optional and request.subject is not None
        if shown is not None and self.field and not self._forwards:
            request.consumed |= {self.field}
        if shown is not None and not is_known:
            request.subject = await self.checked(request, shown)
        elif not is_known:
            self._missing(request)
        return None

    def shown(self, request: RequestEnvelope) -> Any:
        """The credentials that a request shows; None: none of this kind."""
        raise NotImplementedError

    async def checked(self, request: RequestEnvelope, shown: Any) -> Subject:
        """Whom they belong to. Raises ``Unauthorized``, by way of ``wrong``."""
        raise NotImplementedError

    def _missing(self, request: RequestEnvelope) -> None:
        if self.challenge:
            request.challenges = (*request.challenges, self.challenge)
        if self._is_optional:
            return
        self.guard.alarms.tell(request, self.type, "missing", text="no credentials")
        raise Unauthorized(
            "This needs credentials, and the request has none.",
            hint="WWW-Authenticate says which will do.",
            www_authenticate=", ".join(request.challenges),
        )

    def wrong(
        self, request: RequestEnvelope, reason: str, name: str = "", *, known: bool = False, challenge: str = ""
    ) -> NoReturn:
        """Refuse. All that a client gets to know is that they are wrong; ``reason`` is for the log."""
        self.guard.failed(request, self.type, reason, name, known)
        raise Unauthorized(
            "The credentials are wrong, or not valid any more.",
            hint="The log of harmonyd says more.",
            www_authenticate=challenge or self.challenge,
        )
