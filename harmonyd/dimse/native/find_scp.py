"""C-FIND as an SCP (PS3.7 section 9.1.2, PS3.4 sections C.4.1 and K.4.1): matches leave as they come."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing

from harmonyd.dimse.engine import QueryModel
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.inbound import InboundSession
from harmonyd.dimse.native.ongoing import Ongoing
from harmonyd.dimse.serving import FIND, Asked, Handler, NotServed
from harmonyd.dimse.status import SOP_CLASS_NOT_SUPPORTED, SUCCESS


async def asked(
    operation: str,
    services: Mapping[QueryModel, str],
    session: InboundSession,
    context: core.Context,
    command: core.Command,
) -> Asked:
    """A request with its identifier. Raises ``NotServed``, and what ends the association."""
    identifier = await session.data_set(command)
    model = next((model for model, uid in services.items() if uid == context.abstract_syntax), None)
    if model is None:
        raise NotServed(SOP_CLASS_NOT_SUPPORTED, f"C-{operation.upper()} is not of this presentation context")
    return Asked(
        operation,
        session.association,
        command.message_id or 0,
        model,
        identifier,
        context.transfer_syntax,
        (command.move_destination or "").strip(),
    )


class Finding:
    """The ``Service`` for C-FIND."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, session: InboundSession, context: core.Context, command: core.Command) -> None:
        status, comment = SUCCESS, ""
        try:
            question = await asked(FIND, names.FIND, session, context, command)
            await Ongoing(session, command).run(self._answer(session, context, command, question))
        except NotServed as reason:
            status, comment = reason.status, reason.comment
        session.respond(context, command, status, comment)

    async def _answer(
        self, session: InboundSession, context: core.Context, command: core.Command, question: Asked
    ) -> None:
        connection = session.connection
        async with aclosing(self._handler.find(question)) as matches:
            async for match in matches:
                await connection.writable()
                connection.send(context.id, command.response(match.status), match.data)

