"""An SCP that a test plays by hand, over a blocking socket."""

from __future__ import annotations

import socket

from harmonyd.dimse.native import core, names


class Raw:
    """A listening socket, whose other end a test plays by hand."""

    def __init__(self, host: str = "127.0.0.1", backlog: int = 5) -> None:
        self.socket = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=backlog
        )
        self.host, self.port, self.aet = host, self.socket.getsockname()[1], "RAW"
        self.kept: list[socket.socket] = []

    def fill(self) -> None:
        """Have the next connection wait for ever."""
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((self.host, self.port))
            self.kept.append(filler)

    def accept(self) -> socket.socket:
        """The next connection. Blocking."""
        self.socket.settimeout(10)
        connection = self.socket.accept()[0]
        connection.settimeout(10)
        self.kept.append(connection)
        return connection

    def negotiate(self) -> tuple[socket.socket, core.Association]:
        """The next connection, and an association on it whose acceptance is to be sent. Blocking."""
        connection, acceptor = self.accept(), core.Association.acceptor(16384)
        acceptor.receive(connection.recv(65536))
        assert acceptor.request is not None
        acceptor.accept(core.negotiate(acceptor.request.contexts, lambda _: core.Support(names.UNCOMPRESSED)))
        return connection, acceptor

    def close(self) -> None:
        for each in [self.socket, *self.kept]:
            each.close()
