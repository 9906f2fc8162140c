"""What can go wrong in a pipeline itself, as opposed to its middleware and backends."""

from __future__ import annotations

from collections.abc import Mapping

from harmonyd.errors import Fault, HarmonydError, RemoteError


class UnknownBackend(HarmonydError):
    """Middleware chose a backend that its pipeline does not have."""

    fault = Fault.OURS
    title = "Misconfigured pipeline"


class DeliveryRefused(RemoteError):
    """A backend (or middleware) answered an inbound object with something other than success."""

    title = "The object was not accepted"


class DeliveryFailed(RemoteError):
    """An inbound object did not reach every backend.

    ``delivered`` names those that have it, ``errors`` holds the reason for each of the others.
    """

    title = "The object was not delivered"

    def __init__(self, delivered: tuple[str, ...], errors: Mapping[str, Exception]) -> None:
        reasons = "; ".join(f"{name}: {error}" for name, error in errors.items())
        super().__init__(f"Not delivered to {reasons}", delivered=list(delivered), failed=list(errors))
        self.delivered = delivered
        self.errors = errors
