"""C-GET and C-MOVE as an SCP (PS3.7 sections 9.1.3 and 9.1.4, PS3.4 sections C.4.2 and C.4.3).

Each object goes on when it has come, and a Pending response with true counters follows it. Nothing is collected first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydicom import Dataset
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from harmonyd.dimse.engine import Instance, QueryModel
from harmonyd.dimse.native import core
from harmonyd.dimse.native.connection import Silence
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.find_scp import asked
from harmonyd.dimse.native.inbound import Ended, InboundSession, Stopped, error_comment
from harmonyd.dimse.native.ongoing import Ongoing
from harmonyd.dimse.native.sending import Outgoing
from harmonyd.dimse.native.sub_operations import CannotSend, Count, Target
from harmonyd.dimse.part10 import DamagedFile, InstanceHeader, read_header
from harmonyd.dimse.serving import Asked, Handler, NotServed, Retrieval
from harmonyd.dimse.status import CANCEL, CANNOT_PERFORM, PENDING, SOME_FAILED, UNABLE_TO_PROCESS
from harmonyd.dimse.wire import written

ALIVE_SECS = 10.0
"""While nothing comes, the caller is told so often that the operation goes on: it has a timeout of its own."""
_ENDS = (CancelledError, Ended, Silence, Stopped, NotServed)


class Retrieving:
    """A ``Service``; ``target`` says where the objects of a request go."""

    operation = ""
    services: Mapping[QueryModel, str] = {}
    _log = Logger()

    def __init__(self, means: Means, handler: Handler) -> None:
        self.means = means
        self.handler = handler

    def target(self, ongoing: Ongoing, session: InboundSession, command: core.Command, question: Asked) -> Target:
        """Raises ``NotServed``."""
        raise NotImplementedError

    async def __call__(self, session: InboundSession, context: core.Context, command: core.Command) -> None:
        count = Count()
        why: NotServed | None = None
        try:
            question = await asked(self.operation, self.services, session, context, command)
            ongoing = Ongoing(session, command)
            responses = _Responses(self.means.reactor, session, context, command, count)
            await ongoing.run(self._work(ongoing, session, command, question, responses))
        except NotServed as reason:
            why = reason
        self._respond(session, context, command, count, why)

    async def _work(
        self,
        ongoing: Ongoing,
        session: InboundSession,
        command: core.Command,
        question: Asked,
        responses: _Responses,
    ) -> None:
        count = responses.count
        target = self.target(ongoing, session, command, question)
        responses.begin()
        try:
            count.retrieval = retrieval = await self.handler.retrieve(question)
            try:
                async for instance in retrieval:
                    with ongoing.finishing():
                        await self._one(target, instance, count, retrieval)
                    responses.tell()
                count.missed(retrieval.missed, retrieval.missed_uids, "the PACS could not deliver all")
            finally:
                await retrieval.aclose()
        except Exception as error:
            if isinstance(error, _ENDS):
                raise
            self._log.failure("a retrieve ended by our fault", association_id=session.association.id)
            raise NotServed(UNABLE_TO_PROCESS, "our fault; the log says more") from error
        finally:
            responses.end()
            await target.close()

    async def _one(self, target: Target, instance: Instance, count: Count, retrieval: Retrieval) -> None:
        uid = instance.sop_instance_uid
        header: InstanceHeader | None = None
        problem = "the association ended before it was answered"
        try:
            header = _header(instance) or await self.means.in_thread(read_header, instance.path)
            status = await target.store(Outgoing(instance.path, header))
        except (CannotSend, DamagedFile, OSError) as error:
            problem = str(error)
            count.not_sent(uid, problem)
            self._log.warn("{uid} is not sent: {why}", uid=uid, why=problem)
        except NotServed as error:
            problem = error.comment or problem
            raise
        else:
            problem = count.answered(uid, status)
        finally:
            if header is not None:
                retrieval.told(header, problem)

    def _respond(
        self,
        session: InboundSession,
        context: core.Context,
        command: core.Command,
        count: Count,
        why: NotServed | None,
    ) -> None:
        status, comment = _final(count, why)
        is_ours = why is None or not why.is_quoted
        self._say_end(session, command, count, status, comment if is_ours else "")
        connection = session.connection
        if not connection.association.established:
            return
        failed = None
        if count.failed_uids:
            ds = Dataset()
            ds.FailedSOPInstanceUIDList = count.failed_uids
            failed = written(ds, context.transfer_syntax)
        connection.send(context.id, count.response(command, status, error_comment(comment)), failed)

    def _say_end(
        self, session: InboundSession, command: core.Command, count: Count, status: int, comment: str
    ) -> None:
        known = session.association
        to = f" to {command.move_destination}" if command.move_destination else ""
        self._log.info(
            "C-{op} of {calling} ({peer}){to}: {completed} completed, {failed} failed, {warning} with warnings; "
            "status 0x{status:04X}{comment}",
            op=self.operation.upper(), calling=known.calling_aet, peer=known.peer, to=to, completed=count.completed,
            failed=count.failed, warning=count.warning, status=status, comment=comment and f": {comment}",
            association_id=known.id,
        )  # fmt: skip


def _header(instance: Instance) -> InstanceHeader | None:
    """As it was read when the file was checked."""
    if not instance.data_set_at:
        return None
    return InstanceHeader(
        instance.sop_class_uid,
        instance.sop_instance_uid,
        instance.transfer_syntax_uid,
        instance.study_instance_uid,
        instance.series_instance_uid,
        instance.patient_id,
        instance.size_bytes,
        data_set_at=instance.data_set_at,
    )


def _final(count: Count, why: NotServed | None) -> tuple[int, str]:
    """Status and comment; what could not be tried any more is counted."""
    if why is None:
        return count.final_status(), count.why or count.doubt
    if why.status == CANCEL:
        return CANCEL, ""
    if not count.done:
        count.missed(max(why.failed, count.remaining or 0), ())
        return why.status, why.comment
    count.missed(max(1, count.remaining or 0), (), why.comment)
    is_partial = count.completed or count.warning
    return (SOME_FAILED if is_partial else CANNOT_PERFORM), why.comment


class _Responses:
    """The Pending ones."""

    def __init__(
        self, reactor: Any, session: InboundSession, context: core.Context, command: core.Command, count: Count
    ) -> None:
        self.count = count
        self._reactor = reactor
        self._session = session
        self._context = context
        self._command = command
        self._call: Any = None

    def begin(self) -> None:
        self._call = self._reactor.callLater(ALIVE_SECS, self._tell_alive)

    def end(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()

    def tell(self) -> None:
        """How it stands, after a sub-operation."""
        self.end()
        self._send()
        self.begin()

    def _tell_alive(self) -> None:
        connection = self._session.connection
        if connection.association.established and not connection.association.sending and not connection.is_stuck:
            self._send()
        self.begin()

    def _send(self) -> None:
        connection = self._session.connection
        if connection.association.established:
            connection.send(self._context.id, self.count.response(self._command, PENDING))
