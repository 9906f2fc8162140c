"""C-STORE as an SCP (PS3.7 section 9.1.1, PS3.4 Annex B): the object to disk, then its status, decided by a keeper.

Success is said when a keeper has it, and not before. What is refused, damaged or cut off leaves nothing behind.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from harmonyd.dimse.associate import printable
from harmonyd.dimse.engine import Association
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.connection import Silence
from harmonyd.dimse.native.inbound import Ended, InboundSession, Stopped
from harmonyd.dimse.native.object_file import ObjectFile, file_meta
from harmonyd.dimse.part10 import DamagedFile, InstanceHeader
from harmonyd.dimse.status import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH,
    INVALID_INSTANCE,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
)
from harmonyd.errors import StorageFull, Unavailable

__all__ = ["OUT_OF_RESOURCES", "SUCCESS", "Keeper", "Kept", "Offer", "Reception", "Refused", "Storing"]

_UID = re.compile(r"[0-9.]{1,64}")
"""Old devices write components with leading zeros: what they call a UID is one."""


class Refused(Exception):
    """The object is not taken; ``status`` and ``comment`` say why."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.status = status
        self.comment = comment


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """A C-STORE request whose data set is on its way."""

    session: InboundSession
    command: core.Command

    @property
    def association(self) -> Association:
        return self.session.association

    @property
    def sop_instance_uid(self) -> str:
        return self.command.affected_sop_instance_uid or ""

    @property
    def move_originator_aet(self) -> str:
        """Empty where there is none."""
        return self.command.move_originator_aet or ""

    @property
    def move_originator_message_id(self) -> int | None:
        return self.command.move_originator_message_id


Kept: TypeAlias = tuple[int, str]
"""Status and Error Comment of an object that somebody has."""


@dataclass(frozen=True, slots=True)
class Reception:
    """What a keeper does with one object."""

    path: Path
    """Where it is to be written; nothing is there."""
    keep: Callable[[Path, InstanceHeader], Awaitable[Kept]]
    """The file is whole: take it over. Raises ``Refused``, and what a full disk raises; then the file is removed, if it
    still is there."""
    ended: Callable[[], None]
    """Called once, whatever became of the object, before the peer is told."""
    flush: bool = False
    """It is to be durable before ``keep``."""


class Keeper(Protocol):
    """Who decides what becomes of objects."""

    def begin(self, offer: Offer) -> Reception:
        """An object is on its way. Raises ``Refused``."""
        ...


class Storing:
    """The ``Service`` for C-STORE."""

    _log = Logger()

    def __init__(self, reactor: Any, keeper: Keeper) -> None:
        self._reactor = reactor
        self._keeper = keeper

    async def __call__(self, session: InboundSession, context: core.Context, command: core.Command) -> None:
        offer = Offer(session, command)
        try:
            reception = self._begin(offer)
        except Refused as refused:
            await session.skip_data(command)
            status, comment = self._say_refused(offer, refused.status, refused.comment)
        else:
            status, comment = await self._receive(offer, context.transfer_syntax, reception)
        session.respond(context, command, status, comment)

    def _begin(self, offer: Offer) -> Reception:
        command = offer.command
        if not names.is_storage(command.affected_sop_class_uid or ""):
            raise Refused(SOP_CLASS_NOT_SUPPORTED, "not a SOP class of the Storage Service Class")
        if not _UID.fullmatch(offer.sop_instance_uid):
            raise Refused(INVALID_INSTANCE, "Affected SOP Instance UID is no UID")
        if not command.has_data:
            raise Refused(CANNOT_UNDERSTAND, "no data set")
        return self._keeper.begin(offer)

    async def _receive(self, offer: Offer, transfer_syntax_uid: str, reception: Reception) -> Kept:
        command, session = offer.command, offer.session
        meta = file_meta(
            command.affected_sop_class_uid or "",
            offer.sop_instance_uid,
            transfer_syntax_uid,
            session.association.calling_aet,
        )
        file = ObjectFile(self._reactor, reception.path, meta)
        try:
            await _read(session, file)
            with session.not_interrupted():
                header = await file.finish(flush=reception.flush)
                _compare(header, command)
                return await reception.keep(file.path, header)
        except Exception as error:
            await file.discard()
            if isinstance(error, _ENDS):
                self._say_cut_off(offer)
                raise
            return self._failed(offer, file.path, error)
        finally:
            reception.ended()

    # --- what went wrong

    def _failed(self, offer: Offer, path: Path, error: Exception) -> Kept:
        match error:
            case Refused(status=status, comment=comment):
                return self._say_refused(offer, status, comment)
            case DamagedFile(detail=detail):
                return self._say_refused(offer, CANNOT_UNDERSTAND, detail.removeprefix(f"{path.name}: "))
            case StorageFull(detail=detail) | Unavailable(detail=detail):
                return self._say_refused(offer, OUT_OF_RESOURCES, detail)
            case OSError():
                return self._say_refused(offer, OUT_OF_RESOURCES, error.strerror or type(error).__name__)
        self._log.failure("an object could not be taken, by our fault", association_id=offer.association.id)
        return PROCESSING_FAILURE, "our fault; the log says more"

    def _say_refused(self, offer: Offer, status: int, comment: str) -> Kept:
        self._log.warn(
            "{uid} from {calling} ({peer}) is not taken: {comment} (status 0x{status:04X})",
            uid=printable(offer.sop_instance_uid), comment=comment, status=status, **_fields(offer),
        )  # fmt: skip
        return status, comment

    def _say_cut_off(self, offer: Offer) -> None:
        self._log.info(
            "{calling} was cut off in the middle of an object, and was not told that it had arrived", **_fields(offer)
        )


_ENDS = (Ended, Silence, Stopped, CancelledError)


def _fields(offer: Offer) -> dict[str, str]:
    known = offer.association
    return {"calling": known.calling_aet, "peer": known.peer, "association_id": known.id}


async def _read(session: InboundSession, file: ObjectFile) -> None:
    """All of the data set but what ``finish`` writes."""
    while True:
        piece = await session.fragment()
        is_time = file.add(piece.fragment)
        if piece.last:
            return
        if is_time:
            await file.flush()


def _compare(header: InstanceHeader, command: core.Command) -> None:
    """Raises ``Refused`` when the data set is not what its command says."""
    if header.sop_instance_uid != command.affected_sop_instance_uid:
        raise Refused(DOES_NOT_MATCH, "SOP Instance UID is not that of the C-STORE request")
    if header.sop_class_uid != command.affected_sop_class_uid:
        raise Refused(DOES_NOT_MATCH, "SOP Class UID is not that of the C-STORE request")
