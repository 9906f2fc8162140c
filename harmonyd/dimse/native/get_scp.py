"""C-GET as an SCP: objects go back over the association that asked for them (PS3.4 section C.4.3)."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.files import Conversion, DataSet, NotConvertible
from harmonyd.dimse.native.inbound import Ended, InboundSession
from harmonyd.dimse.native.object_sender import ObjectSender, Shorter
from harmonyd.dimse.native.ongoing import Ongoing
from harmonyd.dimse.native.retrieve_scp import Retrieving
from harmonyd.dimse.native.sending import Outgoing, syntaxes_for
from harmonyd.dimse.native.sub_operations import CannotSend, Target
from harmonyd.dimse.part10 import InstanceHeader
from harmonyd.dimse.serving import GET, Asked
from harmonyd.dimse.waiting import until
from harmonyd.errors import DeadlinePassed


class Getting(Retrieving):
    """The ``Service`` for C-GET."""

    operation = GET
    services = names.GET

    def target(self, ongoing: Ongoing, session: InboundSession, command: core.Command, question: Asked) -> Target:
        """The caller itself."""
        return _Caller(self.means, session, ongoing)


class _Caller:
    """Implements ``Target``, and ``Wire``."""

    def __init__(self, means: Means, session: InboundSession, ongoing: Ongoing) -> None:
        self.connection = session.connection
        self._means = means
        self._session = session
        self._ongoing = ongoing
        self._sender = ObjectSender(means.in_thread)

    async def close(self) -> None:
        self._sender.close()

    def require_open(self) -> None:
        self.connection.check()
        if not self.connection.association.established:
            raise Ended

    async def writable(self) -> None:
        await self.connection.writable()
        self.require_open()

    async def store(self, file: Outgoing) -> int:
        header, pair = file.header, file.pair
        if header is None or pair is None:
            raise CannotSend("its SOP class or transfer syntax is no UID")
        sop_class, syntax = pair
        contexts = self.connection.association.contexts
        context = contexts.find(sop_class, *syntaxes_for(syntax), requestor_is_scp=True)
        if context is None:
            raise CannotSend(f"the caller takes no {sop_class} in {syntax}")
        if context.transfer_syntax == syntax:
            return await self._send(header, DataSet(file.path, header.data_set_at, header.size_bytes), context)
        conversion = Conversion(file.path, context.transfer_syntax)
        try:
            return await self._send(header, await self._means.in_thread(conversion.convert), context)
        except NotConvertible as error:
            raise CannotSend(f"it cannot be converted: {error}") from error
        finally:
            await self._means.in_thread(conversion.remove)

    async def _send(self, header: InstanceHeader, source: DataSet, context: core.Context) -> int:
        try:
            first = await self._sender.first_of(source)
        except Shorter as error:
            raise CannotSend(str(error)) from error
        self.require_open()
        message_id = self._session.next_message_id()
        answer = self._ongoing.expect(message_id)
        command = core.c_store_rq(message_id, header.sop_class_uid, header.sop_instance_uid)
        self.connection.association.send(context.id, command, has_data=True)
        try:
            await self._sender.send(self, context, source, first)
        except (OSError, Shorter):
            self.connection.abort()  # half of it is there, and cannot be taken back
            raise Ended from None
        return (await self._answer(answer)).status or 0

    async def _answer(self, answer: Deferred[core.Command]) -> core.Command:
        reactor: Any = self._means.reactor
        patience = self.connection.silence_secs
        try:
            return await until(reactor, reactor.seconds() + patience, answer, DeadlinePassed("no answer"))
        except DeadlinePassed:
            message = "the association with {calling} ({peer}) is ended: a C-STORE had no answer for {secs:g} s"
            self._session.say(message)
            self.connection.abort()
            raise Ended from None
