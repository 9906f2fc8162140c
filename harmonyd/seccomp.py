"""A process gives up the system calls that reach beyond itself (seccomp(2)), for good.

Lists of what is refused, not of what is allowed: Python, the libraries of codecs and DCMTK's programs call what they
like, and none of it is any of these. A filter belongs to a thread and to what that starts.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence
from functools import cache

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_EPERM = 1
_X32 = 0x40000000
_OTHERS = (
    *("kill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "ptrace"),
    *("process_vm_readv", "process_vm_writev", "process_madvise", "migrate_pages", "move_pages"),
    *("setpriority", "ioprio_set", "sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr"),
    *("add_key", "request_key", "keyctl", "io_uring_setup", "perf_event_open", "bpf", "userfaultfd", "mount"),
)
"""What is about other processes, or the kernel."""
_OUTSIDE = (
    *("socket", "connect", "socketpair", "bind", "listen", "execve", "execveat", "memfd_create", "tkill", "tgkill"),
    *("shmget", "shmat", "msgget", "semget", "mq_open"),
)
"""Sockets, programs, and what processes share."""
_PRLIMIT = "prlimit64"
"""With which a process may set its own limits, and nobody else's."""
_NUMBERS: dict[str, tuple[int, dict[str, int]]] = {
    machine: (arch, dict(zip((*_OTHERS, *_OUTSIDE, _PRLIMIT), numbers, strict=True)))
    for machine, arch, numbers in (
        (
            "x86_64",
            0xC000003E,
            (
                *(62, 129, 297, 434, 438, 424, 101),
                *(310, 311, 440, 256, 279),
                *(141, 251, 142, 144, 203, 314),
                *(248, 249, 250, 425, 298, 321, 323, 165),
                *(41, 42, 53, 49, 50, 59, 322, 319, 200, 234),
                *(29, 30, 68, 64, 240),
                302,
            ),
        ),
        (
            "aarch64",
            0xC00000B7,
            (
                *(129, 138, 240, 434, 438, 424, 117),
                *(270, 271, 440, 238, 239),
                *(140, 30, 118, 119, 122, 274),
                *(217, 218, 219, 425, 241, 280, 282, 40),
                *(198, 203, 199, 200, 201, 221, 281, 279, 130, 131),
                *(194, 196, 186, 190, 180),
                261,
            ),
        ),
    )
}
"""By machine, the architecture as the kernel names it, and numbers of system calls."""


def is_known() -> bool:
    """Whether we know the numbers of this machine."""
    return platform.machine() in _NUMBERS


def only_compute() -> None:
    """From now on this thread, and those it starts, get EPERM for sockets, programs and other processes.

    Raises OSError where the kernel does not let us, or the machine is none that we know.
    """
    _refuse((*_OTHERS, *_OUTSIDE))


def only_itself() -> None:
    """From now on this thread, and what it starts, get EPERM for what is about other processes. Raises the same."""
    _refuse(_OTHERS)


def _refuse(names: Sequence[str]) -> None:
    if not is_known():
        raise OSError(0, f"no filter for {platform.machine()}")
    arch, known = _NUMBERS[platform.machine()]
    numbers = [known[name] for name in names]
    steps = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NR)]
    # The numbers of the other ABI of x86 would get by.
    steps += [(_AT_LEAST, len(numbers) + 4, 0, _X32)]
    steps += [(_EQUAL, len(numbers) + 3 - at, 0, number) for at, number in enumerate(numbers)]
    steps += [(_EQUAL, 0, 2, known[_PRLIMIT]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 0, 1, 0)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    program = b"".join(struct.pack("=HBBI", *step) for step in steps)
    libc = _libc()
    code = ctypes.create_string_buffer(program)
    header = struct.pack("@HP", len(steps), ctypes.addressof(code))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, f"seccomp: {os.strerror(error)}")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
