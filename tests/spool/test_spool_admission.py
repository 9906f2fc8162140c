"""When nothing more is accepted, what is kept in reserve, and a disk that is really full."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from spool_kit import CONFIG, ENDPOINT, Pacs, away, received, take

from harmonyd.config.daemon import SpoolConfig
from harmonyd.errors import StorageFull
from harmonyd.spool.admission import Ballast, SpoolAdmission
from harmonyd.spool.backoff import wait_secs
from harmonyd.spool.journal import Totals
from harmonyd.spool.layout import Layout, free_bytes

DISK_BYTES = 12_000_000


@pytest.fixture
def admission(clock, storage):
    layout = Layout(storage)
    layout.make()
    limits = {"min_free_bytes": 1000, "ballast_bytes": 0, "max_waiting": 100, "max_waiting_bytes": 5000}
    return SpoolAdmission(clock, layout, SpoolConfig(**limits))


def test_limits_and_their_margin(admission):
    """Each limit refuses at once, and accepts again only when there is a tenth more room; subscribers hear of both."""
    heard = []
    end = admission.subscribe(lambda: heard.append(admission.refusal()))
    admission.note_free(10_000)
    assert admission.refusal() is None
    for free, refused in ((999, True), (1000, True), (1099, True), (1101, False), (1000, False), (999, True)):
        admission.note_free(free)
        assert bool(admission.refusal()) is refused, free
    admission.note_free(2000)
    for entries, refused in ((99, False), (100, True), (95, True), (90, False), (99, False)):
        admission.note_kept(Totals(entries, 0))
        assert bool(admission.refusal()) is refused, entries
    admission.note_kept(Totals(1, 5000))
    assert "MB or more are in the spool" in admission.refusal()
    admission.configure(SpoolConfig(min_free_bytes=1000, ballast_bytes=0))
    assert admission.refusal() is None
    assert [bool(refusal) for refusal in heard] == [True, False] * (len(heard) // 2)
    end()
    end()
    admission.note_free(0)
    assert admission.refusal() is not None
    assert heard[-1] is None


def test_what_is_being_received_must_end_before_the_room_is_gone(admission):
    """With less left than half of the ballast, subscribers hear that associations have to end."""
    admission.configure(SpoolConfig(min_free_bytes=1000, ballast_bytes=200))
    admission.note_free(100)
    heard = []
    admission.subscribe(lambda: heard.append(admission.must_end()))
    for free in (99, 50, 100, 2000):
        admission.note_free(free)
    assert heard == [True, False, False]  # the last: objects are accepted again


@ensureDeferred
async def test_it_looks_every_second(make_spool, clock, until):
    """Room that comes or goes by itself is noticed."""
    spool = make_spool(SpoolConfig(min_free_bytes=10**18, ballast_bytes=0))
    await spool.start()
    assert "MB are free" in spool.admission.refusal()
    assert (await spool.summary()).refusal == spool.admission.refusal()
    spool.configure(CONFIG)
    spool.admission.note_free(0)
    assert spool.admission.refusal()

    def again():
        clock.advance(1)
        return spool.admission.refusal() is None

    await until(again)


@ensureDeferred
async def test_a_long_backlog_refuses(make_spool, incoming):
    """From max_waiting objects on nothing more is accepted; what arrives all the same is still taken."""
    spool, pacs = make_spool(SpoolConfig(min_free_bytes=0, ballast_bytes=0, max_waiting=3)), Pacs()
    await spool.start()
    await take(spool, incoming, "1.1", "1.2")
    assert spool.admission.refusal() is None
    await take(spool, incoming, "1.3")
    assert spool.admission.refusal() == "3 objects or more are in the spool"
    await take(spool, incoming, "1.4")
    spool.attach(ENDPOINT, pacs, in_order=False)
    await spool.emptied(ENDPOINT)
    assert len(pacs.uids()) == 4
    await spool.retry()
    assert spool.admission.refusal() is None


@pytest.mark.parametrize(
    ("failures", "random", "secs"),
    [(1, 0.5, 1), (2, 0.5, 5), (3, 0.5, 15), (4, 0.5, 60), (5, 0.5, 120), (99, 0.5, 300), (1, 0, 0.8), (99, 1, 360)],
)
def test_backoff(failures, random, secs):
    """Waits grow to their limit, give or take a fifth."""
    assert wait_secs(failures, 300.0, random) == pytest.approx(secs)


# --- a full disk ---


@pytest.fixture
def disk(tmp_path):
    """A file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def full(disk: Path, left_bytes: int = 0):
    """While inside there is no more room than that."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        while (free := free_bytes(disk)) > left_bytes:
            try:
                file.write(bytes(min(free - left_bytes, 1_000_000)))
                file.flush()
            except OSError:
                break
    yield
    filler.unlink()


@pytest.mark.root
def test_ballast(disk):
    """It is made when there is room beyond the floor, given up when little is left, and made again."""
    layout = Layout(disk)
    layout.make()
    ballast, config = Ballast(layout), SpoolConfig(min_free_bytes=2_000_000, ballast_bytes=2_000_000)
    free = ballast.keep(config)
    assert layout.ballast.stat().st_size == 2_000_000
    assert free == free_bytes(disk) < DISK_BYTES - 2_000_000
    with full(disk, 500_000):
        assert ballast.keep(config) > 2_000_000
        assert not layout.ballast.exists()
        ballast.keep(config)
        assert not layout.ballast.exists()
    ballast.keep(config)
    assert layout.ballast.exists()
    ballast.keep(SpoolConfig(min_free_bytes=2_000_000, ballast_bytes=0))
    assert not layout.ballast.exists()
    ballast.keep(SpoolConfig(min_free_bytes=11_000_000, ballast_bytes=2_000_000))
    assert not layout.ballast.exists()
    assert not ballast.give_up()


@pytest.mark.root
@ensureDeferred
async def test_a_full_disk_refuses_and_recovers(disk, make_spool, started_reactor):
    """Without room nothing is taken and all stays where it was; with room everything goes on by itself."""
    spool, pacs = make_spool(CONFIG, disk, started_reactor), Pacs()
    pacs.answer = away
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    entries = [received(disk / "in", f"1.{number}", size_bytes=3000) for number in range(300)]
    taken, error = 0, None
    with full(disk):
        for entry in entries:
            try:
                await spool.take(ENDPOINT, [entry], ["pacs"])
            except StorageFull as full_disk:
                error = full_disk
                break
            taken += 1
        assert error is not None
        assert spool.admission.refusal()
        assert all(entry.path.exists() for entry in entries[taken:])
    await spool.take(ENDPOINT, entries[taken:], ["pacs"])
    pacs.answer = Pacs().answer
    await spool.retry()
    await spool.emptied(ENDPOINT)
    assert set(pacs.uids()) == {f"1.{number}" for number in range(300)}


@pytest.mark.root
@ensureDeferred
async def test_ballast_carries_what_is_under_way(disk, make_spool, started_reactor):
    """When the disk runs full under way, the ballast makes room for what was received already."""
    config = SpoolConfig(min_free_bytes=4_000_000, ballast_bytes=3_000_000)
    spool, pacs = make_spool(config, disk, started_reactor), Pacs()
    await spool.start()
    entries = [received(disk / "in", f"1.{number}", size_bytes=3000) for number in range(300)]
    with full(disk):
        for entry in entries:
            await spool.take(ENDPOINT, [entry], ["pacs"])
        assert spool.admission.refusal()
        assert not Layout(disk).ballast.exists()
        spool.attach(ENDPOINT, pacs, in_order=False)
        await spool.emptied(ENDPOINT)
    assert len(set(pacs.uids())) == 300


@pytest.mark.root
@ensureDeferred
async def test_files_of_another_file_system(make_spool, disk, incoming, storage):
    """What cannot be renamed into the spool is copied, byte for byte, and removed where it came from."""
    spool, pacs = make_spool(), Pacs()
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await take(spool, disk, "1.1", "1.2")
    await spool.emptied(ENDPOINT)
    assert sorted(content for _, _, content in pacs.got) == [b"1.1".ljust(2000, b"."), b"1.2".ljust(2000, b".")]
    assert list(disk.iterdir()) == []
    assert list((storage / "spool" / "incoming").iterdir()) == []
