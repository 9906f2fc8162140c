"""Pixels are decoded and pictures made in processes of their own (``codec_worker``), a few at once, as needed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from harmonyd import errors
from harmonyd.dimse.elements import MalformedDataset
from harmonyd.errors import DeadlinePassed, HarmonydError
from harmonyd.services.dicomweb.codec_frames import Closed, Nonsense, exactly, receive, send
from harmonyd.services.dicomweb.pixel_file import MAX_FRAME_BYTES, PixelFile
from harmonyd.services.dicomweb.rendering import Rendering
from harmonyd.services.dicomweb.transcoding import transcoded
from harmonyd.services.few_threads import FewThreads

MAX_WORKERS = 2
"""Frames that are decoded at the same time."""
TASK_SECS = 60.0
"""How long decoding a frame, or transcoding an object, may take."""
START_SECS = 60.0
"""How long a process may take to load its libraries."""
MAX_TASKS = 1000
"""After so many a process makes room for a new one: libraries of codecs are known to leak."""
_ENV = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}
_ERRORS: dict[str, type[HarmonydError]] = {
    "MalformedDataset": MalformedDataset,
    **{name: getattr(errors, name) for name in ("BadRequest", "NotAcceptable", "NotFound")},
}
"""What a worker may raise over here; anything else is a defect of ours."""
COMMAND = (sys.executable, "-P", "-m", "harmonyd.services.dicomweb.codec_worker")
_log = Logger(namespace="harmonyd.codecs")


class _Worker:
    """One process. Everything here blocks."""

    def __init__(self, command: Sequence[str]) -> None:
        """Raises OSError and ``Closed``."""
        self.tasks = 0
        self._sock, theirs = socket.socketpair()
        try:
            with theirs:
                env = {**_ENV, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
                self._process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=env,
                    cwd="/",
                    start_new_session=True,
                )
        except BaseException:
            self._sock.close()
            raise
        try:
            self._sock.settimeout(START_SECS)
            ready = receive(self._sock)
            if ready is None:
                raise Closed("it ended before it was ready")
        except BaseException:
            self.end()
            raise
        self.lacking: list[str] = ready[0].get("lacking", [])

    def do(self, task: dict[str, Any], files: Sequence[int], secs: float) -> bytes:
        """Raises ``HarmonydError``, OSError of the files, ``Closed`` when it has ended, and ``TimeoutError``."""
        self.tasks += 1
        # It ends itself a little later than we would end it: only when nobody is there to do so.
        self._sock.settimeout(secs)
        try:
            send(self._sock, {**task, "secs": secs + 5.0}, files)
            received = receive(self._sock)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed("it ended") from error
        if received is None:
            raise Closed("it ended")
        answer = received[0]
        length = answer.get("length")
        if not isinstance(length, int) or not 0 <= length <= 4 * MAX_FRAME_BYTES:
            raise Nonsense("an answer without a length")
        data = exactly(self._sock, length)
        _raise(answer)
        return data

    def end(self) -> str:
        """Kill it; returns how it had ended, if it had."""
        code = self._process.poll()
        if code is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        self._sock.close()  # not before: it would end by itself
        if code is None:
            return "was killed"
        named = -code in set(signal.Signals)
        return f"ended by {signal.Signals(-code).name}" if named else f"exited with code {code}"

    def kill(self) -> None:
        """End it while another thread waits for its answer."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def ended_alone(self) -> str:
        """How it ended: it is about to be a zombie, if its socket is closed."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        return self.end()


class Codecs:
    """Processes that decode. Used from the reactor's thread; ``close`` ends them."""

    def __init__(
        self,
        in_thread: Callable[..., Awaitable[Any]],
        *,
        limit: int = MAX_WORKERS,
        task_secs: float = TASK_SECS,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._run = FewThreads(in_thread, limit)
        self._in_thread = in_thread
        self._secs = task_secs
        self._command = command
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._closed = False
        self._was_said = False

    async def picture(self, image: PixelFile, frame: int, media_type: str, how: Rendering) -> bytes:
        """As ``rendering.render``."""
        task = {"do": "picture", "frame": frame, "type": media_type, "how": asdict(how)}
        data: bytes = await self._run(self._with_image, image.path, task)
        return data

    async def octets(self, image: PixelFile, frame: int) -> bytes:
        """As ``PixelFile.octets``."""
        data: bytes = await self._run(self._with_image, image.path, {"do": "octets", "frame": frame})
        return data

    async def transcoded(self, source: Path, wanted: Sequence[str]) -> Path:
        """As ``transcoding.transcoded``."""
        path: Path = await self._run(partial(transcoded, source, wanted, self._transcode))
        return path

    async def close(self) -> None:
        """End the processes, also those that work; what they work on fails."""
        await self._in_thread(self._end_all)

    # --- in threads

    def _with_image(self, path: Path, task: dict[str, Any]) -> bytes:
        with path.open("rb") as file:
            return self._do(task, [file.fileno()])

    def _transcode(self, source: Path, target: Path, syntax: str) -> None:
        with source.open("rb") as read, target.open("xb") as written:
            self._do({"do": "transcode", "syntax": syntax}, [read.fileno(), written.fileno()])

    def _do(self, task: dict[str, Any], files: Sequence[int]) -> bytes:
        worker = self._taken()
        fit = False
        try:
            data = worker.do(task, files, self._secs)
            fit = True
            return data
        except (HarmonydError, FileNotFoundError, PermissionError):
            fit = True
            raise
        except Closed as ended:
            how = worker.end() if isinstance(ended, Nonsense) else worker.ended_alone()
            _log.error("a process that decodes pixels {how}", how=how)
            raise MalformedDataset(f"The pixels cannot be decoded: the codec {how}") from ended
        except TimeoutError:
            _log.error("a process that decodes pixels took more than {secs:g} s, and is ended", secs=self._secs)
            raise DeadlinePassed(
                f"The pixels were not decoded within {self._secs:g} s", hint="Ask for the frames as they are stored."
            ) from None
        finally:
            self._given_back(worker, fit=fit)

    def _taken(self) -> _Worker:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            try:
                worker = _Worker(self._command)
            except Closed as ended:
                raise RuntimeError(f"the process that decodes pixels does not start: {ended}") from ended
            self._say(worker.lacking)
        with self._lock:
            self._busy.add(worker)
        return worker

    def _say(self, lacking: Sequence[str]) -> None:
        if lacking and not self._was_said:
            self._was_said = True
            _log.warn("processes that decode pixels are held by limits only: {lacking}", lacking="; ".join(lacking))

    def _given_back(self, worker: _Worker, *, fit: bool) -> None:
        with self._lock:
            self._busy.discard(worker)
            if fit and worker.tasks < MAX_TASKS and not self._closed:
                self._idle.append(worker)
                return
        worker.end()

    def _end_all(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for worker in idle:
            worker.end()
        for worker in busy:
            worker.kill()


def _raise(answer: dict[str, Any]) -> None:
    name = answer.get("error")
    if name is None:
        return
    detail, hint = str(answer.get("detail"))[:2000], answer.get("hint")
    if name == "OSError":
        raise OSError(int(answer.get("errno") or 0), detail)
    kind = _ERRORS.get(str(name))
    if kind is None:
        raise RuntimeError(f"decoding failed, by our fault: {name}: {detail}")
    raise kind(detail, hint=str(hint)[:2000] if hint else None)
