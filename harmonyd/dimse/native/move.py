"""C-MOVE to a port of our own (PS3.7 section 9.1.4): instances leave as they arrive, then counters are compared."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from harmonyd.dimse import artifacts, failures
from harmonyd.dimse.engine import Instance, MoveReceiver, OperationContext, Query, RemoteNode
from harmonyd.dimse.errors import DimseFailure
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.client import ClientAssociation
from harmonyd.dimse.native.deliveries import Delivery
from harmonyd.dimse.native.exchange import Exchange, Means, comment_of, failed_uids, is_pending, suboperations_of
from harmonyd.dimse.native.move_ports import MovePorts
from harmonyd.dimse.query_file import identifier
from harmonyd.dimse.reconcile import reconcile
from harmonyd.dimse.streams import ItemStream, Mailbox, ahead
from harmonyd.dimse.waiting import until
from harmonyd.errors import DeadlinePassed

SETTLE_SECS = 30.0
"""For objects that are under way when the final response is here."""
LATE_SECS = 2.0
"""For objects that the node counts as delivered, and of which nothing has come yet: it did not wait for our answers."""
_LOOK_SECS = 0.02
_log = Logger()


def move(
    means: Means, ports: MovePorts, remote: RemoteNode, receiver: MoveReceiver, query: Query, op: OperationContext
) -> ItemStream[Instance]:
    """Lazy. Any number of moves run at once, of the same study, too.

    An association is held as long as the C-MOVE lasts, not as long as somebody takes to read what it brought.
    """

    async def produce(stream: ItemStream[Instance]) -> AsyncGenerator[Instance, None]:
        storage = op.storage or means.storage
        folder = artifacts.folder_of(storage, "move", op.id)
        arrived: Mailbox[Instance] = Mailbox()
        delivery = await ports.expect(receiver, remote, query, folder, arrived.put, op.request_id)
        run = _Run(means, ports, remote, receiver, query, op, delivery)
        stream.folder = folder
        try:
            talking = Deferred.fromCoroutine(run.talk(arrived))
            try:
                async for instance in arrived:
                    yield instance
            finally:
                if not arrived.has_ended:
                    talking.cancel()
                await talking
                await run.exchange.end()
            run.conclude(stream, folder)
        finally:
            ports.forget(receiver, delivery)
            stream.debug = run.debug()
            await _keep_debug(means, storage, stream.debug)

    return ItemStream(lambda stream: ahead(produce(stream)))


class _Run:
    """One C-MOVE."""

    def __init__(
        self,
        means: Means,
        ports: MovePorts,
        remote: RemoteNode,
        receiver: MoveReceiver,
        query: Query,
        op: OperationContext,
        delivery: Delivery,
    ) -> None:
        self.exchange = Exchange(means, remote, op)
        self._means = means
        self._ports = ports
        self._remote = remote
        self._receiver = receiver
        self._query = query
        self._op = op
        self._delivery = delivery
        self._final: core.Command | None = None
        self._failed_list = b""
        self._said: list[str] = []

    async def talk(self, arrived: Mailbox[Instance]) -> None:
        """Ask, and read the responses to the last one and until what they announce has come. Never raises."""
        try:
            await self.exchange.begin(names.MOVE[self._query.model], self._ask, self._delivery.message_id)
            final = await self._final_response()
            await self._settle(final)
            self._final = final
        except Exception as error:  # noqa: BLE001 - it is raised where the instances are read
            arrived.end(error)
        else:
            arrived.end()

    def _ask(self, association: ClientAssociation, context: core.Context, message_id: int) -> None:
        keys = identifier(self._query, implicit=context.transfer_syntax == names.IMPLICIT_VR_LE)
        request = core.c_move_rq(message_id, context.abstract_syntax, self._receiver.destination_aet)
        association.send(context.id, request, keys)

    async def _final_response(self) -> core.Command:
        while True:
            command, self._failed_list = await self.exchange.response()
            self._said.append(_text(command))
            if not is_pending(command.status or 0):
                return command
            del self._said[1:-1]  # the first one and the last two are enough

    async def _settle(self, final: core.Command) -> None:
        """What is missing after that, the counters tell."""
        reactor, delivery = self._means.reactor, self._delivery
        if not await self._settled():
            return
        give_up = self._at_most(LATE_SECS)
        delivered = (final.completed or 0) + (final.warning or 0)
        while len(delivery.intake.arrived) < delivered and reactor.seconds() < give_up:
            await deferLater(reactor, _LOOK_SECS)
        await self._settled()

    async def _settled(self) -> bool:
        """Whether nothing is under way any more; waits for that, though not for ever."""
        settled = Deferred.fromCoroutine(self._ports.settle(self._receiver, self._delivery))
        why = DeadlinePassed("objects are still under way")
        try:
            await until(self._means.reactor, self._at_most(SETTLE_SECS), settled, why)
        except DeadlinePassed:
            return False
        return True

    def _at_most(self, secs: float) -> float:
        return min(self._op.deadline, float(self._means.reactor.seconds()) + secs)

    def conclude(self, stream: ItemStream[Instance], folder: Path) -> None:
        """Fill in the outcome, or raise what went wrong, our own full disk first: a PACS only says that it failed."""
        final = self._final
        assert final is not None
        try:
            stream.outcome = failures.outcome_of(
                "move", final.status or 0, comment_of(final), suboperations_of(final), self._remote
            )
        except DimseFailure:
            artifacts.raise_if_full(folder)
            raise
        stream.outcome.failed_uids = failed_uids(self._failed_list, self.exchange.context)
        reconcile(stream.outcome, self._delivery.intake)
        if not stream.outcome.complete:
            artifacts.raise_if_full(folder)

    def debug(self) -> dict[str, object]:
        """The shape of ``movescu_last.json``."""
        remote = self._remote
        node = f"{remote.aet}@{remote.host}:{remote.port}"
        asked = ["C-MOVE", node, "as", remote.local_aet, "to", self._receiver.destination_aet]
        return {
            "args": [*asked, "message id", str(self._delivery.message_id)],
            "stdout": "",
            "stderr": "".join(f"{line}\n" for line in self._said),
            "status": None if self._final is None else self._final.status,
            "signal": None,
            "request_id": self._op.request_id,
            "operation_id": self._op.id,
        }


def _text(response: core.Command) -> str:
    counters, said = suboperations_of(response), comment_of(response)
    comment = f" ({said})" if said else ""
    return f"{response.name}: status 0x{response.status or 0:04X}{comment}, {counters}"


async def _keep_debug(means: Means, storage: Path, debug: dict[str, object]) -> None:
    """Failing to is no reason to fail an answer, nor to hide why it failed."""
    try:
        await means.in_thread(artifacts.write_last_move, storage, debug)
    except OSError as error:
        _log.warn("{name} cannot be written: {error}", name=artifacts.LAST_MOVE, error=error)
