"""The command line: what it accepts, what its help texts teach, and its exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import harmonyd.check
import harmonyd.daemon.process
import harmonyd.demo
from harmonyd import __version__, cli


def ended(*arguments: str) -> int:
    """The exit status of a command that argparse ends."""
    with pytest.raises(SystemExit) as ending:
        cli.main(arguments)
    assert isinstance(ending.value.code, int)
    return ending.value.code


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the commands were called with; each returns 1."""
    calls: list[tuple[Any, ...]] = []

    def instead(name: str) -> Any:
        def call(*args: Any, **options: Any) -> int:
            calls.append((name, *args, options))
            return 1

        return call

    monkeypatch.setattr(harmonyd.check, "check", instead("check"))
    monkeypatch.setattr(harmonyd.demo, "demo", instead("demo"))
    monkeypatch.setattr(harmonyd.daemon.process, "run", instead("run"))
    return calls


def test_version_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    """``version`` prints name and version, and exits 0."""
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"harmonyd {__version__}\n"


@pytest.mark.parametrize("arguments", [["version"], ["check", "-c", "nowhere.toml"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: list[str]) -> None:
    """``harmonyd check | head -1`` has no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "harmonyd", *arguments]
    with os.fdopen(writing, "wb") as unread:
        ran = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE, check=False)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["run", "extra"], ["demo", "--twice"], ["check", "-c"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No command, an unknown one, and unknown options: usage on standard error, nothing on standard output."""
    assert ended(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: harmonyd")
    if arguments == ["frobnicate"]:
        known = "'run', 'check', 'doctor', 'demo', 'spool', 'cache', 'hash-password', 'version'"
        assert f"choose from {known}" in printed.err


@pytest.mark.parametrize(
    ("command", "taught"),
    [
        ([], ["run", "check", "demo", "spool", "version", "examples/default/config.toml", "exit status: 0"]),
        (["run"], ["SIGTERM", "/readyz", "HARMONY_TEST_DEBUG=1", "HARMONY_TEST_VERBOSE_DCMTK=1", "exit status: 0"]),
        (["check"], ["--probe", "C-ECHO", "ports", "exit status: 0"]),
        (["doctor"], ["BACKEND", "--json", "--timeout", "C-MOVE of nothing", "exit status: 0"]),
        (["demo"], ["--once", "dcmqrscp", "dev/samples", "Ctrl-C", "exit status: 0"]),
        (["spool"], ["list", "show", "retry", "discard", "export", "docs/spool.md", "exit status: 0"]),
        (["spool", "list"], ["--state", "--endpoint", "--limit", "--json", "SOP"]),
        (["spool", "retry"], ["--all", "5"]),
        (["spool", "discard"], ["--yes", "for good"]),
        (["spool", "export"], ["FOLDER/ID.dcm", "patient data"]),
        (["version"], ["version of harmonyd"]),
    ],
)
def test_help_teaches(command: list[str], taught: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each help text says what the command does, what it needs, and what its exit status means; no line is too wide."""
    assert ended(*command, "--help") == 0
    text = capsys.readouterr().out
    assert [word for word in taught if word not in text] == []
    assert max(map(len, text.splitlines())) <= 120
    if command and command != ["version"]:
        assert "--config FILE" in text
        assert "default: /etc/harmonyd/config.toml" in text


def test_the_configuration_is_in_etc_unless_named(called: list[tuple[Any, ...]]) -> None:
    """Without --config it is /etc/harmonyd/config.toml; -c and --config name another."""
    for arguments in (["run"], ["run", "-c", "a.toml"], ["run", "--config", "b.toml"]):
        assert cli.main(arguments) == 1
    assert called == [("run", Path(path), {}) for path in ("/etc/harmonyd/config.toml", "a.toml", "b.toml")]


def test_options_reach_their_command(called: list[tuple[Any, ...]]) -> None:
    """--probe and --once are off unless they are given, and the command's status is the exit status."""
    for arguments in (["check"], ["check", "--probe"], ["demo"], ["demo", "--once", "--engine", "native"]):
        assert cli.main([*arguments, "-c", "x"]) == 1
    assert called == [
        ("check", Path("x"), {"probe": False}),
        ("check", Path("x"), {"probe": True}),
        ("demo", Path("x"), {"once": False, "engine": None}),
        ("demo", Path("x"), {"once": True, "engine": "native"}),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ["no such file; create it, or name another with --config"]),
        (b"[proxy\nid = 1", ["not valid TOML"]),
        (b'[proxy]\nid = "caf\xe9"', ["UTF-8"]),
        (b'[proxy]\nid = 5\nlog_levl = "info"\n[limits]\nmax_connections = 0\n', ["id = 5", '"log_level"', "= 0"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "demo"])
def test_a_wrong_configuration_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, content: bytes | None, said: list[str]
) -> None:
    """Every mistake is told with the file and the reason, one line each, on standard error."""
    config = tmp_path / "config.toml"
    if content is not None:
        config.write_bytes(content)
    (tmp_path / "pipelines").mkdir()
    assert cli.main([command, "--config", str(config)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == len(said)
    assert all(line.startswith(f"{config}: ") for line in lines)
    assert [text for text in said if text not in printed.err] == []


def test_ctrl_c_before_the_reactor_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the command with the status that shells give it, and without a traceback."""

    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(harmonyd.check, "check", interrupted)
    assert cli.main(["check"]) == 130
