"""TLS peers for tests: DCMTK's storescp, and plain sockets."""

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

from harmonyd.testing.certificates import Issued
from harmonyd.testing.processes import dcmtk, end_group, free_port, port_is_free, wait_until


def server_context(
    issued: Issued, *, client_ca: Path | None = None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """What a TLS server of Python's needs; ``client_ca``: it requires client certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = newest
    if newest < ssl.TLSVersion.TLSv1_2:
        context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(issued.cert, issued.key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


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
