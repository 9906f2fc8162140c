"""Kept children: real receivers, and an hour of failures on a simulated clock."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure

from harmonyd.config.model import SupervisionConfig
from harmonyd.supervision import leftovers
from harmonyd.supervision.api import KeptSpec
from harmonyd.supervision.errors import ChildNotReady
from harmonyd.supervision.kept import Kept
from harmonyd.supervision.ports import owned_by_session
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.supervision.states import IllegalTransition
from harmonyd.supervision.watcher import members
from harmonyd.testing.processes import free_port

from .conftest import FAST  # type: ignore[import-not-found]

Supervise = Callable[..., ProcessSupervisor]
Spec = Callable[..., KeptSpec]
Until = Callable[[Callable[[], object]], Awaitable[None]]
Association = Callable[[int, str], socket.socket]


def script(text: str, port: int = 0) -> KeptSpec:
    """A child that is no receiver."""
    return KeptSpec("test", "script", ("/bin/sh", "-c", text), port or free_port(), "ANY")
