"""Starting one process."""

from __future__ import annotations

import os
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
