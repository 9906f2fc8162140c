"""What is derived from the instances of an entry, once for all who ask: text about each, and documents of many."""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import Deferred

from harmonyd.cache.entry import Entry, write_whole
from harmonyd.cache.store import CacheStore
from harmonyd.dimse.engine import Instance
from harmonyd.waiters import Waiters

MAX_DOCUMENTS = 6
"""Of one entry. Their number is the clients' choice: their content depends on how they call us."""
MAX_HASHED_BYTES = 16_000_000
"""More would be a wait before the first byte."""
_GZIP, _GZIP_LEVEL = 31, 5
Make = Callable[[Path], bytes]


@dataclass(frozen=True, slots=True)
class Document:
    """A file that can be sent as it is."""

    path: Path
    length: int
    etag: str
    """A hash of the content, in quotation marks (RFC 9110 section 8.8.3)."""


def made_of(entry: Entry, store: CacheStore) -> Made:
    """Return the one that belongs to an entry."""
    if entry.made is None:
        entry.made = Made(entry, store)
    return entry.made


class Made:
    """Belongs to one entry."""

    def __init__(self, entry: Entry, store: CacheStore) -> None:
        self.entry = entry
        self.in_thread = store.in_thread
        self._store = store
        self._under_way: dict[str, Waiters[object]] = {}
        self._fingerprints: dict[str, str] = {}
        self._documents: OrderedDict[str, Document] = OrderedDict()

    async def text(self, instance: Instance, make: Make) -> bytes:
        """What ``make`` returns for the file of an instance, from the disk where it was made before.

        ``make`` runs in a thread. Raises what it raises.
        """

        async def read() -> bytes:
            data: bytes
            data, added = await self.in_thread(self._text, instance, make)
            self._grew(added)
            return data

        found = await self._once(instance.path.name, read)
        assert isinstance(found, bytes)
        return found

    async def fingerprint(self, instance: Instance) -> str:
        """Return what is the same for the same bytes; of a big file only while it is in this entry. Raises OSError."""
        name = instance.path.name
        if instance.size_bytes > MAX_HASHED_BYTES:
            return f"{self.entry.id}/{name}"
        known = self._fingerprints.get(name)
        if known is None:
            known = self._fingerprints[name] = await self.in_thread(_hash, instance.path)
        return known

    async def document(
        self, name: str, instances: Sequence[Instance], make: Make, finish: Callable[[bytes], bytes], *, gzipped: bool
    ) -> Document:
        """A JSON array of the texts of ``instances``, each passed through ``finish``; one ``name`` has one content.

        Raises OSError, and what ``make`` raises.
        """
        name = f"{name}.gz" if gzipped else name
        found = self._documents.get(name)
        if found is not None:
            self._documents.move_to_end(name)
            return found

        async def write() -> Document:
            document: Document
            document, added = await self.in_thread(self._write, name, instances, make, finish, gzipped)
            self._grew(added)
            self._documents[name] = document
            while len(self._documents) > MAX_DOCUMENTS:
                _, oldest = self._documents.popitem(last=False)
                self._grew(-oldest.length)
                await self.in_thread(oldest.path.unlink, True)
            return document

        made = await self._once(name, write)
        assert isinstance(made, Document)
        return made

    async def _once(self, name: str, make: Callable[[], Awaitable[object]]) -> object:
        """Make it once for all who ask meanwhile; who leaves does not end it for others."""
        waiters = self._under_way.get(name)
        if waiters is not None:
            return await waiters.wait()
        waiters = self._under_way[name] = Waiters()
        waiting = waiters.wait()
        Deferred.fromCoroutine(self._make(name, waiters, make))
        return await waiting

    async def _make(self, name: str, waiters: Waiters[object], make: Callable[[], Awaitable[object]]) -> None:
        self._store.hold(self.entry)
        try:
            result = await make()
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            del self._under_way[name]
            waiters.fail(error)
        else:
            del self._under_way[name]
            waiters.fire(result)
        finally:
            self._store.release(self.entry)

    def _grew(self, size_bytes: int) -> None:
        self._store.grew(self.entry, size_bytes)

    # --- blocking

    def _text(self, instance: Instance, make: Make) -> tuple[bytes, int]:
        path = self.entry.derived / f"{instance.path.name}.json"
        with suppress(FileNotFoundError):
            return path.read_bytes(), 0
        data = make(instance.path)
        # Without room for it, it is made again.
        with suppress(OSError):
            self.entry.derived.mkdir(exist_ok=True)
            write_whole(path, data)
            return data, len(data)
        return data, 0

    def _write(
        self,
        name: str,
        instances: Sequence[Instance],
        make: Make,
        finish: Callable[[bytes], bytes],
        gzipped: bool,
    ) -> tuple[Document, int]:
        added = 0

        def texts() -> Iterator[bytes]:
            nonlocal added
            for instance in instances:
                data, more = self._text(instance, make)
                added += more
                yield finish(data)

        path = self.entry.derived / name
        self.entry.derived.mkdir(exist_ok=True)
        temporary = path.with_name(f".{name}")
        digest, length = hashlib.sha256(), 0
        try:
            with temporary.open("wb") as file:
                for piece in _packed(_array(texts()), gzipped):
                    digest.update(piece)
                    length += file.write(piece)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        return Document(path, length, f'"{digest.hexdigest()[:32]}"'), added + length


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:64]


def _array(texts: Iterable[bytes]) -> Iterator[bytes]:
    before = b"["
    for text in texts:
        yield before + text
        before = b",\n"
    yield b"]\n" if before != b"[" else b"[]\n"


def _packed(pieces: Iterable[bytes], gzipped: bool) -> Iterator[bytes]:
    if not gzipped:
        yield from pieces
        return
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()
