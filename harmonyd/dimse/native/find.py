"""C-ECHO and C-FIND: a question on an open association, its answers decoded as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from harmonyd.dimse import failures
from harmonyd.dimse.dataset_json import dataset_to_json
from harmonyd.dimse.engine import Match, OperationContext, Outcome, Query, Received, RemoteNode, SubOperations
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.client import ClientAssociation
from harmonyd.dimse.native.exchange import Exchange, Means, comment_of, is_pending
from harmonyd.dimse.query_file import identifier
from harmonyd.dimse.streams import ItemStream, ahead

_AHEAD = 1000
"""Matches that may wait for whoever reads them."""
_DECODED_HERE_BYTES = 16 * 1024
"""Decoding takes 1 µs a byte at the very worst; a usual answer has a few hundred bytes, and takes 20 µs."""


async def echo(means: Means, remote: RemoteNode, op: OperationContext) -> Outcome:
    """See ``Engine.echo``."""

    def ask(association: ClientAssociation, context: core.Context, message_id: int) -> None:
        association.send(context.id, core.c_echo_rq(message_id))

    exchange = Exchange(means, remote, op)
    try:
        await exchange.begin(names.VERIFICATION, ask, can_be_cancelled=False)
        command, _ = await exchange.response()
    finally:
        await exchange.end()
    return failures.outcome_of("echo", command.status or 0, comment_of(command), SubOperations(), remote)


def find(means: Means, remote: RemoteNode, query: Query, op: OperationContext) -> ItemStream[Match]:
    """Lazy: the question is asked when the first item is asked for.

    A usual answer is here, and its association free, before a slow reader has read it; a huge one waits at the node.
    """

    def ask(association: ClientAssociation, context: core.Context, message_id: int) -> None:
        keys = identifier(query, implicit=context.transfer_syntax == names.IMPLICIT_VR_LE)
        association.send(context.id, core.c_find_rq(message_id, context.abstract_syntax), keys)

    async def produce(stream: ItemStream[Match]) -> AsyncGenerator[Match, None]:
        exchange = Exchange(means, remote, op)
        try:
            await exchange.begin(names.FIND[query.model], ask)
            count = 0
            while True:
                command, data = await exchange.response()
                if not is_pending(command.status or 0):
                    break
                if not data:
                    raise exchange.association.nonsense("a match without a data set")
                if count == op.max_results:
                    limit = f"more than max_results ({op.max_results}) matches"
                    stream.outcome.incomplete(f"{limit}; the rest was cut")
                    return
                count += 1
                yield await _match(means, op, Received(data, exchange.context.transfer_syntax, command.status or 0))
            stream.outcome = failures.outcome_of(
                "find", command.status or 0, comment_of(command), SubOperations(), remote
            )
        finally:
            await exchange.end()

    return ItemStream(lambda stream: ahead(produce(stream), _AHEAD))


async def _match(means: Means, op: OperationContext, received: Received) -> Match:
    if op.as_received:
        return Match(b"", received)
    return Match(await _decoded(means, received.data, received.transfer_syntax_uid))


async def _decoded(means: Means, data: bytes, transfer_syntax_uid: str) -> bytes:
    if len(data) <= _DECODED_HERE_BYTES:
        return dataset_to_json(data, transfer_syntax_uid)
    return await means.in_thread(dataset_to_json, data, transfer_syntax_uid)
