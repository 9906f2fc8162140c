"""DIMSE-N as its performer: a request with its data set to whoever answers, and the status back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harmonyd.dimse.native import core
from harmonyd.dimse.native.exchange import comment_of
from harmonyd.dimse.native.inbound import InboundSession, error_comment
from harmonyd.dimse.native.normalized import command_for, data_for
from harmonyd.dimse.native.ongoing import Ongoing
from harmonyd.dimse.normalized import (
    ACTION,
    CREATE,
    EVENT,
    SET,
    NormalizedAnswer,
    NormalizedAsked,
    NormalizedRequest,
    Unanswered,
)
from harmonyd.dimse.serving import Handler, NotServed
from harmonyd.dimse.status import SOP_CLASS_NOT_SUPPORTED

_OPERATIONS = {
    core.CommandField.N_EVENT_REPORT_RQ: EVENT,
    core.CommandField.N_ACTION_RQ: ACTION,
    core.CommandField.N_CREATE_RQ: CREATE,
    core.CommandField.N_SET_RQ: SET,
}


class Normalizing:
    """The ``Service`` for DIMSE-N requests of one SOP class."""

    def __init__(self, reactor: Any, handler: Handler, sop_class_uid: str) -> None:
        self._reactor = reactor
        self._handler = handler
        self._sop_class_uid = sop_class_uid

    async def __call__(self, session: InboundSession, context: core.Context, command: core.Command) -> None:
        answers: list[NormalizedAnswer] = []
        try:
            asked = await self._asked(session, context, command)
            await Ongoing(session, command).run(self._answer(asked, answers))
            answer = answers[0]
        except NotServed as reason:
            answer = NormalizedAnswer(reason.status, reason.comment)
        if session.connection.association.established:
            session.connection.send(context.id, _response(command, answer))

    async def _answer(self, asked: NormalizedAsked, answers: list[NormalizedAnswer]) -> None:
        answers.append(await self._handler.normalized(asked))

    async def _asked(
        self, session: InboundSession, context: core.Context, command: core.Command
    ) -> NormalizedAsked:
        data = await session.data_set(command) if command.has_data else b""
        sop_class = command.requested_sop_class_uid or command.affected_sop_class_uid or ""
        if context.abstract_syntax != self._sop_class_uid or sop_class != self._sop_class_uid:
            raise NotServed(SOP_CLASS_NOT_SUPPORTED, f"{command.name} is not of this presentation context")
        request = NormalizedRequest(
            _OPERATIONS[core.CommandField(command.field)],
            sop_class,
            command.requested_sop_instance_uid or command.affected_sop_instance_uid or "",
            data,
            context.transfer_syntax,
            command.action_type_id if command.action_type_id is not None else command.event_type_id,
        )

        async def ask_back(question: NormalizedRequest) -> NormalizedAnswer:
            return await self._ask_back(session, context, question)

        return NormalizedAsked(session.association, command.message_id or 0, request, ask_back)

    async def _ask_back(
        self, session: InboundSession, context: core.Context, question: NormalizedRequest
    ) -> NormalizedAnswer:
        await session.outgoing.turn()
        association = session.connection.association
        if not association.established or association.sending:
            raise Unanswered("the association has ended, or is busy")
        message_id = session.next_message_id()
        session.connection.send(context.id, command_for(question, message_id), data_for(question, context))
        response = await session.outgoing.response(self._reactor, message_id)
        return NormalizedAnswer(response.status or 0, comment_of(response) or "")


def _response(command: core.Command, answer: NormalizedAnswer) -> core.Command:
    response = command.response(answer.status, error_comment=error_comment(answer.comment))
    if answer.sop_instance_uid and not response.affected_sop_instance_uid:
        return replace(response, affected_sop_instance_uid=answer.sop_instance_uid)
    return response
