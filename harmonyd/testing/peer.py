"""A peer that plays a script, in a process of its own: what real PACS do wrong, on demand.

``ScriptedPeer`` starts ``python -m harmonyd.testing.peer`` and reads what it saw, one JSON line an event. The process
itself needs pynetdicom (the ``test`` extra) for the scripts ``serve`` and ``no-contexts``.

Scripts:

``serve``        answers C-ECHO, C-FIND, C-GET, C-MOVE and C-STORE as ``PeerOptions`` say; a C-FIND that asks for
                 SOP Classes in Study, which comes before a C-GET, as it should
``no-contexts``  accepts the association and refuses every presentation context that is proposed
``reject``       refuses the association with ``PeerOptions.reject``
``silent``       takes the connection and never answers
``garbage``      answers the first bytes with ``PeerOptions.garbage``
``close``        closes the connection when the first bytes arrive
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harmonyd.testing.processes import end_group, log_tail, wait_until

Event = dict[str, Any]
Report = Callable[..., None]
SCRIPTS = ("serve", "no-contexts", "reject", "silent", "garbage", "close")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """How the peer behaves. The defaults are a well-behaved node with three answers."""

    aet: str = "PEER"
    transfer_syntax: str = ""
    """UID of one to accept wherever it is proposed; else Implicit VR Little Endian comes first."""
    strict_aet: bool = False
    """Refuse a called AE title other than ``aet``."""
    users: Mapping[str, str] = field(default_factory=dict)
    """User names and passcodes, empty for none; when there are any, no other user identity is accepted."""
    count: int = 3
    """Answers to a C-FIND, instances of a C-GET or C-MOVE."""
    interval_secs: float = 0.0
    """Pause before each answer or instance."""
    status: int | None = None
    """Final status after ``count`` (C-ECHO: its status); None: the true one."""
    comment: str = ""
    """Error Comment (0000,0902) of the final response."""
    after: int | None = None
    """After so many answers or instances, do ``then`` instead of going on. A C-ECHO heeds it when it is 0."""
    then: str = "hang"
    """hang, abort (A-ABORT), drop (TCP connection closed), garbage (bytes that are no PDU, then closed), or wait: go on
    when there is a file ``gate``."""
    gate: str = ""
    ignore_cancel: bool = False
    """Go on after a C-CANCEL, instead of ending with 0xFE00."""
    charset: str = "ascii"
    """Of the answers' text: a key of ``harmonyd.testing.data.CHARSETS``, or ``mixed`` for each in turn."""
    records: tuple[Mapping[str, Any], ...] = ()
    """C-FIND answers as DICOM JSON data sets, instead of made ones."""
    size: int = 64
    """Rows and columns of made instances."""
    destinations: Mapping[str, int] = field(default_factory=dict)
    """C-MOVE destinations: AE title to port on 127.0.0.1; another one is answered 0xA801."""
    failed: int = 0
    """Sub-operations of ``count`` that are not sent, and counted as failed."""
    withheld: int = 0
    """Sub-operations of ``count`` that are not sent, and counted as completed all the same."""
    extra: int = 0
    """C-GET, C-MOVE: instances of another study delivered as well, not counted."""
    late: int = 0
    """C-MOVE: instances of ``count`` delivered after the final response only."""
    late_secs: float = 0.2
    """How long after it."""
    duplicate: bool = False
    """Deliver each instance twice."""
    broken: str = ""
    """C-MOVE: what is wrong with the last instance, which is counted as completed all the same: ``abort`` (A-ABORT in
    the middle of it) or ``short`` (half of its data set, sent as if it were all)."""
    counters: bool = True
    """Send the sub-operation counters (they are optional in PS3.7)."""
    originator: bool = True
    """C-MOVE: name the move originator in the sub-operations."""
    originator_aet: str = ""
    """Who is named; empty: who asked."""
    store_statuses: tuple[int, ...] = (0x0000,)
    """Answers to C-STORE, in turn, over all associations."""
    commits: tuple[str, ...] = ("same",)
    """What is done with each N-ACTION of Storage Commitment in turn, the last one for ever: report over the ``same``
    association, or a ``new`` one to the port in ``destinations``, ``late`` when there is a file ``gate``; ``never``;
    ``refuse`` (0x0110); report an ``unknown`` transaction and no other; ``fail`` the first object, and commit to the
    others; ``empty``: all is well, and no object is named; ``garbage``: a report on nothing."""
    report_status: int = 0x0000
    """Answer to an N-EVENT-REPORT."""
    step_status: int = 0x0000
    """Answer to an N-CREATE or N-SET."""
    reject: tuple[int, int, int] = (2, 3, 2)
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 section 9.3.4): transient, local limit exceeded."""
    garbage: str = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<html>nonsense</html>"


class ScriptedPeer:
    """A peer as a context manager: listening when entered, gone when left.

    ``options`` are those of ``PeerOptions``. Events have ``event`` (listening, association, request, response, stored,
    n-action, n-event-report, reported, n-create, n-set, hanging, waiting, cancel, delivered-late, released, aborted,
    rejected, closed, error) and ``id``, the association's
    number.
    """

    def __init__(self, script: str = "serve", *, port: int = 0, **options: Any) -> None:
        if script not in SCRIPTS:
            raise ValueError(f"unknown script {script!r}; there are {', '.join(SCRIPTS)}")
        self.options = PeerOptions(**options)
        self._argv = _argv(script, port, self.options)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port

    @property
    def aet(self) -> str:
        return self.options.aet

    def events(self, name: str | None = None) -> list[Event]:
        """What was reported so far, all or of one name."""
        lines = self._output.read_bytes().split(b"\n")[:-1]
        events: list[Event] = [json.loads(line) for line in lines]
        return [event for event in events if name in (None, event["event"])]

    def wait_for(self, name: str, count: int = 1, timeout_secs: float = 30.0) -> Event:
        """Wait until ``count`` events of that name are there, and return the last of them."""
        try:
            return wait_until(lambda: self.events(name)[count - 1 : count], f"peer reports {name}", timeout_secs)[0]
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it reported {self.events()} and said {log_tail(self._errors)}") from None

    def start(self) -> Self:
        """Start it and wait until it listens; ``port`` is then known."""
        self._folder = tempfile.TemporaryDirectory(prefix="peer-")
        self._output = Path(self._folder.name, "events.jsonl")
        self._errors = Path(self._folder.name, "errors.log")
        with self._output.open("ab") as output, self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                env=_environment(),
            )
        try:
            self.port = int(self.wait_for("listening", timeout_secs=30.0)["port"])
        except TimeoutError:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it; safe to call twice."""
        if self._process is None:
            return
        end_group(self._process)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _environment() -> dict[str, str]:
    """Ours, without what would have its coverage measured: a peer has to be quick."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def _argv(script: str, port: int, options: PeerOptions) -> list[str]:
    module = [sys.executable, "-m", "harmonyd.testing.peer"]
    return [*module, "--script", script, "--port", str(port), "--options", json.dumps(asdict(options))]


def parse_options(text: str) -> PeerOptions:
    """The options as ``--options`` carries them: a JSON object."""
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(text).items()
    }
    return PeerOptions(**given)


def reporter() -> Report:
    """A thread-safe function that writes one event a line to standard output."""
    lock = threading.Lock()

    def report(event: str, **members: Any) -> None:
        line = json.dumps({"event": event, "at": time.time(), **members}, default=str)
        with lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    return report


def _end_with_parent() -> None:
    """End this process when whoever started it is gone: its end of our standard input is then closed."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Play one script until a signal, or the end of standard input."""
    parser = argparse.ArgumentParser(prog="python -m harmonyd.testing.peer", description=main.__doc__)
    parser.add_argument("--script", choices=SCRIPTS, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--options", type=parse_options, default=PeerOptions(), help="a JSON object of PeerOptions")
    arguments = parser.parse_args()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if arguments.script in ("serve", "no-contexts"):
        from harmonyd.testing.peer_dicom import serve

        serve(arguments.port, arguments.options, reporter(), contexts=arguments.script == "serve")
    else:
        from harmonyd.testing.peer_raw import play

        play(arguments.script, arguments.port, arguments.options, reporter())


if __name__ == "__main__":
    main()
