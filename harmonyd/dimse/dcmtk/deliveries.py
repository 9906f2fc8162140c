"""What C-MOVE delivers to a port of our own: each object to the move that asked for it, whatever else runs.

What nobody asked for goes to an endpoint that answers to the same AE title, if there is one, else to quarantine, which
has a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from harmonyd.dimse.accept import matches, quarantine
from harmonyd.dimse.associate import AssociateRequest, Rejection
from harmonyd.dimse.dcmtk.inetd import InboundAssociation
from harmonyd.dimse.dcmtk.listener import AssociationListener, Owner
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.dcmtk.turns import Wanted
from harmonyd.dimse.part10 import DamagedFile, InstanceHeader, read_header
from harmonyd.waiters import Waiters

MAX_ASSOCIATIONS = 100
"""At once; a PACS opens one or a few for each move."""
UNASKED = "while no C-MOVE was under way that could have asked for it"


@dataclass(slots=True, eq=False)
class Expectation:
    """What a move that runs has asked for. ``offer`` gets the path of each file that is for it."""

    wanted: Wanted
    local_aet: str
    """Of movescu: the Move Originator that its objects name, where the PACS does so."""
    offer: Callable[[str], None]
    inbound: dict[str, InboundAssociation] = field(default_factory=dict)
    """By path, over which association a file came."""

    def fits(self, header: InstanceHeader, originator_aet: str) -> bool:
        """Whether this object was asked for."""
        return originator_aet in ("", self.local_aet) and matches(self.wanted, header)


class MoveDeliveries:
    """Implements ``listener.Owner`` for a move destination."""

    max_pdu = 65536
    association_timeout_secs = 300.0
    _log = Logger()

    def __init__(
        self, box: Toolbox, folder: Path, quarantine_folder: Path, may_put_aside: Callable[[int], bool]
    ) -> None:
        """``may_put_aside`` counts bytes for which nobody asked, and says whether there may be more."""
        self.folder = folder
        self.listener: AssociationListener | None = None
        self.fallback: Owner | None = None
        """Who gets what no move has asked for."""
        self._box = box
        self._quarantine = quarantine_folder
        self._may_put_aside = may_put_aside
        self._expected: list[Expectation] = []
        self._guests: set[tuple[str, str]] = set()
        """Calling AE titles and addresses that the fallback refuses: they are let in while a move runs."""
        self._sorting: set[Path] = set()
        self._sorted: Waiters[None] = Waiters()

    def expect(self, expectation: Expectation) -> None:
        """A move begins."""
        self._expected.append(expectation)

    async def forget(self, expectation: Expectation) -> None:
        """The move has ended. What it has not taken (its client left) is put aside, and so is what still comes."""
        self._expected.remove(expectation)
        for path, association in list(expectation.inbound.items()):
            try:
                await self._put_aside(association, Path(path), "its C-MOVE ended before it was taken")
            except OSError as error:
                self._log.error("a delivered object stays where it was received: {error}", error=error)
        expectation.inbound.clear()

    def taken(self, expectation: Expectation, path: str) -> None:
        """A file that was offered is no longer where it was."""
        inbound = expectation.inbound.pop(path, None)
        if inbound is not None:
            inbound.settled(Path(path))

    async def settle(self) -> None:
        """Return when every file that is closed by now has been offered to its move."""
        if self.listener is not None:
            for association in list(self.listener.associations):
                association.look()
        pending = set(self._sorting)
        while pending & self._sorting:
            await self._sorted.wait()

    # --- listener.Owner

    def rejection(self, request: AssociateRequest, peer: str) -> Rejection | None:
        """See ``listener.Owner``."""
        if self.listener is not None and self.listener.count(self) >= MAX_ASSOCIATIONS:
            return Rejection.LOCAL_LIMIT_EXCEEDED
        refused = None if self._may_put_aside(0) else Rejection.TEMPORARY_CONGESTION
        if self.fallback is not None:
            refused = self.fallback.rejection(request, peer)
        if refused is not None and self._expected:
            self._guests.add((request.calling_aet, peer))
            return None
        self._guests.discard((request.calling_aet, peer))
        return refused

    def file_closed(self, association: InboundAssociation, path: Path) -> None:
        """See ``inetd.Receiving``."""
        self._sorting.add(path)
        Deferred.fromCoroutine(self._sort(association, path)).addBoth(self._has_sorted, path)

    def _has_sorted(self, result: Any, path: Path) -> None:
        self._sorting.discard(path)
        self._sorted.fire(None)
        if result is not None:
            self._log.failure("a delivered object stays where it was received", result)

    async def _sort(self, association: InboundAssociation, path: Path) -> None:
        header: InstanceHeader | None = None
        reason = f"arrived at {association.association.called_aet} {UNASKED}"
        try:
            header = await self._box.in_thread(read_header, path)
        except FileNotFoundError:
            association.settled(path)
            return
        except DamagedFile as damage:
            reason = f"damaged: {damage.detail}"
        for expectation in self._expected:
            if header is not None and expectation.fits(header, association.originator_of(header.sop_instance_uid)):
                expectation.inbound[str(path)] = association
                expectation.offer(str(path))
                return
        known = association.association
        if self.fallback is not None and (known.calling_aet, known.peer) not in self._guests:
            self.fallback.file_closed(association, path)
        else:
            await self._put_aside(association, path, reason)

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

    def ended(self, association: InboundAssociation) -> None:
        """See ``inetd.Receiving``."""
        running = self.listener.associations if self.listener is not None else ()
        callers = {(item.association.calling_aet, item.association.peer) for item in running if item is not association}
        self._guests &= callers


def _size(path: Path) -> int:
    return path.stat().st_size
