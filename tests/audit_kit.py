"""A collector of audit messages, with threads of its own and the standard library's TLS; and what messages say."""

from __future__ import annotations

import base64
import re
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self
from xml.etree.ElementTree import Element, fromstring

from harmonyd.audit.api import AuditEvent, AuditKind, Outcome
from harmonyd.config.audit_model import AuditSyslog
from harmonyd.testing.certificates import Authority, Issued
from harmonyd.testing.processes import free_port, wait_until
from harmonyd.tls import TlsClient

_HEAD = re.compile(
    rb"<(8[45])>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) ([\x21-\x7e]{1,255}) harmonyd (\d+) DICOM\+RFC3881 - "
)


class Collector:
    """Listens while entered, as often as that is, always on the same port. ``reads``: cleared, it stops reading."""

    def __init__(self, folder: Path, authority: Authority | None = None, issued: Issued | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = authority or Authority(folder, "collector-ca")
        self.issued = issued or self.authority.issue("collector")
        self.port = free_port()
        self.received = bytearray()
        self.connections = 0
        self.reads = Event()
        self.reads.set()
        self._left = Event()
        self._threads: list[Thread] = []
        self._open: list[socket.socket] = []

    @property
    def settings(self) -> AuditSyslog:
        return AuditSyslog("127.0.0.1", self.port, TlsClient(ca_file=self.authority.cert))

    def toml(self, **tls: Any) -> dict[str, Any]:
        """The table ``[audit.syslog]``."""
        return {"host": "127.0.0.1", "port": self.port, "tls": {"ca_file": str(self.authority.cert), **tls}}

    def __enter__(self) -> Self:
        self._left.clear()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.issued.cert, self.issued.key)
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", self.port))
        listening.listen()
        self._open = [listening]
        self._begin(self._accept, listening, context)
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self.reads.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._threads.clear()

    def _begin(self, work: Callable[..., None], *args: Any) -> None:
        thread = Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listening: socket.socket, context: ssl.SSLContext) -> None:
        with suppress(OSError):
            while not self._left.is_set():
                sock, _ = listening.accept()
                self._open.append(sock)
                self._begin(self._serve, sock, context)

    def _serve(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        with suppress(OSError, ValueError), sock, context.wrap_socket(sock, server_side=True) as secured:
            self._open.append(secured)
            self.connections += 1
            got = b""
            while not self._left.is_set():
                self.reads.wait(30)
                if self._left.is_set() or not (chunk := secured.recv(65536)):
                    break
                got += chunk
                whole, got = _split(got)
                self.received += whole

    @property
    def messages(self) -> list[Element]:
        """All that came whole, in the order in which they came."""
        return [message for message, _ in _parsed(bytes(self.received))]

    @property
    def priorities(self) -> list[int]:
        return [priority for _, priority in _parsed(bytes(self.received))]

    def wait(self, count: int, secs: float = 20) -> list[Element]:
        """Until there are so many."""
        return wait_until(lambda: (found := self.messages) if len(self.messages) >= count else None,
                          f"{count} audit messages are there", secs) or []  # fmt: skip

    def wait_for(self, wanted: Callable[[Element], bool], count: int = 1, secs: float = 20) -> list[Element]:
        """Until so many of these are there."""

        def found() -> list[Element] | None:
            matching = [each for each in self.messages if wanted(each)]
            return matching if len(matching) >= count else None

        return wait_until(found, f"{count} such audit messages are there", secs) or []


def _split(got: bytes) -> tuple[bytes, bytes]:
    """Whole frames, and the rest."""
    at = 0
    while (space := got.find(b" ", at)) >= 0:
        end = space + 1 + int(got[at:space])
        if end > len(got):
            break
        at = end
    return got[:at], got[at:]


def _parsed(frames: bytes) -> list[tuple[Element, int]]:
    found, at = [], 0
    while at < len(frames):
        space = frames.index(b" ", at)
        end = space + 1 + int(frames[at:space])
        body, at = frames[space + 1 : end], end
        head = _HEAD.match(body)
        assert head, body[:200]
        found.append((fromstring(body[head.end() :]), int(head[1])))
    return found


# --- what a message says


def kind(message: Element) -> str:
    """The meaning of its EventID."""
    return message.find("EventIdentification/EventID").get("originalText", "")  # type: ignore[union-attr]


def event_type(message: Element) -> str:
    return message.find("EventIdentification/EventTypeCode").get("originalText", "")  # type: ignore[union-attr]


def outcome(message: Element) -> str:
    return message.find("EventIdentification").get("EventOutcomeIndicator", "")  # type: ignore[union-attr]


def text(message: Element) -> str:
    return message.findtext("EventIdentification/EventOutcomeDescription", "")


def participants(message: Element) -> dict[str, Element]:
    """By the meaning of their role; "" for who has none."""
    return {
        "" if (role := each.find("RoleIDCode")) is None else role.get("originalText", ""): each
        for each in message.iter("ActiveParticipant")
    }


def objects(message: Element) -> dict[str, str]:
    """ParticipantObjectID by the meaning of its type."""
    return {
        each.find("ParticipantObjectIDTypeCode").get("originalText", ""): each.get("ParticipantObjectID", "")  # type: ignore[union-attr]
        for each in message.iter("ParticipantObjectIdentification")
    }


def counts(message: Element) -> dict[str, int]:
    """Instances by SOP Class UID."""
    return {each.get("UID", ""): int(each.get("NumberOfInstances", "")) for each in message.iter("SOPClass")}


def details(message: Element) -> dict[str, str]:
    found = message.iter("ParticipantObjectDetail")
    return {each.get("type", ""): base64.b64decode(each.get("value", "")).decode() for each in found}


def alert(text: str = "somebody knocked", **details: str) -> AuditEvent:
    """A security alert."""
    return AuditEvent(AuditKind.SECURITY_ALERT, Outcome.MINOR_FAILURE, text, details=details)
