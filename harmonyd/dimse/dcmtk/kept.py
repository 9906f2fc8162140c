"""A storescp that is kept running for what C-MOVE delivers, and the folder that it writes to."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.dimse.accept import quarantine
from harmonyd.dimse.artifacts import says_cannot_write
from harmonyd.dimse.dcmtk import argv
from harmonyd.dimse.dcmtk.arrivals import FolderWatch
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.engine import MoveReceiver
from harmonyd.dimse.quarantine import Quota
from harmonyd.landlock import Rights
from harmonyd.supervision.api import KeptChild, KeptSpec
from harmonyd.supervision.errors import SpawnError


class KeptReceiver:
    """One kept storescp and its folder. ``listener`` is told each complete file; without one, files are put aside.

    storescp refuses nobody by itself. When too much is in quarantine that nobody asked for, it is stopped, which cuts
    off who brings more; for the next move it runs again.
    """

    _log = Logger()

    def __init__(
        self, box: Toolbox, receiver: MoveReceiver, folder: Path, quarantine_folder: Path, quota: Quota
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.receiver = receiver
        self.folder = folder
        self.listener: Callable[[str], None] | None = None
        self.write_failed = False
        """The storescp has said that it could not write an object; whoever has the turn sets this back."""
        self._box = box
        self._quarantine = quarantine_folder
        self._quota = quota
        self._in_turn = False
        self._changing = DeferredLock()
        self._name = f"incoming-{receiver.port}"
        self._told = box.kept_line(f"storescp:{self._name}")
        self._watch = FolderWatch(box.reactor, folder, self._arrived, track_open=True)
        self.child: KeptChild | None = None
        """None while it is stopped because nobody may bring more."""
        try:
            self._run()
        except Exception:
            self._watch.close()
            raise

    def _run(self) -> None:
        receiver = self.receiver
        command = argv.storescp(
            self._box.tools["storescp"].path,
            local_aet=receiver.destination_aet,
            port=receiver.port,
            folder=self.folder,
            max_pdu=65536,
            association_timeout_secs=300.0,
        )
        port, aet = receiver.port, receiver.destination_aet
        rights = Rights(writes=(self.folder,), listens=(port,))
        self.child = self._box.supervisor.keep(
            KeptSpec("storescp", self._name, tuple(command), port, aet, on_line=self._line, rights=rights)
        )

    async def _stop_child(self) -> None:
        child, self.child = self.child, None
        if child is not None:
            await child.stop()
            self._box.supervisor.drop(child)

    async def begin_turn(self) -> None:
        """A move receives from now on. Raises ``SpawnError``."""
        async with self._changing:
            self._in_turn = True
            if self.child is None:
                self._run()

    async def end_turn(self) -> None:
        """The move is over; what it has not taken is put aside. Raises OSError."""
        self._in_turn = False
        self.listener = None
        await self.put_aside_rest()
        if not self._quota(0):
            await self._cut_off()

    async def _cut_off(self) -> None:
        """End the association that brings too much, with the storescp; a move that runs goes on with another one."""
        async with self._changing:
            if self.child is None:
                return
            self._log.error(
                "the quarantine for what nobody asked for is full: storescp:{name} is stopped{until}",
                name=self._name, until=", and started again" if self._in_turn else " until the next C-MOVE",
            )  # fmt: skip
            await self._stop_child()
            if self._in_turn:
                self._run()

    @property
    def source(self) -> Path:
        """See ``moves.Delivery``."""
        return self.folder

    def listen(self, offer: Callable[[str], None]) -> None:
        """See ``moves.Delivery``."""
        self.listener = offer

    async def sweep(self) -> list[str]:
        """See ``moves.Delivery``: the complete files nobody was told of."""
        names = self._watch.sweep()
        for name in names:
            self._watch.forget(name)
        return names

    def taken(self, names: Sequence[str]) -> None:
        """See ``moves.Delivery``."""

    def put_aside(self, size_bytes: int) -> None:
        """See ``moves.Delivery``."""
        if not self._quota(size_bytes):
            self._in_background(self._cut_off())

    async def put_aside_rest(self) -> None:
        """Quarantine what lies in the folder and belongs to nobody: at start-up, before and after each turn."""
        for name in await self.sweep():
            await self._put_aside(name)

    async def stop(self) -> None:
        """End the storescp for good, and put aside what it received for nobody."""
        try:
            async with self._changing:
                await self._stop_child()
            await self.put_aside_rest()
        finally:
            self.close()

    def close(self) -> None:
        self._watch.close()

    def _line(self, line: bytes) -> None:
        if says_cannot_write([line.decode("utf-8", "replace")]):
            self.write_failed = True
        if self._told is not None:
            self._told(line)

    def _arrived(self, name: str) -> None:
        self._watch.forget(name)
        if self.listener is not None:
            self.listener(name)
        else:
            self._in_background(self._put_aside(name))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        def failed(failure: Failure) -> None:
            if not isinstance(failure.value, SpawnError):  # nothing can be started any more: we are stopping
                self._log.failure("what nobody asked for could not be put aside", failure=failure, name=self._name)

        Deferred.fromCoroutine(work).addErrback(failed)

    async def _put_aside(self, name: str) -> None:
        path = self.folder / name
        reason = f"arrived at {self._name} while no C-MOVE was under way that could have asked for it"
        try:
            size: int = (await self._box.in_thread(path.stat)).st_size
            target = await self._box.in_thread(quarantine, path, self._quarantine, reason)
        except FileNotFoundError:
            # A sweep and the file's own event found it at the same time.
            return
        self._log.warn("an object nobody asked for is in quarantine: {target}", target=str(target), child=self._name)
        if not self._quota(size):
            await self._cut_off()
