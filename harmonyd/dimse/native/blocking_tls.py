"""TLS over a blocking socket, with the standard library and the same rules as ``secure``."""

from __future__ import annotations

import socket
import ssl
import time

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import EngineFailed, TlsFailed
from harmonyd.dimse.tls_failures import NOT_PINNED, Trouble, handshake_timeout, tls_failure
from harmonyd.tls import TlsClient, client_context, expected_name, fingerprint


def secured(sock: socket.socket, remote: RemoteNode, settings: TlsClient, give_up_at: float) -> ssl.SSLSocket:
    """Shake hands until ``give_up_at`` (``time.monotonic``). The socket is closed when that fails.

    Raises ``TlsFailed``, ``DimseTimeout``, and ``EngineFailed`` when our own files cannot be used.
    """
    try:
        context = _context(remote, settings)
        sock.settimeout(max(0.1, give_up_at - time.monotonic()))
        made = context.wrap_socket(sock, server_hostname=expected_name(settings, remote.host))
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise handshake_timeout(remote) from None
        if isinstance(error, OSError):
            raise failure_of(remote, error) from None
        raise
    found = fingerprint(made.getpeercert(binary_form=True) or b"")
    if settings.pinned_sha256 and found not in settings.pinned_sha256:
        made.close()
        raise tls_failure(remote, Trouble(verify_code=NOT_PINNED, certificate_sha256=found))
    return made


def failure_of(remote: RemoteNode, error: OSError, *, certificate_accepted: bool | None = None) -> TlsFailed:
    """What the standard library says, in our words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return tls_failure(remote, Trouble(verify_code=error.verify_code, verify_text=error.verify_message))
    reason = (error.reason or str(error)) if isinstance(error, ssl.SSLError) else ""
    return tls_failure(remote, Trouble(reason=reason, certificate_accepted=certificate_accepted))


def _context(remote: RemoteNode, settings: TlsClient) -> ssl.SSLContext:
    try:
        return client_context(settings)
    except OSError as error:
        raise EngineFailed(
            f"The certificates of backend {remote.name} cannot be used: {error.strerror or error}",
            hint="harmonyd check says more; files must be replaced together.",
        ) from error


def certificate_of(sock: socket.socket, remote: RemoteNode, settings: TlsClient, timeout_secs: float) -> bytes | None:
    """The peer's certificate (DER), trusted or not, to be looked at; nothing is said to it. Closes the socket.

    None: the handshake fails for another reason.
    """
    with sock:
        sock.settimeout(timeout_secs)
        try:
            context = _context(remote, settings)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            with context.wrap_socket(sock, server_hostname=expected_name(settings, remote.host)) as made:
                return made.getpeercert(binary_form=True)
        except (OSError, ValueError, EngineFailed):
            return None
