"""``harmonyd spool``: a real spool below a real configuration, looked at and changed from a command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from spool_filled_kit import DAMAGED, ENDPOINT, QUARANTINED, WAITING, Backends, fill, make
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

import harmonyd.spool.spool
from harmonyd import cli
from harmonyd.spool.folder import SpoolFolder
from harmonyd.testing.config_files import write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose storage path is ``tmp``."""
    return write_config(tmp_path, http_port=8080, backends={"echo": {"service": "echo"}})


@pytest.fixture
def storage(started_reactor: Any, config: Path) -> Path:
    """What a daemon that was stopped has left: one entry in each state."""
    storage = config.parent / "tmp"
    spool = make(started_reactor, storage)
    pytest_twisted.blockon(Deferred.fromCoroutine(fill(spool, Backends(), config.parent / "incoming")))
    pytest_twisted.blockon(Deferred.fromCoroutine(spool.stop()))
    return storage


class Command:
    """Runs it, and takes what it prints."""

    def __init__(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._config = config
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, name: str, *arguments: object) -> int:
        status = cli.main(["spool", name, "--config", str(self._config), *map(str, arguments)])
        self.out, self.err = self._capsys.readouterr()
        return status


@pytest.fixture
def command(config: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(config, capsys)


def ids(storage: Path) -> list[int]:
    with SpoolFolder(storage) as spool:
        return [info.entry.id for info in spool.entries()]


def test_list_tells_of_endpoints_that_are_gone(storage: Path, command: Command) -> None:
    """What such an endpoint has received, and nothing takes, is a line of its own, and a member for programs."""
    path = storage / "spool" / "receiving" / "old" / "incoming" / "a" / "CT.1"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(70))
    assert command("list") == 0
    line = command.out.splitlines()[1]
    assert line.startswith("spool/receiving/old: 1 file, 70 bytes, the oldest of 20")
    assert line.endswith("Z; there is no such endpoint any more, and nothing takes them")
    assert command("list", "--json") == 0
    (told,) = json.loads(command.out)["summary"]["untaken"]
    assert (told["endpoint"], told["files"], told["bytes"]) == ("old", 1, 70)


def test_list_tells_of_the_quarantine_folder(storage: Path, command: Command) -> None:
    """How much is there, and since when."""
    (storage / "quarantine").mkdir()
    (storage / "quarantine" / "20261123T191903_a.dcm").write_bytes(bytes(70))
    assert command("list") == 0
    line = command.out.splitlines()[1]
    assert line.startswith("quarantine/: 1 file, 70 bytes, the oldest of 20")
    assert command("list", "--json") == 0
    told = json.loads(command.out)["summary"]["quarantine_folder"]
    assert (told["files"], told["bytes"], told["oldest_at"][-1]) == (1, 70, "Z")


def test_list_is_a_table(storage: Path, command: Command) -> None:
    """The summary first, then a line for each delivery, with state, attempts, next attempt and reason."""
    assert command("list") == 0
    first, head, *rows = command.out.splitlines()
    assert first.startswith("3 objects, 3000 bytes; deliveries: 1 waiting, the oldest since ")
    assert first.endswith(", 1 in quarantine; 1 damaged")
    assert head.split()[:3] == ["ID", "RECEIVED", "ENDPOINT"]
    waiting, given_up, damaged = (row.split() for row in rows)
    assert (waiting[0], waiting[2:7]) == ("1", [ENDPOINT, "1.2.1", "1000", "pacs:WAITING", "0"])
    assert (waiting[1][-1], waiting[7][-1], waiting[8:]) == ("Z", "Z", ["connection", "refused"])
    assert given_up[5:] == ["archive:QUARANTINED", "1", "-", "not", "wanted"]
    assert damaged[2:6] == ["other", "1.2.3", "1000", "-:DAMAGED"]
    assert command.err == ""


def test_list_shows_no_control_characters(storage: Path, command: Command) -> None:
    """What strangers have sent cannot write on a terminal as it likes."""
    assert command("list", "--state", "DAMAGED") == 0
    assert "damaged: the file is empty" in command.out
    assert "\x1b" not in command.out


def test_list_by_state_endpoint_and_number(storage: Path, command: Command) -> None:
    """Less is shown where less is asked for; that there is more is said."""
    assert command("list", "--state", "QUARANTINED", "--endpoint", ENDPOINT) == 0
    assert [line.split()[0] for line in command.out.splitlines()[2:]] == ["2"]
    assert command("list", "--endpoint", "nobody") == 0
    assert len(command.out.splitlines()) == 1
    assert command("list", "--limit", 1) == 0
    assert [line.split()[0] for line in command.out.splitlines()[2:]] == ["1"]
    assert command.err == "harmonyd: these are the first 1; --limit shows more\n"


def test_list_as_json(storage: Path, command: Command) -> None:
    """The documents of the management API."""
    assert command("list", "--json") == 0
    found = json.loads(command.out)
    assert (found["summary"]["entries"], found["summary"]["refusal"]) == (3, None)
    assert [entry["id"] for entry in found["entries"]] == [1, 2, 3]
    assert found["entries"][1]["deliveries"][0]["reason"] == "not wanted"
    assert "DOE" not in command.out


def test_show(storage: Path, command: Command) -> None:
    """All about one object, and where it lies."""
    assert command("show", QUARANTINED) == 0
    lines = dict(line.split(maxsplit=1) for line in command.out.splitlines())
    assert (lines["id"], lines["sop_instance_uid"]) == ("2", "1.2.2")
    assert lines["delivery"] == "backend archive, state QUARANTINED, attempts 1, reason not wanted"
    assert Path(lines["path"]).read_bytes().startswith(b"1.2.2")
    assert command("show", QUARANTINED, "--json") == 0
    assert json.loads(command.out)["path"] == lines["path"]


def test_retry(storage: Path, command: Command) -> None:
    """What was given up waits again; with --all everything does."""
    assert command("retry", QUARANTINED) == 0
    assert command.out.startswith("1 delivery to be tried now")
    with SpoolFolder(storage) as spool:
        delivery = spool.entry(QUARANTINED).deliveries[0]
        # A daemon whose clock is behind ours, because that was set since, tries it now all the same.
        assert (delivery.state, delivery.next_attempt_at) == ("WAITING", 0.0)
    assert command("retry", "--all") == 0
    assert command.out.startswith("2 deliveries to be tried now")


def test_retry_of_what_is_damaged(storage: Path, command: Command) -> None:
    """Nothing is done, and why is said."""
    assert command("retry", DAMAGED) == 1
    assert command.out.startswith("0 deliveries")
    assert "harmonyd: what is damaged cannot be delivered\n" in command.err


def test_discard(storage: Path, command: Command) -> None:
    """One goes without a question, with its file."""
    with SpoolFolder(storage) as spool:
        path = spool.entry(DAMAGED).entry.path
    assert command("discard", DAMAGED) == 0
    assert command.out == "1 object discarded\n"
    assert ids(storage) == [WAITING, QUARANTINED]
    assert not path.exists()


def test_discard_of_several_needs_yes(storage: Path, command: Command) -> None:
    """More than one id could be a slip."""
    assert command("discard", WAITING, DAMAGED) == 1
    assert "would remove 2 objects for good" in command.err
    assert len(ids(storage)) == 3
    assert command("discard", "--yes", WAITING, DAMAGED) == 0
    assert ids(storage) == [QUARANTINED]


@pytest.mark.parametrize("arguments", [("show", 99), ("retry", 99), ("discard", 99), ("export", 99, "out")])
def test_an_id_that_is_not_there(storage: Path, command: Command, arguments: tuple[Any, ...]) -> None:
    """Exit status 1, and the id."""
    assert command(*arguments) == 1
    assert command.err == "harmonyd: there is no entry 99 in the spool\n"


def test_one_of_several_is_not_there(storage: Path, command: Command) -> None:
    """The others are done all the same; the exit status says that not all was."""
    assert command("retry", WAITING, 99) == 1
    assert command.out.startswith("1 delivery")
    assert "entry 99" in command.err


def test_export(storage: Path, command: Command, tmp_path: Path) -> None:
    """A copy of the object and a note beside it; what was exported before is not replaced."""
    out = tmp_path / "a" / "out"
    assert command("export", QUARANTINED, out) == 0
    assert command.out == f"{out / '2.dcm'}\n"
    assert (out / "2.dcm").read_bytes().startswith(b"1.2.2")
    assert json.loads((out / "2.json").read_text())["entry"]["id"] == QUARANTINED
    assert command("export", QUARANTINED, out) == 1
    assert command.err == f"harmonyd: {out / '2.dcm'} is there already: nothing was exported\n"
    assert QUARANTINED in ids(storage)


def test_export_of_a_file_that_is_gone(storage: Path, command: Command, tmp_path: Path) -> None:
    """Exit status 1, and the file."""
    with SpoolFolder(storage) as spool:
        path = spool.entry(WAITING).entry.path
    path.unlink()
    assert command("export", WAITING, tmp_path / "out") == 1
    assert command.err == f"harmonyd: {path}: No such file or directory\n"


def test_without_a_spool(config: Path, command: Command) -> None:
    """Exit status 1, and that there is none; none is made. What moves have put aside is told all the same."""
    assert command("list") == 1
    assert "harmonyd: there is no spool below " in command.err
    assert "quarantine" not in command.err
    (config.parent / "tmp" / "quarantine").mkdir(parents=True)
    (config.parent / "tmp" / "quarantine" / "1.dcm").touch()
    assert command("list") == 1
    assert "/tmp/quarantine lie 1 files" in command.err


def test_a_journal_that_is_none(storage: Path, command: Command) -> None:
    """Exit status 1, and the file, without a traceback."""
    journal = storage / "spool" / "journal.sqlite3"
    journal.write_bytes(b"no database" * 1000)
    assert command("list") == 1
    assert command.err.startswith(f"harmonyd: {journal} cannot be used: ")


def test_a_wrong_configuration(config: Path, command: Command) -> None:
    """Exit status 2, and the mistake."""
    config.write_text("[proxy")
    assert command("list") == 2
    assert "not valid TOML" in command.err


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["list", "--state", "LOST"], ["list", "--limit", "0"], ["show"], ["show", "x"], ["show", "9" * 30]),
        *(["retry"], ["retry", "1", "--all"], ["discard"], ["discard", "-1"], ["export", "1"]),
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    """Exit status 2, before anything is looked at."""
    with pytest.raises(SystemExit) as ending:
        cli.main(["spool", *arguments])
    assert ending.value.code == 2


@pytest.fixture
def running(started_reactor: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Backends]]:
    """A spool that a daemon is running, and its backends."""
    monkeypatch.setattr(harmonyd.spool.spool, "LOOK_SECS", 0.05)
    spool, backends = make(started_reactor, config.parent / "tmp"), Backends()
    pytest_twisted.blockon(Deferred.fromCoroutine(fill(spool, backends, config.parent / "incoming")))
    yield spool, backends
    pytest_twisted.blockon(Deferred.fromCoroutine(spool.stop()))


@ensureDeferred
async def test_while_the_daemon_runs(running, command):
    """What the command line changes the daemon notices, and does."""
    spool, backends = running
    backends.mended = True
    assert await deferToThread(command, "discard", DAMAGED) == 0
    assert await deferToThread(command, "retry", "--all") == 0
    await spool.emptied(ENDPOINT)
    assert sorted(backends.got) == [WAITING, QUARANTINED]
    assert (await spool.summary()).entries == 0
