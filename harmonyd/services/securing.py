"""What the OpenAPI document says of credentials: the middleware for identity as security schemes and requirements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harmonyd.config.model import MiddlewareConfig
from harmonyd.describe import Description, Schema
from harmonyd.permit import ANONYMOUS

__all__ = ["fields_of", "in_part", "secured"]

_AUTHORIZE = "authorize"
_REFUSALS = (401, 403, 429)
_BEARER: Schema = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
_FIXED: Mapping[str, Schema] = {
    "basic_auth": {"type": "http", "scheme": "basic"},
    "jwt_auth": _BEARER,
    "jwtauth": _BEARER,
    "client_certificate": {"type": "mutualTLS"},
}


def secured(found: Description, links: Sequence[MiddlewareConfig]) -> Description:
    """Return the description of what stands behind ``links``, too."""
    schemes = {link.name: scheme for link in links if (scheme := _scheme(link)) is not None}
    rules = [link for link in links if link.type == _AUTHORIZE]
    if not schemes and not rules:
        return found
    required = frozenset(link.name for link in links if link.name in schemes and not link.options["optional"])
    ways = [required | {link.name} for link in links if link.name in schemes and link.options["optional"]]
    if not ways or not rules or any(map(_knows_nobody, rules)):
        ways.append(required)
    before = found.security or (frozenset(),)
    return replace(
        found.having(problems=_REFUSALS),
        schemes={**found.schemes, **schemes},
        security=tuple(dict.fromkeys(one | other for one in before for other in ways)),
    )


def fields_of(links: Sequence[MiddlewareConfig]) -> tuple[str, ...]:
    """Names of header fields of the configuration's choice in which credentials are shown."""
    return tuple(link.options["header"] for link in links if link.type == "api_key")


def in_part(found: Description, links: Sequence[MiddlewareConfig]) -> Description:
    """The same, of what also those are answered who show nothing."""
    made = secured(found, links)
    return replace(made, security=(*made.security, frozenset())) if made.security else made


def _scheme(link: MiddlewareConfig) -> Schema | None:
    if link.type == "api_key":
        return {"type": "apiKey", "in": "header", "name": link.options["header"]}
    return _FIXED.get(link.type)


def _knows_nobody(link: MiddlewareConfig) -> bool:
    """Whether its rules let those do something who have no credentials."""
    rules: Sequence[Any] = link.options["rules"]
    return any(ANONYMOUS in rule.roles for rule in rules)
