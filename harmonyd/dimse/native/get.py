"""C-GET: objects come back over the association that asked for them, each in a transfer syntax it is stored in.

A peer can send an object only in a presentation context for its SOP class with its transfer syntax, and answers one
transfer syntax to a context. So a study whose objects differ needs many contexts, of the 128 that there may be: the
node is asked first what the study consists of.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

from harmonyd.dimse import artifacts, failures
from harmonyd.dimse import status as dimse_status
from harmonyd.dimse.accept import Intake
from harmonyd.dimse.engine import Instance, OperationContext, Query, RemoteNode
from harmonyd.dimse.errors import AssociationAborted, DimseFailure, EngineFailed
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.classes import classes_of
from harmonyd.dimse.native.client import MAX_CONTEXTS, ClientAssociation, Proposal
from harmonyd.dimse.native.exchange import (
    Exchange,
    Incoming,
    Means,
    comment_of,
    failed_uids,
    is_pending,
    suboperations_of,
)
from harmonyd.dimse.native.object_file import ObjectFile, file_meta
from harmonyd.dimse.part10 import DamagedFile
from harmonyd.dimse.query_file import identifier
from harmonyd.dimse.reconcile import reconcile
from harmonyd.dimse.streams import ItemStream, ahead
from harmonyd.dimse.uid import is_uid
from harmonyd.errors import HarmonydError


def get(means: Means, remote: RemoteNode, query: Query, op: OperationContext) -> ItemStream[Instance]:
    """Lazy: nothing is asked before the first item is asked for.

    An association is held as long as the C-GET lasts, not as long as somebody takes to read what it brought.
    """

    async def produce(stream: ItemStream[Instance]) -> AsyncGenerator[Instance, None]:
        folder = artifacts.folder_of(op.storage or means.storage, "get", op.id)
        getting = _Getting(means, remote, query, op, folder)
        stream.folder = folder
        try:
            await getting.begin()
            async with aclosing(getting.instances()) as instances:
                async for instance in instances:
                    yield instance
            getting.conclude(stream)
        finally:
            await getting.exchange.end()

    return ItemStream(lambda stream: ahead(produce(stream)))


def contexts_for(service: str, sop_classes: list[str]) -> Proposal:
    """The service, what is known to be there in every transfer syntax, and of the rest what there is room for.

    Of very many SOP classes each has fewer contexts, and then its rarest transfer syntaxes share one.
    """
    contexts: list[tuple[str, tuple[str, ...]]] = [(service, names.UNCOMPRESSED)]
    found = list(dict.fromkeys(sop_classes))[: MAX_CONTEXTS - 1]
    each = (MAX_CONTEXTS - 1) // max(1, len(found))
    for sop_class in found:
        contexts += [(sop_class, syntaxes) for syntaxes in _shared_out(each)]
    for sop_class in dict.fromkeys((*names.COMMON_STORAGE, *names.STORAGE_CLASSES)):
        if sop_class not in found:
            contexts.append((sop_class, (*names.UNCOMPRESSED, *names.COMMON_COMPRESSED)))
    return contexts[:MAX_CONTEXTS]


def _shared_out(count: int) -> list[tuple[str, ...]]:
    """All transfer syntaxes in at most so many contexts; a node answers one of those that share a context."""
    alone = [names.UNCOMPRESSED, *((syntax,) for syntax in names.COMMON_COMPRESSED)]
    if len(alone) <= count:
        return alone
    return [*alone[: count - 1], tuple(syntax for syntaxes in alone[count - 1 :] for syntax in syntaxes)]


class _Getting:
    """One C-GET."""

    def __init__(self, means: Means, remote: RemoteNode, query: Query, op: OperationContext, folder: Path) -> None:
        self.exchange = Exchange(means, remote, op)
        self.exchange.idle_secs = 0.0
        self._means = means
        self._remote = remote
        self._query = query
        self._op = op
        self._folder = folder
        self._intake = Intake(query, folder, means.quarantine)
        self._final: core.Command | None = None
        self._failed_list = b""
        self._names: set[str] = set()
        """Of the files in the folder."""
        self._unwritten: OSError | None = None
        """Why an object could not be written."""

    async def begin(self) -> None:
        """Ask. Raises what opening an association raises."""
        exchange, service = self.exchange, names.GET[self._query.model]
        await exchange.slot()
        await self._means.in_thread(self._folder.mkdir, 0o777, True)
        classes = await classes_of(self._means, self._remote, self._query, self._op)
        association = await self._open(service, classes)
        exchange.use(association)
        context = exchange.context = association.context(service)
        exchange.message_id = association.next_message_id()
        keys = identifier(self._query, implicit=context.transfer_syntax == names.IMPLICIT_VR_LE)
        exchange.asked()
        association.send(context.id, core.c_get_rq(exchange.message_id, service), keys)

    async def _open(self, service: str, classes: list[str]) -> ClientAssociation:
        """Some nodes abort when they do not know all that is proposed, instead of refusing what they do not know."""
        try:
            return await self._open_with(contexts_for(service, classes))
        except AssociationAborted:
            if not classes:
                raise
            least = [(sop_class, names.UNCOMPRESSED) for sop_class in classes[: MAX_CONTEXTS - 1]]
            return await self._open_with([(service, names.UNCOMPRESSED), *least])

    async def _open_with(self, proposal: Proposal) -> ClientAssociation:
        """With us as SCP of what comes back (PS3.7 section D.3.3.4)."""
        roles = [core.RoleSelection(uid, False, True) for uid in dict.fromkeys(uid for uid, _ in proposal[1:])]
        return await self._means.pool.open(self._remote, proposal, self._op.deadline, roles)

    async def instances(self) -> AsyncGenerator[Instance, None]:
        """As they arrive, until the final response."""
        association, exchange = self.exchange.association, self.exchange
        while self._final is None:
            event = await association.receive()
            if not isinstance(event, core.CommandReceived):
                raise association.nonsense("a data set came before its command")
            command = event.command
            if command.field == core.CommandField.C_STORE_RQ and command.has_data:
                instance = await self._store(event.context_id, command)
                if instance is not None:
                    yield instance
            elif command.field == core.CommandField.C_GET_RSP and command.status is not None:
                if command.message_id_being_responded_to != exchange.message_id:
                    raise association.nonsense(f"{command.name} is no answer to message {exchange.message_id}")
                self._failed_list = await association.data_set(command)
                exchange.saw(command)
                if not is_pending(command.status):
                    self._final = command
            else:
                raise association.nonsense(f"{command.name} came while a C-GET was under way")

    async def _store(self, context_id: int, command: core.Command) -> Instance | None:
        """One sub-operation. The role is not looked at: some nodes send without having granted it."""
        exchange = self.exchange
        context = exchange.association.contexts.get(context_id)
        assert context is not None
        incoming = exchange.incoming = Incoming(context_id, command)
        if context.abstract_syntax != command.affected_sop_class_uid or not names.is_storage(context.abstract_syntax):
            await self._skip()
            status, instance = dimse_status.SOP_CLASS_NOT_SUPPORTED, None
        else:
            status, instance = await self._receive(incoming, context)
        exchange.incoming = None
        exchange.association.send(context_id, command.response(status))
        return instance

    async def _receive(self, incoming: Incoming, context: core.Context) -> tuple[int, Instance | None]:
        sop_instance_uid = incoming.command.affected_sop_instance_uid or ""
        meta = file_meta(context.abstract_syntax, sop_instance_uid, context.transfer_syntax, self._remote.aet)
        file = ObjectFile(self._means.reactor, self._path_for(sop_instance_uid), meta)
        try:
            async for fragment in self._fragments():
                if file.add(fragment):
                    await file.flush()
            incoming.is_whole = True
            status, instance = await self._take(file, incoming.command)
        except OSError as error:
            self._unwritten = error
            await file.discard()
            status, instance = dimse_status.OUT_OF_RESOURCES, None
        except BaseException:
            await file.discard()
            raise
        if instance is None:
            self._names.discard(file.path.name)
        return status, instance

    async def _skip(self) -> None:
        async for _ in self._fragments():
            pass

    async def _fragments(self) -> AsyncIterator[bytes | memoryview]:
        """Of the data set under way."""
        association = self.exchange.association
        while True:
            event = await association.receive()
            if not isinstance(event, core.DataReceived):
                raise association.nonsense("a command came before the end of a data set")
            yield event.fragment
            if event.last:
                return

    async def _take(self, file: ObjectFile, command: core.Command) -> tuple[int, Instance | None]:
        """The status for the node; what was not asked for is put aside, and that is no matter of the node's."""
        in_thread, intake = self._means.in_thread, self._intake
        try:
            header = await file.finish()
        except DamagedFile:
            await in_thread(intake.take, [file.path])
            return dimse_status.CANNOT_UNDERSTAND, None
        said = (command.affected_sop_class_uid, command.affected_sop_instance_uid)
        if (header.sop_class_uid, header.sop_instance_uid) != said:
            intake.damaged += 1
            await in_thread(intake.aside, file.path, "damaged", "it is not the instance that its C-STORE names")
            return dimse_status.DOES_NOT_MATCH, None
        if intake.is_wanted(header):
            return dimse_status.SUCCESS, intake.taken(file.path, header)
        await in_thread(intake.take_checked, file.path, header)
        return dimse_status.SUCCESS, None

    def _path_for(self, sop_instance_uid: str) -> Path:
        """Where nothing is, whatever the node calls its objects."""
        name = sop_instance_uid if is_uid(sop_instance_uid) else uuid.uuid4().hex
        if name in self._names:
            name = f"{name}.{uuid.uuid4().hex}"
        self._names.add(name)
        return self._folder / name

    def conclude(self, stream: ItemStream[Instance]) -> None:
        """Fill in the outcome, or raise. Our own full disk comes first: a PACS only says that it failed."""
        final = self._final
        assert final is not None
        if self._unwritten is not None:
            raise _failure_to_write(self._unwritten)
        suboperations = suboperations_of(final)
        try:
            outcome = failures.outcome_of("get", final.status or 0, comment_of(final), suboperations, self._remote)
        except DimseFailure:
            artifacts.raise_if_full(self._folder)
            raise
        stream.outcome = outcome
        outcome.failed_uids = failed_uids(self._failed_list, self.exchange.context)
        reconcile(outcome, self._intake)


def _failure_to_write(error: OSError) -> HarmonydError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return artifacts.storage_full()
    return EngineFailed(
        f"What the PACS sent could not be written: {error.strerror or type(error).__name__}",
        hint="Look at the storage path, its permissions and its disk.",
    )
