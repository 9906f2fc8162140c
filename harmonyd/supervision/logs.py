"""What kept children say: a ring buffer for those who ask, a rotated file, and the daemon's own log.

Lines stay bytes until they are shown. No failure to write stops the reader.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from twisted.logger import Logger, LogLevel

from harmonyd.config.daemon import SupervisionConfig
from harmonyd.privacy import Privacy, complaint
from harmonyd.telemetry.ring import RingBuffer

COMPLAIN_EVERY_SECS = 60.0

_SEVERITIES = {
    b"F:": LogLevel.critical,
    b"E:": LogLevel.error,
    b"W:": LogLevel.warn,
    b"I:": LogLevel.info,
    b"D:": LogLevel.debug,
    b"T:": LogLevel.debug,
}
_COMPLAINTS = (b"F:", b"E:", b"W:")
_NO_UID = re.compile(rb"(SOP Instance UID\s*:\s*)(?=[0-9.]*[^0-9.\s]).*", re.DOTALL)
"""DCMTK repeats whatever a peer sends for a UID."""


def _shown(line: bytes) -> bytes:
    line = _NO_UID.sub(rb"\1...", line)
    return complaint(line) if line.startswith(_COMPLAINTS) else line


def severity(line: bytes) -> LogLevel:
    """The level of a line by DCMTK's prefix; info where there is none."""
    level: LogLevel = _SEVERITIES.get(line[:2], LogLevel.info)
    return level


class RotatedFile:
    """A log file with ``backups`` older ones (``.1`` the youngest); never raises when it cannot write."""

    log = Logger()

    def __init__(self, path: Path, max_bytes: int, backups: int, clock: Callable[[], float]) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._clock = clock
        self._fd: int | None = None
        self._size_bytes = 0
        self._complained_at: float | None = None

    def configure(self, max_bytes: int, backups: int) -> None:
        """Go by these from the next line on; older files beyond ``backups`` stay."""
        self._max_bytes = max_bytes
        self._backups = backups

    def write(self, data: bytes) -> None:
        try:
            if self._fd is not None and self._size_bytes + len(data) > self._max_bytes:
                self._rotate()
            fd = self._open()
            self._size_bytes += os.write(fd, data)
        except OSError as error:
            self._complain(error)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def clear(self) -> None:
        """Begin with an empty file; older ones stay. Raises ``OSError``."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _open(self) -> int:
        if self._fd is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            self._size_bytes = os.fstat(self._fd).st_size
        return self._fd

    def _rotate(self) -> None:
        self.close()
        if not self._backups:
            self.path.unlink(missing_ok=True)
        for number in range(self._backups, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path

    def _complain(self, error: OSError) -> None:
        now = self._clock()
        if self._complained_at is None or now - self._complained_at >= COMPLAIN_EVERY_SECS:
            self._complained_at = now
            self.log.error(
                "cannot write {path}: {error}; output of the child is kept in memory only",
                path=str(self.path), error=str(error),
            )  # fmt: skip


def log_file_name(group: str, name: str) -> str:
    """``GROUP-NAME.log`` with nothing in it that a file name should not have."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{group}-{name}.log")


class ChildLog:
    """Everything a kept child says goes through here."""

    log = Logger()

    def __init__(self, child: str, ring: RingBuffer, file: RotatedFile) -> None:
        self._child = child
        self.ring = ring
        self.file = file

    def lines(self, pid: int, lines: Sequence[bytes]) -> None:
        """Keep a batch of lines of the process ``pid``."""
        if not Privacy.shows_patients:
            lines = [_shown(line) for line in lines]
        data = b"\n".join(lines) + b"\n"
        self.ring.write(data)
        self.file.write(data)
        for line in lines:
            level = severity(line)
            self.log.emit(
                level if level > LogLevel.info else LogLevel.debug,
                "{child}[{pid}]: {line}",
                child=self._child, pid=pid, line=line.decode("utf-8", "replace"),
            )  # fmt: skip

    def configure(self, config: SupervisionConfig) -> None:
        """Keep as much as the configuration says."""
        self.ring.resize(config.ring_buffer_bytes)
        self.file.configure(config.log_max_bytes, config.log_backups)

    def clear(self) -> None:
        """Forget what was said; rotated files stay. Raises ``OSError``."""
        self.ring.clear()
        self.file.clear()

    def last_lines(self, count: int) -> list[bytes]:
        return self.ring.tail(8192).splitlines()[-count:]

    def close(self) -> None:
        self.file.close()
