"""All operations that outlive their requests: how many there may be, how long they stay, and how they end with us."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from harmonyd.config.daemon import OperationsConfig
from harmonyd.errors import Gone, NotFound, StorageFull, Unavailable
from harmonyd.operations.events import Watchers, within
from harmonyd.operations.folder import ResultFolder
from harmonyd.operations.operation import Operation, Owner, Respond, cancelled, subject_key
from harmonyd.operations.result import MakeRoom, Result, write_result
from harmonyd.services.base import Ask, HttpAnswer, HttpRequest
from harmonyd.subject import Subject

__all__ = ["FOLDER", "Operations"]

FOLDER = "operations"
"""Below the storage path."""
_RETRY_AFTER_SECS = 5
_LONGEST_RETRY_SECS = 3600


class Operations:
    """Await ``start`` before the first request comes, and ``stop`` at the end."""

    _log = Logger()

    def __init__(self, reactor: Any, storage: Path, config: OperationsConfig, make_room: MakeRoom) -> None:
        """``make_room`` is asked when a result finds the disk full."""
        self.reactor = reactor
        self._make_room = make_room
        self.watchers = Watchers(config.max_watchers)
        self._config = config
        self._folder = ResultFolder(storage / FOLDER)
        self._operations: dict[str, Operation] = {}
        self._earlier: dict[str, Owner] = {}
        """Operations of earlier runs."""
        self._expiring: dict[str, DelayedCall] = {}
        self._used_bytes = 0
        self._has_started = self._is_stopping = False

    async def start(self) -> None:
        """Find what an earlier run left. A disk that cannot be read is only logged."""
        self._has_started = True
        try:
            self._earlier = await self.in_thread(self._folder.take_stock)
        except OSError as error:
            self._log.error("operations of earlier runs cannot be looked for: {error}", error=error)

    def configure(self, config: OperationsConfig, owners: Collection[Owner]) -> None:
        """Keep to other limits from now on, and end what belongs to an endpoint that is not there any more."""
        self._config = config
        self.watchers.most = config.max_watchers
        for operation in list(self._operations.values()):
            if operation.owner not in owners:
                self._end_unless_it_stores(operation, "its endpoint was removed from the configuration")

    async def stop(self, grace_secs: float) -> None:
        """End everything. A store has ``grace_secs``; a retrieve ends at once: nobody could fetch its result."""
        self._is_stopping = True
        until = self.reactor.seconds() + grace_secs
        for operation in self._running():
            self._end_unless_it_stores(operation, "harmonyd is shutting down")
        for operation in self._running():
            left = max(0.0, until - self.reactor.seconds())
            if not await within(Deferred.fromCoroutine(operation.end()), left, self.reactor):
                operation.cancel(cancelled("harmonyd is shutting down"))
        await self.present_end()
        for call in self._expiring.values():
            call.cancel()
        self._expiring.clear()

    async def close(self) -> None:
        """Remove all results, once nobody is served any more.

        Only after ``start``: until then the folder may be that of another harmonyd which runs.
        """
        if not self._has_started:
            return
        try:
            await self.in_thread(self._folder.take_stock)
        except OSError as error:
            self._log.error("results of operations cannot be removed: {error}", error=error)

    def _end_unless_it_stores(self, operation: Operation, why: str) -> None:
        if operation.kind != "store":
            operation.cancel(cancelled(why))

    async def present_end(self) -> None:
        """Return when each operation that runs now has ended."""
        for operation in self._running():
            await operation.end()

    @property
    def running_ids(self) -> frozenset[str]:
        """Of those that have not ended."""
        return frozenset(operation.id for operation in self._running())

    def figures(self) -> dict[str, int]:
        """How many there are, and the size of their results."""
        running = len(self._running())
        kept = len(self._operations) - running
        return {"running": running, "kept": kept, "bytes": self._used_bytes, "watchers": self.watchers.count}

    def _running(self) -> list[Operation]:
        return [operation for operation in self._operations.values() if not operation.has_ended]

    # --- one operation

    async def begin(
        self, owner: Owner, request: HttpRequest, respond: Respond, handle: Ask, subject: Subject | None = None
    ) -> Operation:
        """Begin to answer ``request``, for ``subject`` and nobody else.

        Raises ``Unavailable`` at a limit, and OSError for the folder of the result."""
        self._admit()
        operation = Operation(uuid.uuid4().hex, owner, request, self.reactor.seconds, self._config.keep_secs)
        operation.subject = subject_key(subject)
        self._operations[operation.id] = operation
        operation.ended.wait().addCallback(lambda _: self._expires(operation))
        try:
            await self.in_thread(self._folder.add, operation.id, owner)
        except BaseException:
            operation.drop(cancelled("it could not begin"))
            await self.forget(operation)
            raise
        operation.run(respond, handle, self._writer(operation))
        return operation

    def get(self, owner: Owner, operation_id: str, subject: Subject | None = None) -> Operation:
        """Return an operation of this endpoint and subject.

        Raises ``NotFound``, for another one's, too, and ``Gone`` for one of an earlier run.
        """
        operation = self._operations.get(operation_id)
        if operation is not None and operation.owner == owner and operation.subject == subject_key(subject):
            return operation
        if self._earlier.get(operation_id) == owner:
            raise Gone(
                "harmonyd was restarted since this operation began, and the operation ended with it.",
                hint="Ask for it again. After a store, look with a find what the PACS has.",
            )
        raise NotFound(
            "There is no operation of this id here.",
            hint="It was removed, or has expired (keep_minutes in [operations]); ask for it again.",
        )

    async def forget(self, operation: Operation) -> None:
        """End an operation that nobody will ask about, and remove what there is of it. Safe to call twice."""
        operation.cancel(cancelled("its client left"))
        await operation.end()
        if self._operations.pop(operation.id, None) is not None:
            self._used_bytes -= operation.result.size_bytes if operation.result is not None else 0
            expiring = self._expiring.pop(operation.id, None)
            if expiring is not None and expiring.active():
                expiring.cancel()
            await self.in_thread(self._folder.remove, operation.id)

    def _admit(self) -> None:
        config = self._config
        if self._is_stopping:
            raise Unavailable("harmonyd is shutting down.", retry_after_secs=_RETRY_AFTER_SECS)
        if len(self._running()) >= config.max_running:
            raise Unavailable(
                f"{config.max_running} operations run already.",
                hint="Try again later, or raise max_running in [operations].",
                retry_after_secs=_RETRY_AFTER_SECS,
            )
        if len(self._operations) >= config.max_kept or self._used_bytes >= config.max_bytes:
            raise Unavailable(
                "As many operations are kept, or as many bytes of results, as there may be.",
                hint="Remove those that are not needed any more with DELETE; or raise max_kept or max_gb, or lower "
                "keep_minutes, in [operations].",
                retry_after_secs=self._until_one_expires(),
            )

    def _until_one_expires(self) -> int:
        first = min((each.expires for each in self._operations.values() if each.expires is not None), default=None)
        secs = _RETRY_AFTER_SECS if first is None else first - self.reactor.seconds()
        return min(max(1, math.ceil(secs)), _LONGEST_RETRY_SECS)

    def _writer(self, operation: Operation) -> Callable[[HttpAnswer], Any]:
        async def write(answer: HttpAnswer) -> Result:
            reserved = 0

            def reserve(size: int) -> None:
                nonlocal reserved
                if self._used_bytes + size > self._config.max_bytes:
                    raise _too_many_bytes(self._config.max_bytes)
                reserved += size
                self._used_bytes += size

            try:
                path = self._folder.result_of(operation.id)
                tag = f'"{operation.id}"'
                return await write_result(answer, path, tag, self.in_thread, reserve, self._make_room)
            except BaseException:
                await self.in_thread(self._folder.remove_result, operation.id)
                self._used_bytes -= reserved
                raise

        return write

    def _expires(self, operation: Operation) -> None:
        if not self._is_stopping:
            self._expiring[operation.id] = self.reactor.callLater(operation.keep_secs, self.forget_soon, operation)

    def forget_soon(self, operation: Operation) -> None:
        """The same without waiting."""
        Deferred.fromCoroutine(self.forget(operation)).addErrback(
            lambda failure: self._log.failure("an operation was not removed", failure=failure)
        )

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Do blocking work in the reactor's thread pool."""
        return await deferToThreadPool(self.reactor, self.reactor.getThreadPool(), function, *args)


def _too_many_bytes(most: int) -> StorageFull:
    return StorageFull(
        f"The results of operations may take {most} bytes, and this one does not fit.",
        hint="Remove those that are not needed any more with DELETE, or raise max_gb in [operations].",
    )
