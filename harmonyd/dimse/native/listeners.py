"""All DICOM ports of our own, shared by those who answer to different AE titles on one of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol, TypeGuard

from harmonyd.dimse.native.listener import AssociationListener, Explain, explain
from harmonyd.dimse.native.storing import KeepingOwner
from harmonyd.errors import Unavailable


class SharingOwner(KeepingOwner, Protocol):
    """An owner that leaves what is not its own to another one of the same AE title."""

    fallback: KeepingOwner | None


class Listeners:
    """Opens a port with its first owner, closes it with its last.

    One endpoint and the deliveries of C-MOVE may answer to the same AE title: what no move asked for is the endpoint's.
    """

    def __init__(self, reactor: Any, why: Explain = explain) -> None:
        """``why`` puts into words why one cannot listen on a port."""
        self._reactor = reactor
        self._why = why
        self._open: dict[tuple[str, int], AssociationListener] = {}

    def claim(self, bind_addr: str, port: int, aet: str, owner: KeepingOwner) -> AssociationListener:
        """Have ``owner`` answer to ``aet`` on this port.

        Raises ``Unavailable`` when somebody else has the port, or another owner the AE title.
        """
        listener = self._open.get((bind_addr, port))
        if listener is None:
            listener = AssociationListener(self._reactor, bind_addr, port)
            listener.open(self._why)
            self._open[bind_addr, port] = listener
        present = listener.owners.get(aet)
        if present is None:
            listener.owners[aet] = owner
        elif _shares(owner) and not _shares(present):
            owner.fallback = present
            listener.owners[aet] = owner
        elif _shares(present) and present.fallback is None and not _shares(owner):
            present.fallback = owner
        else:
            raise Unavailable(f"port {port} has somebody who answers to {aet} already")
        return listener

    def release(self, listener: AssociationListener, aet: str, owner: KeepingOwner) -> None:
        """The owner answers no more; its associations go on until they end."""
        present = listener.owners.get(aet)
        if present is not None and _shares(present) and present.fallback is owner:
            present.fallback = None
        elif present is owner:
            del listener.owners[aet]
            if _shares(owner) and owner.fallback is not None:
                listener.owners[aet] = owner.fallback
        if not listener.owners:
            listener.close()
            for key in [key for key, known in self._open.items() if known is listener]:
                del self._open[key]

    def close(self) -> None:
        """Close every port; associations that run go on."""
        for listener in self._open.values():
            listener.close()

    def association_count(self, ports: Collection[int] | None = None) -> int:
        """How many inbound associations run (on these ports)."""
        listeners = [item for item in self._open.values() if ports is None or item.port in ports]
        return sum(len(listener.sessions) for listener in listeners)


def _shares(owner: KeepingOwner) -> TypeGuard[SharingOwner]:
    return hasattr(owner, "fallback")
