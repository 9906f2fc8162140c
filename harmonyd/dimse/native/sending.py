"""One association's worth of C-STORE requests (PS3.7 section 9.1.1), one after the other.

Two ways to fail are kept apart. What is wrong with one object of ours is its result, and the next one is sent. What the
node does to the association leaves the object at hand, and all behind it, without an answer. But where an association
ended that was idle, or between two objects, what is left goes over another one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harmonyd.dimse import failures
from harmonyd.dimse import status as dimse_status
from harmonyd.dimse.engine import OperationContext, RemoteNode, StoreResult
from harmonyd.dimse.errors import AssociationAborted
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.client import ClientAssociation
from harmonyd.dimse.native.exchange import Exchange, Means, comment_of, is_pending
from harmonyd.dimse.native.files import Conversion, DataSet, NotConvertible
from harmonyd.dimse.native.object_sender import ObjectSender, Shorter
from harmonyd.dimse.part10 import InstanceHeader
from harmonyd.dimse.tally import Tally
from harmonyd.errors import DeadlinePassed, HarmonydError

_IDLE_SECS = 0.5
"""Between two batches. Some receivers serve one association at a time: others wait for as long as ours is open."""
CONVERTIBLE = (*names.UNCOMPRESSED, names.EXPLICIT_VR_BE)
_UID = re.compile(r"[0-9.]{1,64}")
"""Old devices write components with leading zeros: what they call a UID is one."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A file to be sent; without a header it cannot be, and ``problem`` says why."""

    path: Path
    header: InstanceHeader | None = None
    problem: str = ""

    @property
    def pair(self) -> tuple[str, str] | None:
        """SOP class and transfer syntax, if they are something to be proposed."""
        header = self.header
        if header is None or not _UID.fullmatch(header.sop_class_uid) or not _UID.fullmatch(header.transfer_syntax_uid):
            return None
        return header.sop_class_uid, header.transfer_syntax_uid


def contexts_for(files: Iterable[Outgoing]) -> list[tuple[str, tuple[str, ...]]]:
    """The presentation contexts that these objects need, as (SOP class, transfer syntaxes).

    One for each SOP class and transfer syntax, so that nothing has to be transcoded; for uncompressed objects one more
    with both little endian syntaxes, of which every node takes Implicit VR (PS3.5 section 10.1).
    """
    wanted: dict[tuple[str, tuple[str, ...]], None] = {}
    for sop_class, syntax in _pairs(files):
        wanted[sop_class, (syntax,)] = None
        if syntax in CONVERTIBLE:
            wanted[sop_class, names.UNCOMPRESSED] = None
    return list(wanted)


def _needed(files: Iterable[Outgoing]) -> list[tuple[str, tuple[str, ...]]]:
    """With which contexts accepted each of these objects can be sent."""
    return [(sop_class, syntaxes_for(syntax)) for sop_class, syntax in _pairs(files)]


def syntaxes_for(own: str) -> tuple[str, ...]:
    """In which an object can be sent; its own first."""
    return (own, *(names.UNCOMPRESSED if own in CONVERTIBLE else ()))


def _pairs(files: Iterable[Outgoing]) -> Iterable[tuple[str, str]]:
    return dict.fromkeys(pair for file in files if (pair := file.pair) is not None)


class Sending:
    """Await ``run`` once at most; ``results`` then has one for each file, as far as it got."""

    _exchange: Exchange

    def __init__(
        self, means: Means, remote: RemoteNode, files: Sequence[Outgoing], op: OperationContext, tally: Tally
    ) -> None:
        self.results: list[StoreResult] = []
        self._means = means
        self._remote = remote
        self._files = files
        self._op = op
        self._tally = tally
        self._association: ClientAssociation | None = None
        self._sender = ObjectSender(means.in_thread)

    async def run(self) -> HarmonydError | None:
        """Send; return what left the rest without an answer."""
        exchange = self._exchange = Exchange(self._means, self._remote, self._op)
        exchange.can_be_cancelled = False
        exchange.idle_secs = min(_IDLE_SECS, self._remote.idle_secs)
        try:
            while len(self.results) < len(self._files):
                await self._next()
        except HarmonydError as error:
            return error
        finally:
            self._sender.close()
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

    async def _next(self) -> None:
        """Add the next result; or nothing, when it has to be tried again."""
        file = self._files[len(self.results)]
        if file.header is None:
            self._add(_result(file, None, f"not sent: it cannot be read ({file.problem})"))
            return
        if file.pair is None:
            self._add(_result(file, None, "not sent: its SOP class or transfer syntax is no UID"))
            return
        if self._association is not None and not self._exchange.is_reusable:
            self._exchange.let_go()
            self._association = None
        association = self._association or await self._associate()
        context = association.contexts.find(file.header.sop_class_uid, *syntaxes_for(file.header.transfer_syntax_uid))
        if context is None:
            text = "not sent: the PACS accepts no presentation context for it"
            self._add(_result(file, None, text))
            return
        try:
            answer = await self._one(file, file.header, context)
            self._add(_answered(file, answer))
        except AssociationAborted:
            if not association.was_idle:
                raise
        except (OSError, NotConvertible, Shorter) as error:
            what = "converted" if isinstance(error, NotConvertible) else "read"
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self._add(_result(file, None, f"not sent: it cannot be {what} ({why})"))

    def _add(self, result: StoreResult) -> None:
        self.results.append(result)
        self._tally.add(result.status)

    async def _associate(self) -> ClientAssociation:
        await self._exchange.slot()
        rest = self._files[len(self.results) :]
        association = await self._means.pool.take(
            self._remote, _needed(rest), contexts_for(rest), self._op.deadline
        )
        self._association = association
        self._exchange.use(association)
        if not any(association.contexts.accepted()):
            raise failures.no_context(self._remote)
        return association

    async def _one(self, file: Outgoing, header: InstanceHeader, context: core.Context) -> core.Command:
        """Raises OSError, ``NotConvertible`` and ``Shorter`` for what is wrong with the file itself."""
        in_thread = self._means.in_thread
        if context.transfer_syntax == header.transfer_syntax_uid:
            return await self._send(header, DataSet(file.path, header.data_set_at, header.size_bytes), context)
        conversion = Conversion(file.path, context.transfer_syntax)
        try:
            return await self._send(header, await in_thread(conversion.convert), context)
        finally:
            await in_thread(conversion.remove)

    async def _send(self, header: InstanceHeader, source: DataSet, context: core.Context) -> core.Command:
        exchange = self._exchange
        association = exchange.association
        first = await self._sender.first_of(source)
        exchange.message_id = association.next_message_id()
        exchange.asked()
        association.require_open()
        command = core.c_store_rq(exchange.message_id, header.sop_class_uid, header.sop_instance_uid)
        association.connection.association.send(context.id, command, has_data=True)
        with contextlib.suppress(AssociationAborted):
            # The node may answer before it has all, and then end the association: the answer counts.
            await self._sender.send(association, context, source, first)
        self._begin_following()
        answer, _ = await association.response(exchange.message_id)
        exchange.saw(answer)
        if is_pending(answer.status or 0):
            raise association.nonsense("a C-STORE is answered with Pending")
        return answer

    def _begin_following(self) -> None:
        """Read the next object while the node works on this one."""
        following = self._files[len(self.results) + 1 : len(self.results) + 2]
        if following and (header := following[0].header) is not None:
            self._sender.begin(following[0].path, header.data_set_at)


def _answered(file: Outgoing, answer: core.Command) -> StoreResult:
    status = answer.status
    text = dimse_status.text("store", status or 0)
    return replace(_result(file, status, text), comment=comment_of(answer))


def _result(file: Outgoing, status: int | None, text: str) -> StoreResult:
    header = file.header
    return StoreResult(header.sop_class_uid if header else "", header.sop_instance_uid if header else "", status, text)
