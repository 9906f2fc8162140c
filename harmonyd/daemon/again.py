"""Starting again in place: the same process, with everything new in it, the program's own files, too."""

from __future__ import annotations

import os
import signal
import sys

from harmonyd.telemetry.logging import stop_logging
from harmonyd.telemetry.notify import Notifier
from harmonyd.web.listening import passed_sockets

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def hold_signals() -> None:
    """Let signals to us wait from now on, also while a program takes our place (execve(2) keeps mask and waiting ones).

    Those that came earlier have been handled when this returns: whether to start again is decided after it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def take_signals() -> None:
    """Handle those that waited, and new ones as they come: call it once there are handlers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def start_again(notifier: Notifier) -> None:
    """Become a fresh harmonyd with the same command line; all must have been stopped. Raises OSError if that fails.

    Signals must be held: the fresh one takes them when it has handlers. To systemd it is the same service: same process
    id, same sockets, same watchdog.
    """
    stop_logging()
    sys.stdout.flush()
    sys.stderr.flush()
    environ = {**os.environ, **notifier.environment, **passed_sockets(os.environ)}
    os.execve(sys.executable, sys.orig_argv, environ)
