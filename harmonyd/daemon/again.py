"""Starting again in place: the same process, with everything new in it, the program's own files, too."""

from __future__ import annotations

import os
import signal
import sys

from harmonyd.telemetry.logging import stop_logging
from harmonyd.telemetry.notify import Notifier
from harmonyd.web.listening import passed_sockets


def start_again(notifier: Notifier) -> None:
    """Become a fresh harmonyd with the same command line; all must have been stopped. Raises OSError if that fails.

    To systemd it is the same service: same process id, same sockets, same watchdog.
    """
    stop_logging()
    sys.stdout.flush()
    sys.stderr.flush()
    # A reload that is asked for now must not end us before there is a handler again.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    environ = {**os.environ, **notifier.environment, **passed_sockets(os.environ)}
    os.execve(sys.executable, sys.orig_argv, environ)
