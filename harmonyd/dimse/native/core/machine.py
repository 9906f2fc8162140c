"""Carries out the actions of ``states``: one association's state, its ARTIM flag, and what is to be sent."""

from __future__ import annotations

from collections import deque

from harmonyd.dimse.associate import APPLICATION_CONTEXT, Rejection
from harmonyd.dimse.native.core.errors import NotAllowed
from harmonyd.dimse.native.core.pdu import AssociateRequest, Pdu
from harmonyd.dimse.native.core.states import ACTIONS, TABLE, Action, Artim, Evt, State, Transport


class Machine:
    """PS3.8 section 9.2. What an action indicates is left to who calls, and has the values."""

    __slots__ = ("artim", "queue", "state", "transport_done")

    def __init__(self) -> None:
        self.state = State.STA1
        self.artim = False
        """The ARTIM timer is to run."""
        self.transport_done = False
        """The transport connection is to be closed, or is."""
        self.queue: deque[bytes | memoryview] = deque()
        """What is to be sent."""

    def possible(self, event: Evt) -> bool:
        """The event can be in this state."""
        return (event, self.state) in TABLE

    def allowed(self, event: Evt) -> Action:
        """What the event brings. Raises ``NotAllowed``."""
        name = TABLE.get((event, self.state))
        if name is None:
            raise NotAllowed(f"{event.name.replace('_', ' ').lower()} is not possible in {self.state.name.title()}")
        return ACTIONS[name]

    def do(self, event: Evt, to_send: Pdu | None = None, *, next_index: int = 0) -> None:
        """Carry out what the event brings. Raises ``NotAllowed``."""
        self.perform(self.allowed(event), to_send, next_index=next_index)

    def perform(self, action: Action, to_send: Pdu | None = None, *, next_index: int = 0) -> None:
        """Carry out an action; ``to_send`` is the PDU that it sends. Raises ``ValueError`` before anything changes."""
        data = to_send.encode() if to_send is not None and action.sends is not None else b""
        if data:
            self.queue.append(data)
        if action.artim is not None:
            self.artim = action.artim is Artim.START
        if action.transport is Transport.CLOSE:
            self.transport_done = True
        self.state = action.next[next_index]


def not_acceptable(request: AssociateRequest) -> Rejection | None:
    """Whether the service provider itself rejects: there is one version, and one application context.

    The second half of AE-6 then comes to the same as AE-8, which is what is carried out.
    """
    if not request.protocol_version & 1:
        return Rejection.PROTOCOL_VERSION_NOT_SUPPORTED
    if request.application_context != APPLICATION_CONTEXT:
        return Rejection.APPLICATION_CONTEXT_NAME_NOT_SUPPORTED
    return None
