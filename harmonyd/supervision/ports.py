"""Who listens on a TCP port, and who is connected to it: read from /proc/net/tcp (proc(5)).

All but ``try_port`` read many files: call them in a thread. psutil is not used, because it tells no uid for a socket
whose process we may not see, and fails where /proc is mounted with ``subset=pid``.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harmonyd.supervision import socket_diag
from harmonyd.supervision.watcher import all_pids, members

_ESTABLISHED = "01"
_LISTEN = "0A"
_MAX_COMMAND_CHARS = 200
Address = tuple[str, int]
"""Of IPv4: address and port."""


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
    wanted = f":{port:04X}"
    for fields in _lines("tcp", "tcp6"):
        if fields[1].endswith(wanted):
            yield Socket(fields[3], port, int(fields[7]), fields[9])


def _lines(*tables: str) -> Iterator[list[str]]:
    for table in tables:
        try:
            lines = Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        yield from (line.split() for line in lines)


def established(port: int) -> int:
    """How many connections to this port of ours are open."""
    return sum(found.state == _ESTABLISHED for found in sockets(port))


def is_listened_on(port: int) -> bool:
    """Does any process listen on this port of ours? False also where /proc does not tell."""
    return any(found.state == _LISTEN for found in sockets(port))


def open_sockets(pid: int) -> int:
    """How many sockets a process has open; 0 also where we may not see them."""
    return sum(name.startswith("socket:") for name in _open_files(pid))


def owned_by_session(port: int, session: int) -> bool:
    """Does a process of this session listen on the port?"""
    inodes = {found.inode for found in sockets(port) if found.state == _LISTEN}
    return bool(inodes) and _holder(inodes, (stat.pid for stat in members(session))) is not None


def socket_between(one: Address, other: Address) -> Socket | None:
    """The socket at the end ``one`` of a connection over IPv4 within this machine; None when it is closed."""
    try:
        state, uid, inode = socket_diag.connection(one, other)
    except OSError:
        return _socket_in_table(one, other)  # it is gone, or we may not ask the kernel so
    return Socket(f"{state:02X}", one[1], uid, str(inode))


def _socket_in_table(one: Address, other: Address) -> Socket | None:
    ends = [_hexadecimal(one), _hexadecimal(other)]
    for fields in _lines("tcp"):
        if fields[1:3] == ends:
            return Socket(fields[3], one[1], int(fields[7]), fields[9])
    return None


def connected_by_session(one: Address, other: Address, session: int) -> bool:
    """Does a process of this session have the socket at the end ``one`` of such a connection?

    The kernel's word: what a process would have to say of itself anybody could say. False also for one that is gone.
    """
    found = socket_between(one, other)
    if found is None or found.inode == "0":
        return False
    inodes = {found.inode}
    # Its leader by itself in most cases; finding the others reads the whole process table.
    return bool(_holder(inodes, [session]) or _holder(inodes, (stat.pid for stat in members(session))))


def connected_by_text(one: Address, other: Address) -> str:
    """Whose socket that is, for people."""
    found = socket_between(one, other)
    if found is None or found.inode == "0":
        return "a process that has closed it since"
    pid = _holder({found.inode}, all_pids())
    return f"pid {pid} ({command_line(pid)})" if pid else f"a process of user {_user_name(found.uid)} we may not see"


def _hexadecimal(address: Address) -> str:
    """As /proc/net/tcp has it: the address as a number in the machine's byte order."""
    return f"{int.from_bytes(socket.inet_aton(address[0]), sys.byteorder):08X}:{address[1]:04X}"


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
