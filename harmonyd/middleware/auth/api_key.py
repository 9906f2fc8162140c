"""``api_key``: a long random key in a header field, for programs."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from harmonyd.envelope import RequestEnvelope
from harmonyd.middleware.auth.guard import Guard
from harmonyd.middleware.auth.scheme import Scheme
from harmonyd.passwords import digest_of_key
from harmonyd.subject import Subject


class ApiKey(Scheme):
    """Keys of the configuration, of which it has the SHA-256 only."""

    type = "api_key"

    def __init__(self, name: str, options: Mapping[str, Any], guard: Guard) -> None:
        super().__init__(name, options, guard)
        self.field = options["header"].lower()
        self.challenge = f'ApiKey realm="harmonyd", header="{options["header"]}"'
        self._keys: Mapping[str, tuple[str, frozenset[str]]] = options["keys"]

    def shown(self, request: RequestEnvelope) -> str | None:
        return request.headers.get(self.field)

    async def checked(self, request: RequestEnvelope, shown: str) -> Subject:
        digest = digest_of_key(shown.strip())
        found = None
        for name, (known, roles) in self._keys.items():
            # All of them, whichever it is: the time says nothing.
            if hmac.compare_digest(known, digest):
                found = Subject(name, roles, self.type)
        if found is None:
            self.guard.admit(request, self.type)
            self.wrong(request, "unknown-key")
        return found
