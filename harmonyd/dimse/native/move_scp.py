"""C-MOVE as an SCP: objects go to a third node, over an association of ours (PS3.4 section C.4.2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import AssociationAborted
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.client import MAX_CONTEXTS, ClientAssociation, Proposal
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.files import Conversion, DataSet, NotConvertible
from harmonyd.dimse.native.inbound import InboundSession
from harmonyd.dimse.native.object_sender import ObjectSender, Shorter
from harmonyd.dimse.native.ongoing import Ongoing
from harmonyd.dimse.native.retrieve_scp import Retrieving
from harmonyd.dimse.native.sending import CONVERTIBLE, Outgoing, syntaxes_for
from harmonyd.dimse.native.sub_operations import CannotSend, Target
from harmonyd.dimse.part10 import InstanceHeader
from harmonyd.dimse.serving import MOVE, Asked, NotServed
from harmonyd.dimse.status import CANNOT_PERFORM
from harmonyd.errors import HarmonydError

Pair = tuple[str, str]
"""SOP class, and a transfer syntax."""
MAX_LOST = 2
"""Associations one after the other that end with an object under way; then nothing more is tried."""


class Moving(Retrieving):
    """The ``Service`` for C-MOVE."""

    operation = MOVE
    services = names.MOVE

    def target(self, ongoing: Ongoing, session: InboundSession, command: core.Command, question: Asked) -> Target:
        """The node that the caller names. Raises ``NotServed`` when it is unknown."""
        return _Destination(
            self.means, self.handler.destination(question), session.association.calling_aet, command.message_id or 0
        )


def contexts_for(pairs: Iterable[Pair]) -> Proposal:
    """What is known to be needed, then what often comes beside it, as many as there may be.

    A study is not known before it has come. Of each SOP class seen so far: every common transfer syntax in a context of
    its own; of the usual other classes: uncompressed.
    """
    wanted: dict[tuple[str, tuple[str, ...]], None] = {}
    classes = dict.fromkeys(sop_class for sop_class, _ in pairs)
    for sop_class, syntax in pairs:
        wanted[sop_class, (syntax,)] = None
        if syntax in CONVERTIBLE:
            wanted[sop_class, names.UNCOMPRESSED] = None
    for sop_class in classes:
        wanted[sop_class, names.UNCOMPRESSED] = None
        wanted.update(dict.fromkeys((sop_class, (syntax,)) for syntax in names.COMMON_COMPRESSED))
    for sop_class in names.COMMON_STORAGE:
        if sop_class not in classes:
            wanted[sop_class, names.UNCOMPRESSED] = None
    return list(wanted)[:MAX_CONTEXTS]


class _Destination:
    """Implements ``Target``. One association as long as it does for all that comes."""

    def __init__(self, means: Means, remote: RemoteNode, originator_aet: str, originator_message_id: int) -> None:
        self._means = means
        self._remote = remote
        self._originator = originator_aet, originator_message_id
        self._sender = ObjectSender(means.in_thread)
        self._association: ClientAssociation | None = None
        self._pairs: dict[Pair, None] = {}
        """That were to be sent so far."""
        self._is_busy = False
        """An object is under way, or its answer."""
        self._lost = 0

    async def close(self) -> None:
        self._sender.close()
        self._let_go()

    def _let_go(self) -> None:
        association, self._association = self._association, None
        if association is None:
            return
        if self._is_busy:
            association.abort()
            self._is_busy = False
        else:
            self._means.pool.give_back(association, self._remote.idle_secs)

    async def store(self, file: Outgoing) -> int:
        header, pair = file.header, file.pair
        if header is None or pair is None:
            raise CannotSend("its SOP class or transfer syntax is no UID")
        while True:
            context = await self._context(pair)
            association = self._association
            assert association is not None
            was_idle = association.was_idle
            try:
                status = await self._store(file, header, association, context)
            except AssociationAborted as error:
                self._let_go()
                if not was_idle:
                    self._was_lost(error)
            except HarmonydError as error:
                self._let_go()
                self._was_lost(error)
            else:
                self._lost = 0
                return status

    def _was_lost(self, error: HarmonydError) -> None:
        self._lost += 1
        if self._lost >= MAX_LOST:
            raise NotServed(CANNOT_PERFORM, error.detail) from error
        raise CannotSend(error.detail) from error

    async def _context(self, pair: Pair) -> core.Context:
        """Of an association in which such an object can go; another one is opened when it was not thought of."""
        self._pairs[pair] = None
        sop_class, syntax = pair
        while True:
            association = self._association
            if association is not None and not association.is_open:
                self._let_go()
                continue
            if association is not None:
                context = association.contexts.find(sop_class, *syntaxes_for(syntax))
                if context is not None:
                    return context
                if _was_proposed(association, pair):
                    raise CannotSend(f"{self._remote.aet} takes no {sop_class} in {syntax}")
                self._let_go()
            self._association = await self._associate(pair)

    async def _associate(self, pair: Pair) -> ClientAssociation:
        """Raises ``NotServed``: without an association nothing more can be sent."""
        remote, reactor = self._remote, self._means.reactor
        deadline = reactor.seconds() + remote.connect_timeout_secs + remote.association_timeout_secs
        needed = [(pair[0], syntaxes_for(pair[1]))]
        try:
            return await self._means.pool.take(remote, needed, contexts_for([pair, *self._pairs]), deadline)
        except HarmonydError as error:
            raise NotServed(CANNOT_PERFORM, error.detail) from error

    async def _store(
        self, file: Outgoing, header: InstanceHeader, association: ClientAssociation, context: core.Context
    ) -> int:
        if context.transfer_syntax == header.transfer_syntax_uid:
            source = DataSet(file.path, header.data_set_at, header.size_bytes)
            return await self._send(header, source, association, context)
        conversion = Conversion(file.path, context.transfer_syntax)
        try:
            converted = await self._means.in_thread(conversion.convert)
            return await self._send(header, converted, association, context)
        except NotConvertible as error:
            raise CannotSend(f"it cannot be converted: {error}") from error
        finally:
            await self._means.in_thread(conversion.remove)

    async def _send(
        self, header: InstanceHeader, source: DataSet, association: ClientAssociation, context: core.Context
    ) -> int:
        aet, message_id = self._originator
        own_id = association.next_message_id()
        command = core.c_store_rq(
            own_id,
            header.sop_class_uid,
            header.sop_instance_uid,
            move_originator_aet=aet,
            move_originator_message_id=message_id,
        )
        try:
            first = await self._sender.first_of(source)
            association.require_open()
            self._is_busy = True
            association.connection.association.send(context.id, command, has_data=True)
            with contextlib.suppress(AssociationAborted):
                # It may answer before it has all, and then end the association: the answer counts.
                await self._sender.send(association, context, source, first)
        except (OSError, Shorter) as error:
            self._let_go()
            raise CannotSend(f"it cannot be read ({error})") from error
        answer, _ = await association.response(own_id)
        self._is_busy = False
        association.was_idle = False
        return answer.status or 0


def _was_proposed(association: ClientAssociation, pair: Pair) -> bool:
    request = association.connection.association.request
    assert request is not None
    sop_class, syntax = pair
    return any(sop_class == each.abstract_syntax and syntax in each.transfer_syntaxes for each in request.contexts)
