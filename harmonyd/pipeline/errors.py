"""What can go wrong in a pipeline itself, as opposed to its middleware and backends."""

from __future__ import annotations

from harmonyd.errors import Fault, HarmonydError, RemoteError


class UnknownBackend(HarmonydError):
    """Middleware chose a backend that its pipeline does not have."""

    fault = Fault.OURS
    title = "Misconfigured pipeline"


class DeliveryRefused(RemoteError):
    """A backend (or middleware) answered an inbound object with something other than success.

    ``extra['status']``: the status of the answer, where that was it.
    """

    title = "The object was not accepted"


class MiddlewareRefused(DeliveryRefused):
    """The same, from middleware: no backend was asked."""


class NotTried(HarmonydError):
    """The object was not sent: another one of the same delivery was in the way. It may well be taken next time."""

    title = "The object was not sent"
