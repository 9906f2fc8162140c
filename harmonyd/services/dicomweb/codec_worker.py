"""The process that decodes pixels: a program of its own, which computes, and can do nothing else.

Codecs are C libraries, and the bytes they read come from wherever the PACS got them. What goes wrong in here ends this
process at most. It has no files but those that are handed to it with each task, no network, no programs to start, a
limit of memory and one of time.

A task is a frame of JSON with the descriptors of its files; the answer a frame of JSON, and the bytes it announces
(``codec_frames``). Standard input is the socket for both; when the daemon is gone it ends, and so does this.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from harmonyd import landlock, seccomp
from harmonyd.errors import HarmonydError, NotAcceptable
from harmonyd.services.dicomweb.codec_frames import receive, send
from harmonyd.services.dicomweb.pixel_file import PixelFile
from harmonyd.services.dicomweb.rendering import Rendering, render
from harmonyd.services.dicomweb.transcoding import write_as

MAX_MEMORY_BYTES = 8 << 30
"""Address space: a frame may have half a gigabyte, and is shown by way of numbers of eight bytes each."""


class Handed:
    """A file that was opened elsewhere; for ``PixelFile`` it is a path."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def open(self, _mode: str = "rb") -> BinaryIO:
        """Open it once more, from its begin. What was opened before moves with it."""
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        return os.fdopen(os.dup(self.descriptor), "rb")


class Worker:
    """Does tasks; keeps the image that it has read the header of, as the next frame is likely to be of the same."""

    def __init__(self) -> None:
        self._image: tuple[tuple[int, ...], PixelFile] | None = None

    def do(self, task: Mapping[str, Any], files: list[int]) -> bytes:
        """Return the bytes that answer a task. Raises ``HarmonydError`` and OSError."""
        if task["do"] == "transcode":
            _transcode(files[0], files[1], str(task["syntax"]))
            return b""
        image = self._opened(files[0])
        if task["do"] == "octets":
            return image.octets(int(task["frame"]))
        how = Rendering(**{key: _tuple(value) for key, value in task["how"].items()})
        return render(image, int(task["frame"]), str(task["type"]), how)

    def _opened(self, descriptor: int) -> PixelFile:
        found = os.fstat(descriptor)
        name = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._image is None or self._image[0] != name:
            self._forget()
            self._image = name, PixelFile(Handed(os.dup(descriptor)))
        return self._image[1]

    def _forget(self) -> None:
        if self._image is not None:
            os.close(self._image[1].path.descriptor)
            self._image = None


def _transcode(read: int, write: int, syntax: str) -> None:
    with os.fdopen(os.dup(read), "rb") as source, os.fdopen(os.dup(write), "wb") as target:
        try:
            write_as(source, target, syntax)
        except OSError:
            raise
        except Exception as error:
            raise NotAcceptable(str(error)[:200] or type(error).__name__) from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def confine() -> list[str]:
    """Give up what is not needed; returns what this machine could not take away."""
    lacking = []
    for which, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
    ):
        with suppress(ValueError, OSError):
            resource.setrlimit(which, (most, most))
    for name, give_up in (("landlock", _only_libraries), ("seccomp", seccomp.only_compute)):
        try:
            give_up()
        except OSError as error:
            lacking.append(f"{name}: {error}")
    return lacking


def _only_libraries() -> None:
    if not landlock.abi():
        raise OSError(0, "the kernel offers none")
    places = {sys.prefix, sys.base_prefix, *filter(None, sys.path)}
    rules = landlock.ruleset(landlock.Rights(reads=tuple(Path(place) for place in places)), Path(sys.executable))
    landlock.restrict_self(rules)
    os.close(rules)


def _answer(work: Callable[[], bytes]) -> tuple[dict[str, Any], bytes]:
    try:
        return {}, work()
    except HarmonydError as error:
        return {"error": type(error).__name__, "detail": error.detail, "hint": error.hint, "extra": error.extra}, b""
    except OSError as error:
        return {"error": "OSError", "errno": error.errno or 0, "detail": str(error)}, b""
    except MemoryError:
        return {"error": "MalformedDataset", "detail": "The object takes more memory than is allowed to decode it"}, b""
    except Exception as error:  # noqa: BLE001 - it is told where it can be logged
        return {"error": type(error).__name__, "detail": str(error)[:500]}, b""


def main() -> None:
    """Do tasks until the socket ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which ends us
    for library in ("numpy", "PIL.Image"):
        with suppress(ImportError):
            import_module(library)  # it looks at the machine when it is loaded
    lacking = confine()
    worker = Worker()
    with socket.socket(fileno=os.dup(0)) as sock:
        send(sock, {"ready": True, "lacking": lacking})
        while (received := receive(sock, max_files=2)) is not None:
            task, files = received
            signal.setitimer(signal.ITIMER_REAL, float(task["secs"]))
            try:
                answer, data = _answer(lambda task=task, files=files: worker.do(task, files))  # type: ignore[misc]
            finally:
                for each in files:
                    os.close(each)
            signal.setitimer(signal.ITIMER_REAL, 0)
            send(sock, {**answer, "length": len(data)}, data=data)


if __name__ == "__main__":
    main()
