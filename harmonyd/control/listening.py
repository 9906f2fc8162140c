"""Where the control interface listens: a unix socket that only some may open, and a TCP port where that is wished."""

# mypy: allow-untyped-calls
# (most methods of Twisted's classes have no types)

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.error import CannotListenError
from twisted.python.failure import Failure

from harmonyd.errors import HarmonydError
from harmonyd.supervision.ports import problem_text
from harmonyd.supervision.process import in_thread

BACKLOG = 50
CONNECT_SECS = 1.0


class CannotControl(HarmonydError):
    """The control interface cannot listen."""

    title = "The control interface cannot listen"


class SocketPort(unix.Port):
    """Removes its socket from the file system when that is still its own, where the base class takes it for granted."""

    def __init__(self, path: Path, factory: Any, mode: int, reactor: Any) -> None:
        super().__init__(os.fsencode(path), factory, BACKLOG, mode, reactor)
        self._path = path
        self._own: tuple[int, int] | None = None

    def startListening(self) -> None:
        """Listen."""
        # Between bind and chmod, nobody else may connect.
        mask = os.umask(0o177)
        try:
            super().startListening()
        finally:
            os.umask(mask)
        self._own = _identity(self._path)

    def connectionLost(self, reason: Failure) -> None:
        """Stop listening."""
        if self._own is not None and _identity(self._path) == self._own:
            self._path.unlink()
        tcp.Port.connectionLost(self, reason)


async def listen_unix(reactor: Any, path: Path, mode: int, factory: Any) -> Any:
    """Listen on a unix socket, in place of one that a dead daemon left. Raises ``CannotControl``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        await in_thread(reactor, _make_room, path)
        port = SocketPort(path, factory, mode, reactor)
        port.startListening()
    except CannotListenError as error:
        raise _cannot(path, error.socketError) from None
    except OSError as error:
        raise _cannot(path, error) from None
    return port


def _cannot(path: Path, error: Any) -> CannotControl:
    reason = getattr(error, "strerror", None) or str(error)
    return CannotControl(
        f"Cannot listen on the control socket {path}: {reason}.",
        hint="Let harmonyd write to its folder, or change socket in [control].",
    )


async def listen_tcp(reactor: Any, address: str, port: int, factory: Any) -> Any:
    """Listen on a TCP port. Raises ``CannotControl``."""
    try:
        return reactor.listenTCP(port, factory, BACKLOG, address)
    except CannotListenError as error:
        reason = error.socketError
        text = await in_thread(reactor, problem_text, port, reason) if isinstance(reason, OSError) else str(reason)
        raise CannotControl(
            f"The control interface cannot listen on {address} port {port}: {text}.",
            hint="Change bind_address or bind_port in [control].",
        ) from None


def _make_room(path: Path) -> None:
    """Remove a socket on which nobody listens. Raises ``CannotControl`` for anything else. Blocking."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise CannotControl(
            f"{path} is no socket, and is not removed.", hint="Remove it, or change socket in [control]."
        )
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(CONNECT_SECS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass  # it is there and does not answer, or may not be opened: somebody's
    raise CannotControl(
        f"Another process listens on the control socket {path}.",
        hint="Give this daemon its own socket in [control], or end the other one.",
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
