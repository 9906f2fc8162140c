"""A folder of objects: each is kept once, whole, and where nothing a sender writes leads out of it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from harmonyd.bodies import BytesBody
from harmonyd.dimse.part10 import check_complete
from harmonyd.envelope import RequestEnvelope
from harmonyd.errors import BadRequest, UnsupportedMediaType
from harmonyd.services.dicom.objects import ObjectBody
from harmonyd.services.storage import StorageBackend, keep
from harmonyd.testing.data import demo_files

PADDING = b"\xfc\xff\xfc\xffOB\0\0\x02\0\0\0\0\0"


@pytest.fixture
def received(tmp_path: Path) -> Path:
    """An object in the spool."""
    return Path(shutil.copy(demo_files()[0], tmp_path / "received.dcm"))


@pytest.fixture(params=["same", "other"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where to keep objects: on the file system where they are, or on another."""
    if request.param == "same":
        yield tmp_path / "kept"
        return
    if not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs another file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        yield Path(other) / "kept"


def kept(path: Path, folder: Path) -> Path:
    return keep(path, check_complete(path), folder)


def files_in(folder: Path) -> list[Path]:
    """Hidden ones too."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def make_old(path: Path, hours: float) -> None:
    path.touch()
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))


def content(path: Path) -> bytes:
    return path.read_bytes()


def other_object(received: Path) -> Path:
    """Another object of the same UIDs."""
    other = received.with_name("other.dcm")
    other.write_bytes(received.read_bytes() + PADDING)
    return other


def test_an_object_has_its_place(folder: Path, received: Path) -> None:
    """It lies by its UIDs, equal, with nothing beside it, and the file that it came from stays."""
    header = check_complete(received)
    place = folder / header.study_instance_uid / header.series_instance_uid / f"{header.sop_instance_uid}.dcm"
    assert kept(received, folder) == place
    assert files_in(folder) == [place]
    assert place.read_bytes() == received.read_bytes()


def test_the_same_file_system_needs_no_copy(tmp_path: Path, received: Path) -> None:
    """There the object gets a second name."""
    assert kept(received, tmp_path / "kept").samefile(received)


def test_the_same_object_is_kept_once(folder: Path, received: Path) -> None:
    """An object that is handed on a second time, by whatever name, changes nothing."""
    again = Path(shutil.copy(received, received.with_name("again.dcm")))
    first = kept(received, folder)
    assert kept(received, folder) == kept(again, folder) == first
    assert files_in(folder) == [first]


def test_another_object_of_the_same_uid_is_kept_too(folder: Path, received: Path) -> None:
    """Two different objects of one UID were both acknowledged: none replaces the other, and each is kept once."""
    other = other_object(received)
    first, second = kept(received, folder), kept(other, folder)
    assert first.read_bytes() == received.read_bytes()
    assert second.read_bytes() == other.read_bytes()
    assert kept(Path(shutil.copy(other, other.with_name("third.dcm"))), folder) == second
    assert files_in(folder) == sorted([first, second])


def test_many_at_once(folder: Path, received: Path) -> None:
    """Two objects of one UID that come several times, all at the same moment, make two files."""
    other = other_object(received)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: kept(path, folder), [received, other] * 8))
    assert sorted(path.read_bytes() for path in files_in(folder)) == sorted(map(Path.read_bytes, [received, other]))


def test_uids_that_are_none_make_no_path(folder: Path, received: Path) -> None:
    """What a sender writes where UIDs should be never leads out of the folder."""
    header = replace(
        check_complete(received), study_instance_uid="../..", series_instance_uid="/etc", sop_instance_uid="a/b"
    )
    place = keep(received, header, folder)
    assert place.parent == folder / "unknown" / "unknown"
    assert place.stem.isalnum()
    assert keep(received, header, folder) == place


def test_durable_before_it_is_said(folder: Path, received: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may still be in memory alone is flushed: the content before it has its name, then the name."""
    flushed: list[tuple[int, bool]] = []
    header = check_complete(received)
    place = folder / header.study_instance_uid / header.series_instance_uid / f"{header.sop_instance_uid}.dcm"
    real = os.fsync

    def fsync(number: int) -> None:
        real(number)
        flushed.append((os.fstat(number).st_ino, place.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    keep(received, header, folder)
    assert (place.stat().st_ino, False) in flushed
    assert flushed[-1] == (place.parent.stat().st_ino, True)


def test_a_copy_that_fails_leaves_nothing(folder: Path, received: Path) -> None:
    """A source that is gone is an error, not half a file."""
    header = check_complete(received)
    received.unlink()
    with pytest.raises(FileNotFoundError):
        keep(received, header, folder)
    assert files_in(folder) == []


class Broken(BytesBody):
    """A body whose sender goes away."""

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._data
        raise BadRequest("the client went away")


async def sent(folder: Path, body: Any, kind: str = "application/dicom") -> str:
    """What the backend says it kept, below the folder."""
    backend = StorageBackend("archive", folder, deferToThread)
    await backend.start()
    answer = await backend.send(RequestEnvelope("http", "POST", "/x", "/x", body, {"content-type": kind}))
    assert (answer.status, answer.body is not None) == (200, True)
    members = json.loads(await answer.body.read(10_000))  # type: ignore[union-attr]
    assert members["success"] is True
    await backend.stop()
    return str(members["kept"])


@pytest_twisted.ensureDeferred
async def test_a_received_object(folder: Path, received: Path) -> None:
    """It is kept from where it lies in the spool, and the answer says where."""
    place = await sent(folder, ObjectBody(received, len(content(received))))
    assert content(folder / place) == content(received)


@pytest_twisted.ensureDeferred
async def test_an_upload(folder: Path, received: Path) -> None:
    """One DICOM file over HTTP is kept in the same way, twice sent or not, and nothing else is left."""
    data = content(received)
    place = await sent(folder, BytesBody(data))
    assert await sent(folder, BytesBody(data), "Application/DICOM; transfer-syntax=*") == place
    assert [path.read_bytes() for path in files_in(folder)] == [data]
    other = await sent(folder, BytesBody(data + PADDING))
    assert files_in(folder) == sorted([folder / place, folder / other])


@pytest_twisted.ensureDeferred
async def test_what_a_crash_left_half_written(tmp_path: Path) -> None:
    """It is removed at a start a day later; what somebody may still be writing, and objects, are not."""
    old, new, other = (tmp_path / name for name in (".1.part", ".2.part", "object.dcm"))
    for path in (old, new, other):
        make_old(path, 23 if path == new else 25)
    await StorageBackend("archive", tmp_path, deferToThread).start()
    assert files_in(tmp_path) == [new, other]


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/related; type=application/dicom"])
@pytest_twisted.ensureDeferred
async def test_an_upload_of_another_kind(tmp_path: Path, kind: str) -> None:
    """It is refused, and the folder is not even made."""
    with pytest.raises(UnsupportedMediaType):
        await sent(tmp_path / "kept", BytesBody(b"{}"), kind)
    assert not (tmp_path / "kept").exists()


@pytest_twisted.ensureDeferred
async def test_an_upload_that_is_not_whole(folder: Path, received: Path) -> None:
    """A truncated object, one that is none, and one whose sender goes away: nothing is kept of them."""
    data = content(received)
    for body in (BytesBody(data[:-100]), BytesBody(b"nonsense"), BytesBody(b""), Broken(data)):
        with pytest.raises(BadRequest):
            await sent(folder, body)
    assert files_in(folder) == []
