"""A C-ECHO over a blocking socket, for a program that has no reactor."""

from __future__ import annotations

import socket
import ssl
import time

from harmonyd.dimse import failures
from harmonyd.dimse.engine import RemoteNode, SubOperations
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.blocking_tls import failure_of, secured
from harmonyd.dimse.native.client import association_request, error_for
from harmonyd.dimse.tls_failures import speaks_tls

_READ_BYTES = 65536


def ping(remote: RemoteNode) -> None:
    """Ask a node for a C-ECHO. Blocking, for at most its connect timeout and twice its association timeout.

    Raises what ``Engine.echo`` raises.
    """
    association = core.Association.requestor(
        association_request(remote, [(names.VERIFICATION, names.UNCOMPRESSED)])
    )
    with _connected(remote) as sock:
        sock.settimeout(remote.association_timeout_secs)
        give_up_at = time.monotonic() + 2 * remote.association_timeout_secs
        association.connected()
        accepted = False
        try:
            while time.monotonic() < give_up_at:
                data = _said_to(sock, association.data_to_send())
                if remote.tls is None and not accepted and (wrong := speaks_tls(remote, data)):
                    raise wrong
                for event in association.receive(data) if data else association.receive_eof():
                    accepted = accepted or isinstance(event, core.Accepted)
                    if _handle(association, event, remote, accepted=accepted):
                        sock.sendall(association.data_to_send())
                        return
        except TimeoutError:
            pass
        except ssl.SSLError as error:
            if accepted:
                raise failures.aborted(remote, accepted=True) from None
            raise failure_of(remote, error, certificate_accepted=True) from None
        except OSError:
            raise failures.aborted(remote, accepted=accepted) from None
    raise failures.silence(remote, accepted=accepted)


def _said_to(sock: socket.socket, data: bytes) -> bytes:
    """What comes next. A peer that has closed already may have said why; that is still to be read (TLS 1.3 does so)."""
    try:
        sock.sendall(data)
    except TimeoutError:
        raise
    except OSError:
        pass
    return sock.recv(_READ_BYTES)


def _handle(association: core.Association, event: core.Event, remote: RemoteNode, *, accepted: bool) -> bool:
    """Go on; true when the echo was answered with Success."""
    match event:
        case core.Accepted(contexts):
            context = contexts.find(names.VERIFICATION)
            if context is None:
                raise failures.no_context(remote)
            association.send(context.id, core.c_echo_rq(1))
        case core.CommandReceived(_, command) if command.field == core.CommandField.C_ECHO_RSP:
            failures.outcome_of("echo", command.status or 0, command.error_comment, SubOperations(), remote)
            association.release()
            return True
        case _:
            raise error_for(event, remote, accepted=accepted)
    return False


def _connected(remote: RemoteNode) -> socket.socket:
    began_at = time.monotonic()
    try:
        sock = socket.create_connection((remote.host, remote.port), timeout=remote.connect_timeout_secs)
    except (socket.gaierror, UnicodeError):
        raise failures.unknown_host(remote) from None
    except TimeoutError:
        raise failures.connect_timeout(remote) from None
    except OSError as error:
        raise failures.unreachable(remote, error.strerror or type(error).__name__) from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if remote.tls is None:
        return sock
    return secured(sock, remote, remote.tls, began_at + remote.connect_timeout_secs)
