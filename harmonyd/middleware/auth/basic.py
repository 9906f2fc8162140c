"""``basic_auth``: user name and password (RFC 7617)."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any

from harmonyd.envelope import RequestEnvelope
from harmonyd.middleware.auth.guard import Guard, Together
from harmonyd.middleware.auth.scheme import Scheme
from harmonyd.passwords import MOST_BYTES, Stored
from harmonyd.subject import Subject

_MOST_NAME = 256


class BasicAuth(Scheme):
    """Users of the configuration."""

    type = "basic_auth"
    field = "authorization"

    def __init__(self, name: str, options: Mapping[str, Any], guard: Guard) -> None:
        super().__init__(name, options, guard)
        self._users: Mapping[str, tuple[Stored, frozenset[str]]] = options["users"]
        self.challenge = f'Basic realm="{options["realm"]}", charset="UTF-8"'
        self._known = guard.known()
        self._together = Together()

    def shown(self, request: RequestEnvelope) -> str | None:
        scheme, _, rest = request.headers.get(self.field, "").strip().partition(" ")
        return rest.strip() if scheme.lower() == "basic" else None

    async def checked(self, request: RequestEnvelope, shown: str) -> Subject:
        pair = _decoded(shown)
        if pair is None:
            self.guard.admit(request, self.type)
            self.wrong(request, "malformed")
        user, password = pair
        digest = self._known.digest(user, password)
        subject = self._known.get(digest)
        if subject is not None:
            return subject
        self.guard.admit(request, self.type, user)
        stored, roles = self._users.get(user) or (self._like(user), frozenset())
        turn = self._known.digest(request.caller.address, user, password)
        matches = await self._together.once(
            turn, lambda: self.guard.turns.run(request.caller.address, stored.matches, password)
        )
        if not matches or user not in self._users:
            self.wrong(request, "password", user, known=user in self._users)
        subject = Subject(user, roles, self.type)
        self._known.put(digest, subject)
        self.guard.succeeded(request, user)
        return subject

    def _like(self, user: str) -> Stored:
        """What somebody who does not exist is compared with: always the same, and as costly as somebody who does."""
        candidates = list(self._users.values())
        number = int.from_bytes(hashlib.sha256(self._known.digest(user)).digest()[:8], "big")
        return candidates[number % len(candidates)][0]


def _decoded(text: str) -> tuple[str, str] | None:
    """User and password; the first colon ends the user's name, and further ones belong to the password."""
    try:
        whole = base64.b64decode(text.encode("ascii"), validate=True).decode("utf-8")
    except (UnicodeError, binascii.Error):
        return None
    user, colon, password = whole.partition(":")
    sound = colon and user and len(user) <= _MOST_NAME and len(password.encode()) <= MOST_BYTES and user.isprintable()
    return (user, password) if sound else None
