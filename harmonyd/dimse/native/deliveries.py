"""What C-MOVE delivers to a port of our own: each object to the move that asked for it, any number of moves at once.

A C-STORE that belongs to a C-MOVE names it (PS3.7 section 9.1.1.1: Move Originator AE title and message id), and our
message ids are unique in this process: then it is known before the first byte whose the object is, and it is written
where its move keeps it. Some PACS name themselves, with our id (pynetdicom), others nobody, or another id. Objects of
these go to a move that has asked for such an object by its unique keys; of several to one that has not got it yet, so
that each gets one of each. What no move has asked for is the endpoint's that answers to the same AE title; without one
it goes to quarantine, which has a bound.
"""

from __future__ import annotations

import shutil
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from twisted.logger import Logger

from harmonyd.dimse.accept import TWICE, Intake, instance_of, matches, quarantine
from harmonyd.dimse.associate import Rejection
from harmonyd.dimse.engine import Instance, Query
from harmonyd.dimse.native import core
from harmonyd.dimse.native.inbound import InboundSession, Receiver, Service, echo
from harmonyd.dimse.native.listener import AssociationListener
from harmonyd.dimse.native.object_file import flush_to_disk
from harmonyd.dimse.native.offering import answer_for
from harmonyd.dimse.native.storing import OUT_OF_RESOURCES, SUCCESS, Kept, Offer, Reception, Refused, Storing
from harmonyd.dimse.part10 import InstanceHeader
from harmonyd.dimse.threads import Threads
from harmonyd.waiters import Waiters

MAX_ASSOCIATIONS = 100
"""At once; a PACS opens one or a few for each move."""
RECEIVING = "native-"
"""So begin the names of files that are being received; others were acknowledged by another kind of receiver."""
PUT_ASIDE = 0xB000
"""A warning (PS3.4 table B.2-1): it was stored, though not where the sender may think."""
_REMEMBERED_IDS = 10_000

Otherwise = Callable[[Offer, Path, InstanceHeader], Awaitable[Kept]]
"""What becomes of an object that no move takes."""


class Delivery:
    """What one C-MOVE has asked for, and gets. ``offer`` is called with each instance as it arrives."""

    def __init__(
        self,
        query: Query,
        *,
        originator_aet: str,
        message_id: int,
        remote_aet: str,
        folder: Path,
        quarantine_folder: Path,
        offer: Callable[[Instance], None],
        request_id: str = "",
    ) -> None:
        """``remote_aet``: of the PACS, which calls with it in most cases."""
        self.request_id = request_id
        self.intake = Intake(query, folder, quarantine_folder)
        self.originator_aet = originator_aet
        self.message_id = message_id
        self.remote_aet = remote_aet
        self.is_open = True
        self._offer = offer
        self._names: set[str] = set()

    def is_named_by(self, offer: Offer) -> bool:
        """Whether an object says that it is for this move."""
        return (offer.move_originator_aet, offer.move_originator_message_id) in self.names

    @property
    def names(self) -> tuple[tuple[str, int], ...]:
        """What its objects may be named with: some PACS give their own AE title instead of ours."""
        return (self.originator_aet, self.message_id), (self.remote_aet, self.message_id)

    def new_path(self, sop_instance_uid: str) -> Path:
        """Where an object is to be written."""
        name = sop_instance_uid
        if name in self._names or not name.strip("."):
            name = f"{name}.{uuid.uuid4().hex}"
        self._names.add(name)
        return self.intake.folder / name

    def asked_for(self, header: InstanceHeader) -> bool:
        """Whether such an object was asked for."""
        return self.is_open and matches(self.intake.wanted, header)

    async def take(self, threads: Threads, path: Path, header: InstanceHeader) -> Path | None:
        """Have an object that was asked for; where it is when the move has ended meanwhile, else None.

        Raises OSError.
        """
        intake = self.intake
        if header.sop_instance_uid in intake.arrived:
            await threads.in_thread(intake.aside, path, TWICE)
            return None
        intake.arrived.add(header.sop_instance_uid)
        if path.parent != intake.folder:
            target = self.new_path(header.sop_instance_uid)
            try:
                path = await threads.in_thread(_moved, path, target)
            except OSError:
                intake.arrived.discard(header.sop_instance_uid)
                raise
        if not self.is_open:
            return path
        self._offer(instance_of(path, header))
        return None


class MoveDeliveries:
    """For one move destination. Implements ``listener.Owner``, ``inbound.Receiver`` and ``storing.Keeper``."""

    max_pdu = 131072
    association_timeout_secs = 300.0
    _log = Logger()

    def __init__(
        self, threads: Threads, folder: Path, quarantine_folder: Path, may_put_aside: Callable[[int], bool]
    ) -> None:
        """``may_put_aside`` counts bytes for which nobody asked, and says whether there may be more."""
        self.folder = folder
        self.listener: AssociationListener | None = None
        self.services: Mapping[int, Service] = {
            core.CommandField.C_ECHO_RQ: echo,
            core.CommandField.C_STORE_RQ: Storing(threads.reactor, self),
        }
        self._threads = threads
        self._quarantine = quarantine_folder
        self._may_put_aside = may_put_aside
        self._expected: list[Delivery] = []
        self._known_ids: deque[tuple[str, int]] = deque(maxlen=_REMEMBERED_IDS)
        """Of moves that have ended: what names one of these is for nobody else."""
        self._under_way: dict[Offer, bool] = {}
        """Objects that may be for moves; whether an endpoint shares the AE title."""
        self._one_less: Waiters[None] = Waiters()

    # --- moves

    @property
    def in_use(self) -> bool:
        return bool(self._expected)

    def expect(self, delivery: Delivery) -> None:
        """A move begins."""
        self._expected.append(delivery)

    def forget(self, delivery: Delivery) -> None:
        """The move has ended. What still comes for it is somebody else's, or nobody's."""
        delivery.is_open = False
        self._expected.remove(delivery)
        self._known_ids.extend(delivery.names)
        self._may_put_aside(delivery.intake.put_aside_bytes)

    async def settle(self, delivery: Delivery) -> None:
        """Return when every object that is under way by now, and may be for this move, has arrived or has not."""
        pending = {offer for offer, shared in self._under_way.items() if self._may_be_for(delivery, offer, shared)}
        while pending & self._under_way.keys():
            await self._one_less.wait()

    def expects_from(self, calling_aet: str) -> bool:
        """Whether a move runs whose PACS has this AE title.

        Before the first object nothing else tells that an association belongs to a move: its address may be that of
        another interface, or of a translator.
        """
        return any(delivery.remote_aet == calling_aet for delivery in self._expected)

    # --- listener.Owner, and inbound.Receiver

    def admit(self, request: core.AssociateRequest, peer: str) -> Receiver | Rejection:
        """See ``listener.Owner``."""
        if self.listener is not None and self.listener.count(self) >= MAX_ASSOCIATIONS:
            return Rejection.LOCAL_LIMIT_EXCEEDED
        if not self._expected and not self._may_put_aside(0):
            return Rejection.TEMPORARY_CONGESTION
        return self

    def answer(self, request: core.AssociateRequest) -> core.Answer:
        """See ``inbound.Receiver``."""
        return answer_for(request)

    def ended(self, session: InboundSession) -> None:
        """See ``inbound.Receiver``."""

    # --- storing.Keeper

    def begin(self, offer: Offer) -> Reception:
        """See ``storing.Keeper``, for associations that no endpoint receives."""
        is_awaited = any(self._may_be_for(delivery, offer, False) for delivery in self._expected)
        if not is_awaited and not self._may_put_aside(0):
            raise Refused(OUT_OF_RESOURCES, "nobody asked for it, and the quarantine is full")
        return self.reception(offer, self.folder / f"{RECEIVING}{uuid.uuid4().hex}.dcm", self._put_aside)

    def names_a_move(self, offer: Offer) -> bool:
        """Whether an object says that it is for a move that runs."""
        return self._named(offer) is not None

    def reception(
        self,
        offer: Offer,
        path: Path,
        otherwise: Otherwise,
        *,
        shared: bool = False,
        ended: Callable[[], None] = lambda: None,
    ) -> Reception:
        """An object that may be for a move, and else is written to ``path``. ``shared``: an endpoint receives it.

        What may be the endpoint's is flushed.
        """
        self._under_way[offer] = shared
        named = self._named(offer)

        async def keep(at: Path, header: InstanceHeader) -> Kept:
            delivery = self._who_asked(offer, header, shared)
            if delivery is None and named is not None and not shared:
                named.intake.put_aside["not asked for"] += 1
            left_at: Path | None = at
            if delivery is not None:
                self._say_moved(offer, delivery)
                left_at = await delivery.take(self._threads, at, header)
            return (SUCCESS, "") if left_at is None else await otherwise(offer, left_at, header)

        def over() -> None:
            del self._under_way[offer]
            self._one_less.fire(None)
            ended()

        if named is None:
            return Reception(path, keep, over, flush=shared)
        return Reception(named.new_path(offer.sop_instance_uid), keep, over)

    # --- whose an object is

    def _named(self, offer: Offer) -> Delivery | None:
        return next((delivery for delivery in self._expected if delivery.is_named_by(offer)), None)

    def _may_be_for(self, delivery: Delivery, offer: Offer, shared: bool) -> bool:
        """Before anything is known of the object but its command.

        Beside an endpoint others send to this AE title, too, perhaps of a study that is being moved: there an object
        has to say that it was moved for us, or at least to come from the PACS that was asked.
        """
        if delivery.is_named_by(offer):
            return True
        aet, message_id = offer.move_originator_aet, offer.move_originator_message_id
        if aet not in ("", delivery.originator_aet, delivery.remote_aet):
            return False
        is_anothers = self._named(offer) is not None or (aet, message_id) in self._known_ids
        comes_from_it = bool(aet) or offer.association.calling_aet == delivery.remote_aet
        return not is_anothers and (comes_from_it or not shared)

    def _who_asked(self, offer: Offer, header: InstanceHeader, shared: bool) -> Delivery | None:
        named = self._named(offer)
        if named is not None and named.asked_for(header):
            return named
        fitting = [
            delivery
            for delivery in self._expected
            if delivery.asked_for(header) and self._may_be_for(delivery, offer, shared)
        ]
        fresh = [delivery for delivery in fitting if header.sop_instance_uid not in delivery.intake.arrived]
        return next(iter(fresh or fitting), None)

    def _say_moved(self, offer: Offer, delivery: Delivery) -> None:
        self._log.debug(
            "{sop_instance_uid} was moved here",
            sop_instance_uid=offer.sop_instance_uid, cause=delivery.request_id,
            association_id=offer.association.id, calling=offer.association.calling_aet,
        )  # fmt: skip

    async def _put_aside(self, offer: Offer, path: Path, header: InstanceHeader) -> Kept:
        known = offer.association
        reason = f"arrived at {known.called_aet} while no C-MOVE was under way that could have asked for it"
        target = await self._threads.in_thread(_put_aside_durably, path, self._quarantine, reason)
        self._log.warn(
            "an object is in quarantine: {target} ({reason})",
            target=str(target), reason=reason, association_id=known.id,
        )  # fmt: skip
        if not self._may_put_aside(header.size_bytes):
            self._log.error(
                "the quarantine for what nobody asked for is full: {calling} brings no more",
                calling=known.calling_aet, association_id=known.id,
            )  # fmt: skip
        return PUT_ASIDE, "nobody asked for it; it is put aside"


def _moved(path: Path, target: Path) -> Path:
    """It may be another file system's (a backend's storage_dir)."""
    return Path(shutil.move(path, target))


def _put_aside_durably(path: Path, folder: Path, reason: str) -> Path:
    """A sender takes a warning for a success, and may forget its object."""
    target = quarantine(path, folder, reason)
    for each in (target, folder, folder.parent):
        flush_to_disk(each)
    return target
