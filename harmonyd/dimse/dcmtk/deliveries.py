"""What C-MOVE delivers to a port of our own: each object to the move that asked for it, whatever else runs.

Where an endpoint answers to the same AE title on the same port, it is the endpoint that receives; the moves pick out of
that what is theirs, and what they do not take stays the endpoint's. Without one, and over associations that the
endpoint refuses, what nobody asked for goes to quarantine, which has a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from harmonyd.dimse.accept import matches, quarantine
from harmonyd.dimse.associate import AssociateRequest, Rejection
from harmonyd.dimse.dcmtk.inetd import InboundAssociation
from harmonyd.dimse.dcmtk.listener import AssociationListener
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.dcmtk.turns import Wanted
from harmonyd.dimse.part10 import DamagedFile, InstanceHeader, read_header
from harmonyd.waiters import Waiters

MAX_ASSOCIATIONS = 100
"""At once; a PACS opens one or a few for each move."""
UNASKED = "while no C-MOVE was under way that could have asked for it"


class Host(Protocol):
    """Whose associations bring what moves have asked for: an endpoint of the same AE title."""

    def unclaimed(self, association: InboundAssociation, path: Path) -> None:
        """No move takes this file, or not any more: it is the host's again."""
        ...


@dataclass(frozen=True, slots=True)
class Brought:
    """Over which association a file came, and whose it is if no move takes it; None: nobody's."""

    association: InboundAssociation
    host: Host | None


@dataclass(slots=True, eq=False)
class Expectation:
    """What a move that runs has asked for. ``offer`` gets the path of each file that is for it."""

    wanted: Wanted
    local_aet: str
    """Of movescu: the Move Originator that its objects name, where the PACS does so."""
    remote_aet: str
    """Of the PACS, which calls with it in most cases."""
    offer: Callable[[str], None]
    request_id: str = ""
    """Whose move it is."""
    brought: dict[str, Brought] = field(default_factory=dict)
    """By path, what it was offered and has not taken."""

    def fits(self, header: InstanceHeader, originator_aet: str) -> bool:
        """Whether this object was asked for. Some PACS (pynetdicom's) name themselves as who did."""
        return originator_aet in ("", self.local_aet, self.remote_aet) and matches(self.wanted, header)

    def fits_shared(self, header: InstanceHeader, originator_aet: str, calling_aet: str) -> bool:
        """The same where others, too, send to this AE title: a modality may send more of a study that is being moved.

        The object has to say that it was moved for us, or at least to come from the PACS. Nothing tells more: movescu's
        message id is always 1. So what that PACS sends by itself, of this very study, at this very time and without a
        Move Originator, is taken to be moved.
        """
        return (originator_aet != "" or calling_aet == self.remote_aet) and self.fits(header, originator_aet)


class MoveDeliveries:
    """Implements ``inetd.Receiving`` and ``listener.Owner`` for a move destination."""

    max_pdu = 65536
    association_timeout_secs = 300.0
    _log = Logger()

    def __init__(
        self, box: Toolbox, aet: str, folder: Path, quarantine_folder: Path, may_put_aside: Callable[[int], bool]
    ) -> None:
        """``may_put_aside`` counts bytes for which nobody asked, and says whether there may be more."""
        self.aet = aet
        self.folder = folder
        self.listener: AssociationListener | None = None
        self._box = box
        self._quarantine = quarantine_folder
        self._may_put_aside = may_put_aside
        self._expected: list[Expectation] = []
        self._sorting: set[Path] = set()
        self._sorted: Waiters[None] = Waiters()

    def expect(self, expectation: Expectation) -> None:
        """A move begins."""
        self._expected.append(expectation)

    async def forget(self, expectation: Expectation) -> None:
        """The move has ended. What it has not taken (its client left) is its host's, or put aside."""
        self._expected.remove(expectation)
        for path, brought in list(expectation.brought.items()):
            if brought.host is not None:
                del expectation.brought[path]
                brought.host.unclaimed(brought.association, Path(path))
                continue
            try:
                await self._put_aside(brought.association, Path(path), "its C-MOVE ended before it was taken")
            except OSError as error:
                self._log.error("a delivered object stays where it was received: {error}", error=error)
        expectation.brought.clear()

    def taken(self, expectation: Expectation, path: str) -> None:
        """A file that was offered is no longer where it was."""
        brought = expectation.brought.pop(path, None)
        if brought is not None:
            brought.association.settled(Path(path))

    def note_put_aside(self, size_bytes: int) -> None:
        """A move has put so much in quarantine: it was damaged, or came twice."""
        self._may_put_aside(size_bytes)

    def expects_from(self, calling_aet: str) -> bool:
        """Whether a move runs whose PACS has this AE title.

        Before the first object nothing else tells that an association belongs to a move: its address may be that of
        another interface, or of a translator.
        """
        return any(expectation.remote_aet == calling_aet for expectation in self._expected)

    def holds(self, path: Path) -> bool:
        """Whether a file is, or may become, a running move's: nobody else may take it."""
        return path in self._sorting or any(str(path) in expectation.brought for expectation in self._expected)

    async def settle(self) -> None:
        """Return when every file that is closed by now has been offered to its move."""
        if self.listener is not None:
            for association in list(self.listener.associations):
                if association.association.called_aet == self.aet:
                    association.look()
        pending = set(self._sorting)
        while pending & self._sorting:
            await self._sorted.wait()

    # --- listener.Owner, and inetd.Receiving

    def admit(self, request: AssociateRequest, peer: str) -> MoveDeliveries | Rejection:
        """See ``listener.Owner``."""
        if self.listener is not None and self.listener.count(self) >= MAX_ASSOCIATIONS:
            return Rejection.LOCAL_LIMIT_EXCEEDED
        if not self._expected and not self._may_put_aside(0):
            return Rejection.TEMPORARY_CONGESTION
        return self

    def file_closed(self, association: InboundAssociation, path: Path) -> None:
        """See ``inetd.Receiving``."""
        self._begin_sorting(association, path, None)

    def ended(self, association: InboundAssociation) -> None:
        """See ``inetd.Receiving``."""

    # --- whose an object is

    def claim(self, association: InboundAssociation, path: Path, host: Host) -> None:
        """A file that ``host`` has received: offered to the move that asked for it, else given back at once."""
        if self._expected:
            self._begin_sorting(association, path, host)
        else:
            host.unclaimed(association, path)

    def _begin_sorting(self, association: InboundAssociation, path: Path, host: Host | None) -> None:
        self._sorting.add(path)
        Deferred.fromCoroutine(self._sort(association, path, host)).addBoth(self._has_sorted, path)

    def _has_sorted(self, result: Any, path: Path) -> None:
        self._sorting.discard(path)
        self._sorted.fire(None)
        if result is not None:
            self._log.failure("a delivered object stays where it was received", result)

    async def _sort(self, association: InboundAssociation, path: Path, host: Host | None) -> None:
        header: InstanceHeader | None = None
        reason = f"arrived at {association.association.called_aet} {UNASKED}"
        try:
            header = await self._box.in_thread(read_header, path)
        except DamagedFile as damage:
            reason = f"damaged: {damage.detail}"
        except OSError as error:
            if host is None and isinstance(error, FileNotFoundError):
                association.settled(path)
                return
            if host is None:
                raise
        expectation = None if header is None else self._who_asked(association, header, host)
        if expectation is not None:
            uid = "" if header is None else header.sop_instance_uid
            self._log.debug(
                "{sop_instance_uid} was moved here", sop_instance_uid=uid, cause=expectation.request_id,
                association_id=association.association.id, calling=association.association.calling_aet,
            )  # fmt: skip
            expectation.brought[str(path)] = Brought(association, host)
            expectation.offer(str(path))
        elif host is not None:
            host.unclaimed(association, path)
        else:
            await self._put_aside(association, path, reason)

    def _who_asked(
        self, association: InboundAssociation, header: InstanceHeader, host: Host | None
    ) -> Expectation | None:
        originator = association.originator_of(header.sop_instance_uid)
        calling = association.association.calling_aet
        for expectation in self._expected:
            if host is None:
                fits = expectation.fits(header, originator)
            else:
                fits = expectation.fits_shared(header, originator, calling)
            if fits:
                return expectation
        return None

    async def _put_aside(self, association: InboundAssociation, path: Path, reason: str) -> None:
        try:
            size = await self._box.in_thread(_size, path)
            target = await self._box.in_thread(quarantine, path, self._quarantine, reason)
        except FileNotFoundError:  # a move that has just ended was taking it
            association.settled(path)
            return
        association.settled(path)
        self._log.warn(
            "an object is in quarantine: {target} ({reason})",
            target=str(target), reason=reason, child=f"storescp:{association.association.id}",
        )  # fmt: skip
        if not self._may_put_aside(size):
            self._log.error(
                "the quarantine for what nobody asked for is full: the association with {calling} is ended",
                calling=association.association.calling_aet, child=f"storescp:{association.association.id}",
            )  # fmt: skip
            Deferred.fromCoroutine(association.stop())


def _size(path: Path) -> int:
    return path.stat().st_size
