"""What can go wrong between harmonyd and an HTTP client or an upstream HTTP server."""

from __future__ import annotations

from harmonyd.errors import RemoteError


class IncompleteAnswer(RemoteError):
    """An answer that is not whole, in a media type that cannot say so: it has to be cut, never ended."""

    title = "The answer is incomplete"


class UpstreamUnreachable(RemoteError):
    """No connection to the upstream HTTP server: refused, no route, unknown host."""

    title = "The upstream server cannot be reached"


class UpstreamFailed(RemoteError):
    """The upstream HTTP server broke off, or sent what is not HTTP."""

    title = "The upstream server failed"
