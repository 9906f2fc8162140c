"""One connection of this machine, asked of the kernel by its two ends: sock_diag(7).

/proc/net/tcp tells the same, but the kernel walks through its whole table of connections for it: milliseconds.
"""

from __future__ import annotations

import os
import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8
_ANSWER = struct.Struct("=BBBB48sIIIII")
"""struct inet_diag_msg: family, state, timer, retransmissions, the two ends, expiry, queues, uid, inode."""
_MOST_BYTES = 8192
_WAIT_SECS = 1.0

Address = tuple[str, int]


def connection(one: Address, other: Address) -> tuple[int, int, int]:
    """State (as in /proc/net/tcp), uid and inode of the socket at the end ``one`` of a connection over IPv4.

    Raises OSError: there is none, or the kernel cannot be asked; which of the two it does not always tell.
    """
    ends = _ends(one, other)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(_WAIT_SECS)
        body = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, _ALL_STATES) + ends + _NO_COOKIE
        sock.sendto(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + body, (0, 0))
        answer = sock.recv(_MOST_BYTES)
    return _read(answer, ends)


def _ends(one: Address, other: Address) -> bytes:
    """struct inet_diag_sockid, without its cookie."""
    addresses = b"".join(socket.inet_aton(end[0]).ljust(16, b"\0") for end in (one, other))
    return struct.pack("!HH", one[1], other[1]) + addresses + bytes(4)


def _read(answer: bytes, ends: bytes) -> tuple[int, int, int]:
    kind = _HEADER.unpack_from(answer)[1]
    if kind == _NLMSG_ERROR:
        (number,) = struct.unpack_from("=i", answer, _HEADER.size)
        raise OSError(-number, os.strerror(-number))
    _, state, _, _, found, _, _, _, uid, inode = _ANSWER.unpack_from(answer, _HEADER.size)
    if kind != _SOCK_DIAG_BY_FAMILY or found[: len(ends) - 4] != ends[:-4]:  # where one listens, that is found
        raise OSError("the kernel told of another socket")
    return state, uid, inode
