"""Signals to the process."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import wait_until

HEAD = b"POST /dicom HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n"


def test_signals_while_it_stops(daemon: Callable[..., RunningDaemon]) -> None:
    """A second and third signal, while a request keeps it from stopping, neither break the stop nor log a failure."""
    running = daemon(backends={"echo": {"service": "echo"}})
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(HEAD)
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        os.kill(running.pid, signal.SIGTERM)
        wait_until(lambda: "is stopping" in running.log, "it stops")
        for number in (signal.SIGTERM, signal.SIGINT):
            before = running.log.count("already stopping")
            os.kill(running.pid, number)
            wait_until(lambda count=before: running.log.count("already stopping") > count, "the signal is told")
    assert running.wait_exit() == 0
    assert "has stopped" in running.log
    assert "Traceback" not in running.log
