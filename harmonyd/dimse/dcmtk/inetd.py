"""One inbound association: a ``storescp --inetd`` on the accepted socket, with a folder and a log of its own.

The log says when storescp answers a C-STORE request, and with which status. A file is closed before that, so it is held
back until the answer is known: what was not answered was acknowledged to nobody, however whole it looks.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from harmonyd.dimse.associate import ARTIM_SECS
from harmonyd.dimse.dcmtk import argv
from harmonyd.dimse.dcmtk.announced import Announced
from harmonyd.dimse.dcmtk.arrivals import FolderWatch, SharedInotify
from harmonyd.dimse.dcmtk.log_config import receiver_log_file
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.dcmtk.store_log import StoreLog
from harmonyd.dimse.dcmtk.wire import Wire
from harmonyd.dimse.engine import Association
from harmonyd.dimse.part10 import DamagedFile, check_complete
from harmonyd.landlock import Rights
from harmonyd.privacy import complaint
from harmonyd.supervision.api import ExitRecord, OnceChild, OnceSpec
from harmonyd.waiters import Waiters

MIN_BYTES = 1000
"""An association that brought less than this within its timeout is ended: the peer sends a byte now and then."""
MAX_LOG_BYTES = 64_000


class Receiving(Protocol):
    """How an owner receives over the associations it has accepted."""

    @property
    def folder(self) -> Path:
        """The associations' folders are made in it."""
        ...

    @property
    def max_pdu(self) -> int: ...

    @property
    def association_timeout_secs(self) -> float: ...

    def file_closed(self, association: InboundAssociation, path: Path) -> None:
        """A file was written and acknowledged. It may be damaged; it is the owner's from now on."""
        ...

    def ended(self, association: InboundAssociation) -> None:
        """The association is over, and every file of it was told."""
        ...


class InboundAssociation:
    """Runs from ``start`` to its end, whoever ends it."""

    _log = Logger()

    def __init__(
        self,
        box: Toolbox,
        wire: Wire,
        association: Association,
        receiving: Receiving,
        on_end: Callable[[InboundAssociation], None],
    ) -> None:
        self.association = association
        self.folder = receiving.folder / association.id
        self.released = False
        """The peer ended it in order."""
        self.has_ended = False
        self.files: set[Path] = set()
        """Told to the owner, and not settled."""
        self._held: deque[Path] = deque()
        """Closed, and not known to have been acknowledged; at most the last one can have been cut by an abort."""
        self.announced = Announced()
        self._log_of = StoreLog()
        self._told = 0
        self._box = box
        self._wire = wire
        self._sock = wire.sock
        self.receiving = receiving
        self._on_end = on_end
        self._watch: FolderWatch | None = None
        self._child: OnceChild | None = None
        self._idle_call: Any = None
        self._release_call: Any = None
        self._over: Waiters[None] = Waiters()

    def start(self, inotify: SharedInotify) -> None:
        """Raises OSError, ``EngineFailed`` and ``SpawnError``; the socket is closed then."""
        try:
            self.folder.mkdir(parents=True)
            self._watch = FolderWatch(self._box.reactor, self.folder, self._closed, track_open=True, shared=inotify)
            self._spawn()
        except BaseException:
            self._let_go()
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            raise
        if self._sock.fileno() >= 0:
            self._watch_idleness(self._wire.received_bytes())

    def _spawn(self) -> None:
        receiving, association = self.receiving, self.association
        command = argv.storescp_inetd(
            self._box.tools["storescp"].path,
            receiver_log_file(self._box.scratch),
            local_aet=association.called_aet,
            folder=self.folder,
            max_pdu=receiving.max_pdu,
            association_timeout_secs=receiving.association_timeout_secs,
        )
        self._sock.setblocking(True)  # storescp expects that; it shares the file description with us
        spec = OnceSpec(
            f"storescp:{association.id}",
            tuple(command),
            {"DCMDICTPATH": str(self._box.small_dictionary), **self._wire.env},
            log_fields={"operation": "receive"},
            on_line=self._line,
            max_output_bytes=MAX_LOG_BYTES,
            stdin=self._sock.fileno(),
            log_pipe=True,
            rights=Rights(reads=(self._box.scratch,), writes=(self.folder,)),
        )
        self._child = self._box.supervisor.run_once(spec)
        self._child.exited.addCallback(self._exited)

    async def stop(self) -> None:
        """End it; returns when it has ended and every file of it was told."""
        if self._child is not None:
            await self._child.stop()
        await self.when_ended()

    async def when_ended(self) -> None:
        """Return when it is over."""
        if not self.has_ended:
            await self._over.wait()

    def look(self) -> None:
        """Tell the owner of all files that are closed, also of those that nobody has told us of yet.

        For whoever knows from elsewhere that what was sent has been acknowledged.
        """
        if self._watch is not None and self._sock.fileno() >= 0:
            for name in self._watch.sweep():
                self._closed(name)
            self._tell(all_held=True)

    def originator_of(self, sop_instance_uid: str) -> str:
        """Move Originator AE title of an object that came over it; empty when it named none."""
        return self.announced.originator_of(sop_instance_uid)

    def settled(self, path: Path) -> None:
        """The owner is done with a file. The folder goes with the last one."""
        self.files.discard(path)
        if self.has_ended and not self.files:
            with contextlib.suppress(OSError):  # what is left there is offered again by a sweep
                self.folder.rmdir()

    # --- what the child says and writes

    def _line(self, line: bytes) -> None:
        self.announced.heard(line)
        self._log_of.feed(line)
        self._tell()
        if line == b"@INFO|Association Release":
            self._is_released()
        elif line.startswith((b"@WARN|", b"@ERROR|", b"@FATAL|")):
            said = complaint(line.partition(b"|")[2]).decode("utf-8", "replace")
            self._log.warn("{line}", line=said, child=f"storescp:{self.association.id}")
        if self._box.verbose:
            self._log.info("{line}", line=line.decode("utf-8", "replace"), child=f"storescp:{self.association.id}")

    def _closed(self, name: str) -> None:
        self._held.append(self.folder / name)
        self._tell()

    def _tell(self, *, all_held: bool = False) -> None:
        """Tell the owner of files that were acknowledged: storescp takes objects one by one."""
        while self._held and (all_held or len(self._held) > 1 or self._told < self._log_of.successes):
            path = self._held.popleft()
            self._told += 1
            self.files.add(path)
            self.receiving.file_closed(self, path)

    def _exited(self, record: ExitRecord) -> ExitRecord:
        rest: list[Path] = []
        try:
            assert self._watch is not None
            rest = [*self._held, *(self.folder / name for name in self._watch.sweep(writer_gone=True))]
        except OSError as error:  # a sweep of the owner finds what is there
            self._log.error("{folder} cannot be looked through: {error}", folder=str(self.folder), error=error)
        self._held.clear()
        self._let_go()
        Deferred.fromCoroutine(self._end(rest)).addErrback(
            lambda failure: self._log.failure("an association did not end as it should", failure=failure)
        )
        return record

    async def _end(self, rest: list[Path]) -> None:
        """Tell the rest, but for what was cut. In one go, unless files have to be looked at for that."""
        try:
            cut = await self._cut_among(rest)
            if cut is not None:
                rest.remove(cut)
                self._remove_cut(cut)
        finally:
            self._held.extend(rest)
            self._tell(all_held=True)
            self.has_ended = True
            self.receiving.ended(self)
            self._on_end(self)
            if not self.files:
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
            self._over.fire(None)

    async def _cut_among(self, rest: list[Path]) -> Path | None:
        """The one that was not acknowledged, if there is one among these.

        After lost inotify events it may be any of them, and the rest was acknowledged: then only one that is not whole
        can be it, and if that is not a single one, none is touched.
        """
        acknowledged = max(0, self._log_of.successes - self._told)
        if self.released or not self._log_of.is_cut or len(rest) <= acknowledged:
            return None
        if not acknowledged and len(rest) == 1:
            return rest[0]
        torn: list[Path] = await self._box.in_thread(_torn, rest)
        return torn[0] if len(torn) == 1 else None

    def _remove_cut(self, path: Path) -> None:
        """storescp removes it itself, unless it was killed."""
        try:
            path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            self._log.error("{path} cannot be removed: {error}", path=str(path), error=error)
        self._log.info(
            "{calling} was cut off in the middle of an object, and was not told that it had arrived",
            calling=self.association.calling_aet, child=f"storescp:{self.association.id}",
        )  # fmt: skip

    def _let_go(self) -> None:
        for call in (self._idle_call, self._release_call):
            if call is not None and call.active():
                call.cancel()
        if self._watch is not None:
            self._watch.close()
        self._sock.close()

    # --- a peer that does not close, or hardly sends anything

    def _is_released(self) -> None:
        """The peer has to close now; storescp would wait for that without end."""
        self.released = True
        if self._release_call is None and self._sock.fileno() >= 0:
            self._release_call = self._box.reactor.callLater(ARTIM_SECS, self._close_late)

    def _close_late(self) -> None:
        self._log.info(
            "{calling} ({peer}) has released its association, and kept the connection open: it is closed",
            calling=self.association.calling_aet, peer=self.association.peer, child=f"storescp:{self.association.id}",
        )  # fmt: skip
        self._stop_child()

    def _stop_child(self) -> None:
        if self._child is not None:
            Deferred.fromCoroutine(self._child.stop()).addErrback(
                lambda failure: self._log.failure("an association could not be ended", failure=failure)
            )

    def _watch_idleness(self, received: int) -> None:
        timeout = self.receiving.association_timeout_secs
        self._idle_call = self._box.reactor.callLater(timeout, self._look_whether_idle, received)

    def _look_whether_idle(self, before: int) -> None:
        received = self._wire.received_bytes()
        if received - before >= MIN_BYTES or self._child is None:
            self._watch_idleness(received)
            return
        self._log.warn(
            "the association with {calling} ({peer}) is ended: it brought {count} bytes in {secs:g} s",
            calling=self.association.calling_aet, peer=self.association.peer, count=received - before,
            secs=self.receiving.association_timeout_secs, child=f"storescp:{self.association.id}",
        )  # fmt: skip
        self._stop_child()


def _torn(paths: Sequence[Path]) -> list[Path]:
    """Those that are not whole. Blocking."""
    found = []
    for path in paths:
        try:
            check_complete(path)
        except DamagedFile:
            found.append(path)
        except OSError:  # gone, or unreadable now: nothing is known of it
            continue
    return found
