"""A DICOM node in a thread, whose conversation is a function of the test's: for what no toolkit would do.

It speaks with the native engine's own protocol core over a blocking socket; ``raw`` sends what that would refuse to.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from threading import Thread

from interop_kit import Gateway, node

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.native import core

_TIMEOUT_SECS = 20.0


class Over(Exception):
    """The other side has ended the association, or the connection."""


class Line:
    """One association, as its acceptor or its requestor. ``association`` does what the core allows."""

    def __init__(self, sock: socket.socket, association: core.Association) -> None:
        sock.settimeout(_TIMEOUT_SECS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.association = association
        self._events: list[core.Event] = []

    # --- events

    def event(self) -> core.Event:
        """The next one. Raises ``Over``."""
        self.flush()
        while not self._events:
            data = self.sock.recv(1 << 20)
            self._events += self.association.receive(data) if data else self.association.receive_eof()
            self.flush()
            if not data and not self._events:
                raise Over
        event = self._events.pop(0)
        if isinstance(event, core.Aborted | core.ConnectionLost | core.Released):
            raise Over
        return event

    def command(self) -> tuple[int, core.Command]:
        """The next request or response: its presentation context and itself, when its data set has come, too."""
        event = self.event()
        if isinstance(event, core.ReleaseRequested):
            self.association.respond_release()
            self.flush()
            raise Over
        assert isinstance(event, core.CommandReceived), event
        piece: core.Event | None = event if event.command.has_data else None
        while piece is not None and not (isinstance(piece, core.DataReceived) and piece.last):
            piece = self.event()
        return event.context_id, event.command

    # --- as an acceptor

    def requested(self) -> core.AssociateRequest:
        event = self.event()
        assert isinstance(event, core.Requested), event
        return event.request

    def accept(self, request: core.AssociateRequest, *, max_pdu: int | None = None) -> None:
        """Everything that was asked for, roles included; of several transfer syntaxes the first."""
        syntaxes = {uid: None for context in request.contexts for uid in context.transfer_syntaxes}
        support = core.Support(tuple(syntaxes), requestor_scp=True)
        answer = core.negotiate(request.contexts, lambda _: support, request.user_information.roles)
        self.association.accept(answer, max_pdu=max_pdu)
        self.flush()

    def respond(self, context_id: int, command: core.Command, status: int = 0, **counters: int) -> None:
        self.association.send(context_id, command.response(status, **counters))  # type: ignore[arg-type]
        self.flush()

    # --- sending

    def send(self, context_id: int, command: core.Command, data: bytes | None = None) -> None:
        self.association.send(context_id, command, has_data=data is not None)
        if data is not None:
            self.association.send_data(context_id, data, True)
        self.flush()

    def flush(self) -> None:
        if data := self.association.data_to_send():
            self.raw(data)

    def raw(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Over from error

    def held_back(self, context_id: int, command: core.Command) -> bytearray:
        """What would be sent; change it, and send it with ``raw``. Its presentation context is at 10."""
        self.association.send(context_id, command)
        return bytearray(self.association.data_to_send())


def call(port: int, called_aet: str, *contexts: tuple[str, str], calling_aet: str = "ODD") -> Line:
    """An association that we ask for, accepted."""
    proposed = [core.ProposedContext(2 * number + 1, uid, (syntax,)) for number, (uid, syntax) in enumerate(contexts)]
    request = core.AssociateRequest(called_aet, calling_aet, tuple(proposed))
    line = Line(socket.create_connection(("127.0.0.1", port)), core.Association.requestor(request))
    line.association.connected()
    assert isinstance(line.event(), core.Accepted)
    return line


class OddNode:
    """Listens while inside; each connection is ``serve``'s, in a thread. ``errors``: what went wrong in them.

    The gateway's engine is closed at the end, and with it its associations.
    """

    def __init__(self, gateway: Gateway, serve: Callable[[Line], None]) -> None:
        self._gateway = gateway
        self._serve = serve
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]
        self.connections = 0
        self.errors: list[BaseException] = []
        self._threads: list[Thread] = []

    async def __aenter__(self) -> RemoteNode:
        self._start(self._accept)
        return node("ODD", self.port)

    async def __aexit__(self, *error: object) -> None:
        await self._gateway.engine.close()
        await self._gateway.in_thread(self._join)
        assert not self.errors, self.errors

    def _join(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_TIMEOUT_SECS)
        self._sock.close()

    def _start(self, target: Callable[[], None]) -> None:
        self._threads.append(Thread(target=target, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            self.connections += 1
            self._start(lambda sock=sock: self._one(sock))  # type: ignore[misc]

    def _one(self, sock: socket.socket) -> None:
        with sock:
            try:
                self._serve(Line(sock, core.Association.acceptor(16384)))
            except Over:
                pass
            except BaseException as error:  # noqa: BLE001 - the test has to see it
                self.errors.append(error)
