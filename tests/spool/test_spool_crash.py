"""Whatever ends the daemon at whatever point: what was acknowledged arrives, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from crash_child import KILLED, POINTS, deliver_into
from pytest_twisted import ensureDeferred
from spool_kit import ENDPOINT, Pacs, object_files, received, take

from harmonyd.spool import intake
from harmonyd.spool.api import EntryState
from harmonyd.spool.layout import Layout, new_name

CHILD = Path(__file__).with_name("crash_child.py")


def run_child(*arguments: str) -> tuple[int, set[str]]:
    """Its exit code, and the UIDs that it acknowledged."""
    command = [sys.executable, str(CHILD), *arguments]
    child = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert child.returncode in (0, KILLED), child.stderr
    return child.returncode, set(child.stdout.split())


@pytest.mark.parametrize("call", [0, 1, 6, 9])
@pytest.mark.parametrize("point", POINTS)
@ensureDeferred
async def test_what_was_acknowledged_survives(make_spool, started_reactor, storage, incoming, tmp_path, point, call):
    """After an end at any step of taking and releasing, the next start delivers every acknowledged object.

    What was not acknowledged is delivered, or still lies where it came from: the receiver hands it over again.
    """
    delivered = tmp_path / "delivered"
    incoming.mkdir()
    delivered.mkdir()
    code, acknowledged = run_child(str(storage), str(incoming), str(delivered), point, str(call))
    assert code == KILLED or len(acknowledged) == 24
    spool, pacs = make_spool(reactor=started_reactor), Pacs(batch=3)
    pacs.answer = deliver_into(delivered)
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await spool.emptied(ENDPOINT)
    left = {path.name.rpartition(".")[0] for path in incoming.iterdir()}
    have = {path.name for path in delivered.iterdir()}
    assert acknowledged - have == set()
    assert not acknowledged & left
    assert all(path.read_bytes() == path.name.encode().ljust(2000, b".") for path in delivered.iterdir())
    assert await spool.entries() == []
    await spool.stop()
    assert object_files(storage) == []
    assert not (storage / "quarantine").exists()


@ensureDeferred
async def test_vanished_torn_and_unknown_files(make_spool, storage, incoming, until):
    """At the start: what is gone or cut off is DAMAGED with its reason; what nobody knows goes into quarantine."""
    spool = make_spool()
    await spool.start()
    await take(spool, incoming, "1.1", "1.2", "1.3")
    gone, torn, whole = [info.entry for info in await spool.entries()]
    await spool.stop()
    gone.path.unlink()
    torn.path.write_bytes(b"short")
    unknown = Layout(storage).object(new_name())
    unknown.write_bytes(b"whose?")
    spool, pacs = make_spool(), Pacs()
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await spool.emptied(ENDPOINT)
    assert pacs.uids() == ["1.3"]
    await until(lambda: not whole.path.exists())
    damaged = {info.entry.id: info.deliveries[0].reason for info in await spool.entries(state=EntryState.DAMAGED)}
    assert damaged == {gone.id: "the file is gone", torn.id: "the file has 5 bytes instead of 2000"}
    (note,) = (storage / "quarantine").glob("*.json")
    assert json.loads(note.read_text())["was"] == str(unknown)
    assert note.with_suffix(".dcm").read_bytes() == b"whose?"
    assert not unknown.exists()


@ensureDeferred
async def test_a_batch_that_cannot_be_taken_stays_where_it_was(make_spool, storage, incoming):
    """When one file of a batch is missing, none is taken, and the others can be taken again."""
    spool = make_spool()
    await spool.start()
    entries = [received(incoming, uid) for uid in ("1.1", "1.2", "1.3")]
    content = entries[2].path.read_bytes()
    entries[2].path.unlink()
    with pytest.raises(FileNotFoundError):
        await spool.take(ENDPOINT, entries, ["pacs"])
    assert await spool.entries() == []
    entries[2].path.write_bytes(content)
    await spool.take(ENDPOINT, entries, ["pacs"])
    assert len(await spool.entries()) == 3
    assert list(incoming.iterdir()) == []


@ensureDeferred
async def test_a_move_that_fails_is_taken_back(make_spool, storage, incoming):
    """When a file cannot be moved after it was journalled, the whole batch is as if it had never come."""
    spool = make_spool()
    await spool.start()
    entries = [received(incoming, uid) for uid in ("1.1", "1.2", "1.3")]
    taken = spool.take(ENDPOINT, entries, ["pacs"])
    real = spool._layout.place

    def place(source, name):
        if source == entries[2].path:
            raise PermissionError(13, "not now")
        real(source, name)

    spool._layout.place = place
    with pytest.raises(PermissionError):
        await taken
    assert all(entry.path.exists() for entry in entries)
    assert await spool.entries() == []
    assert object_files(storage) == []
    spool._layout.place = real
    await spool.take(ENDPOINT, entries, ["pacs"])
    assert len(await spool.entries()) == 3


@ensureDeferred
async def test_a_new_folder_is_durable(make_spool, storage, monkeypatch):
    """Its own name is flushed, too, and those of the folders above it that are new: once each."""
    spool = make_spool()
    await spool.start()
    synced: list[Path] = []
    monkeypatch.setattr(intake, "sync", lambda path: synced.append(path) if path.is_dir() else None)
    receiving = storage / "spool" / "receiving"
    await take(spool, receiving / "scp" / "incoming" / "one", "1.1")
    assert sorted(synced) == [storage / "spool", receiving, *(receiving / "scp" / name for name in ("", *INCOMING))]
    synced.clear()
    await take(spool, receiving / "scp" / "incoming" / "one", "1.2")
    assert synced == [receiving / "scp" / "incoming" / "one"]
    synced.clear()
    await take(spool, receiving / "scp" / "incoming" / "two", "1.3")
    assert sorted(synced) == [receiving / "scp" / "incoming", receiving / "scp" / "incoming" / "two"]


@ensureDeferred
async def test_what_lies_elsewhere_is_durable(make_spool, storage, monkeypatch):
    """Of an object that comes from the folder of an operation, that folder's name is flushed, too."""
    spool = make_spool()
    await spool.start()
    synced: list[Path] = []
    monkeypatch.setattr(intake, "sync", synced.append)
    entry = received(storage / "dcmtk_move_1", "1.1")
    await spool.take(ENDPOINT, [replace(entry, flushed=True)], ["pacs"])
    assert synced == [entry.path, storage / "dcmtk_move_1", storage]


@ensureDeferred
async def test_what_its_receiver_has_flushed(make_spool, storage, monkeypatch):
    """It is not flushed again in a folder that is durable; what lies beside it, or in a new folder, is."""
    spool = make_spool()
    await spool.start()
    folder = storage / "spool" / "receiving"
    await take(spool, folder, "1.1")
    synced: list[Path] = []
    monkeypatch.setattr(intake, "sync", synced.append)
    flushed, other, elsewhere = (received(place, "1.2") for place in (folder, folder, folder / "new"))
    await spool.take(ENDPOINT, [replace(flushed, flushed=True)], ["pacs"])
    assert synced == []
    await spool.take(ENDPOINT, [replace(received(folder, "1.3"), flushed=True), other], ["pacs"])
    assert synced == [other.path, folder]
    synced.clear()
    await spool.take(ENDPOINT, [replace(elsewhere, flushed=True)], ["pacs"])
    assert synced == [elsewhere.path, folder / "new", folder]
    assert len(await spool.entries()) == 5


INCOMING = ("incoming", "incoming/one")
