"""Starting one process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import pytest_twisted

from harmonyd.supervision.api import OnceSpec
from harmonyd.supervision.errors import SpawnError, UnusableProgram
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.supervision.spawn import check_argv, child_env


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "empty"),
        (("findscu",), "absolute"),
        (("/nowhere/findscu",), "install"),
        (("/usr/bin",), "install"),
        (("/etc/passwd",), "not executable"),
        (("/bin/sh", "-aet", "@/etc/hostname"), "@"),
        (("/bin/sh", "a\0b"), "NUL"),
    ],
)
def test_command_lines_that_are_refused(argv: tuple[str, ...], said: str) -> None:
    """What cannot work, or would not mean what it says, is refused with a sentence that says what to change."""
    with pytest.raises(UnusableProgram, match=said):
        check_argv(argv)


def test_environment_is_explicit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the daemon's environment reaches a child; TCP_NODELAY does."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    assert child_env({"A": "b"}) == {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TCP_NODELAY": "1", "A": "b"}


@pytest_twisted.ensureDeferred
async def test_a_child_sees_only_its_environment(supervise: Callable[..., ProcessSupervisor]) -> None:
    """The real process has exactly the explicit environment."""
    child = supervise().run_once(OnceSpec("env", ("/usr/bin/env",), env={"EXTRA": "1"}))
    record = await child.exited
    assert set(record.output.splitlines()) == {b"PATH=/usr/bin:/bin", b"LANG=C.UTF-8", b"TCP_NODELAY=1", b"EXTRA=1"}


@pytest_twisted.ensureDeferred
async def test_a_child_leads_its_own_session(supervise: Callable[..., ProcessSupervisor], until: Callable) -> None:
    """pid, process group and session are the same, and not the daemon's."""
    child = supervise().run_once(OnceSpec("sleep", ("/bin/sleep", "100")))
    await until(lambda: psutil.Process(child.pid).name() == "sleep")
    assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid != os.getsid(0)
    await child.stop()


@pytest_twisted.ensureDeferred
async def test_a_child_gets_no_other_file(supervise: Callable[..., ProcessSupervisor], tmp_path: Path) -> None:
    """Of the daemon's open files a child has none: stdin is at its end, stdout and stderr are ours."""
    child = supervise().run_once(OnceSpec("ls", ("/bin/sh", "-c", "cat; ls /proc/$$/fd")))
    assert (await child.exited).output.split() == [b"0", b"1", b"2"]


@pytest_twisted.ensureDeferred
async def test_a_wrong_program_is_an_error_at_once(supervise: Callable[..., ProcessSupervisor]) -> None:
    """A once-child that cannot be started is no child: the error says why, and nothing is left on the list."""
    supervisor = supervise()
    with pytest.raises(SpawnError, match="install"):
        supervisor.run_once(OnceSpec("x", ("/nowhere/findscu",)))
    assert supervisor.once_children() == []


@pytest_twisted.ensureDeferred
async def test_a_child_gets_the_descriptor_it_is_given(supervise: Callable[..., ProcessSupervisor]) -> None:
    """A socket as standard input is the child's to read and to write; ours stays open, and no other is passed on."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"question\n")
        script = "read line; echo answer to $line >&0; ls /proc/$$/fd"
        child = supervise().run_once(OnceSpec("sh", ("/bin/sh", "-c", script), stdin=theirs.fileno()))
        assert (await child.exited).output.split() == [b"0", b"1", b"2"]
        assert ours.recv(100) == b"answer to question\n"
        theirs.sendall(b"still open")
        assert ours.recv(100) == b"still open"


@pytest_twisted.ensureDeferred
async def test_a_child_that_cannot_start_leaves_the_descriptor(supervise: Callable[..., ProcessSupervisor]) -> None:
    """Whoever gave a descriptor still has it when nothing was started."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(SpawnError):
            supervise().run_once(OnceSpec("x", ("/nowhere/storescp",), stdin=theirs.fileno(), log_pipe=True))
        theirs.sendall(b"still open")
        assert ours.recv(100) == b"still open"


@pytest_twisted.ensureDeferred
async def test_a_child_has_a_pipe_for_its_log(supervise: Callable[..., ProcessSupervisor]) -> None:
    """With ``log_pipe`` there is a descriptor 3, and no other beside the three."""
    child = supervise().run_once(OnceSpec("ls", ("/bin/sh", "-c", "ls /proc/$$/fd"), log_pipe=True))
    assert (await child.exited).output.split() == [b"0", b"1", b"2", b"3"]
