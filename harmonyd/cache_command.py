"""``harmonyd cache``: how much of what was retrieved is kept, and empty it; whether or not the daemon runs."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from harmonyd import config as configuration
from harmonyd.cache.cache import FOLDER
from harmonyd.cache.entry import remove_all
from harmonyd.config.model import Config
from harmonyd.control.text import clean
from harmonyd.daemon.lock import LOCK_NAME, AlreadyRunning, RunLock

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
TIMEOUT_SECS = 60.0


def run(config_path: Path, command: str, *, as_json: bool = False) -> int:
    """Do ``command``, show or clear; return the exit status. Complaints go to standard error."""
    try:
        config = configuration.load(config_path)
    except configuration.ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIGURATION
    try:
        figures = _done(config, command)
    except Fault as fault:
        return _complain(f"the daemon says: {fault.faultString}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}; run this as the user that harmonyd runs as")
    except _CannotAsk as error:
        return _complain(str(error))
    if as_json:
        print(json.dumps(figures, indent=2))
    elif command == "clear":
        print(f"removed {figures['bytes']} bytes")
    else:
        print("\n".join(f"{key:<12} {_word(figure)}" for key, figure in figures.items()))
    return EXIT_OK


class _CannotAsk(Exception):
    """The daemon runs, and has no socket for us."""


def _done(config: Config, command: str) -> dict[str, Any]:
    folder = config.storage.path / FOLDER
    if not folder.exists():
        return {"enabled": config.cache.enabled, "bytes": 0}
    lock = RunLock(config.storage.path / "run" / LOCK_NAME)
    try:
        lock.take()
    except AlreadyRunning:
        return _asked(config, command)
    try:
        size = sum(_sizes(folder))
        if command == "clear":
            remove_all(folder)
        return {"enabled": config.cache.enabled, "bytes": size}
    finally:
        lock.release()


def _asked(config: Config, command: str) -> dict[str, Any]:
    if config.control.socket is None:
        raise _CannotAsk("harmonyd runs without a control socket; stop it, or name one in [control]")
    socket.setdefaulttimeout(TIMEOUT_SECS)
    transport = SupervisorTransport(None, None, f"unix://{config.control.socket}")
    daemon: Any = ServerProxy("http://127.0.0.1", transport).harmonyd
    figures: dict[str, Any] = daemon.clearCache() if command == "clear" else daemon.getCacheInfo()
    return {key: int(value) if isinstance(value, str) else value for key, value in figures.items()}


def _sizes(folder: Path) -> list[int]:
    return [(Path(path) / name).lstat().st_size for path, _, names in os.walk(folder) for name in names]


def _word(figure: Any) -> str:
    return ("no", "yes")[figure] if isinstance(figure, bool) else str(figure)


def _complain(text: str) -> int:
    print(f"harmonyd: {clean(text)}", file=sys.stderr)
    return EXIT_FAILED
