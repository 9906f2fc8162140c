"""Who sends to a store SCP in tests: storescu, and callers made of bytes. All of it blocks: use it in a thread."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

from raw_scu import RawScu

from harmonyd.testing.processes import dcmtk

ENV = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"}


def storescu(port: int, *files: Path, calling: str = "SENDER", called: str = "SCP", host: str = "127.0.0.1") -> int:
    """Send files; returns the exit code."""
    command = [dcmtk("storescu"), "-aet", calling, "-aec", called, host, str(port), *map(str, files)]
    return subprocess.run(command, env=ENV, check=False, capture_output=True).returncode


def refused(port: int, **options: Any) -> tuple[int, bytes, bool]:
    """Ask for an association: kind and content of the answer, and whether the peer then closed in order."""
    with RawScu(port) as scu:
        kind, content = scu.associate(**options)
        return kind, content, not scu.rest()


def answers_to(port: int, *pieces: bytes, half_close: bool = False) -> list[int]:
    """Send bytes; the kinds of PDUs that come until the peer closes."""
    with RawScu(port) as scu:
        try:
            for piece in pieces:
                scu.send(piece)
            if half_close:
                scu.sock.shutdown(socket.SHUT_WR)
        except OSError:  # closed already
            return []
        return scu.rest()


def status_of(content: bytes) -> int:
    """Status (0000,0900) in a P-DATA-TF with a response."""
    at = content.index(b"\0\0\0\x09\2\0\0\0")
    return int.from_bytes(content[at + 8 : at + 10], "little")


def files_below(folder: Path) -> set[Path]:
    """All files, however deep."""
    return {path for path in folder.rglob("*") if path.is_file()}
