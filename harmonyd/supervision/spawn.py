"""Starting one process: checks first, own session, explicit environment, death with the daemon.

Twisted has no argument for a new session, and ``setpgid`` after exec fails, so every command line is prefixed with
``setpriv --pdeathsig KILL --no-new-privs -- setsid``: same pid, and pid = process group = session. The death signal
follows the thread that spawned: the reactor's, or the child's own (``supervision.launch``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from twisted.internet.protocol import ProcessProtocol

from harmonyd.landlock import Rights
from harmonyd.supervision.errors import SpawnError, UnusableProgram
from harmonyd.supervision.launch import Launched, limit

BASE_ENV: Mapping[str, str] = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TCP_NODELAY": "1"}
"""Without TCP_NODELAY DCMTK leaves Nagle's algorithm on, and each message costs about 40 ms."""


@cache
def session_prefix() -> tuple[str, ...]:
    """The start of every command line. Raises ``UnusableProgram`` where util-linux is missing."""
    return (_helper("setpriv"), "--pdeathsig", "KILL", "--no-new-privs", "--", _helper("setsid"))


def _helper(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise UnusableProgram(f"the program {name} is not there: install the package util-linux")
    return path


def check_argv(argv: Sequence[str]) -> None:
    """Raise ``UnusableProgram`` unless this is a command line that can be run, and that DCMTK takes literally."""
    if not argv:
        raise UnusableProgram("the command line is empty")
    for arg in argv:
        if arg.startswith("@"):
            raise UnusableProgram(f"the argument {arg!r} starts with @, which DCMTK replaces by the content of a file")
        if "\0" in arg:
            raise UnusableProgram(f"the argument {arg!r} holds a NUL character, which no command line can carry")
    check_executable(Path(argv[0]))


def check_executable(program: Path) -> None:
    """Raise ``UnusableProgram`` unless this is an absolute path to something we may execute."""
    if not program.is_absolute():
        raise UnusableProgram(f"{program} is not an absolute path: give the full path of the program")
    if not program.is_file():
        raise UnusableProgram(f"there is no program {program}: install it (DCMTK: package dcmtk) or change the path")
    if not os.access(program, os.X_OK):
        raise UnusableProgram(f"{program} is not executable for this user: change its mode or the path")


def child_env(extra: Mapping[str, str]) -> dict[str, str]:
    """The base environment and what a specification adds; nothing of the daemon's own reaches a child."""
    return {**BASE_ENV, **extra}


def spawn(
    reactor: Any,
    protocol: ProcessProtocol,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdin: int | None = None,
    log_pipe: bool = False,
    rights: Rights | None = None,
) -> None:
    """Start ``argv`` with stdout and stderr as pipes to ``protocol``, and stdin at end of file, or ``stdin`` as such.

    ``log_pipe``: descriptor 3 is a pipe to ``protocol`` as well. ``rights``: what it may do; None: what we may.

    Raises ``SpawnError`` when the system will not start it now, ``UnusableProgram`` when it never will. The protocol
    may hear of the exit before this returns.
    """
    check_argv(argv)
    command = [*session_prefix(), *argv]
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    descriptors: dict[int, int | str] = {0: null if stdin is None else stdin, 1: "r", 2: "r"}
    if log_pipe:
        descriptors[3] = "r"
    try:
        if rights is None:
            limit(reactor.spawnProcess(protocol, command[0], command, env=child_env(env), childFDs=descriptors).pid)
        else:
            Launched(reactor, protocol, command, child_env(env), descriptors, rights, Path(argv[0]))
    except (OSError, ValueError) as error:
        raise SpawnError(f"{argv[0]} could not be started: {error}") from error
    finally:
        os.close(null)
