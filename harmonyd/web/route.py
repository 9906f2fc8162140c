"""What the front end routes to: the endpoint half of a service, and the pipeline behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from harmonyd.describe import Description, segments_of
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.middleware.base import Middleware
from harmonyd.services.base import AskingEndpoint, HttpEndpoint, HttpRequest

__all__ = ["Route"]

_READING = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Route:
    """``handle`` is the pipeline that names ``endpoint``."""

    endpoint: HttpEndpoint | AskingEndpoint
    handle: Callable[[RequestEnvelope], Awaitable[ResponseEnvelope]]
    is_probe: bool = False
    """Machines ask all the time: while all is well, this is logged at debug level."""
    is_exact: bool = False
    """Serves its path itself, and nothing below it; an exact path wins over every prefix."""
    compresses: bool = True
    """Whether text goes out in gzip to clients that take it."""
    described: Description | None = None
    """What the OpenAPI document says of it."""
    identify: Callable[[RequestEnvelope], Awaitable[None]] | None = None
    """Finds out who asks, for what is answered without the pipeline."""
    action: str = ""
    """What a permit of the network has to allow, where no pipeline looks at it."""
    chain: tuple[Middleware, ...] = ()
    """The middleware of the network."""
    shown: tuple[str, ...] = ()
    """Names of header fields in which credentials are shown, where the configuration chose them."""
    is_open: Callable[[HttpRequest], bool] | None = None
    """Tells of a request that it passes without that."""

    @property
    def allowed(self) -> list[str]:
        """The methods that the endpoint takes, HEAD among them where GET is (RFC 9110 section 9.3.2); empty: any."""
        return _with_head(self.endpoint.methods)

    def allowed_at(self, path: str) -> list[str]:
        """The methods that ``path`` (after the prefix) takes, where its description has it; else ``allowed``."""
        segments = segments_of(path)
        operations = self.described.operations if self.described is not None else ()
        found = [item.method for item in operations if item.variables(segments) is not None]
        asking = ["OPTIONS"] if "OPTIONS" in self.endpoint.methods else []
        return _with_head([*found, *asking]) if found else self.allowed

    def allows(self, method: str) -> bool:
        """Tell whether the endpoint takes ``method``."""
        return not self.endpoint.methods or method in self.allowed


def _with_head(methods: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(each for method in methods for each in (_READING if method == "GET" else (method,))))
