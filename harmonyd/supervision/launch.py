"""Starting a program with no more rights than it needs.

Landlock restricts a thread and what that thread starts. So a child with ``Rights`` is started by a thread of its own,
which is restricted first, and lives as long as the child: the death signal of ``setpriv`` follows that thread. Limits
of resources are set by us from outside, right after the start.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.process import Process
from twisted.internet.protocol import ProcessProtocol

from harmonyd import landlock, seccomp
from harmonyd.landlock import Rights

GIB = 1 << 30
MAX_FILE_BYTES = 64 * GIB
"""Largest file that a child may write."""
MAX_MEMORY_BYTES = 32 * GIB
"""Address space of a child: DCMTK's programs take some megabytes, and a whole object where they store one."""
MAX_FILES = 1024
"""Open files: beyond that ``select`` cannot watch them, and DCMTK uses it."""


class Launched(Process):
    """Twisted's process, started by ``posix_spawn`` where and as ``rights`` want it."""

    def __init__(
        self,
        reactor: Any,
        protocol: ProcessProtocol,
        argv: Sequence[str],
        env: Mapping[str, str],
        descriptors: Mapping[int, int | str],
        rights: Rights,
        program: Path,
    ) -> None:
        """Raises OSError and ValueError. The protocol may hear of the exit before this returns."""
        self._rights = rights
        self._program = program
        self._let_go: Callable[[], None] = lambda: None
        start: Any = super().__init__
        start(reactor, argv[0], list(argv), dict(env), None, protocol, childFDs=dict(descriptors))

    def _fork(
        self, path: Any, uid: Any, gid: Any, executable: str, args: list[str], environment: dict[str, str], **rest: Any
    ) -> None:
        """Twisted's seam for how a process begins; sets ``pid``."""
        actions = _descriptors(rest["fdmap"])
        ignored = [number for number in range(1, signal.NSIG) if signal.getsignal(number) == signal.SIG_IGN]

        def start() -> int:
            return os.posix_spawn(
                executable, args, environment, file_actions=actions, setsigdef=ignored, setsigmask=()
            )

        self.pid, self._let_go = _in_own_thread(start, self._rights, self._program)
        self.status = -1
        limit(self.pid, self._rights)

    def processEnded(self, status: int) -> None:
        self._let_go()
        super().processEnded(status)


def limit(pid: int | None, rights: Rights | None = None) -> None:
    """Set the limits of a process that was just started; one that has ended already needs none."""
    if not pid:
        return
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: MAX_FILES}
    if rights is not None:
        limits[resource.RLIMIT_FSIZE] = MAX_FILE_BYTES if rights.writes else 0
        limits[resource.RLIMIT_AS] = MAX_MEMORY_BYTES
        limits[resource.RLIMIT_NPROC] = 0  # neither processes nor threads
    for which, most in limits.items():
        with suppress(ProcessLookupError, PermissionError, ValueError):
            _, hard = resource.prlimit(pid, which)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.prlimit(pid, which, (most, most))


def _descriptors(fdmap: Mapping[int, int]) -> list[tuple[int, ...]]:
    """What happens to descriptors in the child: ours that would be inherited are closed, ``fdmap`` is put in place."""
    spare = max([*fdmap, *fdmap.values()]) + 1
    actions: list[tuple[int, ...]] = []
    sources: dict[int, int] = {}
    for number, (child, parent) in enumerate(fdmap.items()):
        # First all out of the way: a number that one child's descriptor gets may be another's source.
        sources[child] = spare + number
        actions.append((os.POSIX_SPAWN_DUP2, parent, sources[child]))
    targets = {*fdmap, *sources.values()}
    for ours in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        with suppress(OSError):  # the listing's own is closed by now
            if ours not in targets and os.get_inheritable(ours):
                actions.append((os.POSIX_SPAWN_CLOSE, ours))
    for child, source in sources.items():
        actions += [(os.POSIX_SPAWN_DUP2, source, child), (os.POSIX_SPAWN_CLOSE, source)]
    return actions


def _in_own_thread(start: Callable[[], int], rights: Rights, program: Path) -> tuple[int, Callable[[], None]]:
    """Start in a restricted thread; the second result lets that thread end. Raises what ``start`` raises."""
    outcome: list[int | BaseException] = []
    started, over = threading.Event(), threading.Event()
    rules = landlock.ruleset(rights, program) if landlock.abi() else None

    def run() -> None:
        try:
            _alone_in(rights.writes[0] if rights.writes else Path("/"))
            if rules is None:
                landlock.no_new_privileges()
            else:
                landlock.restrict_self(rules)
            with suppress(OSError):  # a machine, or a kernel, without
                seccomp.only_itself()
            outcome.append(start())
        except BaseException as error:  # noqa: BLE001 - it is raised where the thread was started
            outcome.append(error)
            over.set()
        started.set()
        over.wait()

    try:
        threading.Thread(target=run, name="child", daemon=True).start()
        started.wait()
    except RuntimeError as error:  # no more threads
        raise OSError(str(error)) from error
    finally:
        if rules is not None:
            os.close(rules)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0], over.set


def _alone_in(folder: Path) -> None:
    """Give this thread a working directory of its own. Raises OSError."""
    landlock.own_directory()
    os.chdir(folder)
