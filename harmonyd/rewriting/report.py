"""What was done to each object, a JSON line each, without values. Blocking."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

from harmonyd.rewriting.objects import Rewritten

MAX_BYTES = 50 * 1000**2
"""Then the file becomes ``<name>.1``, in place of the one before."""


class Report:
    """A file that grows to ``MAX_BYTES``; None: nothing is written."""

    def __init__(self, path: Path | None, name: str) -> None:
        self._path = path
        self._name = name
        self._lock = threading.Lock()

    def write(self, request_id: str, rewritten: Rewritten) -> None:
        """Add a line. Raises ``OSError``."""
        if self._path is None:
            return
        line = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "middleware": self._name,
            "request": request_id,
            "sop_instance_uid": rewritten.sop_instance_uid,
            "actions": rewritten.done.told(),
        }
        data = (json.dumps(line) + "\n").encode()
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            try:
                os.write(descriptor, data)
                is_full = os.fstat(descriptor).st_size > MAX_BYTES
            finally:
                os.close(descriptor)
            if is_full:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
