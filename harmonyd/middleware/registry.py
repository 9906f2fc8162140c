"""Which middleware types there are. A new one is one module and one line here."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harmonyd.audit.api import Auditor
from harmonyd.config.model import MiddlewareConfig
from harmonyd.errors import HarmonydError
from harmonyd.middleware.auth.api_key import ApiKey
from harmonyd.middleware.auth.authorize import Authorize
from harmonyd.middleware.auth.basic import BasicAuth
from harmonyd.middleware.auth.guard import Guard
from harmonyd.middleware.auth.peers import CallingAet, ClientCertificate
from harmonyd.middleware.base import Middleware
from harmonyd.middleware.json_extractor import JsonExtractor
from harmonyd.middleware.limiting import LimitState
from harmonyd.middleware.limits import Concurrency, RateLimit
from harmonyd.middleware.metadata import Metadata
from harmonyd.middleware.metadata_transform import MetadataTransform
from harmonyd.middleware.passthru import Passthru
from harmonyd.middleware.path_filter import PathFilter
from harmonyd.middleware.route import Route
from harmonyd.middleware.transform import Transform


@dataclass(frozen=True, slots=True)
class Resources:
    """What middleware is built from, beside its configuration."""

    reactor: Any
    in_thread: Callable[..., Awaitable[Any]]
    """Runs blocking work in the reactor's thread pool."""
    audit: Auditor
    guard: Guard
    """Of the whole daemon: who fails at one place has failed at all."""
    storage: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    """Where files are made, and kept, that are too big for memory."""
    decode: Callable[[Path], Awaitable[Path]] | None = None
    """Makes a file without compressed pixels, beside another one."""
    limits: LimitState = field(default_factory=lambda: LimitState(time.monotonic))
    """What limits of callers have counted so far."""


def _rewriting() -> Any:
    """Loads what few configurations need, and takes a moment."""
    from harmonyd.middleware import rewriting_types

    return rewriting_types


def _jwt_auth(config: MiddlewareConfig, given: Resources) -> Middleware:
    from harmonyd.middleware.auth.jwt_auth import JwtAuth  # with Twisted's HTTP client, which takes its time

    return JwtAuth(config.name, config.options, given.guard)


MIDDLEWARE_TYPES: Mapping[str, Callable[[MiddlewareConfig, Resources], Middleware]] = {
    "passthru": lambda config, _: Passthru(config.name),
    **dict.fromkeys(("dicomweb_bridge", "dicomweb"), lambda config, _: Passthru(config.name)),  # see config.dicomweb
    "path_filter": lambda config, _: PathFilter(config.name, config.options["rules"]),
    **dict.fromkeys(("json_extractor", "json"), lambda config, _: JsonExtractor(config.name)),
    "transform": lambda config, _: Transform(config.name, config.options),
    "metadata_transform": lambda config, _: MetadataTransform(config.name, config.options),
    "metadata": lambda config, _: Metadata(config.name, config.options),
    "basic_auth": lambda config, given: BasicAuth(config.name, config.options, given.guard),
    **dict.fromkeys(("jwt_auth", "jwtauth"), _jwt_auth),
    "api_key": lambda config, given: ApiKey(config.name, config.options, given.guard),
    "client_certificate": lambda config, given: ClientCertificate(config.name, config.options, given.guard),
    "calling_aet": lambda config, given: CallingAet(config.name, config.options, given.guard),
    "authorize": lambda config, given: Authorize(config.name, config.options, given.guard),
    "route": lambda config, _: Route(config.name, config.options["rules"], config.options["otherwise"]),
    "rate_limit": lambda config, resources: RateLimit(config.name, config.options, resources.limits),
    "rewrite": lambda config, given: _rewriting().rewrite(config, given),
    "deidentify": lambda config, given: _rewriting().deidentify(config, given),
    "concurrency": lambda config, resources: Concurrency(config.name, config.options, resources.limits),
}


def build(config: MiddlewareConfig, resources: Resources) -> Middleware:
    """Build a middleware from its validated configuration; raises ``HarmonydError`` for a type that is not built in."""
    factory = MIDDLEWARE_TYPES.get(config.type)
    if factory is None:
        raise HarmonydError(
            f"Middleware {config.name} has the unknown type {config.type!r}",
            hint=f"The types are: {', '.join(MIDDLEWARE_TYPES)}",
        )
    return factory(config, resources)
