"""Why there is no secure connection to a remote node, in the same words whichever library noticed."""

from __future__ import annotations

from dataclasses import dataclass

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import CertificateRefused, DimseTimeout, OurCertificateRefused, TlsFailed
from harmonyd.dimse.failures import node_text
from harmonyd.tls import TlsClient, expected_name
from harmonyd.tls_port import handshake_problem, is_tls

NOT_THE_NAME, NOT_THE_ADDRESS = 62, 64
"""OpenSSL's codes for a certificate of somebody else, as the next ones."""
NOT_PINNED = -1
"""Ours."""
_NOT_YET, _EXPIRED = 9, 10
_UNKNOWN_ISSUER = {2, 18, 19, 20, 21}
_CERTIFICATE_ALERTS = {
    *("unknown ca", "bad certificate", "certificate unknown", "certificate expired", "certificate revoked"),
    *("unsupported certificate", "access denied", "decrypt error"),
}
_NOT_TLS = ("wrong version number", "packet length too long", "not ssl", "http request", "record layer failure")
_OLD = ("unsupported protocol", "wrong ssl version", "no protocols available", "unexpected message version")


@dataclass(frozen=True, slots=True)
class Trouble:
    """What a TLS library says of a connection that failed."""

    reason: str = ""
    """OpenSSL's, in whatever spelling; empty: the peer closed the connection."""
    verify_code: int = 0
    """Why we refuse the peer's certificate; 0: we do not."""
    verify_text: str = ""
    certificate_sha256: str | None = None
    """Of the peer's certificate, where it was seen."""
    certificate_accepted: bool | None = False
    """We have seen the peer's certificate, and it was right; None: that is not known."""


def tls_failure(remote: RemoteNode, trouble: Trouble) -> TlsFailed:
    """The error for a handshake that failed, or a secure connection that broke before an association stood on it."""
    if trouble.verify_code:
        return _refused(remote, trouble)
    reason, alert = _said(trouble.reason)
    if alert:
        return _alerted(remote, alert, trouble)
    if not reason or "unexpected eof" in reason or "eof occurred" in reason:
        return _closed(remote, trouble)
    if any(text in reason for text in _OLD):
        return _too_old(remote)
    if any(text in reason for text in _NOT_TLS):
        return TlsFailed(
            f"What answers at {node_text(remote)} does not speak TLS",
            hint="Enter the PACS's TLS port (2762 by custom) as the backend's port, enable TLS at the PACS, or set "
            "use_tls = false if it has none.",
            tls="peer_speaks_plain",
        )
    return TlsFailed(
        f"The TLS handshake with {node_text(remote)} failed: {reason}",
        hint="The log of the PACS may say why.",
        tls="handshake",
    )


def speaks_tls(remote: RemoteNode, first_bytes: bytes) -> TlsFailed | None:
    """The error for an answer in TLS to what we said without; None when it is none."""
    if not is_tls(first_bytes):
        return None
    return TlsFailed(
        f"{node_text(remote)} answers with TLS, and the backend does not use it",
        hint="Set use_tls = true for the backend, or enter the PACS's port without TLS.",
        tls="peer_speaks_tls",
    )


def handshake_timeout(remote: RemoteNode) -> DimseTimeout:
    """A TCP connection, and no secure one in time."""
    return DimseTimeout(
        f"No TLS handshake with {node_text(remote)} within {remote.connect_timeout_secs:g} s, connecting included",
        hint="Check that the port is one on which the PACS speaks TLS; a port without it waits for us to go on.",
        timeout="connect",
    )


def _refused(remote: RemoteNode, trouble: Trouble) -> CertificateRefused:
    settings = remote.tls or TlsClient()
    if trouble.verify_code == NOT_PINNED:
        kind, what = "not_pinned", "is none of those in pinned_sha256"
        hint = "If the PACS has a new certificate, and its operator confirms its fingerprint, pin that one."
    elif trouble.verify_code in (NOT_THE_NAME, NOT_THE_ADDRESS):
        kind, what = "host_name", f"is not for {expected_name(settings, remote.host)} ({trouble.verify_text})"
        hint = (
            "Give the PACS a certificate with the name (or address) that the backend's host has, or set "
            "tls.server_name to a name that is in its certificate."
        )
    elif trouble.verify_code == _EXPIRED:
        kind, what, hint = "expired", "(or one of its authorities') has expired", "The PACS needs a new certificate."
    elif trouble.verify_code == _NOT_YET:
        kind, what = "not_yet_valid", "is not valid yet"
        hint = "Check the clocks of this machine and of the PACS."
    elif trouble.verify_code in _UNKNOWN_ISSUER:
        trusted = f"those in {settings.ca_file.name}" if settings.ca_file else "those that this system trusts"
        kind, what = "unknown_ca", f"is from no authority among {trusted}"
        hint = (
            "Set tls.ca_file to the certificate of the authority that made the PACS's one (itself, if it is "
            "self-signed), or pin it with tls.pinned_sha256."
        )
    else:
        kind, what = "certificate", f"cannot be trusted: {trouble.verify_text}"
        hint = "The PACS needs another certificate."
    return CertificateRefused(
        f"The certificate of {node_text(remote)} {what}",
        hint=hint,
        tls=kind,
        certificate_sha256=trouble.certificate_sha256,
    )


def _alerted(remote: RemoteNode, alert: str, trouble: Trouble) -> TlsFailed:
    has_own = remote.tls is not None and remote.tls.cert_file is not None
    if alert == "certificate required" or (alert == "handshake failure" and trouble.certificate_accepted):
        # TLS 1.2 has no alert of its own for it; without a suite in common we had not seen its certificate.
        return _our_certificate_needed(remote) if not has_own else _ours_refused(remote, alert)
    if alert in _CERTIFICATE_ALERTS:
        return _ours_refused(remote, alert) if has_own else _our_certificate_needed(remote)
    if alert == "protocol version":
        return _too_old(remote)
    if alert == "handshake failure" and trouble.certificate_accepted is None:
        return TlsFailed(
            f"{node_text(remote)} broke off the TLS handshake (alert: {alert})",
            hint="It requires another certificate of ours (tls.cert_file, tls.key_file), or offers neither TLS 1.3 nor "
            "TLS 1.2 with ECDHE and AES-GCM: its log says which.",
            tls="handshake",
        )
    if alert in ("handshake failure", "insufficient security"):
        return TlsFailed(
            f"{node_text(remote)} has no cipher suite in common with us (alert: {alert})",
            hint="Have the PACS offer TLS 1.3, or TLS 1.2 with ECDHE and AES-GCM (the BCP 195 profile of DICOM).",
            tls="cipher_suites",
        )
    if alert == "unrecognized name":
        return TlsFailed(
            f"{node_text(remote)} does not know the server name that we ask for",
            hint="Set tls.server_name of the backend to the name that the PACS has for itself.",
            tls="server_name",
        )
    return TlsFailed(
        f"{node_text(remote)} broke off the TLS handshake (alert: {alert})",
        hint="The log of the PACS says why.",
        tls="handshake",
    )


def _our_certificate_needed(remote: RemoteNode) -> OurCertificateRefused:
    return OurCertificateRefused(
        f"{node_text(remote)} requires a certificate of ours",
        hint="Set tls.cert_file and tls.key_file of the backend, and have the PACS trust that certificate's authority.",
        tls="client_certificate_required",
    )


def _ours_refused(remote: RemoteNode, alert: str) -> OurCertificateRefused:
    return OurCertificateRefused(
        f"{node_text(remote)} does not accept our certificate (alert: {alert})",
        hint="Have the PACS trust the authority of the certificate in tls.cert_file, or enter another one.",
        tls="client_certificate_refused",
    )


def _too_old(remote: RemoteNode) -> TlsFailed:
    return TlsFailed(
        f"{node_text(remote)} speaks neither TLS 1.2 nor TLS 1.3",
        hint="Have the PACS enable TLS 1.2 or later; older versions are not secure any more (RFC 8996).",
        tls="protocol_version",
    )


def _closed(remote: RemoteNode, trouble: Trouble) -> TlsFailed:
    may_need = "it may not speak TLS on this port"
    if trouble.certificate_accepted:
        may_need = "it may require another certificate of ours"
    return TlsFailed(
        f"{node_text(remote)} closed the connection during the TLS handshake; {may_need}",
        hint="Check that the port is the PACS's TLS port, and whether it wants client certificates; its log says why.",
        tls="closed",
    )



def _said(reason: str) -> tuple[str, str]:
    """What OpenSSL says, in one spelling, and the alert in that, if it is one of the peer's."""
    reason = reason.lower().replace("_", " ")
    return reason, reason.rpartition("alert ")[2] if "alert " in reason else ""


# --- a connection that a peer began


def inbound_problem(raw_bytes: bytes, reason: str, verify_code: int) -> str:
    """As ``handshake_problem``, for a port on which DICOM is spoken."""
    if raw_bytes[:2] == b"\x01\x00":
        return "it speaks DICOM without TLS, and this port is for TLS alone: set up TLS there, or use another port"
    return handshake_problem(raw_bytes, reason, verify_code)


def inbound_plain_problem(first_bytes: bytes) -> str:
    """What is wrong with who connected to a port of ours without TLS; empty when it is nothing of this kind."""
    if not is_tls(first_bytes):
        return ""
    return "it speaks TLS, and this port does not: give it a table tls, or switch TLS off there"
