"""One DCMTK program from start to exit: its log read, its files noticed, its deadline kept, its processes ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from harmonyd.dimse import query_file
from harmonyd.dimse.accepting import OnRefusal, unheard
from harmonyd.dimse.dcmtk.arrivals import FolderWatch
from harmonyd.dimse.dcmtk.log import Response, ToolLog
from harmonyd.dimse.dcmtk.log_config import watched_log_file
from harmonyd.dimse.dcmtk.tools import Tool
from harmonyd.dimse.dcmtk.tunnel import Tunnel, open_tunnel
from harmonyd.dimse.engine import OperationContext, Query, RemoteNode
from harmonyd.dimse.waiting import deadline_passed
from harmonyd.landlock import Rights
from harmonyd.progress import UNWATCHED
from harmonyd.supervision.api import ExitRecord, OnceChild, OnceSpec, Supervisor
from harmonyd.tracing import NO_SPAN, begin

T = TypeVar("T")

_log = Logger()
GATHER_SECS = 0.01
"""Files that arrive in quick succession are handed on together, at most this much later: a thread's turn and a write
each cost more than a record."""
DNS_PORT = 53
"""Over TCP, where an answer is too long for a datagram."""
MAX_BATCH = 250
"""Files handed on at once: what is made of them is in memory together."""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What every run needs; made once by the engine."""

    reactor: Any
    supervisor: Supervisor
    tools: Mapping[str, Tool]
    log_config: Path
    small_dictionary: Path
    scratch: Path
    """For files that live as long as one run: query files, association profiles."""
    verbose: bool
    """Log what children say at info level (``HARMONY_TEST_VERBOSE_DCMTK``)."""
    on_refusal: OnRefusal = unheard
    """Of who came to a port that is for a child alone."""

    def kept_line(self, child: str) -> Callable[[bytes], None] | None:
        """What is done with the lines of a kept child, besides keeping them: logged, when that was asked for."""
        if not self.verbose:
            return None
        return lambda line: _log.info("{line}", line=line.decode("utf-8", "replace"), child=child)

    def log_config_for(self, op: OperationContext) -> Path:
        """Pending responses are logged only where somebody wants to know of them."""
        return self.log_config if op.progress is UNWATCHED else watched_log_file(self.scratch)

    @contextmanager
    def query_on_disk(self, op: OperationContext, query: Query) -> Iterator[Path]:
        """The query as a file for a tool's command line; removed afterwards. Raises OSError."""
        path = self.scratch / f"query_{op.id}.dcm"
        try:
            path.write_bytes(query_file.query_bytes(query))
            yield path
        finally:
            path.unlink(missing_ok=True)

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run blocking work in the reactor's thread pool."""
        pool = self.reactor.getThreadPool()
        result: T = await deferToThreadPool(self.reactor, pool, function, *args)
        return result


Sweep = Callable[[], Awaitable[list[str]]]


async def _nothing() -> list[str]:
    return []


class ToolRun:
    """A running DCMTK program.

    ``batches`` yields the names of the files that arrived until the program has ended; ``record`` and ``log`` are final
    then. Whether somebody reads or not, the program is ended at the deadline, and gives its slot back with its exit.
    ``close`` must be awaited in every case: it ends the whole process group if it still runs.
    """

    def __init__(
        self,
        box: Toolbox,
        op: OperationContext,
        *,
        folder: Path | None = None,
        watched: bool = True,
        answered: Callable[[Response], None] | None = None,
    ) -> None:
        """``folder`` is made once there is a slot, and watched unless the files arrive elsewhere (``offer``).

        ``answered`` is told each response; by default the sub-operations that it counts are progress.
        """
        self.log = ToolLog()
        self.record: ExitRecord | None = None
        self.argv: tuple[str, ...] = ()
        self._tunnel: Tunnel | None = None
        self._box = box
        self._op = op
        self._answered = answered or self._counted
        self._latest: Response | None = None
        self._child: OnceChild | None = None
        self._line_fields: dict[str, str] = {}
        self._span = NO_SPAN
        self._names: list[str] = []
        self._waiter: Deferred[None] | None = None
        self._expired = False
        self._holds_slot = False
        self._wake_call: Any = None
        self._woken_at = 0.0
        self._folder = folder
        self._watched = watched
        self._watch: FolderWatch | None = None
        self._closed = False
        remaining = max(0.0, op.deadline - box.reactor.seconds())
        self._deadline_call: Any = box.reactor.callLater(remaining, self._expire)

    async def start_to(
        self,
        remote: RemoteNode,
        command: Callable[[RemoteNode], Sequence[str]],
        *,
        small_dictionary: bool = False,
        reads: Iterable[Path] = (),
        listens: Sequence[int] = (),
    ) -> None:
        """Start, once a slot is free, what ``command`` makes for the node that is to be called.

        It may connect there, and read and listen as is said. With TLS the node is connected to first.
        Raises ``SpawnError``, ``Unavailable``, ``DeadlinePassed``, ``OSError`` for the folder, and with TLS what
        ``connecting.connect`` does.
        """
        await self._begin()
        if remote.tls is not None:
            self._tunnel = await open_tunnel(
                self._box.reactor, remote, self._op.deadline, self._box.on_refusal
            )
            remote = self._tunnel.node
        written = (self._folder,) if self._folder is not None else ()
        rights = Rights((self._box.scratch, *reads), written, (remote.port, DNS_PORT), tuple(listens))
        child = self._spawn(command(remote), small_dictionary, rights)
        if self._tunnel is not None:
            self._tunnel.admit(child, self._line_fields["child"])

    async def _begin(self) -> None:
        self._op.steps.queued()
        if self._op.slots is not None:
            await self._op.slots.acquire(self._op.deadline)
            self._holds_slot = True
        self._op.steps.began()
        self._op.progress.began()
        if self._folder is not None:
            self._folder.mkdir(parents=True)
            if self._watched:
                self._watch = FolderWatch(self._box.reactor, self._folder, self.offer)

    def _spawn(self, argv: Sequence[str], small_dictionary: bool, rights: Rights) -> OnceChild:
        self.argv = tuple(argv)
        name = Path(argv[0]).name
        env = {"DCMDICTPATH": str(self._box.small_dictionary)} if small_dictionary else {}
        child = f"{name}:{self._op.id}"
        log_fields = {
            "request": self._op.request_id,
            "operation": name.removesuffix("scu"),
            "operation_id": self._op.id,
        }
        self._span = begin(f"child {name}", self._op.trace, harmonyd__child=child)
        self._line_fields = {**log_fields, "child": child}
        spec = OnceSpec(child, tuple(argv), env, log_fields=log_fields, on_line=self._line, rights=rights)
        try:
            self._child = started = self._box.supervisor.run_once(spec)
        except BaseException as error:
            self._span.end(type(error).__name__)
            raise
        started.exited.addCallback(self._exited)
        return started

    def offer(self, name: str) -> None:
        """A file is complete; also called by a receiver that is not this program."""
        self._names.append(name)
        self._wake_soon()

    async def batches(self, sweep: Sweep | None = None) -> AsyncGenerator[list[str], None]:
        """Yield names of complete files as they come; end after the program's exit.

        Raises ``DeadlinePassed``, and ``TlsFailed`` when that is why there was no association.

        ``sweep`` names files that were not noticed, once the program has ended; default: those of the watched folder.
        """
        while self._names or self.record is None or self._expired:
            if self._expired:
                raise deadline_passed()
            if self._names:
                batch, self._names = self._names[:MAX_BATCH], self._names[MAX_BATCH:]
                yield batch
            else:
                await self._wait()
        problem = None if self._tunnel is None or self.log.accepted else self._tunnel.problem()
        if problem is not None:
            raise problem
        missed = self._watch.sweep() if self._watch is not None else []
        if sweep is not None:
            missed = await sweep()
        # A sweep first takes in what the kernel has yet to tell, and that is offered like anything else.
        rest = list(dict.fromkeys([*self._names, *missed]))
        for first in range(0, len(rest), MAX_BATCH):
            yield rest[first : first + MAX_BATCH]

    async def finish(self) -> ExitRecord:
        """Wait for the program's exit, taking no notice of files; raises as ``batches``."""
        async for _names in self.batches(_nothing):
            pass
        assert self.record is not None
        return self.record

    async def close(self) -> None:
        """End the program if it runs and stop watching; returns when its processes are gone. Safe to call twice."""
        self._closed = True
        for call in (self._deadline_call, self._wake_call):
            if call is not None and call.active():
                call.cancel()
        if self._watch is not None:
            self._watch.close()
        try:
            if self._child is not None:
                self.record = await self._child.stop()
            if self._tunnel is not None:
                await self._tunnel.end()
        finally:
            self._release_slot()

    def _release_slot(self) -> None:
        if self._holds_slot and self._op.slots is not None:
            self._holds_slot = False
            self._op.slots.release()

    def _line(self, line: bytes) -> None:
        self.log.feed(line)
        latest = self.log.latest
        if latest is not None and latest is not self._latest:
            self._latest = latest
            self._answered(latest)
        if self._box.verbose:
            _log.info("{line}", line=line.decode("utf-8", "replace"), **self._line_fields)

    def _counted(self, response: Response) -> None:
        if response.kind in ("C-GET RSP", "C-MOVE RSP"):
            counts = response.suboperations
            self._op.progress.counted(counts.completed, counts.failed, counts.warning, counts.remaining)

    def _exited(self, record: ExitRecord) -> ExitRecord:
        self.record = record
        how = f"signal {record.signal}" if record.signal is not None else record.ended_because
        self._span.end(how, process__pid=record.pid, process__exit__code=record.exit_code)
        self._wake_soon()
        self._release_slot()
        return record

    def _expire(self) -> None:
        if self.record is None:
            self._expired = True
            if self._child is not None:
                Deferred.fromCoroutine(self._child.stop())
            self._wake_soon()

    def _wake_soon(self) -> None:
        """Let ``batches`` go on: at once after a pause and at the end, else after a short gather."""
        if self._closed:
            return
        now = self._box.reactor.seconds()
        ended = self.record is not None or self._expired
        delay = 0.0 if ended else max(0.0, self._woken_at + GATHER_SECS - now)
        if self._wake_call is not None and self._wake_call.active():
            if not ended:
                return
            self._wake_call.cancel()
        self._wake_call = self._box.reactor.callLater(delay, self._wake)

    def _wake(self) -> None:
        self._woken_at = self._box.reactor.seconds()
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    async def _wait(self) -> None:
        self._waiter = Deferred(self._forget_waiter)
        await self._waiter

    def _forget_waiter(self, _cancelled: Deferred[None]) -> None:
        self._waiter = None
