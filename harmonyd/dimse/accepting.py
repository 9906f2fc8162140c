"""Accepting connections on a port of ours, whichever engine then speaks DICOM over them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.logger import Logger

from harmonyd.dimse.associate import Rejection, printable
from harmonyd.errors import Unavailable

PAUSE_SECS = 1.0
_ACCEPTS = 32
_OF_STRANGERS = (Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED, Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED)
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Explain = Callable[[int, OSError], str]
"""Why one cannot listen on a port, for people."""


def explain(port: int, error: OSError) -> str:
    """Without a look at who holds it."""
    return f"port {port} cannot be used: {error.strerror}"


@dataclass(frozen=True, slots=True)
class Answered:
    """An AE title that somebody here answers to on a port; others may have the same port."""

    port: int
    aet: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A caller that did not prove to be one that may call. What it says of itself is printable."""

    peer: str
    port: int
    text: str
    calling_aet: str = ""
    called_aet: str = ""


OnRefusal = Callable[[Refusal], None]
"""Learns of each. Called in the reactor's thread; must return at once, and not raise."""


def unheard(refusal: Refusal) -> None:
    """Nobody wants to know."""


class Acceptor:
    """Implements ``IReadDescriptor``. What is wrong with one connection never closes the port."""

    backlog = 128
    _log = Logger()

    def __init__(self, reactor: Any, bind_addr: str, port: int) -> None:
        self.bind_addr = bind_addr
        self.port = port
        """0 until it listens: any that is free."""
        self.on_refusal: OnRefusal = unheard
        self._reactor = reactor
        self._sock: socket.socket | None = None
        self._resume_call: Any = None

    def tell_of(self, rejection: Rejection, calling_aet: str, called_aet: str, peer: str) -> None:
        """An association was rejected: on account of who asked for it, or for another reason."""
        if rejection in _OF_STRANGERS:
            calling, called = printable(calling_aet), printable(called_aet)
            self.on_refusal(Refusal(peer, self.port, rejection.text, calling, called))

    def greet(self, sock: socket.socket, address: Any) -> None:
        """Here is a connection. When it raises, the socket is closed; OSError: the peer is gone already."""
        raise NotImplementedError

    def close(self) -> None:
        """Accept nothing more. Safe to call twice."""
        if self._resume_call is not None and self._resume_call.active():
            self._resume_call.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._reactor.removeReader(self)
            sock.close()

    @property
    def is_open(self) -> bool:
        return self._sock is not None

    def listen(self, why: Explain = explain) -> None:
        """Accept from now on. Raises ``Unavailable``."""
        family = socket.AF_INET6 if ":" in self.bind_addr else socket.AF_INET
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self.bind_addr, self.port))
            sock.listen(self.backlog)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise Unavailable(f"DICOM cannot be received: {why(self.port, error)}") from error
        self._sock = sock
        self.port = sock.getsockname()[1]
        self._reactor.addReader(self)

    def hold(self) -> None:
        """Accept nothing until ``go_on``: who comes waits in the kernel. Safe to call twice."""
        if self._sock is not None:
            self._reactor.removeReader(self)

    def go_on(self) -> None:
        """Accept again. Safe at any time."""
        if self._sock is not None:
            self._reactor.addReader(self)

    def _pause(self, error: OSError) -> None:
        """Without a descriptor, the connection that waits would wake us again and again."""
        self._log.error("no connection can be accepted for now: {error}", error=error.strerror, port=self.port)
        self._reactor.removeReader(self)
        self._resume_call = self._reactor.callLater(PAUSE_SECS, self._reactor.addReader, self)

    # --- IReadDescriptor

    def fileno(self) -> int:
        return -1 if self._sock is None else self._sock.fileno()

    def logPrefix(self) -> str:
        return "dicom"

    def connectionLost(self, reason: Any) -> None:
        """The reactor ends."""
        self.close()

    def doRead(self) -> None:
        """Accept what waits."""
        for _ in range(_ACCEPTS):
            try:
                assert self._sock is not None
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:
                    self._pause(error)
                    return
                continue  # the peer is gone already
            try:
                self.greet(sock, address)
            except OSError:
                sock.close()  # gone already
            except Exception:  # noqa: BLE001 - what is wrong with one connection must not close the port
                sock.close()
                self._log.failure("a connection could not be handled, by our fault", port=self.port)
