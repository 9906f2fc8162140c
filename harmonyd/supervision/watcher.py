"""The watcher: a separate small process that ends the daemon's children when the daemon is gone.

Run by file path with ``python -I -S`` and nothing but the standard library, so that it starts in milliseconds and
stays small. Standard input is a pipe from the daemon with one line for each change: ``+ PID START`` (a child that leads
its own session; START is its start time in clock ticks since boot) and ``- PID``. End of file means that the daemon
died, however it died: every session that still matches is KILLed. PR_SET_PDEATHSIG cannot do this: it does not reach a
forked grandchild that serves an association.

The functions that read /proc are used by the daemon too.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

KILL_ROUNDS = 200
"""How often a session is looked at and KILLed before it is given up (a process can hang in the kernel)."""
ROUND_SECS = 0.02


class Stat(NamedTuple):
    """What /proc/PID/stat says (proc(5))."""

    pid: int
    state: str
    pgrp: int
    session: int
    cpu_ticks: int
    """User and system time of the process and of its reaped children."""
    start: int
    """Clock ticks since boot."""

    @property
    def alive(self) -> bool:
        """False for a zombie: it is dead, only not reaped."""
        return self.state not in "ZX"


def read_stat(pid: int) -> Stat | None:
    """Read one process's status; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib would triple the start-up time
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    # The name in parentheses may hold spaces and parentheses itself; fields count from after the last one.
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(pid, fields[0], int(fields[2]), int(fields[3]), sum(map(int, fields[11:15])), int(fields[19]))


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - as above


def members(session: int) -> list[Stat]:
    """The living processes of a session; reads the whole process table, so not for the reactor's thread."""
    stats = (read_stat(pid) for pid in all_pids())
    return [stat for stat in stats if stat is not None and stat.session == session and stat.alive]


def kill_quietly(pid: int, signum: int) -> None:
    """Send a signal to a process; one that is gone already is fine."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


def end_sessions(children: Iterable[tuple[int, int]]) -> None:
    """KILL the sessions of these children, (pid, start time) each, until they are empty; never anything else."""
    waiting = list(children)
    for _ in range(KILL_ROUNDS):
        waiting = [(pid, start) for pid, start in waiting if _kill_session(pid, start)]
        if not waiting:
            return
        time.sleep(ROUND_SECS)


def _kill_session(pid: int, start: int) -> bool:
    """KILL one session once; False when nothing of it is left."""
    leader = read_stat(pid)
    if leader is not None and leader.start != start:
        return False  # the number belongs to a stranger, so the whole old session ended before
    left = members(pid)
    if leader is not None and leader.alive and leader.session != pid:
        left.append(leader)  # started a moment ago, and not yet leader of its own session
    for stat in left:
        kill_quietly(stat.pid, signal.SIGKILL)
    return bool(left)


def read_children(lines: Iterable[bytes]) -> dict[int, int]:
    """Follow the daemon's reports to their end; return what was still running then."""
    children: dict[int, int] = {}
    for line in lines:
        words = line.split()
        if len(words) == 3 and words[0] == b"+":
            children[int(words[1])] = int(words[2])
        elif len(words) == 2 and words[0] == b"-":
            children.pop(int(words[1]), None)
    return children


def main() -> None:
    os.setsid()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # only the daemon's end ends the watcher
    end_sessions(read_children(sys.stdin.buffer).items())


if __name__ == "__main__":
    main()
