"""What the outcome of a delivery means: to the spool, which tries again, and to a sender that waits for its answer."""

from __future__ import annotations

import errno

from twisted.logger import Logger

from harmonyd.dimse.engine import NotDelivered, Obstacle
from harmonyd.dimse.errors import AssociationRejected, DimseFailure, RemoteUnreachable
from harmonyd.dimse.status import StatusCategory, category
from harmonyd.errors import DeadlinePassed, Forbidden, HarmonydError, StorageFull, Unavailable
from harmonyd.pipeline.errors import DeliveryRefused, MiddlewareRefused, NotTried
from harmonyd.privacy import said
from harmonyd.services.archive.errors import ArchiveBusy
from harmonyd.services.dicom.guard import OutsideHours
from harmonyd.services.http.errors import UpstreamUnreachable
from harmonyd.spool.api import Delivered, Failed, Result, Untried

_log = Logger()

_AWAY = (RemoteUnreachable, AssociationRejected, UpstreamUnreachable, Unavailable, StorageFull)
"""What says nothing about the object: no other one would fare better at this backend now."""
_AWAY_TIMEOUTS = frozenset({"connect", "association", "queue"})
_AWAY_ERRORS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    }
)
"""Of the file system that a backend writes to, and of this process."""
_BUSY_STATUSES = frozenset({408, 429, 502, 503, 504, 507})
"""HTTP statuses that are about the server, not about what was sent (RFC 9110 section 15.6, RFC 6585 section 4)."""


def spool_result(outcome: Exception | None) -> Result:
    """For the spool; None: delivered."""
    if outcome is None:
        return Delivered()
    if isinstance(outcome, NotTried):
        return Untried()
    _say_our_fault(outcome)
    again = outcome.extra.get("retry_after_secs") if isinstance(outcome, OutsideHours | ArchiveBusy) else None
    return Failed(reason_of(outcome), is_away=_is_away(outcome), again_secs=again)


def obstacle(error: Exception) -> NotDelivered:
    """For a sender that waits."""
    _say_our_fault(error)
    if isinstance(error, NotTried) or _is_away(error):
        return NotDelivered(Obstacle.AWAY, reason_of(error))
    if isinstance(error, MiddlewareRefused | Forbidden):
        return NotDelivered(Obstacle.REFUSED, reason_of(error))
    return NotDelivered(Obstacle.FAILED, reason_of(error), _status(error))


def _status(error: Exception) -> int | None:
    """A failure that a remote node answered with."""
    said = error.extra.get("dimse_status") if isinstance(error, DimseFailure) else None
    status = int(said, 16) if said else 0
    return status if status and category(status) is StatusCategory.FAILURE else None


def _say_our_fault(error: Exception) -> None:
    if not isinstance(error, HarmonydError | OSError):
        kind = type(error).__name__
        _log.error("an object could not be delivered, by our fault: {kind}: {error}", kind=kind, error=error)


def _is_away(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _AWAY_ERRORS
    if isinstance(error, DeliveryRefused):
        return error.extra.get("status") in _BUSY_STATUSES
    if isinstance(error, DeadlinePassed):
        return error.extra.get("timeout") in _AWAY_TIMEOUTS
    if isinstance(error, DimseFailure):
        return str(error.extra.get("dimse_status", "")).startswith("0xA7")  # out of resources (PS3.4 B.2.3)
    return isinstance(error, _AWAY)


def reason_of(error: Exception) -> str:
    """For people; without what the error may quote of a patient."""
    if isinstance(error, HarmonydError):
        return said(error)
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
