"""What all middleware for identity of a daemon has in common: throttle, alarms, and turns for hashing."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from harmonyd.audit.api import AuditEvent, AuditKind, Auditor, Outcome
from harmonyd.envelope import RequestEnvelope
from harmonyd.errors import TooManyRequests, Unavailable
from harmonyd.middleware.auth.throttle import Throttle, network_of
from harmonyd.subject import Subject
from harmonyd.waiters import Waiters

__all__ = ["Alarms", "Guard", "Known", "Together", "Turns"]

ALARM_SECS = 60.0
"""One alarm for each address and reason in this time; what comes between is counted."""
MOST_ALARMS = 60
"""In ``ALARM_SECS``, from all addresses."""
AT_ONCE = 2
"""Passwords that are hashed at the same time: threads and memory, 64 MiB each at most."""
MOST_WAITING = 64
MOST_OF_ADDRESS = 4
KNOWN_SECS = 60.0
MOST_KNOWN = 1000


class Alarms:
    """Logs and audits refusals, at a bounded rate, without any credentials."""

    _log = Logger("harmonyd.auth")

    def __init__(self, seconds: Callable[[], float], audit: Auditor) -> None:
        self.refused: Counter[tuple[str, str]] = Counter()
        """By scheme and reason; both are words of ours."""
        self._seconds = seconds
        self._audit = audit
        self._told: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self._untold: Counter[tuple[str, str, str]] = Counter()

    def tell(self, request: RequestEnvelope, scheme: str, reason: str, name: str = "", text: str = "") -> None:
        """``reason``: a word; ``name``: of a subject that exists; ``text``: more for people."""
        self.refused[scheme, reason] += 1
        key = (network_of(request.caller.address or request.caller.aet), scheme, reason)
        now = self._seconds()
        while self._told and now - next(iter(self._told.values())) >= ALARM_SECS:
            self._told.popitem(last=False)
        if key in self._told or len(self._told) >= MOST_ALARMS:
            if key in self._untold or len(self._untold) < MOST_KNOWN:
                self._untold[key] += 1
            return
        self._told[key] = now
        before = self._untold.pop(key, 0)
        more = f", and {before} more before" if before else ""
        name = "".join(char if char.isprintable() else "?" for char in name)
        said = f"{scheme}: {text or reason}{f' ({name})' if name else ''}{more}"
        where = request.caller.address or request.caller.aet or "?"
        self._log.warn("refused {address}: {said}", address=where, said=said, request=request.id)
        details = {"scheme": scheme, "reason": reason, **({"user": name} if name else {})}
        subject = request.subject
        self._audit(
            AuditEvent(
                AuditKind.SECURITY_ALERT, Outcome.MINOR_FAILURE, said, request.id, request.caller, subject, details
            )
        )


class Known:
    """Credentials that were right a moment ago: the next request costs no hashing. Only keyed hashes are kept."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._key = os.urandom(32)
        self._found: OrderedDict[bytes, tuple[float, Subject]] = OrderedDict()

    def digest(self, *parts: str) -> bytes:
        """What stands for credentials."""
        text = "\0".join(f"{len(part)}:{part}" for part in parts)
        return hmac.digest(self._key, text.encode("utf-8", "surrogateescape"), hashlib.sha256)

    def get(self, digest: bytes) -> Subject | None:
        found = self._found.get(digest)
        if found is None or self._seconds() >= found[0]:
            self._found.pop(digest, None)
            return None
        return found[1]

    def put(self, digest: bytes, subject: Subject) -> None:
        self._found.pop(digest, None)
        self._found[digest] = (self._seconds() + KNOWN_SECS, subject)
        while len(self._found) > MOST_KNOWN:
            self._found.popitem(last=False)


class Turns:
    """Blocking work in threads: little at once, and from no address so much that others wait long for it."""

    def __init__(self, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._in_thread = in_thread
        self._free = AT_ONCE
        self._waiting: list[Deferred[None]] = []
        self._of_address: Counter[str] = Counter()

    async def run(self, address: str, work: Callable[..., Any], *args: Any) -> Any:
        """Return what ``work`` returns. Raises ``TooManyRequests`` and ``Unavailable`` at the limits."""
        place = network_of(address)
        if self._of_address[place] >= MOST_OF_ADDRESS:
            raise too_many(1.0)
        if len(self._waiting) >= MOST_WAITING:
            raise Unavailable("Too many passwords are being checked.", hint="Try again.", retry_after_secs=1)
        self._of_address[place] += 1
        try:
            await self._turn()
            try:
                return await self._in_thread(work, *args)
            finally:
                self._next()
        finally:
            self._of_address[place] -= 1
            if not self._of_address[place]:
                del self._of_address[place]

    async def _turn(self) -> None:
        if self._free:
            self._free -= 1
            return
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        await waiter

    def _next(self) -> None:
        if self._waiting:
            self._waiting.pop(0).callback(None)
        else:
            self._free += 1


class Guard:
    """Belongs to a daemon; a reload goes on with the same."""

    def __init__(self, reactor: Any, in_thread: Callable[..., Awaitable[Any]], audit: Auditor) -> None:
        self._seconds: Callable[[], float] = reactor.seconds
        self.reactor = reactor
        self.in_thread = in_thread
        self.alarms = Alarms(reactor.seconds, audit)
        self.turns = Turns(in_thread)
        self._throttle = Throttle()

    def known(self) -> Known:
        """A store of verified credentials of its own."""
        return Known(self._seconds)

    def admit(self, request: RequestEnvelope, scheme: str, name: str = "") -> None:
        """Raise ``TooManyRequests`` for one who failed too often."""
        wait = self._throttle.wait_secs(_place(request), _bounded(name), self._seconds())
        if wait > 0:
            self.alarms.tell(request, scheme, "throttled", text="too many failures, so it has to wait")
            raise too_many(wait)

    def failed(self, request: RequestEnvelope, scheme: str, reason: str, name: str = "", known: bool = False) -> None:
        """Take note of wrong credentials; ``known``: there is somebody of that name."""
        self._throttle.failed(_place(request), _bounded(name), self._seconds())
        self.alarms.tell(request, scheme, reason, name if known else "")

    def succeeded(self, request: RequestEnvelope, name: str) -> None:
        """Take note that credentials were right."""
        self._throttle.succeeded(_place(request), _bounded(name))


class Together:
    """The same work for several who ask at the same time is done once."""

    def __init__(self) -> None:
        self._under_way: dict[bytes, Waiters[Any]] = {}

    def is_busy(self, key: bytes) -> bool:
        """Whether it is being done."""
        return key in self._under_way

    async def once(self, key: bytes, work: Callable[[], Awaitable[Any]]) -> Any:
        """Return what ``work`` returns, or raise what it raises."""
        waiters = self._under_way.get(key)
        if waiters is not None:
            return await waiters.wait()
        waiters = self._under_way[key] = Waiters()
        waiting = waiters.wait()
        Deferred.fromCoroutine(self._run(key, waiters, work))
        return await waiting

    async def _run(self, key: bytes, waiters: Waiters[Any], work: Callable[[], Awaitable[Any]]) -> None:
        try:
            result = await work()
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            del self._under_way[key]
            waiters.fail(error)
        else:
            del self._under_way[key]
            waiters.fire(result)


def too_many(wait_secs: float) -> TooManyRequests:
    """The answer to one who has to wait."""
    return TooManyRequests(
        "Too many failures from this address; the credentials were not looked at.",
        hint="Wait as long as Retry-After says, and send the right ones.",
        retry_after_secs=max(1, math.ceil(wait_secs)),
    )


def _place(request: RequestEnvelope) -> str:
    return request.caller.address or request.caller.aet


def _bounded(name: str) -> str:
    return name[:256]
