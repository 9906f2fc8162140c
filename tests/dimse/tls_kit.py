"""TLS peers for tests: DCMTK's storescp and storescu, and plain sockets."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raw_scp import Raw
from raw_scu import ASSOCIATE_AC, RawScu
from sender_kit import ENV

from harmonyd.testing.certificates import Authority, Issued
from harmonyd.testing.processes import dcmtk, end_group, free_port, port_is_free, wait_until
from harmonyd.tls import TlsServer


@dataclass
class TlsStorescp:
    """A storescp of DCMTK's over TLS, that runs."""

    port: int
    folder: Path
    aet: str = "STORESCP"


@contextmanager
def tls_storescp(folder: Path, issued: Issued, *options: str) -> Iterator[TlsStorescp]:
    """``options``: of storescp, such as ``-ic`` to require no client certificate."""
    folder.mkdir()
    port = free_port()
    own = ("+tls", str(issued.key), str(issued.cert))
    command = [dcmtk("storescp"), *own, *options, "+B", "-od", str(folder), str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as child:
        try:
            wait_until(lambda: not port_is_free(port), "storescp listens")
            yield TlsStorescp(port, folder)
        finally:
            end_group(child)


@contextmanager
def tls_socket(context: ssl.SSLContext) -> Iterator[Any]:
    """A node that shakes hands, says nothing, and notes how each connection ended in ``ends``."""
    listening = socket.create_server(("127.0.0.1", 0))
    node = SimpleNamespace(aet="TLS", port=listening.getsockname()[1], ends=[], versions=[])

    def serve() -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            sock.settimeout(5)
            try:
                with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as secure:
                    node.versions.append(secure.version())
                    while data := secure.recv(65536):
                        node.ends.append(data)
                    node.ends.append("close_notify")
            except OSError as error:
                node.ends.append(getattr(error, "reason", None) or type(error).__name__)
            finally:
                sock.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield node
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(10)


def secured(server: Issued, ca: Authority | None = None, **more: Any) -> TlsServer:
    """``ca``: callers need a certificate of this authority."""
    given = {"ca_file": ca.cert, "require_client_certificate": True} if ca is not None else {}
    return TlsServer(server.cert, server.key, **{**given, **more})


def storescu(running: Any, ca: Authority, *files: Path, own: Issued | None = None) -> int:
    """Send over TLS; the exit code. Blocking."""
    identity = ["+tla"] if own is None else ["+tls", str(own.key), str(own.cert)]
    command = [dcmtk("storescu"), *identity, "+cf", str(ca.cert), "-aec", "SCP", "127.0.0.1", str(running.port)]
    return subprocess.run([*command, *map(str, files)], env=ENV, check=False, capture_output=True).returncode


class TlsScu(RawScu):
    """A ``RawScu`` over TLS. Making one shakes hands, so do it in a thread."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__(port)
        try:
            self.sock = context.wrap_socket(self.sock, server_hostname="127.0.0.1")
        except BaseException:
            self.sock.close()
            raise


def associated(port: int, context: ssl.SSLContext) -> str:
    """Ask for an association, and release it; the version of TLS. Blocking. Raises OSError without one."""
    with TlsScu(port, context) as scu:
        kind, _ = scu.associate()
        if kind != ASSOCIATE_AC:
            raise ConnectionError(f"PDU {kind}")
        assert scu.release()
        assert isinstance(scu.sock, ssl.SSLSocket)
        return scu.sock.version() or ""


def answer_once(raw: Raw, answer: str) -> None:
    """Take the next connection, and say something (in hexadecimal) when the peer has. Blocking."""
    connection = raw.accept()
    connection.recv(10)
    connection.sendall(bytes.fromhex(answer))
