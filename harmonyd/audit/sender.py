"""The thread that brings the backlog to the collector, for as long as there is one."""

from __future__ import annotations

import random
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable

from twisted.logger import Logger

from harmonyd.audit.backlog import Backlog, Waiting
from harmonyd.audit.syslog import Connection
from harmonyd.config.audit_model import AuditSyslog

MOST_AT_ONCE = 200
FIRST_WAIT_SECS = 0.5
MOST_WAIT_SECS = 60.0
JOIN_SECS = 2.0


def wait_secs(failures: int, share: float) -> float:
    """How long to wait after so many failures in a row; ``share``: 0 to 1."""
    return float(min(MOST_WAIT_SECS, FIRST_WAIT_SECS * 2.0 ** min(failures - 1, 20))) * (0.5 + share / 2)


class Sender:
    """Sends the oldest first, and removes what was taken: at most a batch is sent twice, and none is left out."""

    _log = Logger("harmonyd.audit")

    def __init__(
        self,
        backlog: Backlog,
        removed: Callable[[], None],
        connect: Callable[[AuditSyslog], Connection] = Connection,
    ) -> None:
        """``removed`` is called, in the thread, when there is more room in the backlog."""
        self.delivered = 0
        self.delivered_at: float | None = None
        self.connected = False
        self._backlog = backlog
        self._removed = removed
        self._connect = connect
        self._settings: AuditSyslog | None = None
        self._changed = threading.Condition()
        self._news = False
        self._give_up_at: float | None = None
        """Set when it is to stop (``time.monotonic``)."""
        self._connection: Connection | None = None
        self._failures = 0
        self._complaint = ""
        self._thread: threading.Thread | None = None

    # --- from any thread

    def configure(self, settings: AuditSyslog | None) -> None:
        """Send there from now on; None: nowhere."""
        with self._changed:
            if settings != self._settings:
                self._settings = settings
                self._interrupt()
            if settings is not None and self._thread is None:
                self._give_up_at = None
                self._thread = threading.Thread(target=self._main, name="harmonyd-audit-syslog", daemon=True)
                self._thread.start()
        self.wake(at_once=True)

    def wake(self, *, at_once: bool = False) -> None:
        """There is something to send. ``at_once``: whatever has failed before."""
        with self._changed:
            self._news = self._news or at_once or not self._failures
            self._changed.notify()

    def stop(self, within_secs: float) -> None:
        """Send what can be sent so soon, and end. Blocks for so long at most, and a moment."""
        thread = self._thread
        if thread is None:
            return
        with self._changed:
            self._give_up_at = time.monotonic() + within_secs
        self.wake(at_once=True)
        thread.join(within_secs)
        if thread.is_alive():
            with self._changed:
                self._settings = None
                self._interrupt()
            thread.join(JOIN_SECS)
        self._thread = None

    def _interrupt(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    # --- in the thread

    def _main(self) -> None:
        while not self._is_over():
            try:
                self._send_all()
                self._sleep(None)
            except (OSError, ValueError, sqlite3.Error) as error:
                self._failed(error)
            except Exception:  # noqa: BLE001 - the thread goes on
                self._log.failure("audit messages cannot be sent, by our fault")
                self._failed(OSError("an error inside harmonyd"))
        self._hang_up()

    def _is_over(self) -> bool:
        if self._give_up_at is None:
            return False
        is_done = self._settings is None or not self._backlog.count or self._failures > 0
        return is_done or time.monotonic() > self._give_up_at

    def _send_all(self) -> None:
        while (settings := self._settings) is not None and (batch := self._backlog.first(MOST_AT_ONCE)):
            if self._connection is None:
                self._connection = self._connect(settings)
                self.connected = True
            self._connection.send(b"".join(each.body for each in batch))
            self._backlog.remove(batch)
            self._took(batch)
            if self._give_up_at is not None and time.monotonic() > self._give_up_at:
                return
        if self._settings is None:
            self._hang_up()

    def _took(self, batch: list[Waiting]) -> None:
        self.delivered += len(batch)
        self.delivered_at = time.time()
        if self._failures:
            self._log.info("the audit collector takes messages again: {count} wait", count=self._backlog.count)
        self._failures, self._complaint = 0, ""
        self._removed()

    def _failed(self, error: Exception) -> None:
        self._hang_up()
        self._failures += 1
        why = said(error)
        wait = wait_secs(self._failures, random.random())
        if why != self._complaint:
            self._complaint = why
            self._log.error(
                "the audit collector gets no messages: {why}; {count} wait on disk, again in {wait:.1f} s",
                why=why, count=self._backlog.count, wait=wait,
            )  # fmt: skip
        self._sleep(wait)

    def _sleep(self, secs: float | None) -> None:
        """Until there is news, or so long."""
        with self._changed:
            if self._give_up_at is None:
                self._changed.wait_for(lambda: self._news or self._give_up_at is not None, secs)
            self._news = False

    def _hang_up(self) -> None:
        with self._changed:
            connection, self._connection = self._connection, None
            self.connected = False
        if connection is not None:
            connection.close()


def said(error: Exception) -> str:
    """What is wrong with a connection, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {getattr(error, 'reason', None) or error}"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
