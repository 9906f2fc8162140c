"""Children with rights: what the kernel refuses them, and what they can do all the same."""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import pytest_twisted

from harmonyd import landlock, seccomp
from harmonyd.landlock import Rights
from harmonyd.supervision.api import ExitRecord, OnceSpec
from harmonyd.supervision.errors import SpawnError
from harmonyd.supervision.launch import MAX_FILES, limit
from harmonyd.supervision.runner import ProcessSupervisor

Supervise = Callable[..., ProcessSupervisor]
PYTHON = Path(sys.executable).resolve()
LIBRARIES = tuple(Path(place) for place in {sys.prefix, sys.base_prefix})
TRIES = """
import os, socket
def tried(name, action):
    try:
        action()
        print(name, "ok", flush=True)
    except OSError as error:
        print(name, error.strerror, flush=True)
def connect(port):
    with socket.socket() as s:
        s.settimeout(5)
        s.connect(("127.0.0.1", port))
def listen(port):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", port))
"""


def without_landlock() -> bool:
    """Whether this kernel leaves only limits and the flag to us; then what is allowed is all that can be tried."""
    return landlock.abi() < 4


async def ran(supervisor: ProcessSupervisor, script: str, rights: Rights) -> ExitRecord:
    """A Python that tries something."""
    reads = (*rights.reads, *LIBRARIES)
    allowed = Rights(reads, rights.writes, rights.connects, rights.listens)
    argv = (str(PYTHON), "-I", "-S", "-c", TRIES + script)
    return await supervisor.run_once(OnceSpec("python", argv, rights=allowed)).exited


def status_of(pid: int) -> str:
    """What the kernel tells of a process."""
    return Path(f"/proc/{pid}/status").read_text()


def refused(text: str) -> str:
    """What a try should have given."""
    return "ok" if without_landlock() else text


@pytest_twisted.ensureDeferred
async def test_files(supervise: Supervise, tmp_path: Path) -> None:
    """A child writes into its own folder, reads what it is given, and nothing of ours beside that."""
    own, given, secret = tmp_path / "own", tmp_path / "given", tmp_path / "key.pem"
    own.mkdir()
    given.write_text("x")
    secret.write_text("x")
    script = f"""
tried("own", lambda: open({str(own / "new")!r}, "w").close())
tried("given", lambda: open({str(given)!r}).close())
tried("change", lambda: open({str(given)!r}, "w").close())
tried("secret", lambda: open({str(secret)!r}).close())
tried("beside", lambda: open({str(tmp_path / "new")!r}, "w").close())
tried("mkdir", lambda: os.mkdir({str(own / "folder")!r}))
tried("shadow", lambda: open("/etc/shadow").close())
print(os.getcwd())
"""
    record = await ran(supervise(), script, Rights(reads=(given,), writes=(own,)))
    denied = refused("Permission denied")
    assert record.output.decode().splitlines() == [
        "own ok", "given ok", f"change {denied}", f"secret {denied}", f"beside {denied}", f"mkdir {denied}",
        f"shadow {denied}", str(own),
    ]  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_ports(supervise: Supervise) -> None:
    """It connects to and listens on the ports that it is for."""
    with closing(socket.create_server(("127.0.0.1", 0))) as one, closing(socket.create_server(("127.0.0.1", 0))) as two:
        open_port, other = one.getsockname()[1], two.getsockname()[1]
        script = f"""
tried("connect", lambda: connect({open_port}))
tried("other", lambda: connect({other}))
tried("listen", lambda: listen(0))
"""
        record = await ran(supervise(), script, Rights(connects=(open_port,)))
        allowed = await ran(supervise(), 'tried("listen", lambda: listen(0))', Rights(listens=(0,)))
    denied = refused("Permission denied")
    assert record.output.decode().splitlines() == ["connect ok", f"other {denied}", f"listen {denied}"]
    assert allowed.output == b"listen ok\n"


@pytest_twisted.ensureDeferred
async def test_the_daemon_is_out_of_reach(supervise: Supervise) -> None:
    """A child cannot signal us, nor look into our memory."""
    script = f"""
tried("signal", lambda: os.kill({os.getpid()}, 0))
tried("memory", lambda: open("/proc/{os.getpid()}/mem", "rb").close())
"""
    record = await ran(supervise(), script, Rights(reads=(Path("/proc"),)))
    expected = ["signal Operation not permitted" if landlock.abi() >= 6 or seccomp.is_known() else "signal ok"]
    expected.append(f"memory {refused('Permission denied')}")
    assert record.output.decode().splitlines() == expected


@pytest_twisted.ensureDeferred
async def test_limits_and_privileges(supervise: Supervise, until: Callable) -> None:
    """No core, few files, no processes of its own, and nothing gained by what it executes; its thread ends with it."""
    threads = threading.active_count()
    child = supervise().run_once(OnceSpec("sleep", ("/bin/sleep", "100"), rights=Rights()))
    await until(lambda: psutil.Process(child.pid).name() == "sleep")
    limits = {
        which: resource.prlimit(child.pid, which)[0]
        for which in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE)
    }
    assert limits == {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: MAX_FILES,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_FSIZE: 0,
    }
    assert "NoNewPrivs:\t1" in status_of(child.pid)
    assert ("Seccomp:\t2" in status_of(child.pid)) == seccomp.is_known()
    assert threading.active_count() == threads + 1
    assert os.getsid(child.pid) == child.pid
    await child.stop()
    await until(lambda: threading.active_count() == threads)


@pytest_twisted.ensureDeferred
async def test_a_socket_as_standard_input(supervise: Supervise) -> None:
    """Descriptors get to a child with rights as to any other, and no further ones do."""
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        argv = ("/bin/ls", "-l", "/proc/self/fd")
        rights = Rights(reads=(Path("/proc"),))
        record = await supervise().run_once(
            OnceSpec("ls", argv, stdin=theirs.fileno(), log_pipe=True, rights=rights)
        ).exited
    numbers = {line.split()[8]: line.split()[10] for line in record.output.decode().splitlines()[1:]}
    assert set(numbers) - {"4"} == {"0", "1", "2", "3"}  # 4 is the folder that ls reads
    assert numbers["0"].startswith("socket:")


@pytest_twisted.ensureDeferred
async def test_a_folder_that_is_gone(supervise: Supervise, tmp_path: Path) -> None:
    """A child whose folder is not there is not started, and says why; no thread is left."""
    threads = threading.active_count()
    with pytest.raises(SpawnError, match="No such file"):
        supervise().run_once(OnceSpec("ls", ("/bin/ls",), rights=Rights(writes=(tmp_path / "gone",))))
    assert threading.active_count() == threads


def test_limits_of_a_process_that_has_ended() -> None:
    """Whoever has ended needs no limits."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    limit(pid)
    limit(None)
