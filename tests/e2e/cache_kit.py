"""What the tests of the cache share: a PACS that counts what it is asked for, and can be held in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from socket import SHUT_RDWR
from threading import Event, Thread
from typing import Any, Self

from archive_peer import SHIPPED, ArchivePeer
from dicomweb_kit import PREFIX, Gateway, Reply
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

WAIT_SECS = 30.0


class CountingArchive(ArchivePeer):
    """Remembers the level of each C-GET. ``held``: each stops after its first instance, until ``release``."""

    def __init__(self, datasets: list[Dataset]) -> None:
        super().__init__(datasets)
        self.gets: list[str] = []
        self.fails = False
        """The last sub-operation of each C-GET fails."""
        self.ended = 0
        """C-GETs whose instances were all sent."""
        self._gate = Event()
        self._gate.set()

    def hold(self) -> Self:
        """From now on."""
        self._gate.clear()
        return self

    def release(self) -> None:
        """Go on, and do not stop again."""
        self._gate.set()

    def abort(self) -> None:
        """Break off what is open."""
        for association in self._server.active_associations:
            association.abort()

    def __exit__(self, *error: object) -> None:
        self.release()
        super().__exit__(*error)

    def _get(self, event: Any) -> Iterator[Any]:
        level = event.identifier.QueryRetrieveLevel
        self.gets.append(level)
        matches = self._matches(event.identifier)
        yield len(matches)
        for number, ds in enumerate(matches):
            if number == 1 and level != "IMAGE":
                self._gate.wait(WAIT_SECS)
            if self.fails and number == len(matches) - 1:
                yield 0xB000, None
                return
            if event.is_cancelled:
                yield 0xFE00, None
                return
            yield 0xFF00, ds
        self.ended += 1

    def _store(self, event: Any) -> int:
        """What is stored can be retrieved."""
        status = super()._store(event)
        self.datasets = [*self.datasets, *self.stored]
        self.stored.clear()
        return status


def series_of(count: int, study: str | None = None, size: int = 64) -> list[Dataset]:
    """A series of CT slices."""
    study = study or generate_uid()
    series = generate_uid()
    return [_slice(study, series, number, size) for number in range(1, count + 1)]


def _slice(study: str, series: str, number: int, size: int) -> Dataset:
    ds = dcmread(SHIPPED / "CT_small.dcm")
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.InstanceNumber = study, series, number
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{series[:55]}.{number}"
    ds.Rows = ds.Columns = size
    ds.PixelData = number.to_bytes(2, "little") * (size * size)
    return ds


def path_to(ds: Dataset, *, below: str = "series") -> str:
    """The path of the study, series or instance of a data set."""
    path = f"/studies/{ds.StudyInstanceUID}"
    if below != "study":
        path += f"/series/{ds.SeriesInstanceUID}"
    return path + (f"/instances/{ds.SOPInstanceUID}" if below == "instance" else "")


def cache_folder(web: Gateway) -> Path:
    return web.daemon.config.parent / "tmp" / "cache"


def kept(web: Gateway) -> list[Path]:
    """The manifests in the cache's folder."""
    return list(cache_folder(web).glob("*.kept/entry.json"))


class Reading(Thread):
    """A client that asks for something in a thread; ``started`` when the first bytes are there."""

    def __init__(self, web: Gateway, path: str) -> None:
        super().__init__(daemon=True)
        self.began = Event()
        self.reply: Reply | None = None
        self._leave = Event()
        self._connection: HTTPConnection | None = None
        self._web = web
        self._path = path
        self.start()

    def run(self) -> None:
        connection = self._connection = self._web.daemon.connect(WAIT_SECS)
        try:
            connection.request("GET", PREFIX + self._path)
            response = connection.getresponse()
            body = response.read1(1000)
            self.began.set()
            while not self._leave.is_set() and (more := response.read1(1 << 16)):
                body += more
            self.reply = Reply(response.status, response.headers, body)
        except (OSError, HTTPException):
            self.reply = None
        finally:
            connection.close()

    def leave(self) -> None:
        """Close the connection in the middle."""
        self._leave.set()
        connection = self._connection
        if connection is not None and connection.sock is not None:
            connection.sock.shutdown(SHUT_RDWR)
        self.join(WAIT_SECS)

    def result(self) -> Reply:
        self.join(WAIT_SECS)
        assert self.reply is not None
        return self.reply
