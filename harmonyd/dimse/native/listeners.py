"""All DICOM ports of our own, and who answers to which AE title on them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from harmonyd.dimse.accepting import Answered, Explain, OnRefusal, explain, unheard
from harmonyd.dimse.associate import Rejection
from harmonyd.dimse.native import core
from harmonyd.dimse.native.deliveries import MoveDeliveries
from harmonyd.dimse.native.inbound import Receiver
from harmonyd.dimse.native.listener import AssociationListener, Owner
from harmonyd.errors import Unavailable
from harmonyd.tls import TlsServer

_NOT_OF_MOVES = (Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED, Rejection.TEMPORARY_CONGESTION)
"""What an endpoint refuses for its own sake: a PACS may still deliver what it was asked for. Limits count for all."""


class Endpoint(Owner, Receiver, Protocol):
    """Who receives for an endpoint."""


@dataclass(frozen=True, slots=True)
class Place:
    """An AE title on a port."""

    bind_addr: str
    port: int
    aet: str


@dataclass(slots=True, eq=False)
class Title:
    """Who answers to an AE title on a port: an endpoint, the deliveries of C-MOVE, or both. ``listener.Owner``."""

    endpoint: Endpoint | None = None
    """Whose all is that no move has asked for, even while it does not receive."""
    is_receiving: bool = False
    """The endpoint."""
    moves: MoveDeliveries | None = None

    def admit(self, request: core.AssociateRequest, peer: str) -> Receiver | Rejection:
        """See ``listener.Owner``. The endpoint's word counts, but for a PACS that delivers what a move asked for."""
        endpoint, moves = self.endpoint, self.moves
        if endpoint is None:
            return Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED if moves is None else moves.admit(request, peer)
        answer = endpoint.admit(request, peer) if self.is_receiving else Rejection.TEMPORARY_CONGESTION
        if answer in _NOT_OF_MOVES and moves is not None and moves.expects_from(request.calling_aet):
            return moves.admit(request, peer)
        return answer


class Listeners:
    """Opens a port with the first who receives there, closes it with the last."""

    def __init__(self, reactor: Any, why: Explain = explain, on_refusal: OnRefusal = unheard) -> None:
        """``why`` puts into words why one cannot listen on a port."""
        self._on_refusal = on_refusal
        self._reactor = reactor
        self._why = why
        self._titles: dict[Place, Title] = {}
        self._open: dict[tuple[str, int], AssociationListener] = {}

    def reserve(self, place: Place, endpoint: Endpoint) -> None:
        """What comes there is this endpoint's, and refused until it claims the place, whoever listens there before."""
        title = self._titles.setdefault(place, Title())
        title.endpoint = title.endpoint or endpoint
        if (listener := self._open.get((place.bind_addr, place.port))) is not None:
            listener.owners[place.aet] = title

    def claim(self, place: Place, endpoint: Endpoint, tls: TlsServer | None = None) -> AssociationListener:
        """Have the endpoint receive there. ``tls`` counts for all on this port.

        Raises ``Unavailable`` when somebody else has the port, or another endpoint the AE title; and when certificates
        cannot be used.
        """
        title = self._titles.get(place) or Title()
        if title.is_receiving and title.endpoint is not endpoint:
            raise _taken(place)
        listener = self._listening(place, title, tls)
        title.endpoint, title.is_receiving = endpoint, True
        return listener

    def claim_for_moves(
        self, place: Place, moves: MoveDeliveries, tls: TlsServer | None = None
    ) -> AssociationListener:
        """Have these deliveries come there. Raises as ``claim``.

        They do not change how a port is secured that is open: a move of a former configuration may still begin.
        """
        title = self._titles.get(place) or Title()
        if title.moves is not None:
            raise _taken(place)
        listener = self._open.get((place.bind_addr, place.port))
        if listener is not None and listener.tls != tls:
            raise Unavailable(f"port {place.port} is secured in another way by now; ask again")
        listener = self._listening(place, title, tls)
        title.moves = moves
        return listener

    def pause(self, place: Place, endpoint: Endpoint) -> None:
        """The endpoint receives no more; associations that run go on until they end. The place stays its own."""
        title = self._titles.get(place)
        if title is not None and title.endpoint is endpoint:
            title.is_receiving = False
            self._clear(place, title)

    def release(self, place: Place, endpoint: Endpoint) -> None:
        """The same for good."""
        self.pause(place, endpoint)
        title = self._titles.get(place)
        if title is not None and title.endpoint is endpoint:
            title.endpoint = None
            self._clear(place, title)

    def release_moves(self, place: Place, moves: MoveDeliveries) -> None:
        """No deliveries come there any more; associations that run go on until they end."""
        title = self._titles.get(place)
        if title is not None and title.moves is moves:
            title.moves = None
            self._clear(place, title)

    def moves_at(self, place: Place) -> MoveDeliveries | None:
        """Whose deliveries come there, if any do."""
        title = self._titles.get(place)
        return title.moves if title is not None else None

    def close(self) -> None:
        """Close every port; associations that run go on."""
        for listener in self._open.values():
            listener.close()

    def association_count(self, only: Collection[Answered] | None = None) -> int:
        """How many inbound associations run (with these called AE titles)."""
        return sum(
            only is None or Answered(listener.port, item.association.called_aet) in only
            for listener in self._open.values()
            for item in listener.sessions
        )

    def _listening(self, place: Place, title: Title, tls: TlsServer | None) -> AssociationListener:
        address = place.bind_addr, place.port
        listener = self._open.get(address) or AssociationListener(self._reactor, *address)
        listener.on_refusal = self._on_refusal
        listener.secure(tls)
        if address not in self._open:
            listener.listen(self._why)
            self._open[address] = listener
        self._titles[place] = title
        listener.owners.update(self._at(address))
        return listener

    def _at(self, address: tuple[str, int]) -> dict[str, Title]:
        """Who has a place there, by AE title; those that do not receive yet, or for the moment, are refused for now."""
        return {place.aet: title for place, title in self._titles.items() if (place.bind_addr, place.port) == address}

    def _clear(self, place: Place, title: Title) -> None:
        """Keep nothing that nobody needs."""
        if title.endpoint is None and title.moves is None:
            self._titles.pop(place, None)
        address = place.bind_addr, place.port
        listener = self._open.get(address)
        if listener is None:
            return
        titles = self._at(address)
        if place.aet not in titles:
            listener.owners.pop(place.aet, None)
        if not any(each.is_receiving or each.moves is not None for each in titles.values()):
            listener.close()
            del self._open[address]


def _taken(place: Place) -> Unavailable:
    return Unavailable(f"port {place.port} has somebody who answers to {place.aet} already")
