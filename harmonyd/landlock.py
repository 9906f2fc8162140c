"""Landlock: what a thread, and whatever it starts, may still do with files and TCP ports (landlock(7)).

No library is worth it: four system calls. Where the kernel has none of it, or not all, ``abi`` says so.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# The numbers are the same on every architecture that has them.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH, _NET_PORT = 1, 2
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_FS = 0x200

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_FILES_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights to files that a version knows: a right that is not handled is not restricted."""
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPES = 3
"""Abstract sockets, and signals, of whoever is outside."""
_TO_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_WRITE = _READ_FILE | _READ_DIR | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/proc/sys/kernel", "/sys/devices/system/cpu")
_ETC = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload", "hosts", "host.conf", "resolv.conf", "nsswitch.conf",
    "gai.conf", "services", "protocols", "networks", "passwd", "group", "localtime", "timezone", "locale.alias",
    "dcmtk", "alternatives",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


@dataclass(frozen=True, slots=True)
class Rights:
    """What a child may do besides running: it reads the system's programs and libraries, and nothing else.

    Enforced as far as the kernel has Landlock. Where a child is started it is also given limits of resources
    (``supervision.launch``): it writes no core, opens few files, and starts no process.
    """

    reads: tuple[Path, ...] = ()
    """Files, and folders with all below them."""
    writes: tuple[Path, ...] = ()
    """Folders in which it makes, reads and removes files. The first is its working directory."""
    connects: tuple[int, ...] = ()
    """TCP ports that it may connect to."""
    listens: tuple[int, ...] = ()
    """TCP ports that it may listen on."""


class _RulesetAttr(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("fd", ctypes.c_int32))


class _NetPort(ctypes.Structure):
    _fields_ = (("access", ctypes.c_uint64), ("port", ctypes.c_uint64))


@cache
def abi() -> int:
    """The version of Landlock that the kernel offers; 0: none, or we may not use it."""
    version: int = _libc().syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    return max(0, version)


def ruleset(rights: Rights, program: Path) -> int:
    """Make a set of rules, and return its descriptor; ``restrict_self`` puts it in force. Raises OSError.

    System programs, libraries and what name resolution reads stay readable, as does where ``program`` is installed.
    """
    version = abi()
    files = _FILES_BY_ABI[max(known for known in _FILES_BY_ABI if known <= version)]
    net = _BIND_TCP | _CONNECT_TCP if version >= 4 else 0
    attr = _RulesetAttr(files, net, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    made = _called(_CREATE_RULESET, ctypes.byref(attr), size, 0)
    try:
        for path in (*_readable(), *_installed(program), *rights.reads):
            _allow(made, path, _READ & files)
        for path in (*map(Path, _DEVICES[:1]), *rights.writes):
            _allow(made, path, _WRITE & files)
        if net:
            for port in rights.connects:
                _allow_port(made, port, _CONNECT_TCP)
            for port in rights.listens:
                _allow_port(made, port, _BIND_TCP)
    except BaseException:
        os.close(made)
        raise
    return made


def no_new_privileges() -> None:
    """Nothing that this thread executes gains rights by that (PR_SET_NO_NEW_PRIVS). Raises OSError."""
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")


def own_directory() -> None:
    """Let this thread have a working directory that is not that of the others (CLONE_FS). Raises OSError."""
    if _libc().unshare(_CLONE_FS):
        raise OSError(ctypes.get_errno(), "unshare")


def restrict_self(rules: int) -> None:
    """Put rules in force for this thread and all it starts, for good. Raises OSError."""
    no_new_privileges()
    _called(_RESTRICT_SELF, rules, 0)


def _readable() -> Iterable[Path]:
    yield from map(Path, (*_SYSTEM, *_DEVICES))
    yield from (Path("/etc") / name for name in _ETC)
    with suppress(OSError):
        yield Path("/etc/resolv.conf").resolve(strict=True)


def _installed(program: Path) -> Iterable[Path]:
    place = program.resolve().parent
    yield place.parent if place.name in ("bin", "sbin") and len(place.parts) > 2 else place


def _allow(rules: int, path: Path, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # what is not there cannot be used either
    try:
        allowed = access if path.is_dir() else access & _TO_FILES
        _called(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(_PathBeneath(allowed, fd)), 0)
    finally:
        os.close(fd)


def _allow_port(rules: int, port: int, access: int) -> None:
    _called(_ADD_RULE, rules, _NET_PORT, ctypes.byref(_NetPort(access, port)), 0)


def _called(number: int, *args: object) -> int:
    result: int = _libc().syscall(number, *args)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"landlock: {os.strerror(error)}")
    return result


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
