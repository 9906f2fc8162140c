"""Who listens on a TCP port, and who is connected to it: read from /proc/net/tcp (proc(5)).

All but ``try_port`` read many files: call them in a thread. psutil is not used, because it tells no uid for a socket
whose process we may not see, and fails where /proc is mounted with ``subset=pid``.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harmonyd.supervision.watcher import all_pids, members

_ESTABLISHED = "01"
_LISTEN = "0A"
_MAX_COMMAND_CHARS = 200


@dataclass(frozen=True, slots=True)
class Socket:
    """One line of /proc/net/tcp."""

    state: str
    port: int
    uid: int
    inode: str


def try_port(port: int) -> OSError | None:
    """Try what DCMTK does to listen (all IPv4 interfaces, SO_REUSEADDR); return the error, or None when it works."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))
            sock.listen(1)
        except OSError as error:
            return error
    return None


def sockets(port: int) -> Iterator[Socket]:
    """The sockets of this network namespace whose local port is ``port``."""
    wanted = f"{port:04X}"
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[1].endswith(f":{wanted}"):
                yield Socket(fields[3], port, int(fields[7]), fields[9])


def established(port: int) -> int:
    """How many connections to this port of ours are open."""
    return sum(found.state == _ESTABLISHED for found in sockets(port))


def open_sockets(pid: int) -> int:
    """How many sockets a process has open; 0 also where we may not see them."""
    return sum(name.startswith("socket:") for name in _open_files(pid))


def owned_by_session(port: int, session: int) -> bool:
    """Does a process of this session listen on the port?"""
    inodes = {found.inode for found in sockets(port) if found.state == _LISTEN}
    return bool(inodes) and _holder(inodes, (stat.pid for stat in members(session))) is not None


def holder(port: int) -> int | None:
    """The pid of a process that listens on the port; None when we may see none."""
    return _holder({found.inode for found in sockets(port) if found.state == _LISTEN}, all_pids())


def visible_holder(port: int) -> str | None:
    """"pid N (command line)" of a process that listens on the port; None when we may see none."""
    pid = holder(port)
    return None if pid is None else f"pid {pid} ({command_line(pid)})"


def holder_text(port: int) -> str:
    """Who listens on the port, for people: pid and command line where we may see them, else the user."""
    listening = [found for found in sockets(port) if found.state == _LISTEN]
    if not listening:
        return f"port {port} was held by a process that is gone now"
    visible = visible_holder(port)
    if visible is not None:
        return f"port {port} is held by {visible}: end it, or configure another port"
    uid = listening[0].uid
    return f"port {port} is held by a process of user {_user_name(uid)} we may not see: end it, or use another port"


def problem_text(port: int, error: OSError) -> str:
    """Why we cannot listen on the port, for people."""
    if error.errno == errno.EADDRINUSE:
        return holder_text(port)
    if error.errno == errno.EACCES:
        return f"this user may not listen on port {port}: use one from 1024 on (storescp insists on root for others)"
    return f"port {port} cannot be used: {error.strerror}"


def command(pid: int) -> tuple[str, ...]:
    """The argv of a process; empty when it is gone, or hidden."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(raw.decode("utf-8", "surrogateescape").rstrip("\0").split("\0")) if raw else ()


def command_line(pid: int) -> str:
    """The command line of a process for people: printable, and not too long."""
    text = " ".join(command(pid)) or "?"
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return printable if len(printable) <= _MAX_COMMAND_CHARS else printable[:_MAX_COMMAND_CHARS] + "…"


def _holder(inodes: set[str], pids: Iterable[int]) -> int | None:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return next((pid for pid in pids if wanted.intersection(_open_files(pid))), None)


def _open_files(pid: int) -> Iterator[str]:
    try:
        names = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - hundreds of processes, thousands of names
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")  # noqa: PTH115 - as above
        except OSError:
            continue


def _user_name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"with uid {uid}"
