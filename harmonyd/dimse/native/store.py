"""C-STORE: Part 10 files out over one association, their data sets as they are, one result each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harmonyd.dimse import failures
from harmonyd.dimse import status as dimse_status
from harmonyd.dimse.engine import OperationContext, RemoteNode, StoreResult
from harmonyd.dimse.errors import EngineFailed
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.client import MAX_CONTEXTS
from harmonyd.dimse.native.exchange import Exchange, Means
from harmonyd.dimse.native.files import DataSet, NotConverted, ReadAhead, converted
from harmonyd.dimse.part10 import InstanceHeader, read_header
from harmonyd.dimse.streams import ItemStream
from harmonyd.errors import DeadlinePassed, HarmonydError

_UNCOMPRESSED = (*names.UNCOMPRESSED, names.EXPLICIT_VR_BE)
_IDLE_SECS = 0.5
"""Between two batches. Some receivers serve one association at a time: others wait for as long as ours is open."""
_FILES_AT_ONCE = 500
"""Whose headers are in memory, and which share an association."""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    header: InstanceHeader


def store(means: Means, remote: RemoteNode, files: Sequence[Path], op: OperationContext) -> ItemStream[StoreResult]:
    """Lazy. Raises when the association fails before any instance was answered."""

    async def produce(stream: ItemStream[StoreResult]) -> AsyncGenerator[StoreResult, None]:
        answered = False
        failure: HarmonydError | None = None
        for batch in _batches(files):
            headers = await means.in_thread(lambda paths=batch: [_File(path, read_header(path)) for path in paths])
            for group in _groups(headers):
                sending = _Sending(means, remote, group, op)
                if failure is None:
                    failure = await sending.run()
                answered = answered or any(result.status is not None for result in sending.results)
                if failure is not None and not answered:
                    raise failure
                for result in sending.with_the_rest(failure):
                    yield result
        stream.outcome.status = dimse_status.SUCCESS

    return ItemStream(produce)


def contexts_for(headers: Iterable[InstanceHeader]) -> list[tuple[str, tuple[str, ...]]]:
    """The presentation contexts that these objects need, as (SOP class, transfer syntaxes).

    One for each SOP class and transfer syntax, so that nothing has to be transcoded; for uncompressed objects one more
    with the two little endian syntaxes, of which every node takes Implicit VR Little Endian (PS3.5 section 10.1).
    """
    pairs = dict.fromkeys((header.sop_class_uid, header.transfer_syntax_uid) for header in headers)
    wanted: dict[tuple[str, tuple[str, ...]], None] = {}
    for sop_class, syntax in pairs:
        wanted[sop_class, (syntax,)] = None
        if syntax in _UNCOMPRESSED:
            wanted[sop_class, names.UNCOMPRESSED] = None
    return list(wanted)


class _Sending:
    """One association's worth of files."""

    def __init__(self, means: Means, remote: RemoteNode, files: Sequence[_File], op: OperationContext) -> None:
        self.results: list[StoreResult] = []
        self._means = means
        self._remote = remote
        self._files = files
        self._op = op
        self._exchange = Exchange(means, remote, op)
        self._exchange.can_be_cancelled = False
        self._exchange.idle_secs = min(_IDLE_SECS, remote.idle_secs)

    async def run(self) -> HarmonydError | None:
        """Fill ``results``, one for each file as far as it gets; return what ended the association before the rest."""
        exchange = self._exchange
        ahead = ReadAhead(self._means.in_thread)
        try:
            await exchange.slot()
            wanted = contexts_for(file.header for file in self._files)
            exchange.use(await self._means.pool.take(self._remote, wanted, wanted, self._op.deadline))
            if not any(exchange.association.contexts.accepted()):
                return failures.no_context(self._remote)
            for number, file in enumerate(self._files):
                following = self._files[number + 1] if number + 1 < len(self._files) else None
                await self._one(file, following, ahead)
        except HarmonydError as error:
            return error
        except OSError as error:
            return EngineFailed(f"an object became unreadable while it was sent: {error.strerror}")
        finally:
            ahead.close()
            await exchange.end()
        return None

    def with_the_rest(self, failure: HarmonydError | None) -> Iterator[StoreResult]:
        """The results, and one for each file that has none because of ``failure``."""
        yield from self.results
        text = "not sent, or not answered"
        if isinstance(failure, DeadlinePassed):
            text = f"not answered in time: {failure.detail}"
        for file in self._files[len(self.results) :]:
            yield _result(file, None, text)

    async def _one(self, file: _File, following: _File | None, ahead: ReadAhead) -> None:
        header = file.header
        contexts = self._exchange.association.contexts
        context = contexts.find(header.sop_class_uid, header.transfer_syntax_uid)
        if context is None and header.transfer_syntax_uid in _UNCOMPRESSED:
            context = contexts.find(header.sop_class_uid, *names.UNCOMPRESSED)
        if context is None:
            self.results.append(_result(file, None, "not sent: the PACS accepts no presentation context for it"))
            return
        source = DataSet(file.path, header.data_set_at, header.size_bytes)
        try:
            if context.transfer_syntax != header.transfer_syntax_uid:
                source = await self._means.in_thread(converted, file.path, context.transfer_syntax)
            first = await ahead.take(source.path, source.begin)
        except OSError as error:
            self.results.append(_result(file, None, f"not sent: it cannot be read ({error.strerror})"))
            return
        except NotConverted as error:
            self.results.append(_result(file, None, f"not sent: it cannot be converted ({error})"))
            return
        try:
            await self._send(file, source, first, context, ahead)
            if following is not None:
                ahead.begin(following.path, following.header.data_set_at)
            answer, _ = await self._exchange.association.response(self._exchange.message_id)
        finally:
            source.remove()
        self._exchange.saw(answer)
        self.results.append(_answered(file, answer))

    async def _send(
        self, file: _File, source: DataSet, chunk: bytes, context: core.Context, ahead: ReadAhead
    ) -> None:
        exchange, header = self._exchange, file.header
        connection = exchange.association.connection
        exchange.message_id = exchange.association.next_message_id()
        command = core.c_store_rq(exchange.message_id, header.sop_class_uid, header.sop_instance_uid)
        exchange.asked()
        self._require_open()
        connection.association.send(context.id, command, has_data=True)
        at = source.begin
        while True:
            at += len(chunk)
            last = at >= source.end
            connection.association.send_data(context.id, chunk, last)
            connection.flush()
            if last:
                return
            chunk = await ahead.take(source.path, at)
            if not chunk:
                raise EngineFailed(f"{source.path.name} became shorter while it was sent")
            await connection.writable()
            self._require_open()

    def _require_open(self) -> None:
        if not self._exchange.association.connection.association.established:
            raise failures.aborted(self._remote, accepted=True)


def _answered(file: _File, answer: core.Command) -> StoreResult:
    status = answer.status
    text = dimse_status.text("store", status or 0)
    if answer.error_comment:
        text = f"{text}; it says: {answer.error_comment}"
    return _result(file, status, text)


def _result(file: _File, status: int | None, text: str) -> StoreResult:
    return StoreResult(file.header.sop_class_uid, file.header.sop_instance_uid, status, text)


def _batches(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for first in range(0, len(files), _FILES_AT_ONCE):
        yield files[first : first + _FILES_AT_ONCE]


def _groups(files: Sequence[_File]) -> Iterator[list[_File]]:
    """Cut where one association would need too many presentation contexts."""
    group: list[_File] = []
    wanted: set[tuple[str, tuple[str, ...]]] = set()
    for file in files:
        more = wanted.union(contexts_for([file.header]))
        if len(more) > MAX_CONTEXTS:
            yield group
            group, more = [], set(contexts_for([file.header]))
        group.append(file)
        wanted = more
    yield group
