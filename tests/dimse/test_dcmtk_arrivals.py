"""Files are noticed when they are closed, and a sweep finds what was not noticed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from harmonyd.dimse.dcmtk.arrivals import STALE_SECS, FolderWatch, natural_order


class Watched:
    """A folder, its watch, and the names that were reported."""

    def __init__(self, reactor: Any, folder: Path, *, track_open: bool) -> None:
        self.folder = folder
        self.told: list[str] = []
        self.watch = FolderWatch(reactor, folder, self.told.append, track_open=track_open)

    def write(self, name: str, content: bytes = b"x") -> None:
        (self.folder / name).write_bytes(content)


Make = Callable[..., Watched]


@pytest.fixture
def make(started_reactor: Any, tmp_path: Path) -> Iterator[Make]:
    """Watch the test's folder; the watch is closed at the end."""
    made: list[Watched] = []

    def one(*, track_open: bool = False) -> Watched:
        made.append(Watched(started_reactor, tmp_path, track_open=track_open))
        return made[-1]

    yield one
    for each in made:
        each.watch.close()
        each.watch.close()


@pytest.fixture
def until(started_reactor: Any) -> Callable[[Callable[[], object]], Any]:
    """``await until(condition)``."""

    async def wait(condition: Callable[[], object]) -> None:
        while not condition():
            await deferLater(started_reactor, 0.01)

    return wait


@pytest_twisted.ensureDeferred
async def test_told_when_closed(make: Make, until: Any) -> None:
    """A file is reported once, when its writer closes it, and a sweep does not name it again."""
    watched = make()
    with (watched.folder / "slow").open("wb") as file:
        file.write(b"first half")
        file.flush()
        watched.write("quick")
        await until(lambda: watched.told)
        assert watched.told == ["quick"]
    await until(lambda: len(watched.told) == 2)
    watched.write("quick")
    watched.write("last")
    await until(lambda: "last" in watched.told)
    assert watched.told == ["quick", "slow", "last"]
    assert watched.watch.sweep() == []


def test_sweep_finds_what_was_there_before(tmp_path: Path, make: Make) -> None:
    """Files from before the watch are named by the first sweep only, in the order of their numbers."""
    for number in (10000, 2, 9999, 1):
        (tmp_path / f"rsp{number:04}.dcm").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    watched = make()
    assert watched.watch.sweep() == ["rsp0001.dcm", "rsp0002.dcm", "rsp9999.dcm", "rsp10000.dcm"]
    assert watched.watch.sweep() == []


def test_sweep_tells_first_what_the_kernel_has(make: Make) -> None:
    """Events that were not read yet are reported before the folder is looked through."""
    watched = make()
    watched.write("new")
    assert watched.watch.sweep() == []
    assert watched.told == ["new"]


def test_sweep_leaves_out_what_is_being_written(make: Make) -> None:
    """While the writer runs, a file that it has open is not named; it is reported when it is closed."""
    watched = make(track_open=True)
    with (watched.folder / "open").open("wb") as file:
        file.write(b"half")
        file.flush()
        assert watched.watch.sweep() == []
    assert watched.watch.sweep() == []
    assert watched.told == ["open"]


def test_sweep_leaves_out_what_begins_under_way(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is made in the instant of a sweep, and not closed, is not taken for a complete one."""
    watched = make(track_open=True)
    scandir, begun = os.scandir, []

    def late(folder: Any) -> Any:
        begun.append((watched.folder / "begun").open("wb"))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", late)
    assert watched.watch.sweep() == []
    monkeypatch.undo()
    begun[0].close()
    assert watched.watch.sweep() == []
    assert watched.told == ["begun"]


def test_a_close_that_nobody_told_of(make: Make) -> None:
    """A file that looks open for longer than any writer lives is named after all."""
    watched = make(track_open=True)
    with (watched.folder / "stale").open("wb") as file:
        file.write(b"x")
        file.flush()
        os.utime(file.fileno(), (0, Path(file.name).stat().st_mtime - STALE_SECS - 10))
        assert watched.watch.sweep() == ["stale"]


def test_forgotten_names_come_again(make: Make) -> None:
    """A name that was forgotten is news when a file of that name arrives again."""
    watched = make()
    watched.write("again")
    watched.watch.sweep()
    (watched.folder / "again").unlink()
    watched.watch.forget("again")
    watched.write("again")
    watched.watch.sweep()
    assert watched.told == ["again", "again"]


def test_nothing_after_close(make: Make) -> None:
    """A closed watch reports nothing, but can still sweep."""
    watched = make()
    watched.watch.close()
    watched.write("late")
    assert watched.watch.sweep() == ["late"]
    assert watched.told == []


def test_names_that_are_no_text(make: Make) -> None:
    """Names that are not UTF-8 are reported in a form that opens the file."""
    watched = make()
    name = os.fsdecode(b"CT.\xff\xfe")
    watched.write(name)
    watched.watch.sweep()
    assert watched.told == [name]
    assert (watched.folder / watched.told[0]).read_bytes() == b"x"


def test_natural_order() -> None:
    """Numbers count as numbers, also beside text, and nothing raises."""
    names = ["b", "rsp0010", "rsp9", "10", "9", "a10b2", "a10b10", "", "²"]
    assert sorted(names, key=natural_order).index("rsp9") < sorted(names, key=natural_order).index("rsp0010")
    assert sorted(["10", "9"], key=natural_order) == ["9", "10"]
    assert sorted(["a10b10", "a10b2"], key=natural_order) == ["a10b2", "a10b10"]
