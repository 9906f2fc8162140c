"""Binding a listening socket, and saying who has it when it is taken."""

# mypy: allow-untyped-calls
# (most methods of Twisted's classes have no types)

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThread

from harmonyd.config.model import HttpListener
from harmonyd.errors import HarmonydError
from harmonyd.supervision.ports import visible_holder

__all__ = ["CannotBind", "PortTaken", "listen", "passed_sockets"]

_SYSTEMD = "systemd:"


class CannotBind(HarmonydError):
    """A listening socket cannot be had."""

    title = "Cannot listen"


class PortTaken(CannotBind):
    """Another process listens on the port; ``extra['holder']`` says which, where that can be seen."""

    title = "The port is taken"


async def listen(reactor: Any, listener: HttpListener, factory: Any, backlog: int) -> Any:
    """Listen and return Twisted's ``IListeningPort``. Raises ``PortTaken`` or ``CannotBind``."""
    if listener.bind_address.startswith(_SYSTEMD):
        return await _adopt(reactor, listener.bind_address.removeprefix(_SYSTEMD), factory)
    try:
        return reactor.listenTCP(listener.bind_port, factory, backlog=backlog, interface=listener.bind_address)
    except CannotListenError as exc:
        raise await _explain(listener, exc.socketError) from exc


async def _adopt(reactor: Any, name: str, factory: Any) -> Any:
    """Take over a TCP socket that systemd passed (sd_listen_fds(3)); INET does for IPv6 too: it is bound."""
    try:
        endpoint = serverFromString(reactor, f"systemd:domain=INET:name={name.replace(':', chr(92) + ':')}")
    except KeyError:
        raise CannotBind(
            f"systemd passed no socket named {name}.",
            hint=f"Give the .socket unit FileDescriptorName={name}, and start harmonyd through systemd; without "
            "systemd, set bind_address of the network to an address such as 127.0.0.1.",
        ) from None
    return await _listen_and_keep(endpoint, factory)


async def _listen_and_keep(endpoint: Any, factory: Any) -> Any:
    """Twisted closes what it adopts. Open under its number, it can be passed on to the process that takes our place."""
    number = endpoint.fileno
    spare = os.dup(number)
    try:
        port = await endpoint.listen(factory)
        os.dup2(spare, number)
    finally:
        os.close(spare)
    return port


def passed_sockets(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that pass systemd's sockets on to the process that takes our place (sd_listen_fds(3))."""
    names = environ.get("LISTEN_FDNAMES")
    # Twisted has taken the other variables out if they were meant for us.
    if not names or "LISTEN_FDS" in environ:
        return {}
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(names.split(":")))}


async def _explain(listener: HttpListener, error: Any) -> CannotBind:
    where = f"{listener.bind_address} port {listener.bind_port}"
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        holder = await deferToThread(visible_holder, listener.bind_port)
        return PortTaken(
            f"{where} is taken by {holder or 'a process that this user may not see (root may: ss -ltnp)'}.",
            hint="End that process, or change bind_port of the network in the configuration.",
            holder=holder,
        )
    hints = {
        errno.EACCES: "Ports below 1024 need CAP_NET_BIND_SERVICE, or a socket from systemd.",
        errno.EADDRNOTAVAIL: "No interface of this machine has that address; change bind_address of the network.",
    }
    reason = getattr(error, "strerror", None) or str(error)
    return CannotBind(f"Cannot listen on {where}: {reason}.", hint=hints.get(number or 0, "Check bind_address."))
