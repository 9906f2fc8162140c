"""A process that only computes gives up the system calls that reach beyond itself (seccomp(2)), for good.

A list of what is refused, not of what is allowed: Python and the libraries of codecs call what they like, and none of
it is any of these.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NR, _ARCH = 0, 4
_EPERM = 1
_X32 = 0x40000000
_REFUSED: dict[str, tuple[int, tuple[int, ...]]] = {
    # socket, connect, socketpair, bind, listen, execve, ptrace, process_vm_readv and _writev, execveat, memfd_create,
    # kill, tkill, tgkill, io_uring_setup, pidfd_getfd, mount
    "x86_64": (
        0xC000003E,
        (41, 42, 53, 49, 50, 59, 101, 310, 311, 322, 319, 62, 200, 234, 425, 438, 165),
    ),
    "aarch64": (
        0xC00000B7,
        (198, 203, 199, 200, 201, 221, 117, 270, 271, 281, 279, 129, 130, 131, 425, 438, 40),
    ),
}
"""By machine, the architecture as the kernel names it, and numbers of system calls."""


def is_known() -> bool:
    """Whether we know the numbers of this machine."""
    return platform.machine() in _REFUSED


def only_compute() -> None:
    """From now on this thread, and those it starts, get EPERM for sockets, programs and other processes.

    Raises OSError where the kernel does not let us, or the machine is none that we know.
    """
    if not is_known():
        raise OSError(0, f"no filter for {platform.machine()}")
    arch, numbers = _REFUSED[platform.machine()]
    steps = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NR)]
    # The numbers of the other ABI of x86 would get by.
    steps += [(_AT_LEAST, len(numbers) + 1, 0, _X32)]
    steps += [(_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    program = b"".join(struct.pack("=HBBI", *step) for step in steps)
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program)
    header = struct.pack("@HP", len(steps), ctypes.addressof(code))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, f"seccomp: {os.strerror(error)}")
