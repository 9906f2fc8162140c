"""The root of every error harmonyd raises on purpose.

Who has to act is decided once, where an error class is defined: the caller, the remote node, or us. The HTTP front end
maps classes to a status in one table (``harmonyd.web.problem``); nothing else decides a status.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar


class Fault(Enum):
    """Whose side has to change something."""

    CALLER = "caller"
    REMOTE = "remote"
    OURS = "ours"


class HarmonydError(Exception):
    """Base of all errors raised on purpose.

    ``detail`` is one sentence for the person who reads the answer; it is logged, too, so it holds no value of a query
    or an object, which may identify a patient. ``hint`` says which side changes what;
    ``extra`` holds JSON-ready members for a problem detail (RFC 9457 section 3.2).
    """

    fault: ClassVar[Fault] = Fault.OURS
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, hint: str | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.extra: dict[str, Any] = {key: value for key, value in extra.items() if value is not None}

    @property
    def told(self) -> str:
        """``detail``, and what the remote node wrote beside its status: for who asked, never for the log."""
        comment = self.extra.get("dimse_comment")
        return f"{self.detail}; it says: {comment}" if comment else self.detail


class BadRequest(HarmonydError):
    """The request cannot be understood or is not allowed to be asked like this."""

    fault = Fault.CALLER
    title = "Bad request"


class NotFound(HarmonydError):
    """No such route or operation, or nothing matched a retrieve."""

    fault = Fault.CALLER
    title = "Not found"


class MethodNotAllowed(HarmonydError):
    """The route exists, but not for this HTTP method; ``extra['allow']`` lists those that do."""

    fault = Fault.CALLER
    title = "Method not allowed"


class Conflict(HarmonydError):
    """What is asked for cannot be done to this thing in the state that it is in (RFC 9110 section 15.5.10)."""

    fault = Fault.CALLER
    title = "Not possible in this state"


class Gone(HarmonydError):
    """It was there and never will be again (RFC 9110 section 15.5.11)."""

    fault = Fault.CALLER
    title = "No longer there"


class NotAcceptable(HarmonydError):
    """None of the media types the client accepts can be produced (RFC 9110 section 12.5.1)."""

    fault = Fault.CALLER
    title = "Not acceptable"


class UnsupportedMediaType(HarmonydError):
    """The request body is of a kind this operation does not read."""

    fault = Fault.CALLER
    title = "Unsupported media type"


class PayloadTooLarge(HarmonydError):
    """A request body is larger than its limit."""

    fault = Fault.CALLER
    title = "Request body too large"


class RequestTimeout(HarmonydError):
    """The client took too long to send its request (RFC 9110 section 15.5.9)."""

    fault = Fault.CALLER
    title = "Request too slow"


class UriTooLong(HarmonydError):
    """The request line is longer than its limit (RFC 9110 section 15.5.15)."""

    fault = Fault.CALLER
    title = "Request line too long"


class HeadTooLarge(HarmonydError):
    """The head of a request has too many fields, or is too large (RFC 6585 section 5)."""

    fault = Fault.CALLER
    title = "Head of the request too large"


class RangeNotSatisfiable(HarmonydError):
    """There is no such part (RFC 9110 section 15.5.17); ``extra['content_range']`` says what there is."""

    fault = Fault.CALLER
    title = "Range not satisfiable"


class Forbidden(HarmonydError):
    """The configuration does not let this caller do this."""

    fault = Fault.CALLER
    title = "Forbidden"


class Unauthorized(HarmonydError):
    """The request shows no valid credentials (RFC 9110 section 15.5.2).

    ``extra['www_authenticate']`` says which would do.
    """

    fault = Fault.CALLER
    title = "Unauthorized"


class TooManyRequests(HarmonydError):
    """The caller is over one of its limits (RFC 6585 section 4).

    ``extra['retry_after_secs']`` says when to try again.
    """

    fault = Fault.CALLER
    title = "Too many requests"


class Unavailable(HarmonydError):
    """We cannot take this work now; ``extra['retry_after_secs']`` says when to try again."""

    fault = Fault.OURS
    title = "Not available now"


class DeadlinePassed(HarmonydError):
    """The operation's deadline passed before it was complete."""

    fault = Fault.REMOTE
    title = "Deadline passed"


class StorageFull(HarmonydError):
    """The disk cannot take what the operation has to write."""

    fault = Fault.OURS
    title = "Insufficient storage"


class RemoteError(HarmonydError):
    """Base of what a remote node did wrong: unreachable, refused, aborted, failure status, nonsense."""

    fault = Fault.REMOTE
    title = "The remote node failed"
