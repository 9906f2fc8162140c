"""What can go wrong at a DICOMweb archive, in the vocabulary that is there for DICOM nodes."""

from __future__ import annotations

import email.utils
import time
from typing import Any, ClassVar

from harmonyd.dimse.errors import AssociationAborted, AssociationRejected, DimseFailure
from harmonyd.errors import Fault, Unavailable

_BUSY = frozenset({408, 429, 502, 503, 504, 507})
"""Statuses that are about the server, not about what was asked (RFC 9110 section 15.6, RFC 6585 section 4)."""
_LONGEST_SECS = 3600


class ArchiveRefuses(AssociationRejected):
    """The archive, or who gives tokens for it, does not accept our credentials."""

    title = "The archive does not accept our credentials"


class ArchiveBusy(Unavailable):
    """The archive cannot answer now; ``extra['retry_after_secs']`` says when to try again."""

    fault: ClassVar[Fault] = Fault.REMOTE
    title = "The archive cannot answer now"


class ArchiveBroke(AssociationAborted):
    """The archive closed the connection before its answer was whole, or ended an answer that is not."""

    title = "The archive broke off"


class ArchiveFailure(DimseFailure):
    """The archive answered with an error; ``extra['http_status']``."""

    title = "The archive answered with an error"


def error_of(name: str, asked: str, status: int, retry_after: str | None = None) -> Exception:
    """The error for an answer that is none. ``asked``: for people, without identifiers of patients."""
    said = f"The archive of backend {name} answered {asked} with {status}"
    extra: dict[str, Any] = {"http_status": status}
    if status in _BUSY:
        wait = _seconds(retry_after)
        return ArchiveBusy(
            f"{said}: it cannot take it now", hint="Try again later.", backend=name, retry_after_secs=wait, **extra
        )
    if status == 401:
        hint = "Its credentials in the configuration are missing, wrong or have expired."
        return ArchiveRefuses(f"{said}: it does not accept our credentials", hint=hint, **extra)
    if status == 403:
        hint = "The archive knows us and does not let us do this: give our user the right, at the archive."
        return ArchiveFailure(f"{said}: we may not", hint=hint, dimse_status="0x0124", **extra)
    if status == 404:
        hint = "Check url and the prefixes of the backend: there may be no DICOMweb service at that address."
        return ArchiveFailure(f"{said}: there is no such resource", hint=hint, dimse_status="0x0112", **extra)
    if 300 <= status < 400:
        hint = "Give as url what the archive redirects to, if that is where its credentials may go."
        return ArchiveFailure(f"{said}: it redirects elsewhere", hint=hint, dimse_status="0x0110", **extra)
    hint = "The archive's own log says why."
    return ArchiveFailure(said, hint=hint, dimse_status="0x0110", **extra)


def _seconds(retry_after: str | None) -> int | None:
    """Of Retry-After (RFC 9110 section 10.2.3); None where there is none that makes sense."""
    if not retry_after:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(max(1, int(text[:9])), _LONGEST_SECS)
    try:
        when = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(1, round(when - time.time())), _LONGEST_SECS)
