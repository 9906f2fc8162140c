"""A process that only computes cannot reach another one of its user, in whatever way."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

TRIES = """
import ctypes, json, os, platform, resource, sys
from harmonyd import seccomp
getattr(seccomp, sys.argv[2])()
libc, parent = ctypes.CDLL(None, use_errno=True), os.getppid()
numbers = json.loads(sys.argv[1])[platform.machine()]
def error(number, *args):
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(number, *args) < 0 else 0
info, limit = ctypes.create_string_buffer(128), ctypes.create_string_buffer(16)
found = {name: error(number, *[{"parent": parent, "info": info, "limit": limit}.get(a, a) for a in args])
         for name, (number, args) in numbers.items()}
found["own limits"] = 0 if resource.getrlimit(resource.RLIMIT_NOFILE) else -1
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
print(json.dumps(found))
"""


def call(x86_64: int, aarch64: int, *args: object) -> dict[str, tuple[int, tuple[object, ...]]]:
    return {"x86_64": (x86_64, args), "aarch64": (aarch64, args)}


OUTSIDE = ("shmget", "msgget", "mq_open", "socket")
CALLS = {
    "kill": call(62, 129, "parent", 0),
    "rt_sigqueueinfo": call(129, 138, "parent", 0, "info"),
    "rt_tgsigqueueinfo": call(297, 240, "parent", "parent", 0, "info"),
    "pidfd_open": call(434, 434, "parent", 0),
    "pidfd_send_signal": call(424, 424, 0, 0, "info", 0),
    "prlimit64, to read": call(302, 261, "parent", 7, None, "limit"),
    "setpriority": call(141, 140, 0, "parent", 0),
    "sched_setaffinity": call(203, 122, "parent", 8, "limit"),
    "shmget": call(29, 194, 1, 0, 0),
    "msgget": call(68, 186, 1, 0),
    "mq_open": call(240, 180, "limit", 0),
    "keyctl": call(250, 219, 0, -3, 0),
    "socket": call(41, 198, 1, 1, 0),
}


@pytest.mark.parametrize(("what", "left"), [("only_compute", ()), ("only_itself", OUTSIDE)])
def test_nothing_reaches_another_process(what: str, left: tuple[str, ...]) -> None:
    """Signals in each of the ways, limits, priority, queues, keys: refused. Its own limits are its own."""
    numbers = {machine: {name: by[machine] for name, by in CALLS.items()} for machine in ("x86_64", "aarch64")}
    done = subprocess.run(
        [sys.executable, "-c", TRIES, json.dumps(numbers), what], capture_output=True, check=True, env=dict(os.environ)
    )
    found = json.loads(done.stdout)
    assert found.pop("own limits") == 0
    refused = {name for name, error in found.items() if error == errno.EPERM}
    assert refused == CALLS.keys() - set(left)
