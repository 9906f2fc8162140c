"""DIMSE-N as its invoker, over an association of ours: one request, and what the node has to say afterwards."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from harmonyd.dimse.engine import OperationContext, RemoteNode
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.client import ClientAssociation
from harmonyd.dimse.native.exchange import Exchange, Means, comment_of, is_pending
from harmonyd.dimse.normalized import (
    ACTION,
    CREATE,
    EVENT,
    Listening,
    NormalizedAnswer,
    NormalizedRequest,
)
from harmonyd.dimse.recode import recoded
from harmonyd.dimse.status import SOP_CLASS_NOT_SUPPORTED, UNRECOGNIZED_OPERATION
from harmonyd.dimse.waiting import until
from harmonyd.errors import DeadlinePassed, HarmonydError


def command_for(request: NormalizedRequest, message_id: int) -> core.Command:
    """The command set of a request."""
    has_data = bool(request.data)
    uids = request.sop_class_uid, request.sop_instance_uid
    if request.operation == EVENT:
        return core.n_event_report_rq(message_id, *uids, request.type_id or 0, has_data=has_data)
    if request.operation == ACTION:
        return core.n_action_rq(message_id, *uids, request.type_id or 0, has_data=has_data)
    if request.operation == CREATE:
        return core.n_create_rq(message_id, *uids, has_data=has_data)
    return core.n_set_rq(message_id, *uids)


def data_for(request: NormalizedRequest, context: core.Context) -> bytes | None:
    """Its data set as the context has it. Raises ``MalformedDataset``."""
    if not request.data:
        return None
    return recoded(request.data, request.transfer_syntax_uid, context.transfer_syntax)


async def perform(
    means: Means,
    remote: RemoteNode,
    request: NormalizedRequest,
    op: OperationContext,
    *,
    as_scp: bool,
    listening: Listening | None,
    answered: Callable[[NormalizedAnswer], None],
) -> NormalizedAnswer:
    """See ``NormalizedEngine.normalized``."""
    exchange = Exchange(means, remote, op)
    exchange.idle_secs = 0
    exchange.can_be_cancelled = False
    try:
        await exchange.slot()
        service = request.sop_class_uid
        roles = [core.RoleSelection(service, scu=False, scp=True)] if as_scp else []
        proposal = [(service, (syntax,)) for syntax in names.UNCOMPRESSED]
        association = await means.pool.open(remote, proposal, op.deadline, roles)
        exchange.use(association)
        exchange.context = _context(association, service, as_scp=as_scp)
        exchange.message_id = association.next_message_id()
        exchange.asked()
        command, data = command_for(request, exchange.message_id), data_for(request, exchange.context)
        association.send(exchange.context.id, command, data)
        answer = await _answer(exchange, association, listening)
        answered(answer)
        if listening is not None and answer.status == 0 and not listening.is_over():
            await _listen(means, association, listening, op)
        return answer
    finally:
        await exchange.end()


def _context(association: ClientAssociation, service: str, *, as_scp: bool) -> core.Context:
    """Callers that know of no roles, and accept the context all the same, take a report, too."""
    agreed = association.contexts.find(service, *names.UNCOMPRESSED, requestor_is_scp=True) if as_scp else None
    return agreed or association.context(service, *names.UNCOMPRESSED)


async def _answer(
    exchange: Exchange, association: ClientAssociation, listening: Listening | None
) -> NormalizedAnswer:
    """The response. Some nodes report before they answer."""
    while True:
        event = await association.receive()
        if not isinstance(event, core.CommandReceived):
            raise association.nonsense("a data set came before its command")
        command = event.command
        if listening is not None and not command.is_response:
            await _heard(association, event.context_id, command, listening)
            continue
        if command.message_id_being_responded_to != exchange.message_id or command.status is None:
            raise association.nonsense(f"{command.name} is no answer to message {exchange.message_id}")
        await association.data_set(command)
        if is_pending(command.status):
            raise association.nonsense("an operation that has one response is answered with Pending")
        exchange.saw(command)
        return NormalizedAnswer(
            command.status, comment_of(command) or "", command.affected_sop_instance_uid or ""
        )


async def _listen(
    means: Means, association: ClientAssociation, listening: Listening, op: OperationContext
) -> None:
    """Until there is nothing to wait for, or the node ends the association, or the time is over."""
    deadline = min(op.deadline, means.reactor.seconds() + listening.secs)
    try:
        heard = Deferred.fromCoroutine(_hear_all(association, listening))
        await until(means.reactor, deadline, heard, DeadlinePassed("nothing more was reported"))
    except HarmonydError:
        pass  # it may report over an association of its own


async def _hear_all(association: ClientAssociation, listening: Listening) -> None:
    while not listening.is_over():
        event = await association.receive()
        if not isinstance(event, core.CommandReceived):
            raise association.nonsense("a data set came before its command")
        await _heard(association, event.context_id, event.command, listening)


async def _heard(
    association: ClientAssociation, context_id: int, command: core.Command, listening: Listening
) -> None:
    context = association.contexts.get(context_id)
    data = await association.data_set(command)
    if command.is_response:
        return
    if command.field != core.CommandField.N_EVENT_REPORT_RQ or context is None:
        association.send(context_id, command.response(UNRECOGNIZED_OPERATION))
        return
    if not command.affected_sop_class_uid:
        association.send(context_id, command.response(SOP_CLASS_NOT_SUPPORTED))
        return
    answer = await listening.hear(
        NormalizedRequest(
            EVENT,
            command.affected_sop_class_uid,
            command.affected_sop_instance_uid or "",
            data,
            context.transfer_syntax,
            command.event_type_id,
        )
    )
    association.send(context_id, command.response(answer.status, error_comment=answer.comment or None))
