"""An association that we ask for, over a blocking socket, for a program that has no reactor."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from harmonyd.dimse import failures
from harmonyd.dimse.engine import RemoteNode, SubOperations
from harmonyd.dimse.errors import DimseError
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.blocking_tls import failure_of, secured
from harmonyd.dimse.native.client import MAX_MESSAGE_BYTES, Proposal, association_request, error_for
from harmonyd.dimse.tls_failures import speaks_tls
from harmonyd.errors import HarmonydError

_READ_BYTES = 65536
_ENDING_SECS = 2.0
"""For the answer to a release, and for a peer that takes no more bytes to take an abort."""


def connected(remote: RemoteNode, address: str | None = None) -> socket.socket:
    """Connect, and shake hands where the node has TLS, within its connect timeout. ``address``: of several, this one.

    Raises ``RemoteUnreachable``, ``DimseTimeout``, ``TlsFailed``, and ``EngineFailed`` for certificates of ours.
    """
    began_at = time.monotonic()
    try:
        sock = socket.create_connection((address or remote.host, remote.port), timeout=remote.connect_timeout_secs)
    except (socket.gaierror, UnicodeError):
        raise failures.unknown_host(remote) from None
    except TimeoutError:
        raise failures.connect_timeout(remote) from None
    except OSError as error:
        raise failures.unreachable(remote, error.strerror or type(error).__name__) from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if remote.tls is None:
        return sock
    return secured(sock, remote, remote.tls, began_at + remote.connect_timeout_secs)


class BlockingAssociation:
    """Negotiated when it is made, aborted when it is left without a ``release()``. One operation at a time.

    Each wait ends after the node's association timeout, and all from ``begin_step()`` on after twice that. Everything
    that waits raises what ``open_association`` and ``ClientAssociation.receive`` do.
    """

    def __init__(
        self,
        sock: socket.socket,
        remote: RemoteNode,
        proposed: Proposal,
        roles: Sequence[core.RoleSelection] = (),
    ) -> None:
        """``sock``: from ``connected()``; closed with the association, also when there is none."""
        self.remote = remote
        self._sock = sock
        self._events: deque[core.Event] = deque()
        self._message_id = 0
        self._has_been_accepted = False
        self._association = core.Association.requestor(association_request(remote, proposed, roles))
        self.begin_step()
        try:
            self._association.connected()
            event = self._next_event()
            if not isinstance(event, core.Accepted):
                raise error_for(event, remote, accepted=False)
        except BaseException:
            self.close()
            raise
        self._has_been_accepted = True
        self.accepted = event

    def begin_step(self) -> None:
        """What follows has its whole time."""
        self._give_up_at = time.monotonic() + 2 * self.remote.association_timeout_secs

    @property
    def is_open(self) -> bool:
        """Another request may be sent."""
        return self._association.established and not self._events

    def echo(self) -> int:
        """C-ECHO (PS3.7 section 9.1.5); its status. Raises unless that is Success."""
        context = self.context(names.VERIFICATION)
        self.request(context, core.c_echo_rq(self.next_message_id()))
        command, _ = self.response()
        failures.outcome_of("echo", command.status or 0, command.error_comment, SubOperations(), self.remote)
        return command.status or 0

    def context(self, abstract_syntax: str) -> core.Context:
        """The accepted context for a service. Raises ``NoPresentationContext``."""
        found = self.accepted.contexts.find(abstract_syntax)
        if found is None:
            raise failures.no_context(self.remote)
        return found

    def next_message_id(self) -> int:
        """A Message ID (0000,0110) that is not in use; ``response()`` waits for answers to the last one."""
        self._message_id += 1
        return self._message_id

    def request(self, context: core.Context, command: core.Command, data: bytes | None = None) -> None:
        """Have a message sent with the next wait."""
        if not self._association.established:
            raise failures.aborted(self.remote, accepted=True)
        self._association.send(context.id, command, has_data=data is not None)
        if data is not None:
            self._association.send_data(context.id, data, True)

    def response(self) -> tuple[core.Command, int]:
        """The next response to the last request, and how many bytes its data set has, which is not kept."""
        event = self._next_event()
        if not isinstance(event, core.CommandReceived):
            raise self._wrong(event)
        command = event.command
        if command.message_id_being_responded_to != self._message_id or command.status is None:
            raise self._nonsense(f"{command.name} is no answer to message {self._message_id}")
        size, is_whole = 0, not command.has_data
        while not is_whole:
            event = self._next_event()
            if not isinstance(event, core.DataReceived):
                raise self._wrong(event)
            size, is_whole = size + len(event.fragment), event.last
            if size > MAX_MESSAGE_BYTES:
                raise self._nonsense(f"a response of more than {MAX_MESSAGE_BYTES} bytes")
        return command, size

    def release(self) -> None:
        """End it in good order; a peer that does not answer within 2 seconds is not waited for. Never raises."""
        self._give_up_at = time.monotonic() + _ENDING_SECS
        with contextlib.suppress(HarmonydError, core.NotAllowed):
            self._association.release()
            while not isinstance(self._next_event(), core.Released | core.Aborted | core.ConnectionLost):
                pass
        self.close()

    def close(self) -> None:
        """A-ABORT, unless it has ended; safe to call twice."""
        with contextlib.suppress(OSError):
            self._association.abort()
            self._sock.settimeout(_ENDING_SECS)
            self._sock.sendall(self._association.data_to_send())
        self._sock.close()

    def _next_event(self) -> core.Event:
        try:
            while not self._events:
                self._read()
        except HarmonydError:
            self.close()  # what comes late would be taken for the answer to the next request
            raise
        return self._events.popleft()

    def _read(self) -> None:
        association, remote, accepted = self._association, self.remote, self._has_been_accepted
        left = self._give_up_at - time.monotonic()
        if left <= 0:
            raise failures.silence(remote, accepted=accepted)
        self._sock.settimeout(min(left, remote.association_timeout_secs))
        try:
            data = _said_to(self._sock, association.data_to_send())
        except TimeoutError:
            raise failures.silence(remote, accepted=accepted) from None
        except ssl.SSLError as error:
            if accepted:
                raise failures.aborted(remote, accepted=True) from None
            raise failure_of(remote, error, certificate_accepted=True) from None
        except OSError:
            raise failures.aborted(remote, accepted=accepted) from None
        if remote.tls is None and not accepted and (wrong := speaks_tls(remote, data)):
            raise wrong
        events = association.receive(data) if data else association.receive_eof()
        self._events.extend(events)
        if not data and not self._events:
            raise failures.aborted(remote, accepted=accepted)

    def _wrong(self, event: core.Event) -> DimseError:
        if isinstance(event, core.CommandReceived | core.DataReceived):
            return self._nonsense("command and data set come in the wrong order")
        return error_for(event, self.remote, accepted=True)

    def _nonsense(self, text: str) -> DimseError:
        self.close()
        return failures.nonsense(self.remote, text, accepted=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _said_to(sock: socket.socket, data: bytes) -> bytes:
    """What comes next. A peer that has closed already may have said why; that is still to be read (TLS 1.3 does so)."""
    try:
        sock.sendall(data)
    except TimeoutError:
        raise
    except OSError:
        pass
    return sock.recv(_READ_BYTES)
