"""What an archive is shown: a user's password, a token from a file, or one that a token server gives (OAuth 2.0)."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import quote_plus, urlencode

from harmonyd.config.archive import secret_text
from harmonyd.config.archive_model import Basic, Bearer, ClientCredentials, Secret
from harmonyd.dimse.errors import NonsenseAnswer
from harmonyd.errors import HarmonydError
from harmonyd.services.archive.errors import ArchiveRefuses, error_of
from harmonyd.waiters import Waiters

InThread = Callable[..., Awaitable[Any]]
REREAD_SECS = 30.0
"""A file whose secret was changed is noticed after so long, and at once when the archive says 401."""
MAX_TOKEN_BYTES = 64 * 1024
EXPIRES_SECS = 300.0
"""Of a token whose server does not say (RFC 6749 section 5.1)."""
_TOKEN = re.compile(r"[\x21-\x7e]+")
_CODE = re.compile(r"[a-z_]{1,64}")


class Credentials(Protocol):
    """The value of Authorization."""

    async def value(self, deadline: float) -> str:
        """For the next request; empty: none. Raises ``HarmonydError``."""
        ...

    def refused(self, value: str) -> bool:
        """The archive said 401 to this; tell whether another one is worth an attempt."""
        ...


class NoCredentials:
    """Nothing is shown."""

    async def value(self, deadline: float) -> str:
        return ""

    def refused(self, value: str) -> bool:
        return False


class FromFile:
    """Basic or Bearer, from a secret that is read again now and then."""

    def __init__(self, name: str, settings: Basic | Bearer, in_thread: InThread, seconds: Callable[[], float]) -> None:
        self._name = name
        self._settings = settings
        self._in_thread = in_thread
        self._seconds = seconds
        self._value = ""
        self._until = 0.0

    async def value(self, deadline: float) -> str:
        if self._seconds() >= self._until:
            settings = self._settings
            secret = settings.token if isinstance(settings, Bearer) else settings.password
            text = await _read(self._name, secret, self._in_thread)
            self._value = f"Bearer {text}" if isinstance(settings, Bearer) else _basic(settings.username, text)
            self._until = self._seconds() + REREAD_SECS
        return self._value

    def refused(self, value: str) -> bool:
        """Worth one, if the file has another one by now; the next ``value`` tells."""
        self._until = 0.0
        return True


class TokenServer:
    """Tokens by client credentials (RFC 6749 section 4.4), one request at a time, kept until shortly before their end.

    ``post`` sends a form with an Authorization of its own and returns status and body.
    """

    def __init__(
        self,
        name: str,
        settings: ClientCredentials,
        post: Callable[[str, bytes, str, float], Awaitable[tuple[int, bytes]]],
        in_thread: InThread,
        seconds: Callable[[], float],
    ) -> None:
        self._name = name
        self._settings = settings
        self._post = post
        self._in_thread = in_thread
        self._seconds = seconds
        self._value = ""
        self._until = 0.0
        self._asking = False
        self._waiting: Waiters[None] = Waiters()

    async def value(self, deadline: float) -> str:
        while self._seconds() >= self._until:
            if self._asking:
                await self._waiting.wait()
                continue
            self._asking = True
            try:
                await self._ask(deadline)
            except Exception as error:
                self._end(error)
                raise
            except BaseException:
                self._end(None)
                raise
            self._end(None)
        return self._value

    def refused(self, value: str) -> bool:
        if value == self._value:
            self._until = 0.0
        return True

    def _end(self, error: Exception | None) -> None:
        self._asking = False
        if isinstance(error, HarmonydError):
            self._waiting.fail(error)
        else:  # who asked has gone: the next one asks
            self._waiting.fire(None)

    async def _ask(self, deadline: float) -> None:
        settings = self._settings
        secret = await _read(self._name, settings.client_secret, self._in_thread)
        # RFC 6749 section 2.3.1: both are form-encoded first.
        authorization = _basic(quote_plus(settings.client_id), quote_plus(secret))
        fields = {"grant_type": "client_credentials"} | ({"scope": settings.scope} if settings.scope else {})
        began = self._seconds()
        status, body = await self._post(settings.token_url, urlencode(fields).encode(), authorization, deadline)
        if status != 200:
            raise self._refusal(status, body)
        token, lasts = _token(body)
        if not token:
            raise NonsenseAnswer(
                f"The token server of backend {self._name} sent no bearer token",
                hint="Check token_url: it has to be the token endpoint itself (RFC 6749 section 3.2).",
            )
        self._value = f"Bearer {token}"
        self._until = began + max(1.0, lasts - min(60.0, lasts / 5))

    def _refusal(self, status: int, body: bytes) -> Exception:
        code = _members(body).get("error")
        if status in (400, 401) and isinstance(code, str) and _CODE.fullmatch(code):
            return ArchiveRefuses(
                f"The token server of backend {self._name} gives no token: {code}",
                hint="Check client_id, client_secret_file and scope of its oauth2.",
                http_status=status,
            )
        return error_of(self._name, "the request for a token", status)


async def _read(name: str, secret: Secret, in_thread: InThread) -> str:
    try:
        text: str = await in_thread(secret_text, secret)
    except (OSError, KeyError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        where = str(secret.file or f"variable {secret.variable}")
        hint = "harmonyd check says more."
        raise HarmonydError(f"A secret of backend {name} cannot be read ({where}): {why}", hint=hint) from None
    return text


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode("ascii")


def _members(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _token(body: bytes) -> tuple[str, float]:
    members = _members(body)
    token, kind, lasts = members.get("access_token"), members.get("token_type"), members.get("expires_in")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token) or str(kind).lower() != "bearer":
        return "", 0.0
    try:
        return token, max(1.0, float(lasts)) if lasts is not None else EXPIRES_SECS
    except (TypeError, ValueError):
        return token, EXPIRES_SECS
